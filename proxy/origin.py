"""Where calls go."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """Where calls go: a host, or a unix socket (`path`). `guarded`: a client named it, so that each
    address is checked before it is dialled."""

    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: bytes = b""
    path: str = ""
    guarded: bool = False

    @property
    def host_header(self) -> bytes:
        default = 443 if self.tls else 80
        host = f"[{self.host}]" if ":" in self.host else self.host or "understudy"
        return (host if self.path or self.port == default else f"{host}:{self.port}").encode()

    @classmethod
    def of(cls, url: str) -> Origin:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname or "", port, tls, parts.path.rstrip("/").encode())
