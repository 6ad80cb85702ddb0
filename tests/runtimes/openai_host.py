"""api.openai.com, played here: a TLS server of that name with the endpoints of `ScriptedUpstream`.

By hand: `python -m tests.runtimes.openai_host FOLDER` also starts a redirector and says where.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from tests.compat.upstream import ScriptedUpstream
from tests.proxy.far_ends import Authority
from tests.runtimes.redirect import Redirector

NAME: Final = "api.openai.com"
TARGET: Final = f"{NAME}:443"


class Certifies(Protocol):
    """What certifies it: see `far_ends.Authority`."""

    @property
    def root(self) -> Path: ...
    def context(self, *names: str) -> ssl.SSLContext: ...


class OpenaiHost(ScriptedUpstream):
    """`with OpenaiHost(authority) as host:`; who trusts `host.root` and gets here has the real one.

    `names`: of the server that each connection asked for (SNI), None for none.
    """

    def __init__(self, authority: Certifies) -> None:
        super().__init__()
        self.root = authority.root
        self.names: list[str | None] = []
        self._context = authority.context(f"DNS:{NAME}")
        self._context.set_alpn_protocols(["http/1.1"])  # its server speaks no other
        # A sync WebSocket of Python reads and writes in two threads at once. A TLS 1.3 ticket that
        # arrives beside its first request can lose that request: observed in 3 of 100 connects.
        self._context.num_tickets = 0
        self._context.sni_callback = self._named

    def _named(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.names.append(name)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def _app(self) -> web.Application:
        app = super()._app()
        app.on_response_prepare.append(_agree)
        return app

    async def _serve(self) -> None:
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._done.wait()
        await runner.cleanup()
        await _end_handshakes()


async def _end_handshakes() -> None:
    """Of clients that have just refused us: no server knows these connections yet."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.sleep(0.01)  # what was closed says so in the next turns of the loop


async def _agree(request: web.Request, response: web.StreamResponse) -> None:
    """A WebSocket in a browser's manner offers this beside its key, and fails without assent."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    if response.status == 101 and "realtime" in map(str.strip, offered):
        response.headers["Sec-WebSocket-Protocol"] = "realtime"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with OpenaiHost(Authority.make(folder)) as host, Redirector({TARGET: host.port}) as way:
        print(f"HTTPS_PROXY={way.url} SSL_CERT_FILE={host.root}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
