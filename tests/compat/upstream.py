"""An upstream that plays a script to the official SDKs: equal calls get equal answers.

The model's name says which part is played, see `PARTS`. No identity, no time and no chance is in an
answer, so that what a client sees directly and through the sidecar can be compared byte by byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from aiohttp import WSMessage, WSMsgType, web

_MOST_BODY: Final = 64 << 20
_WORDS: Final = ("The ", "quick ", "brown ", "föx ", "jumps. ", "🦊")
_BIG: Final = 1 << 20  # characters in a WebSocket message that fits no single read
_CREATED: Final = 1_721_172_741
# Of the connection, not of the request, or drawn anew by each client.
_OF_THE_HOP: Final = {"host", "connection", "keep-alive", "sec-websocket-key"}


@dataclass(frozen=True, slots=True)
class Part:
    """How often a request fails, with what; after that it succeeds, and the part starts anew.

    `headers` go with the failure. `times` 0: it never succeeds.
    """

    status: int
    times: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    def fails(self, attempt: int) -> bool:
        """Is the attempt, counted from 1, one of those that fail?"""
        return self.times == 0 or attempt % (self.times + 1) != 0


PARTS: Final[dict[str, Part]] = {
    **{f"fail-{status}": Part(status) for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)},
    "limited-ms": Part(429, 2, (("retry-after-ms", "30"),)),
    "limited-s": Part(429, 1, (("retry-after", "1"),)),
    "broken": Part(500, 1, (("retry-after-ms", "10"),)),
    "conflict": Part(409, 1, (("retry-after-ms", "10"),)),
    "stubborn": Part(429, 0, (("x-should-retry", "false"),)),
    "odd-but-retry": Part(418, 1, (("x-should-retry", "true"), ("retry-after-ms", "10"))),
}
SLOW: Final = "slow"  # no answer until the client is gone
ENDLESS: Final = "endless"  # a stream that goes on until the client is gone
CLOSING: Final = "closing"  # a WebSocket that the upstream closes, with 4001


@dataclass(frozen=True, slots=True)
class Heard:
    """A request, or a message on a WebSocket, as it arrived and apart from what is of the hop."""

    what: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ScriptedUpstream:
    """`with ScriptedUpstream() as upstream: upstream.base_url`; its loop has its own thread.

    `gone`: clients that left before their answer ended.
    """

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.gone = 0
        self.url = ""
        self._attempts: Counter[str] = Counter()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._ready.set()
        await self._done.wait()
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_MOST_BODY, middlewares=[self._front])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._respond)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files", self._list)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        app.router.add_post("/v1/audio/speech", self._speak)
        app.router.add_get("/v1/realtime", self._converse)
        app.router.add_get("/v1/responses", self._converse)
        return app

    # -- every request

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        self.heard.append(_heard(request, body))
        model = _model(request, body)
        part = PARTS.get(model)
        if part is not None:
            self._attempts[model] += 1
            if part.fails(self._attempts[model]):
                return _failure(part)
        if model == SLOW:
            await self._until_gone(request)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _until_gone(
        self, request: web.Request, stream: web.StreamResponse | None = None
    ) -> None:
        """Wait until the client has left; in a stream, say so now and then."""
        with suppress(ConnectionResetError):
            while request.transport is not None and not request.transport.is_closing():
                if stream is not None:
                    await stream.write(b": still here\n\n")
                await asyncio.sleep(0.01)
        self.gone += 1

    # -- endpoints

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if not asked.get("stream"):
            return web.json_response(_completion(asked), headers=_HEADERS)
        response = await _streaming(request, "text/event-stream; charset=utf-8")
        with suppress(ConnectionResetError):  # it may leave as soon as that
            for chunk in _chunks(asked):
                await response.write(b"data: " + chunk + b"\n\n")
        if asked["model"] == ENDLESS:
            await self._until_gone(request, response)
        else:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        events = list(_turn(str(asked["model"])))
        if not asked.get("stream"):
            return web.json_response(events[-1]["response"], headers=_HEADERS)
        response = await _streaming(request, "text/event-stream; charset=utf-8")
        for event in events:
            name = event["type"].encode()
            await response.write(b"event: %b\ndata: %b\n\n" % (name, json.dumps(event).encode()))
        return response

    async def _embed(self, request: web.Request) -> web.Response:
        """Compressed, as the real one does for whoever accepts it."""
        asked = await request.json()
        data = [
            {"object": "embedding", "index": index, "embedding": [index / 8] * 256}
            for index, _ in enumerate(asked["input"])
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        found = {"object": "list", "data": data, "model": asked["model"], "usage": usage}
        answer = web.json_response(found, headers=_HEADERS)
        answer.enable_compression(web.ContentCoding.gzip)
        return answer

    async def _upload(self, request: web.Request) -> web.Response:
        found = _arrived(_anonymous(request, await request.read()))
        return web.json_response(_FILE | found, headers=_HEADERS)

    async def _list(self, request: web.Request) -> web.Response:
        """Two pages of two."""
        after = request.query.get("after")
        names = ("file-c", "file-d") if after else ("file-a", "file-b")
        found = {
            "object": "list",
            "data": [_FILE | {"id": name} for name in names],
            "first_id": names[0],
            "last_id": names[-1],
            "has_more": after is None,
        }
        return web.json_response(found, headers=_HEADERS)

    async def _delete(self, request: web.Request) -> web.Response:
        found = {"id": request.match_info["id"], "object": "file", "deleted": True}
        return web.json_response(found, headers=_HEADERS)

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(
            body=noise(2_000_003), content_type="application/octet-stream", headers=_HEADERS
        )

    async def _transcribe(self, request: web.Request) -> web.Response:
        found = _arrived(_anonymous(request, await request.read()))
        return web.json_response({"text": json.dumps(found)}, headers=_HEADERS)

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        response = await _streaming(request, "audio/mpeg")
        sound = noise(300_001)
        for start in range(0, len(sound), 7919):
            await response.write(sound[start : start + 7919])
        return response

    # -- WebSockets

    async def _converse(self, request: web.Request) -> web.WebSocketResponse:
        model = request.query.get("model", "")
        socket = web.WebSocketResponse(max_msg_size=_MOST_BODY)
        socket.headers.update(_HEADERS)
        await socket.prepare(request)
        if request.path.endswith("/realtime"):
            session = {"type": "realtime", "model": model, "object": "realtime.session"}
            await socket.send_json(_event("session.created", session=session))
        if model == CLOSING:
            await socket.close(code=4001, message=b"session expired")
        async for message in socket:
            await self._answer(socket, message)
        self.heard.append(Heard("closed", (), str(socket.close_code).encode()))
        return socket

    async def _answer(self, socket: web.WebSocketResponse, message: WSMessage) -> None:
        if message.type is not WSMsgType.TEXT:
            return
        self.heard.append(Heard("message", (), message.data.encode()))
        asked = json.loads(message.data)
        if asked["type"] == "response.create":
            for event in _turn("gpt-realtime", _BIG if "big" in message.data else 0):
                await socket.send_json(event)
        else:
            await socket.send_json(_event("session.updated", session=asked.get("session")))


# -- what is said

_HEADERS: Final = {
    "x-request-id": "req_scripted",
    "openai-organization": "org-scripted",
    "openai-processing-ms": "12",
    "x-ratelimit-remaining-requests": "9999",
    "Set-Cookie": "__cf_bm=scripted; path=/; HttpOnly",
}
_FILE: Final[dict[str, Any]] = {
    "id": "file-scripted",
    "object": "file",
    "created_at": _CREATED,
    "status": "processed",
    "bytes": 0,
    "filename": "tickets.jsonl",
    "purpose": "batch",
}


def noise(size: int) -> bytes:
    """Bytes that look drawn and are the same every time."""
    return hashlib.shake_128(b"understudy").digest(size)


def _heard(request: web.Request, body: bytes) -> Heard:
    pairs = ((name.decode(), value.decode()) for name, value in request.raw_headers)
    boundary = _boundary(request)
    kept = tuple(
        (name, value.replace(boundary, "BOUNDARY") if boundary else value)
        for name, value in pairs
        if name.lower() not in _OF_THE_HOP
    )
    return Heard(f"{request.method} {request.path_qs}", kept, _anonymous(request, body))


def _anonymous(request: web.Request, body: bytes) -> bytes:
    """A form without the boundary that its client drew for it."""
    boundary = _boundary(request).encode()
    return body.replace(boundary, b"BOUNDARY") if boundary else body


def _boundary(request: web.Request) -> str:
    found = re.search(r'boundary="?([^";]+)', request.headers.get("Content-Type", ""))
    return found[1] if found else ""


def _model(request: web.Request, body: bytes) -> str:
    """Of the body, a form's field of that name, or the query."""
    if request.content_type == "application/json" and body:
        return str(json.loads(body).get("model", ""))
    for model in (*PARTS, SLOW):
        if b'name="model"\r\n\r\n%b\r\n' % model.encode() in body:
            return model
    return request.query.get("model", "")


def _failure(part: Part) -> web.Response:
    error = {
        "message": f"Scripted: {part.status}",
        "type": "scripted_error",
        "param": None,
        "code": f"code_{part.status}",
    }
    headers = _HEADERS | dict(part.headers)
    return web.json_response({"error": error}, status=part.status, headers=headers)


async def _streaming(request: web.Request, kind: str) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS | {"Content-Type": kind})
    await response.prepare(request)
    return response


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": len(_WORDS), "total_tokens": 9 + len(_WORDS)}


def _completion(asked: dict[str, Any]) -> dict[str, Any]:
    said = f"{asked['messages'][-1]['content']}: {''.join(_WORDS)}"
    message = {"role": "assistant", "content": said, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _framed("chat.completion", asked, choices=[choice], usage=_usage())


def _chunks(asked: dict[str, Any]) -> Iterator[bytes]:
    for word in _WORDS:
        delta = {"role": "assistant", "content": word}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield json.dumps(_framed("chat.completion.chunk", asked, choices=[choice])).encode()
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield json.dumps(_framed("chat.completion.chunk", asked, choices=[last])).encode()


def _framed(kind: str, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    model = asked["model"]
    return {"id": "chatcmpl-1", "object": kind, "created": _CREATED, "model": model, **more}


def _turn(model: str, padding: int = 0) -> Iterator[dict[str, Any]]:
    """One response as the events of the Responses API; the delta is longer by `padding`."""
    response = {"id": "resp_1", "object": "response", "created_at": _CREATED, "model": model}
    begun = response | {"status": "in_progress", "output": []}
    yield _event("response.created", sequence_number=0, response=begun)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    for number, word in enumerate(_WORDS, start=1):
        delta = word + "x" * padding
        yield _event("response.output_text.delta", sequence_number=number, delta=delta, **place)
    text = {"type": "output_text", "text": "".join(_WORDS), "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    done = response | {"status": "completed", "output": [message | {"content": [text]}]}
    yield _event("response.completed", sequence_number=len(_WORDS) + 1, response=done)


def _event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "event_id": f"event_{kind}", **more}


def _arrived(body: bytes) -> dict[str, Any]:
    """What arrived, told so that a byte that is missing or changed shows."""
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
