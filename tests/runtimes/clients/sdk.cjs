// An app on the official Node SDK: node sdk.cjs chat|stream|upload|realtime|realtime-native
// It says nothing of where the API is and whom to trust. `realtime` is over the package ws,
// `realtime-native` over the WebSocket that the runtime brings.
const { OpenAI, toFile } = require('openai');

const client = new OpenAI({ timeout: 20_000, maxRetries: 0 });
const chat = { model: 'gpt-4o-mini', messages: [{ role: 'user', content: 'hi' }] };

const calls = {
  async chat() {
    const { data, response } = await client.chat.completions.create(chat).withResponse();
    return [response.status, data.choices[0].message.content];
  },
  async stream() {
    let text = '';
    for await (const chunk of await client.chat.completions.create({ ...chat, stream: true }))
      text += chunk.choices[0].delta.content ?? '';
    return [200, text];
  },
  async upload() {
    const file = await toFile(Buffer.from('{"ticket": 1}\n'.repeat(30_000)), 'tickets.jsonl');
    return [200, (await client.files.create({ file, purpose: 'batch' })).id];
  },
  realtime() {
    const { OpenAIRealtimeWS } = require('openai/realtime/ws');
    return talk(new OpenAIRealtimeWS({ model: 'gpt-realtime' }, client));
  },
  'realtime-native'() {
    const { OpenAIRealtimeWebSocket } = require('openai/realtime/websocket');
    const options = { model: 'gpt-realtime', dangerouslyAllowBrowser: true };
    return talk(new OpenAIRealtimeWebSocket(options, client));
  },
};

function talk(session) {
  const heard = [];
  return new Promise((resolve, reject) => {
    session.on('error', reject);
    session.on('event', (event) => {
      heard.push(event.type);
      if (heard.length === 2) return resolve([101, heard.join(' ')]);
      const update = { type: 'realtime', instructions: 'be brief' };
      session.send({ type: 'session.update', session: update });
    });
  });
}

const causes = (error) =>
  error ? [`${error.name}: ${error.message}`, ...causes(error.cause)] : [];

async function main() {
  try {
    const [status, text] = await calls[process.argv[2] ?? 'chat']();
    return { ok: true, status, text, error: null };
  } catch (error) {
    const status = error.status ?? null;
    return { ok: false, status, text: null, error: causes(error).join(' <- ') };
  }
}

main().then((outcome) => {
  console.log(JSON.stringify(outcome));
  process.exit(outcome.ok ? 0 : 1);
});
