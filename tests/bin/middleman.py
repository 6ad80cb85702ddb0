"""A man in the middle who alters one thing: what a verification must find."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

Alter = Callable[[bytes], bytes]


def unaltered(data: bytes) -> bytes:
    return data


class Middleman:
    """Relays to the upstream's port. `up` and `down` alter each read of either direction.

    `holds`: seconds for which what the upstream says is gathered before it is passed on.
    """

    def __init__(
        self, upstream: int, up: Alter = unaltered, down: Alter = unaltered, holds: float = 0.0
    ) -> None:
        self._upstream = upstream
        self._up, self._down, self._holds = up, down, holds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for used in self._sockets:
            with contextlib.suppress(OSError):
                used.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for used in self._sockets:
            used.close()

    def _start(self, target: Callable[..., None], *values: object) -> None:
        thread = threading.Thread(target=target, args=values, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self._upstream))
                for used in (client, upstream):
                    used.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                self._sockets += [client, upstream]
                self._start(self._pump, client, upstream, self._to_upstream, 0.0)
                self._start(self._pump, upstream, client, self._down, self._holds)

    def _to_upstream(self, data: bytes) -> bytes:
        """Its one honest change, which the sidecar makes too: the upstream's own name in Host."""
        return self._up(data.replace(b":%d\r\n" % self.port, b":%d\r\n" % self._upstream))

    def _pump(
        self, source: socket.socket, target: socket.socket, alter: Alter, holds: float
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                time.sleep(holds)
                target.sendall(alter(data))
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
