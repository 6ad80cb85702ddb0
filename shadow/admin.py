"""The admin site: is the director ready, what does it know, and what do people say of answers.

On a port of its own. All that can be written here is feedback, through the recorder.

A page in a browser can reach a loopback port under a name of its own (DNS rebinding), so the Host
header must be one of ours; and whoever reaches the port still needs the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import html
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from policies import feedback, metrics
from policies.settings import Settings
from policies.words import Feedback, UnknownExchange
from shadow.judge import Judge
from shadow.record import Record
from shadow.runner import Runner

_SECURITY: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",  # the token may be in the address
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}"
)
_MOST_BODY: Final = 8 << 20  # a correction of a million characters, as JSON
_COMMIT_PATIENCE: Final = 15.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    def __init__(
        self, settings: Settings, record: Record, judge: Judge, runners: Sequence[Runner]
    ) -> None:
        self._fd, self._token = settings.fd, settings.admin_token.encode()
        self._run_dir = settings.home.run
        self._record, self._judge, self._runners = record, judge, runners
        self.ready = False  # until the record has been read

    async def serve(self) -> None:
        """Serve on the socket that was handed down, until cancelled."""
        if self._fd is None:
            return
        app = web.Application(middlewares=[_guard], client_max_size=_MOST_BODY)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._page)
        app.router.add_post("/feedback", self._feedback)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            listening = socket.socket(fileno=self._fd)
            await web.SockSite(runner, listening).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _ready(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return _unadmitted()
        if self.ready:
            return web.Response(text="ready\n")
        return web.Response(text="starting\n", status=503)

    async def _page(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return _unadmitted()
        return web.Response(text=render(self._judge, self._runners), content_type="text/html")

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return _unadmitted()
        found = metrics.samples(await asyncio.to_thread(_slots, self._run_dir), time.monotonic())
        headers = {"Content-Type": metrics.CONTENT_TYPE}
        return web.Response(body=metrics.render(found), headers=headers)

    async def _feedback(self, request: web.Request) -> web.Response:
        """Answers 201 once it is committed."""
        if not self._admits(request):
            return _unadmitted()
        try:
            said = feedback.read(_parsed(await request.read()))
            written = Feedback(
                said.id, time.time(), said.score, said.label, said.correction, said.source
            )
            async with asyncio.timeout(_COMMIT_PATIENCE):
                await self._record.write([written])
        except UnknownExchange as error:
            return _refused(404, error)
        except ValueError as error:  # FeedbackError, WriteUnfit
            return _refused(400, error)
        except (ConnectionError, TimeoutError):
            away = ConnectionError("the recorder is away, nothing was written: send it again")
            return _refused(503, away)
        return web.json_response({"ok": True}, status=201)

    def _admits(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.query.get("token", "")
        # No token configured admits nobody.
        return bool(self._token) and hmac.compare_digest(given.encode(), self._token)


def _slots(run_dir: Path) -> dict[str, bytes]:
    """The proxy workers' counters, by file name; none when the runtime folder is gone."""
    found: dict[str, bytes] = {}
    with contextlib.suppress(OSError):
        for path in run_dir.glob(f"{metrics.PREFIX}*"):
            found[path.name] = path.read_bytes()
    return found


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise feedback.FeedbackError("body", f"{len(body)} bytes", f"is no JSON: {error}") from None


def _refused(status: int, error: Exception) -> web.Response:
    return web.json_response({"error": str(error)}, status=status)


def _unadmitted() -> web.Response:
    return web.Response(text="a valid token is needed\n", status=401)


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    bound = request.get_extra_info("sockname") or ("",)
    if not host_is_ours(request.headers.get("Host", ""), str(bound[0])):
        response: web.StreamResponse = web.Response(text="this host is not served\n", status=403)
    else:
        response = await handler(request)
    response.headers.update(_SECURITY)
    return response


def host_is_ours(header: str, bound: str) -> bool:
    """Is the Host header a name of loopback, or the address the connection came in on?"""
    try:
        parts = urlsplit(f"//{header}")
        name, _port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.netloc != header or "@" in header:
        return False
    if name in ("localhost", bound):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def render(judge: Judge, runners: Sequence[Runner]) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Understudy</title>"
        f"<style>{_STYLE}</style><h1>Understudy</h1>"
        f"<h2>Candidates</h2>{_table(_candidates(runners))}"
        f"<h2>Rollouts</h2>{_table(_rollouts(judge))}</html>"
    )


def _candidates(runners: Sequence[Runner]) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for runner in runners:
        status = runner.status
        rows.append({
            "candidate": runner.candidate.name,
            "state": status.state if status else "away",
            "reason": status.reason if status else "the model process does not answer",
            "serves": "yes" if runner.reachable else "no",
            "sha256": status.sha256[:12] if status else "",
        })  # fmt: skip
    return rows


def _rollouts(judge: Judge) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for (task, candidate), case in sorted(judge.cases.items()):
        figures = case.figures
        rows.append({
            "task": task,
            "candidate": candidate,
            "phase": case.state.phase,
            "percent": f"{case.state.percent:g}",
            "agreement": f"{figures.matched} of {figures.pairs}",
            "bounds": f"{figures.low:.3f} to {figures.high:.3f}",
            "why": case.why,
        })  # fmt: skip
    return rows


def _table(rows: list[Mapping[str, str]]) -> str:
    if not rows:
        return "<p>none yet</p>"
    head = "".join(f"<th>{html.escape(name)}" for name in rows[0])
    lines = ("".join(f"<td>{html.escape(value)}" for value in row.values()) for row in rows)
    return f"<table><tr>{head}" + "".join(f"<tr>{line}" for line in lines) + "</table>"
