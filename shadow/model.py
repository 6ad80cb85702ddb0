"""The model process: one GGUF behind a unix socket, speaking OpenAI's chat completions.

It opens no other socket, and a head of an answer leaves it only when the model is sure. A file that
can't be used is a state with a reason, not a crash.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from aiohttp import web

from policies.plan import CONFIDENCE_HEADER, PATIENCE_HEADER, PURPOSE_HEADER
from policies.policy import Candidate, Divert
from policies.settings import Settings
from shadow import engine, wire
from shadow.engine import Engine, Piece, Unusable
from shadow.turns import Job, Turns, Worker
from shadow.wire import Ask, Refusal, Voice

_MOST_BYTES: Final = 8 << 20  # of a request; longer ones fit no context
_SURE_AFTER: Final = 4  # tokens of a diverted answer for which its head is held back
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SECONDS_TO_STOP: Final = 1.0


async def run(settings: Settings) -> None:
    """Serve the candidate `settings.candidate` until SIGTERM or cancellation."""
    policy = settings.parsed_policy()
    candidate = next(c for c in policy.candidates if c.name == settings.candidate)
    _go_first()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    model = Model(candidate, policy.divert, Worker())
    runner = await _serve(model, settings.home.model_socket(candidate.name))
    model.load()
    try:
        await stop.wait()
    finally:
        model.turns.stop()
        await runner.cleanup()


def _go_first() -> None:
    """When memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


async def _serve(model: Model, path: Path) -> web.AppRunner:
    app = web.Application(client_max_size=_MOST_BYTES)
    app.router.add_get("/status", model.status)
    app.router.add_post("/v1/chat/completions", model.chat)
    # A handler is cancelled when its client goes: that is what ends the generation.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=_SECONDS_TO_STOP
    )
    await runner.setup()
    before = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(before)
    return runner


@dataclass(frozen=True, slots=True)
class Manner:
    """How one request wants to be answered: as its headers say."""

    shadow: bool
    floor: float
    patience: float

    @staticmethod
    def of(request: web.Request, divert: Divert) -> Manner:
        shadow = request.headers.get(PURPOSE_HEADER) in ("shadow", "probe")
        floor = _positive(request, CONFIDENCE_HEADER, 0.0)
        return Manner(shadow, floor, _positive(request, PATIENCE_HEADER, divert.patience))


def _positive(request: web.Request, header: str, default: float) -> float:
    try:
        value = float(request.headers.get(header, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise Refusal("ineligible", f"{header} must be a number, 0 or more")
    return value


class Model:
    """What the handlers share: the engine, once it is loaded, and whose turn it is."""

    def __init__(self, candidate: Candidate, divert: Divert, worker: Worker) -> None:
        self.candidate, self.divert, self.worker = candidate, divert, worker
        self.turns = Turns(worker)
        self.engine: Engine | None = None
        self.state, self.reason = "loading", ""

    def load(self) -> None:
        self.worker.call(self._load)

    def _load(self) -> None:
        try:
            self.worker.tell(self._ready, engine.load(self.candidate))
        except Unusable as error:
            self.worker.tell(self._disable, str(error))
        except Exception as error:  # no fault of a model may take the socket down
            self.worker.tell(self._disable, f"{type(error).__name__}: {error}")

    def _ready(self, loaded: Engine) -> None:
        self.engine, self.state = loaded, "ready"

    def _disable(self, reason: str) -> None:
        self.state, self.reason = "disabled", reason

    async def status(self, _request: web.Request) -> web.Response:
        loaded = self.engine
        told = {
            "state": self.state,
            "reason": self.reason,
            "sha256": loaded.sha256 if loaded else "",
            "context": loaded.context if loaded else self.candidate.context,
            "busy": self.turns.busy,
            "rss": _resident(),
        }
        return _json(orjson.dumps(told))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._chat(request)
        except Refusal as refusal:
            return _json(refusal.body, refusal.status)
        except (RuntimeError, ValueError) as error:  # of llama.cpp
            return _json(wire.error(str(error), "server_error", "engine"), 500)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        manner = Manner.of(request, self.divert)
        if self.engine is None:
            raise Refusal("disabled", self.reason or "the model is being loaded")
        ask = wire.parse(await request.read(), self.engine.context, greedy=manner.shadow)
        answer = Answer(self.engine, ask, self.candidate.max_tokens)
        job = await self.turns.start(manner.shadow, manner.patience, answer.work)
        try:
            if ask.stream:
                return await _stream(request, answer, job, manner)
            if manner.shadow:
                return await _whole(answer, job, manner)
            return await _diverted(request, answer, job, manner)
        finally:
            job.abort()


class Answer:
    """One answer in the making: what was asked, and how long prompt and answer are."""

    def __init__(self, loaded: Engine, ask: Ask, most: int) -> None:
        self._engine, self.ask, self._most = loaded, ask, most
        self.prompt_tokens = 0
        self.sha256 = loaded.sha256
        self.voice = Voice(f"chatcmpl-us-{secrets.token_hex(12)}", int(time.time()), ask.model)

    def work(self, flag: threading.Event) -> Iterator[Piece]:
        """Runs in the model's thread."""
        tokens = self._engine.prompt(self.ask)
        self.prompt_tokens = len(tokens)
        room = self._engine.context - len(tokens)
        limit = min(self.ask.limit or self._most, self._most, room)
        return self._engine.answer(self.ask, tokens, limit, flag)


async def _gather(job: Job, floor: float, enough: Callable[[list[Piece]], bool]) -> list[Piece]:
    """Pieces until there are enough or they end. Raises Refusal at the first doubtful one."""
    pieces: list[Piece] = []
    while not enough(pieces):
        piece = await job.next()
        if piece is None:
            raise RuntimeError("the engine ended an answer without a finish")
        # Written so that a margin that is not a number is a doubt.
        if piece.margin is None or not piece.margin >= floor:
            raise Refusal("unsure", f"margin {piece.margin} is under the floor of {floor:g}")
        pieces.append(piece)
    return pieces


def _finished(pieces: list[Piece]) -> bool:
    return bool(pieces) and pieces[-1].finish is not None


def _sure(pieces: list[Piece]) -> bool:
    return _finished(pieces) or len(pieces) >= _SURE_AFTER


async def _opening(answer: Answer, job: Job, manner: Manner) -> list[Piece]:
    """What must be known before the head of a diverted answer goes."""
    pieces = await _gather(job, manner.floor, _sure)
    if _finished(pieces) and not manner.shadow:
        _refuse_unfit(answer.ask, pieces)
    return pieces


def _refuse_unfit(ask: Ask, pieces: list[Piece]) -> None:
    """An answer that the upstream would not have given: nothing, or one that our limits cut."""
    last = pieces[-1]
    if last.finish == "length" and (ask.limit is None or last.tokens < ask.limit):
        raise Refusal("unsure", f"the answer is longer than the {last.tokens} tokens it may have")
    if not _text(pieces).strip():
        raise Refusal("unsure", "the answer is empty")


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _completion(answer: Answer, pieces: list[Piece]) -> bytes:
    last = pieces[-1]
    used = wire.usage(answer.prompt_tokens, last.tokens)
    return answer.voice.completion(_text(pieces), last.finish or "stop", used)


async def _whole(answer: Answer, job: Job, manner: Manner) -> web.Response:
    """A shadow run's answer, with what the director wants to know of it."""
    pieces = await _gather(job, manner.floor, _finished)
    response = _json(_completion(answer, pieces))
    margins = [piece.margin for piece in pieces if piece.margin is not None]
    response.headers[wire.MARGIN_HEADER] = f"{min(margins):.4f}"
    response.headers[wire.SHA256_HEADER] = answer.sha256
    return response


async def _diverted(
    request: web.Request, answer: Answer, job: Job, manner: Manner
) -> web.StreamResponse:
    """A diverted answer in one piece.

    Its head goes as soon as the model is sure: the proxy's patience is for that, not for the
    whole of a long answer. The proxy holds the answer back until it is whole, so a refusal may
    still take its place.
    """
    pieces = await _opening(answer, job, manner)
    if _finished(pieces):
        return _json(_completion(answer, pieces))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with _visibly_broken(request):
        await response.write(await _rest(answer, job, manner, pieces))
        await response.write_eof()
    return response


async def _rest(answer: Answer, job: Job, manner: Manner, pieces: list[Piece]) -> bytes:
    try:
        pieces += await _gather(job, manner.floor, _finished)
        _refuse_unfit(answer.ask, pieces)
    except Refusal as refusal:
        return refusal.body
    return _completion(answer, pieces)


async def _stream(
    request: web.Request, answer: Answer, job: Job, manner: Manner
) -> web.StreamResponse:
    pieces = await _opening(answer, job, manner)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    with _visibly_broken(request):
        await _speak(response, answer, job, pieces)
    return response


@contextmanager
def _visibly_broken(request: web.Request) -> Iterator[None]:
    """An answer that can't be finished after its head must look broken: never a clean end."""
    try:
        yield
    except (Refusal, RuntimeError, ValueError):
        if request.transport is not None:
            request.transport.abort()


async def _speak(response: web.StreamResponse, answer: Answer, job: Job, held: list[Piece]) -> None:
    ask, voice = answer.ask, answer.voice
    text = _text(held)
    last: Piece | None = held[-1]
    await response.write(voice.chunk(wire.FIRST_DELTA, None, ask))
    while last is not None:
        if text:
            await response.write(voice.chunk({"content": text}, None, ask))
        if last.finish is not None:
            break
        last = await job.next()
        text = last.text if last else ""
    if last is None or last.finish is None:
        raise RuntimeError("the engine ended an answer without a finish")
    await response.write(voice.chunk({}, last.finish, ask))
    if ask.include_usage:
        await response.write(voice.usage_chunk(wire.usage(answer.prompt_tokens, last.tokens)))
    await response.write(wire.DONE)
    await response.write_eof()


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _resident() -> int:
    """Bytes of memory in use, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
