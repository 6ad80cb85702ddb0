"""TLS with upstreams: the system's trust, and sessions that shorten the next handshake."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

_MOST_SESSIONS: Final = 1024


class UpstreamTls(ssl.SSLContext):
    """Verifies names and certificates; SSL_CERT_FILE and SSL_CERT_DIR replace the system's.

    Event loops take no session for a new connection, but they all make its TLS object by
    `wrap_bio`: the last session with that server name is put in there. A session was verified when
    it was made; a server that does not know it any more shakes hands in full.
    """

    _sessions: dict[str, ssl.SSLSession]

    def __new__(cls) -> UpstreamTls:
        made: UpstreamTls = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._sessions = {}
        return made

    def __init__(self) -> None:
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        self.set_alpn_protocols(["http/1.1"])
        self.load_default_certs()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if session is None and isinstance(server_hostname, str):
            session = self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def remember(self, transport: asyncio.BaseTransport) -> None:
        """Keep its session. TLS 1.3 sends tickets behind the handshake: call this after a reply."""
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is None or tls.server_hostname is None:
            return
        session = tls.session
        if session is None or not (session.has_ticket or tls.version() == "TLSv1.2"):
            return
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[tls.server_hostname] = session

    def forget(self, server_name: str) -> None:
        self._sessions.pop(server_name, None)


def reason(error: Exception) -> str:
    """The class of a failure, for the caller; never what the peer sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.reason} ({error.verify_message.partition(',')[0]})"
    if isinstance(error, ssl.SSLError):
        return error.reason or "the connection ended in the handshake"
    return "the connection ended in the handshake"
