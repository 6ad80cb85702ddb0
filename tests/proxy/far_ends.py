"""What a connection may meet out there: TLS servers good and bad, and a proxy that tunnels."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LAST_REPLY = REPLY.replace(b"Content", b"Connection: close\r\nContent")
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """A throw-away certificate authority. `root` is what clients trust."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.pem"

    @classmethod
    def make(cls, folder: Path) -> Authority:
        made = cls(folder)
        _openssl("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=test root",
                 "-keyout", folder / "root.key", "-out", made.root)  # fmt: skip
        return made

    def context(self, *names: str, days: int = 2, own: bool = False) -> ssl.SSLContext:
        """A server's, certified for these names; `own`: signed by itself."""
        stem = self.folder / f"{'-'.join(names)}{days}{own}".replace("*", "_").replace(":", "_")
        key, certificate = stem.with_suffix(".key"), stem.with_suffix(".pem")
        extension = "subjectAltName=" + ",".join(names)
        subject = ("-subj", "/CN=test", "-addext", extension, "-keyout", key)
        if own:
            _openssl("req", "-x509", *_KEY, *subject, "-days", "2", "-out", certificate)
        else:
            asked = stem.with_suffix(".csr")
            _openssl("req", "-new", *_KEY, *subject, "-out", asked)
            _openssl("x509", "-req", "-in", asked, "-copy_extensions", "copy", "-days", days,
                     "-CA", self.root, "-CAkey", self.folder / "root.key", "-CAcreateserial",
                     "-out", certificate)  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def unused() -> tuple[int, tuple[str, int]]:
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        where: tuple[str, int] = probe.getsockname()
    return int(socket.AF_INET), where


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Listener:
    """Accepts on 127.0.0.1 until closed; each connection on a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, contextlib.suppress(OSError):
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@dataclass(frozen=True)
class Handshake:
    resumed: bool
    version: str | None
    protocol: str | None
    name: str | None


@dataclass
class Seen:
    handshakes: list[Handshake] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)


class TlsServer(Listener):
    """Answers each request with `reply`. `context` or, instead of TLS, `spoil` may be replaced."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.spoil: Callable[[socket.socket], None] | None = None
        self.reply = REPLY
        self.seen = Seen()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        if self.spoil is not None:
            self.spoil(connection)
            return
        names: list[str | None] = []
        self.context.sni_callback = lambda tls, name, context: names.append(name)
        with self.context.wrap_socket(connection, server_side=True) as tls:
            self.seen.handshakes.append(
                Handshake(
                    tls.session_reused or False,
                    tls.version(),
                    tls.selected_alpn_protocol(),
                    names[-1] if names else None,
                )
            )
            while request := until_blank_line(tls):
                self.seen.requests.append(request)
                tls.sendall(self.reply)


def until_blank_line(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return b""
        head += data
    return head


def no_tls(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def resets(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes(connection: socket.socket) -> None:
    connection.recv(65536)


class TunnelProxy(Listener):
    """Takes CONNECT to any name and leads to `port` here. `reply`: what it says instead of 200."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.reply = b""
        self.asked: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        self.asked.append(until_blank_line(connection))
        if self.reply:
            connection.sendall(self.reply)
            connection.recv(65536)
            return
        with socket.create_connection(("127.0.0.1", self.to), 10) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            back = threading.Thread(target=pump, args=(onward, connection), daemon=True)
            back.start()
            pump(connection, onward)
            back.join(10)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
