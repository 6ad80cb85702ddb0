// An app without an SDK, on Node, Bun or Deno: plain.cjs fetch|undici
// `undici`: its code asks for the proxy of the environment. Of whom to trust it says nothing.
const calls = {
  fetch: (url, options) => fetch(url, options),
  undici(url, options) {
    const undici = require('undici');
    return undici.fetch(url, { ...options, dispatcher: new undici.EnvHttpProxyAgent() });
  },
};

const causes = (error) =>
  error ? [`${error.name}: ${error.message}`, ...causes(error.cause)] : [];

async function main() {
  try {
    const answer = await calls[process.argv[2] ?? 'fetch'](
      'https://api.openai.com/v1/chat/completions',
      {
        method: 'POST',
        headers: {
          'Content-Type': 'application/json',
          Authorization: `Bearer ${process.env.OPENAI_API_KEY}`,
        },
        body: JSON.stringify({
          model: 'gpt-4o-mini',
          messages: [{ role: 'user', content: 'hi' }],
        }),
        signal: AbortSignal.timeout(20_000),
      },
    );
    const { status } = answer;
    if (status !== 200) return { ok: false, status, text: null, error: await answer.text() };
    const text = (await answer.json()).choices[0].message.content;
    return { ok: true, status, text, error: null };
  } catch (error) {
    return { ok: false, status: null, text: null, error: causes(error).join(' <- ') };
  }
}

main().then((outcome) => {
  console.log(JSON.stringify(outcome));
  process.exit(outcome.ok ? 0 : 1);
});
