"""A stand-in for the OpenAI API: its shapes, headers and errors, and answers that are known.

It plays support: tickets in, labels (or JSON) out, looked up in the `answers` that it is given.
Like the real one it takes its time, contradicts itself now and then, refuses bad keys, and may
change its mind about the right labels (`relabel`). The demo and the tests talk to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from aiohttp import web

from bin.tickets import LABELS

LIMIT_MARKER: Final = "[[429]]"  # in the user's text: this request is over the rate limit
_MODELS: Final = ("gpt-4o-mini", "gpt-4o", "text-embedding-3-small")
_DATED: Final = {"gpt-4o-mini": "gpt-4o-mini-2024-07-18", "gpt-4o": "gpt-4o-2024-08-06"}
_SPREAD: Final = 0.35  # sigma of the lognormal latency: the 95th percentile is 1.8 times the median
_PIECE: Final = 6  # characters in one streamed delta
_GAP: Final = 0.02  # between two deltas, as a share of the median latency
_CHARACTERS_PER_TOKEN: Final = 4
_DIMENSIONS: Final = 8
_MOST_BODY: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived, to compare with what was sent."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said: a text, or the call of one tool."""

    text: str
    tool: str | None = None

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.tool else "stop"


class Refusal(Exception):
    """An error that OpenAI would answer with."""

    def __init__(
        self, status: int, message: str, kind: str, code: str | None, after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.after = status, after
        self.error = {"message": message, "type": kind, "param": None, "code": code}


@dataclass(slots=True)
class Standin:
    """The upstream of a show or a test: `async with Standin(answers) as upstream: upstream.url`.

    `disagreement`: share of answers that are wrong, drawn anew each time a text is asked again.
    `latency`: median seconds before the answer begins. `keys`: those that are accepted, None for
    any; may be changed at any time, as may `relabel`. `keep`: newest requests held in `received`.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    disagreement: float = 0.0
    latency: float = 0.0
    keys: set[str] | None = None
    keep: int = 1000
    relabel: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    received: deque[Received] = field(init=False)
    url: str = ""
    _asked: Counter[str] = field(default_factory=Counter)
    _chance: random.Random = field(default_factory=lambda: random.Random(4141))
    _runner: web.AppRunner | None = None

    def __post_init__(self) -> None:
        self.received = deque(maxlen=self.keep)

    @property
    def base_url(self) -> str:
        """What OPENAI_BASE_URL is for an app that talks to it directly."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MOST_BODY, middlewares=[self._front])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # -- every request

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        self.counts["requests"] += 1
        if self.received.maxlen:
            headers = tuple(request.headers.items())
            self.received.append(Received(request.method, request.path_qs, headers, body))
        try:
            self._check_key(request.headers.get("Authorization", ""))
            response: web.StreamResponse = await handler(request)
        except Refusal as refusal:
            return self._refused(refusal)
        except web.HTTPNotFound:
            return self._refused(_unknown_url(request))
        return response

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Refusal(401, _NO_KEY, "invalid_request_error", None)
        if self.keys is not None and key not in self.keys:
            shown = f"{key[:8]}{'*' * 8}{key[-4:]}"
            message = f"Incorrect API key provided: {shown}. {_FIND_KEY}"
            raise Refusal(401, message, "invalid_request_error", "invalid_api_key")

    def _refused(self, refusal: Refusal) -> web.Response:
        self.counts[str(refusal.status)] += 1
        headers = _headers(time.monotonic())
        if refusal.after is not None:
            headers["Retry-After"] = str(refusal.after)
        return web.json_response({"error": refusal.error}, status=refusal.status, headers=headers)

    # -- endpoints

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        asked = _parsed(await request.read())
        text = _question(asked)
        if LIMIT_MARKER in text:
            model = asked.get("model")
            message = f"Rate limit reached for {model} in organization org-standin on requests."
            raise Refusal(429, message, "requests", "rate_limit_exceeded", after=1)
        self.counts["chat"] += 1
        answer = self._answer(asked, text)
        await self._think()
        reply = Reply(asked, answer, _identity("chatcmpl-", self.counts["chat"], text))
        if asked.get("stream"):
            return await self._stream(request, reply, began)
        return web.json_response(reply.whole(), headers=_headers(began))

    async def _stream(self, request: web.Request, reply: Reply, began: float) -> web.StreamResponse:
        self.counts["streams"] += 1
        response = web.StreamResponse(headers=_headers(began))
        response.content_type, response.charset = "text/event-stream", "utf-8"
        await response.prepare(request)
        async for chunk in self._paced(reply.chunks()):
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _paced(self, chunks: Iterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(self.latency * _GAP)

    async def _think(self) -> None:
        if self.latency:
            await asyncio.sleep(self.latency * self._chance.lognormvariate(0.0, _SPREAD))

    async def _embeddings(self, request: web.Request) -> web.Response:
        began = time.monotonic()
        asked = _parsed(await request.read())
        given = asked.get("input")
        texts = [str(text) for text in (given if isinstance(given, list) else [given])]
        self.counts["embeddings"] += 1
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text)}
            for index, text in enumerate(texts)
        ]
        used = sum(map(_tokens, texts))
        usage = {"prompt_tokens": used, "total_tokens": used}
        found = {"object": "list", "data": data, "model": asked.get("model"), "usage": usage}
        return web.json_response(found, headers=_headers(began))

    async def _models(self, request: web.Request) -> web.Response:
        models = [
            {"id": name, "object": "model", "created": 1721172741, "owned_by": "system"}
            for name in _MODELS
        ]
        found = {"object": "list", "data": models}
        return web.json_response(found, headers=_headers(time.monotonic()))

    # -- what is said

    def _answer(self, asked: dict[str, Any], text: str) -> Answer:
        self._asked[text] += 1
        said = self._known(text)
        if asked.get("tools") and asked.get("tool_choice") != "none":
            tool = asked["tools"][0]["function"]
            return Answer(json.dumps(sample(tool.get("parameters", {}), said)), tool["name"])
        wanted = asked.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            said = _shaped(wanted["json_schema"].get("schema", {}), said)
        elif wanted.get("type") == "json_object" and not _is_json(said):
            said = json.dumps({"answer": said})
        return Answer(said)

    def _known(self, text: str) -> str:
        right = self.answers.get(text, "I can only answer tickets that I know.")
        draw = _draw(text, self._asked[text])
        said = _other(right, draw) if draw < self.disagreement else right
        return self.relabel.get(said, said)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in OpenAI's words, whole or in chunks."""

    asked: dict[str, Any]
    answer: Answer
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": self._message(),
            "logprobs": None,
            "finish_reason": self.answer.finish_reason,
        }
        return self._framed("chat.completion", choices=[choice], usage=self._usage())

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        if self.answer.tool:
            message["tool_calls"] = [self._call(self.answer.text)]
        else:
            message["content"] = self.answer.text
        return message | {"annotations": []}

    def _call(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.answer.tool, "arguments": arguments}
        return {"id": f"call_{self.id[-24:]}", "type": "function", "function": function}

    def chunks(self) -> Iterator[dict[str, Any]]:
        yield self._chunk(self._opening())
        for start in range(0, len(self.answer.text), _PIECE):
            yield self._chunk(self._delta(self.answer.text[start : start + _PIECE]))
        yield self._chunk({}, self.answer.finish_reason)
        if self._with_usage:
            yield self._framed("chat.completion.chunk", choices=[], usage=self._usage())

    def _opening(self) -> dict[str, Any]:
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if self.answer.tool:
            opening["content"] = None
            opening["tool_calls"] = [{"index": 0, **self._call("")}]
        return opening

    def _delta(self, piece: str) -> dict[str, Any]:
        if self.answer.tool:
            return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        return {"content": piece}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        more = {"usage": None} if self._with_usage else {}
        return self._framed("chat.completion.chunk", choices=[choice], **more)

    @property
    def _with_usage(self) -> bool:
        return bool((self.asked.get("stream_options") or {}).get("include_usage"))

    def _framed(self, kind: str, **more: Any) -> dict[str, Any]:
        model = str(self.asked.get("model"))
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": _DATED.get(model, model),
            "service_tier": "default",
            "system_fingerprint": "fp_standin",
            **more,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = sum(_tokens(str(m.get("content"))) for m in self.asked["messages"])
        completion = _tokens(self.answer.text)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


_FIND_KEY: Final = "You can find your API key at https://platform.openai.com/account/api-keys."
_NO_KEY: Final = f"You didn't provide an API key. {_FIND_KEY}"


def _unknown_url(request: web.Request) -> Refusal:
    message = f"Invalid URL ({request.method} {request.path})"
    return Refusal(404, message, "invalid_request_error", None)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        message = "We could not parse the JSON body of your request."
        raise Refusal(400, message, "invalid_request_error", None)
    return asked


def _question(asked: dict[str, Any]) -> str:
    """The newest user message, as text."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        message = "Missing required parameter: 'messages'."
        raise Refusal(400, message, "invalid_request_error", "missing_required_parameter")
    users = [m.get("content") for m in messages if m.get("role") == "user"]
    content = users[-1] if users else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content)


def _headers(began: float) -> dict[str, str]:
    now = time.monotonic()
    return {
        "x-request-id": _identity("req_", time.monotonic_ns(), ""),
        "openai-organization": "org-standin",
        "openai-processing-ms": str(round((now - began) * 1000)),
        "openai-version": "2020-10-01",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-limit-tokens": "10000000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-remaining-tokens": "9999000",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-reset-tokens": "6ms",
    }


def _digest(text: str, count: int) -> bytes:
    return hashlib.blake2b(f"{count}:{text}".encode(), digest_size=16).digest()


def _identity(prefix: str, count: int, text: str) -> str:
    return prefix + _digest(text, count).hex()


def _draw(text: str, count: int) -> float:
    """0..1, the same for the same text asked for the same time."""
    return int.from_bytes(_digest(text, count)[:8], "big") / 2**64


def _other(right: str, draw: float) -> str:
    """A wrong answer of the right kind."""
    if right in LABELS:
        others = [label for label in LABELS if label != right]
        return others[int(draw * 1e6) % len(others)]
    if _is_json(right):
        return json.dumps({**json.loads(right), "urgency": "unknown"})
    return f"{right} (I am not sure.)"


def _is_json(text: str) -> bool:
    return text.startswith("{")


def _tokens(text: str) -> int:
    return max(1, len(text) // _CHARACTERS_PER_TOKEN)


def _vector(text: str) -> list[float]:
    raw = [byte / 255 - 0.5 for byte in _digest(text, 0)[:_DIMENSIONS]]
    norm = sum(value * value for value in raw) ** 0.5
    return [value / norm for value in raw]


def _shaped(schema: dict[str, Any], said: str) -> str:
    """`said` if it has the keys that are asked for, else a sample of the schema."""
    if _is_json(said) and json.loads(said).keys() == schema.get("properties", {}).keys():
        return said
    return json.dumps(sample(schema, said))


_SAMPLES: Final[dict[str, Any]] = {"integer": 1, "number": 1.5, "boolean": True, "null": None}


def sample(schema: dict[str, Any], said: str) -> Any:
    """A value that `schema` allows; a text in it is `said`, where it may be."""
    kind = schema.get("type", "object")
    if "enum" in schema:
        return said if said in schema["enum"] else schema["enum"][0]
    if kind == "object":
        return {k: sample(v, said) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [sample(schema.get("items", {"type": "string"}), said)]
    return _SAMPLES.get(kind, said) if isinstance(kind, str) else said
