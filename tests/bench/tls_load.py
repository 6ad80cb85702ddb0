"""Load over TLS, optionally inside CONNECT, which wrk does not speak. Prints JSON.

python -m tests.bench.tls_load PORT HOST ROOT CONNECTIONS SECONDS [connect] [fresh]

HOST is the name that the certificate must be for, ROOT the authority that must have signed it. With
`connect` each connection begins as a tunnel to HOST:443. Connections are kept, are open and warm
before the client says `open`, and work from the line that it then waits for. With `fresh` every
request has a connection, and a full handshake, of its own, and CONNECTIONS of them run at once.
Whatever is not the reply that was expected makes it fail.
"""

from __future__ import annotations

import json
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tests.bench import bodies
from tests.bench.figures import percentile
from tests.bench.machine import allow_many_files

_WAIT_SECONDS: Final = 10.0
_MOST: Final = 65536
_HEAD: Final = re.compile(rb"HTTP/1\.1 200 .*?\r\ncontent-length: *(\d+)\r\n", re.I | re.S)
_ANSWER: Final = len(bodies.answer())


class WrongReply(Exception):
    """A reply that is not the constant one, or none at all."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Where connections lead. `tunnel`: they begin with CONNECT."""

    port: int
    host: str
    trusted: ssl.SSLContext
    tunnel: bool

    @classmethod
    def of(cls, port: int, host: str, root: str, tunnel: bool) -> Goal:
        trusted = ssl.create_default_context(cafile=root)
        trusted.set_alpn_protocols(["http/1.1"])
        return cls(port, host, trusted, tunnel)

    def opened(self) -> ssl.SSLSocket:
        """Blocking; verified, without a session of an earlier one."""
        plain = socket.create_connection(("127.0.0.1", self.port), _WAIT_SECONDS)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tunnel:
                _enter_tunnel(plain, self.host)
            return self.trusted.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def request(self) -> bytes:
        body = bodies.request(bodies.prose(2900))
        head = [
            f"POST {bodies.PATH} HTTP/1.1",
            f"Host: {self.host}",
            f"Content-Length: {len(body)}",
        ]
        head += [f"{name}: {value}" for name, value in bodies.HEADERS.items()]
        return "\r\n".join([*head, "", ""]).encode() + body


def _enter_tunnel(plain: socket.socket, host: str) -> None:
    plain.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    said = b""
    while not said.endswith(b"\r\n\r\n"):  # not a byte more comes before we speak TLS
        data = plain.recv(4096)
        said += data
        if not data or len(said) > _MOST:
            raise WrongReply(f"CONNECT: {said[:200]!r}")
    if not re.match(rb"HTTP/1\.[01] 200\b", said):
        raise WrongReply(f"CONNECT: {said[:200]!r}")


def missing(reply: bytes) -> int:
    """How many bytes of it are still to come. Raises WrongReply for any but the constant one."""
    end = reply.find(b"\r\n\r\n")
    if end < 0:
        if len(reply) > _MOST:
            raise WrongReply(f"no end of the head: {reply[:80]!r}")
        return 1
    head = _HEAD.match(reply, 0, end + 2)
    if head is None or int(head[1]) != _ANSWER:
        raise WrongReply(f"{reply[: end + 2]!r}")
    left = end + 4 + _ANSWER - len(reply)
    if left < 0:
        raise WrongReply(f"{-left} bytes more than the head says")
    return left


def exchange(connected: ssl.SSLSocket, request: bytes) -> None:
    """One request and its reply, on a blocking socket."""
    connected.sendall(request)
    reply = b""
    while missing(reply):
        data = connected.recv(_MOST)
        if not data:
            raise WrongReply(f"closed after {len(reply)} bytes")
        reply += data


class Line:
    """A kept connection: its request is sent again as soon as the reply is whole."""

    def __init__(self, connected: ssl.SSLSocket, request: bytes) -> None:
        self._read, self._write, self._request = connected.read, connected.write, request
        self._reply = b""
        self._sent = 0.0

    def send(self) -> None:
        # The socket's buffer takes it whole: the last request has been answered.
        self._sent = time.perf_counter()
        if self._write(self._request) != len(self._request):
            raise WrongReply("a request was not taken whole")

    def received(self) -> float | None:
        """Seconds from the request on, once the reply is whole."""
        try:
            data = self._read(_MOST)
        except ssl.SSLWantReadError:  # a ticket, or a part of a record
            return None
        if not data:
            raise WrongReply(f"closed after {len(self._reply)} bytes")
        reply = self._reply = self._reply + data if self._reply else data
        if missing(reply):
            return None
        self._reply = b""
        return time.perf_counter() - self._sent


def keep_alive(goal: Goal, connections: int, seconds: float) -> dict[str, float]:
    request = goal.request()
    poll = select.epoll()
    lines: dict[int, Line] = {}
    sockets = [goal.opened() for _ in range(connections)]
    for connected in sockets:
        exchange(connected, request)
        connected.setblocking(False)
        lines[connected.fileno()] = Line(connected, request)
        poll.register(connected.fileno(), select.EPOLLIN)
    print("open", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    waits = _run(poll, lines, began + seconds)
    return _summary(waits, time.perf_counter() - began)


def _run(poll: select.epoll, lines: dict[int, Line], end: float) -> list[float]:
    """Every request that was sent is answered when it returns."""
    waits: list[float] = []
    for line in lines.values():
        line.send()
    busy = len(lines)
    while busy:
        ready = poll.poll(_WAIT_SECONDS)
        if not ready:
            raise WrongReply(f"nothing came for {_WAIT_SECONDS:g} s")
        more = time.perf_counter() < end
        for descriptor, _events in ready:
            line = lines[descriptor]
            waited = line.received()
            if waited is None:
                continue
            waits.append(waited)
            if more:
                line.send()
            else:
                busy -= 1
    return waits


def fresh(goal: Goal, connections: int, seconds: float) -> dict[str, float]:
    request = goal.request()
    _once(goal, request)
    print("open", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()

    def repeat(_number: int) -> list[float]:
        waits = []
        while time.perf_counter() < began + seconds:
            waits.append(_once(goal, request))
        return waits

    with ThreadPoolExecutor(connections) as threads:
        waits = [wait for found in threads.map(repeat, range(connections)) for wait in found]
    return _summary(waits, time.perf_counter() - began)


def _once(goal: Goal, request: bytes) -> float:
    began = time.perf_counter()
    with goal.opened() as connected:
        exchange(connected, request)
    return time.perf_counter() - began


def _summary(waits: list[float], seconds: float) -> dict[str, float]:
    waits.sort()
    return {
        "requests": len(waits),
        "seconds": seconds,
        "p50": percentile(waits, 50),
        "p99": percentile(waits, 99),
    }


def main(arguments: Sequence[str]) -> None:
    port, host, root, connections, seconds, *modes = arguments
    goal = Goal.of(int(port), host, root, tunnel="connect" in modes)
    work = fresh if "fresh" in modes else keep_alive
    print(json.dumps(work(goal, int(connections), float(seconds))), flush=True)


if __name__ == "__main__":
    allow_many_files(16_384)
    main(sys.argv[1:])
