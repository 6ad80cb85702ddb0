"""A CONNECT proxy that leads names of the world outside to ports here, and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.proxy.far_ends import Listener, pump

_IDLE: Final = 60.0  # seconds
_REASONS: Final = {
    200: "Connection established",
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to the proxy, and with what it was answered."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    status: int

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name.lower())


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of a corporate proxy; `user:password@` in its URL."""

    user: str
    password: str

    @property
    def header(self) -> str:
        """The value of Proxy-Authorization, RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class Redirector(Listener):
    """`with Redirector({"api.openai.com:443": port}) as way: way.url`; other targets are refused.

    `credentials`: those that are demanded, None for none; may be changed at any time.
    """

    def __init__(self, ports: Mapping[str, int], credentials: Credentials | None = None) -> None:
        self.ports = dict(ports)
        self.credentials = credentials
        self.asked: list[Asked] = []
        super().__init__()

    @property
    def url(self) -> str:
        """Without credentials."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def serve(self, connection: socket.socket) -> None:
        head, rest = _head(connection)
        if not head:
            return
        connection.settimeout(_IDLE)
        method, target, headers = _parsed(head)
        status = self._decide(method, target, dict(headers))
        onward = self._dial(target) if status == 200 else None
        if status == 200 and onward is None:
            status = 502
        self.asked.append(Asked(method, target, headers, status))
        connection.sendall(_reply(status))
        if onward is not None:
            with onward:
                onward.sendall(rest)
                _relay(connection, onward)

    def _decide(self, method: str, target: str, headers: Mapping[str, str]) -> int:
        if not target:
            return 400
        if method != "CONNECT":
            return 405
        if self.credentials and headers.get("proxy-authorization") != self.credentials.header:
            return 407
        return 200 if target.lower() in self.ports else 403

    def _dial(self, target: str) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self.ports[target.lower()]), _IDLE)
        return None


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """To the blank line, and what came after it; nothing when the client left before."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _parsed(head: bytes) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, more = first.partition(" ")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return method, more.rpartition(" ")[0], headers


def _reply(status: int) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    if status == 407:
        lines.append('Proxy-Authenticate: Basic realm="corporate"')
    if status != 200:
        lines += ["Content-Length: 0", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def _relay(one: socket.socket, other: socket.socket) -> None:
    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join(_IDLE)
