"""The proxy that one would write first: aiohttp's server and client on uvloop, and no more.

python -m tests.bench.naive PORT UPSTREAM
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Final

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "te"})


class Naive:
    def __init__(self, session: aiohttp.ClientSession, upstream: str) -> None:
        self._session, self._upstream = session, upstream

    async def relay(self, request: web.Request) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            headers=_kept(request.headers, without="host"),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the client has gone
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
            return response


def _kept(headers: CIMultiDictProxy[str], without: str = "") -> CIMultiDict[str]:
    left_out = _HOP_BY_HOP | {without}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in left_out
    )


async def serve(port: int, upstream: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False
    ) as session:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", Naive(session, upstream).relay)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
