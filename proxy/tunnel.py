"""A tunnel through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6) on a connected socket."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final

from policies.way_out import UpstreamProxy
from proxy.heads import Refused

_MOST_HEAD: Final = 16 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")


async def tunnel(through: socket.socket, proxy: UpstreamProxy, host: str, port: int) -> None:
    """Afterwards the socket speaks with `host`. Raises Refused with the proxy's status only."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(through, request(proxy, host, port))
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(through, 4096)
        head += data
        if not data or len(head) > _MOST_HEAD:
            raise _refused("did not answer in HTTP")
    status = _STATUS.match(head)
    if status is None:
        raise _refused("did not answer in HTTP")
    if not status[1].startswith(b"2"):
        raise _refused(f"said {status[1].decode()}")
    # We speak first, in TLS as in HTTP: these bytes are not from the other end.
    if not head.endswith(b"\r\n\r\n"):
        raise _refused("sent bytes of its own into the tunnel")


def request(proxy: UpstreamProxy, host: str, port: int) -> bytes:
    where = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")
    lines = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (where, where)
    if proxy.authorization:
        lines += b"Proxy-Authorization: %b\r\n" % proxy.authorization
    return lines + b"\r\n"


def _refused(what: str) -> Refused:
    return Refused(502, "upstream_proxy", f"the proxy on the way to the upstream {what}")
