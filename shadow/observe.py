"""The director's way to a model process. Every outcome is a value; nothing here raises."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import orjson

from policies.plan import PURPOSE_HEADER
from shadow.wire import MARGIN_HEADER, PREEMPTED, SHA256_HEADER

Purpose = Literal["shadow", "probe"]

_URL: Final = "http://model"  # the name is for the Host header; the socket decides
_STATUS_PATIENCE: Final = 2.0
# What one run needs of a request; how it is delivered is our own affair.
_NOT_SENT: Final = ("stream", "stream_options")
_PROBE: Final = {"model": "probe", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
_LATER: Final = ("busy", PREEMPTED, "disabled")


@dataclass(frozen=True, slots=True)
class Answered:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    margin: float | None
    model_sha256: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer. `later`: nothing was learnt about this request, it should be tried again.

    `away`: the process is gone. `crashed`: it went while it was at work on this request.
    """

    error: str
    later: bool
    away: bool = False
    crashed: bool = False
    latency_ms: float = 0.0


Outcome = Answered | Failed


@dataclass(frozen=True, slots=True)
class Status:
    state: str  # ready | loading | disabled
    reason: str
    sha256: str
    context: int


class Observer:
    """One candidate's model process, as the director sees it."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._session: aiohttp.ClientSession | None = None

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A connection per call: a process that was restarted leaves no stale ones behind.
            connector = aiohttp.UnixConnector(self._socket, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> Status | None:
        """None: the process is away, or silent."""
        try:
            async with asyncio.timeout(_STATUS_PATIENCE):
                async with self._http().get(f"{_URL}/status") as response:
                    told = orjson.loads(await response.read())
            return Status(
                str(told["state"]), str(told["reason"]), str(told["sha256"]), int(told["context"])
            )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return None

    async def probe(self, deadline: float) -> Outcome:
        return await self._ask(_PROBE, "probe", deadline)

    async def observe(self, request: dict[str, Any], deadline: float) -> Outcome:
        """What the candidate makes of a captured request, in one piece."""
        asked = {key: value for key, value in request.items() if key not in _NOT_SENT}
        return await self._ask(asked, "shadow", deadline)

    async def _ask(self, body: dict[str, Any], purpose: Purpose, deadline: float) -> Outcome:
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline):
                return await self._post(orjson.dumps(body), purpose, started)
        except TimeoutError:
            return Failed("deadline", later=False, latency_ms=_since(started))
        except aiohttp.ClientConnectorError:
            return Failed("away", later=True, away=True)  # it never saw the request
        except (aiohttp.ClientError, OSError) as error:
            return Failed(f"crash: {type(error).__name__}", later=True, away=True, crashed=True)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return Failed(f"garbled: {error}", later=False, latency_ms=_since(started))

    async def _post(self, data: bytes, purpose: Purpose, started: float) -> Outcome:
        headers = {PURPOSE_HEADER: purpose, "Content-Type": "application/json"}
        url = f"{_URL}/v1/chat/completions"
        async with self._http().post(url, data=data, headers=headers) as response:
            told = orjson.loads(await response.read())
            took = _since(started)
            if response.status != 200:
                return _refused(told, took)
            return _answered(told, response.headers.get(MARGIN_HEADER, ""),
                             response.headers.get(SHA256_HEADER, ""), took)  # fmt: skip


def _refused(told: dict[str, Any], took: float) -> Failed:
    code, message = str(told["error"]["code"]), str(told["error"]["message"])
    if code == "ineligible":
        return Failed(f"skipped:{message}", later=False, latency_ms=took)
    return Failed(f"{code}: {message}", later=code in _LATER, latency_ms=took)


def _answered(told: dict[str, Any], margin: str, sha256: str, took: float) -> Answered:
    choice = told["choices"][0]
    return Answered(
        text=str(choice["message"]["content"] or ""),
        finish_reason=str(choice["finish_reason"]),
        prompt_tokens=int(told["usage"]["prompt_tokens"]),
        completion_tokens=int(told["usage"]["completion_tokens"]),
        latency_ms=took,
        margin=_finite(margin),
        model_sha256=sha256,
    )


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _since(started: float) -> float:
    return (time.monotonic() - started) * 1000
