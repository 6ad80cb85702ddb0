// The official Node SDK against a `ScriptedUpstream`: node calls.mjs <base URL>
// Prints one JSON object, of each call by its name what the app sees. Nothing in it may depend on
// time or chance: it is compared with what the same calls give through the sidecar.
import { createHash } from 'node:crypto';
import net from 'node:net';
import OpenAI, { toFile } from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { ResponsesWS } from 'openai/resources/responses/ws';

const base = process.argv[2];
const client = new OpenAI({ baseURL: base, apiKey: 'sk-node', maxRetries: 0, timeout: 30_000 });
const retrying = client.withOptions({ maxRetries: 2 });
const messages = (text) => [{ role: 'user', content: text }];
const chat = (model, more = {}, options = {}, by = client) =>
  by.chat.completions.create({ model, messages: messages('hello'), ...more }, options);
// Of the connection, or of the moment.
const OF_THE_HOP = new Set(['connection', 'keep-alive', 'date']);

const headers = (response) => [...response.headers].filter(([name]) => !OF_THE_HOP.has(name));
const digest = (data) => createHash('sha256').update(Buffer.from(data)).digest('hex');
const noise = (size) => Buffer.alloc(size, 'understudy ✓');

async function all(stream) {
  const found = [];
  for await (const piece of stream) found.push(piece);
  return found;
}

async function failure(promise) {
  try {
    return { unexpected: await promise };
  } catch (error) {
    const { status, code, type, param, requestID, message } = error;
    return { name: error.constructor.name, status, code, type, param, requestID, message };
  }
}

const calls = {
  'an answer': () => chat('gpt-4o-mini'),
  'an answer with its head': async () => {
    const { data, response } = await chat('gpt-4o-mini').withResponse();
    return { data, status: response.status, headers: headers(response) };
  },
  'a stream': async () => all(await chat('gpt-4o-mini', { stream: true })),
  'a stream with its head': async () => {
    const { data, response } = await chat('gpt-4o-mini', { stream: true }).withResponse();
    return { chunks: await all(data), headers: headers(response) };
  },
  'a stream with named events': async () =>
    all(await client.responses.create({ model: 'gpt-4o', input: 'hi', stream: true })),
  'the stream helper': async () =>
    client.chat.completions.stream({ model: 'gpt-4o', messages: messages('hi') }).finalMessage(),
  'a compressed answer': () =>
    client.embeddings.create({ model: 'text-embedding-3-small', input: ['a', 'b'] }),
  'pages': async () => all(client.files.list()),
  'a deletion': () => client.files.delete('file-a'),
  'fifty calls at once': () =>
    Promise.all(
      Array.from({ length: 50 }, (_, number) =>
        client.chat.completions.create({ model: 'gpt-4o', messages: messages(`call ${number}`) }),
      ),
    ),

  'an upload': async () =>
    client.files.create({ file: await toFile(noise(1000), 'a ü".jsonl'), purpose: 'batch' }),
  'a large upload': async () =>
    client.files.create({ file: await toFile(noise(9_000_001), 'big.bin'), purpose: 'user_data' }),
  'an empty upload': async () =>
    client.files.create({ file: await toFile(noise(0), 'none.txt'), purpose: 'batch' }),
  'a transcription': async () =>
    client.audio.transcriptions.create({
      model: 'whisper-1',
      file: await toFile(noise(200_003), 'speech.mp3', { type: 'audio/mpeg' }),
      timestamp_granularities: ['word', 'segment'],
    }),
  'a download': async () => {
    const response = await client.files.content('file-a');
    const data = await response.arrayBuffer();
    return { size: data.byteLength, digest: digest(data), headers: headers(response) };
  },
  'sound that is streamed': async () => {
    const response = await client.audio.speech.create({ model: 'tts-1', voice: 'ash', input: 'x' });
    return digest(await response.arrayBuffer());
  },

  'errors': async () => {
    const found = {};
    for (const status of [400, 401, 403, 404, 409, 422, 429, 500, 503])
      found[status] = await failure(chat(`fail-${status}`));
    return found;
  },
  'an error instead of a stream': () => failure(chat('fail-429', { stream: true })),
  'a path that there is not': () => failure(client.get('/nowhere')),
  'a retry after milliseconds': () => chat('limited-ms', {}, {}, retrying),
  'a retry after seconds': () => chat('limited-s', {}, {}, retrying),
  'a retry of a stream': async () =>
    all(await chat('limited-s', { stream: true }, {}, retrying)),
  'a retry after a 500': () => chat('broken', {}, {}, retrying),
  'a retry after a 409': () => chat('conflict', {}, {}, retrying),
  'a retry of an upload': async () =>
    retrying.audio.transcriptions.create({
      model: 'limited-ms',
      file: await toFile(noise(300_000), 'speech.mp3'),
    }),
  'a retry that the upstream asks for': () => chat('odd-but-retry', {}, {}, retrying),
  'no retry where the upstream forbids it': () => failure(chat('stubborn', {}, {}, retrying)),
  'retries that run out': () => failure(chat('limited-ms', {}, { maxRetries: 1 })),
  'the rest of those retries': () => chat('limited-ms'),
  'a timeout': () => failure(chat('slow', {}, { timeout: 300 })),
  'a timeout, again': () => failure(chat('slow', {}, { timeout: 300, maxRetries: 1 })),
  'an abort before the answer': async () => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 200);
    return failure(chat('slow', {}, { signal: stop.signal }));
  },
  'an abort of a stream': async () => {
    const stream = await chat('endless', { stream: true });
    const found = [];
    for await (const chunk of stream) {
      found.push(chunk);
      if (found.length === 3) stream.controller.abort();
    }
    return found.slice(0, 3);
  },
  'a stream that is left': async () => {
    for await (const chunk of await chat('endless', { stream: true })) return chunk;
  },
};

// -- WebSockets

// The SDK dials wss: whatever the base URL says; plain HTTP takes a connection of our own.
const plain = base.startsWith('http:')
  ? { createConnection: ({ host, port }) => net.connect({ host, port }) }
  : {};

const realtime = (model, options = {}) =>
  new OpenAIRealtimeWS({ model, options: { ...plain, ...options } }, client);

/** Sends each of `events` once the answer to the one before has ended; what was heard, and the end. */
function talk(session, events, greeted) {
  return new Promise((resolve) => {
    const heard = [];
    const waiting = [...events];
    const next = () => {
      const event = waiting.shift();
      event ? session.send(event) : session.close({ code: 1000, reason: 'that was all' });
    };
    const ends = ['session.created', 'session.updated', 'response.completed'];
    session.on('event', (event) => {
      heard.push(event.delta?.length > 1000 ? { ...event, delta: digest(event.delta) } : event);
      if (ends.includes(event.type)) next();
    });
    session.on('error', (error) => heard.push({ error: error.message }));
    const socket = session.socket.socket ?? session.socket;
    socket.on('upgrade', (response) => heard.push({ request: response.headers['x-request-id'] }));
    socket.on('close', (code, reason) => resolve({ heard, code, reason: String(reason) }));
    if (!greeted) socket.on('open', next);
  });
}

const update = { type: 'session.update', session: { type: 'realtime', instructions: 'be brïef' } };
const create = (text) => ({ type: 'response.create', response: { instructions: text } });

const sockets = {
  'realtime': () => talk(realtime('gpt-realtime'), [update, create('hi'), create('again')], true),
  'realtime, large messages': () =>
    talk(realtime('gpt-realtime'), [create('big'), create('y'.repeat(2_000_000))], true),
  'realtime, compressed': () =>
    talk(realtime('gpt-realtime', { perMessageDeflate: true }), [create('big')], true),
  'realtime, closed by the upstream': () => talk(realtime('closing'), [], true),
  'realtime, refused': () => talk(realtime('fail-401'), [], true),
  'responses': () => {
    const socket = new ResponsesWS(client);
    return talk(socket, [{ type: 'response.create', model: 'gpt-4o', input: 'hi' }], false);
  },
};

const results = {};
for (const [name, call] of Object.entries({ ...calls, ...sockets })) {
  try {
    results[name] = await call();
  } catch (error) {
    results[name] = { failed: `${error.constructor.name}: ${error.message}` };
  }
}
process.stdout.write(JSON.stringify(results).replaceAll(base, 'BASE'));
process.exit(0);
