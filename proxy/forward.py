"""The forward proxy: what CONNECT and absolute-form ask for, and the TLS of intercepted hosts.

An intercepted host is served as the data port is, by the same relay, with that host as upstream.
Whatever else is not denied is a blind tunnel.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from policies.access import Access
from policies.forward import Rules, Target, TargetError, target_of
from policies.listeners import Listeners
from proxy.authority import Authority, AuthorityError
from proxy.blind import BlindTunnel
from proxy.client import ClientConnection
from proxy.heads import Refused, RequestHead, RequestHeads
from proxy.known import KnownRequests
from proxy.origin import Origin
from proxy.routes import Route
from proxy.secured import Secured

if TYPE_CHECKING:
    from proxy.relay import Relay

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HTTP: Final = b"http://"
_HANDSHAKE: Final = 0x16  # the first byte of TLS (RFC 8446 section 5.1)
_MOST_SITES: Final = 32
_MOST_KNOWN: Final = 128  # heads of each: with all sites no more than half of the data port's own
_MOST_REJECTING: Final = 32


@dataclass(slots=True)
class Rejection:
    """A client that broke off the handshake: most often it does not trust our authority."""

    client: str
    host: str
    alert: str
    times: int = 0


class Site:
    """What the connections to one intercepted host share: see `request_reader.Reading`."""

    def __init__(self, relay: Relay, target: Target) -> None:
        self.known = KnownRequests(_MOST_KNOWN)
        self._relay = relay
        origin = Origin(target.host, target.port, tls=True, guarded=True)
        self._heads = RequestHeads(Route(origin, forwarded=True), relay.modes.readable)

    def heads(self, target: bytes) -> RequestHeads:
        if target.startswith((b"/", b"*")):
            return self._heads
        raise Refused(421, "misdirected", "this connection leads to the host it was opened for")

    def asked(self, target: bytes) -> bytes:
        return target

    def connect(self, target: bytes) -> Target:
        raise Refused(405, "forward_off", "a tunnel is open already")

    def note_trailers(self, count: int) -> None:
        self._relay.note_trailers(count)


@dataclass(slots=True)
class Forwarding:
    """`rules` None: it is off, and `off` says why. `port`: the data port's own addresses."""

    access: Access = field(default_factory=Access)
    port: Listeners = field(default_factory=Listeners)
    rules: Rules | None = None
    authority: Authority | None = None
    off: str = "this is no forward proxy; use OPENAI_BASE_URL"
    intercepted: int = 0  # connections
    tunnelled: int = 0
    refused: int = 0  # handshakes that clients broke off
    rejections: dict[tuple[str, str, str], Rejection] = field(default_factory=dict)
    _sites: dict[Target, Site] = field(default_factory=dict)
    _routes: dict[bytes, RequestHeads] = field(default_factory=dict)

    def stranger(self, head: RequestHead) -> Refused | None:
        """Why somebody is not served whose address says nothing for them."""
        if self.access.admits(head.proxy_authorization):
            return None
        if self.access.authorization:
            return Refused(407, "proxy_authentication", "the sidecar asks for its credentials")
        return Refused(403, "client_denied", "the sidecar does not serve this address (clients)")

    # -- absolute-form

    def origin_form(self, target: bytes) -> bytes:
        """Of a target in absolute-form that names the sidecar itself; any other as it is."""
        if not target[:7].lower() == _HTTP:
            return target
        asked, path = _parts(target)
        if not self.port.named(asked.host, asked.port):
            return target
        return path if path.startswith(b"/") else b"/" + path

    def heads(self, target: bytes, readable: frozenset[bytes]) -> RequestHeads:
        """Reads requests in absolute-form (RFC 9112 section 3.2.2). Raises Refused."""
        rules = self._on()
        if target[:7].lower() != _HTTP:
            raise Refused(400, "bad_request", "of absolute targets only http:// is taken")
        asked, path = _parts(target)
        prefix = target[: len(target) - len(path)]
        found = self._routes.get(prefix)
        if found is None:
            verdict = rules.verdict(asked, usual_port=80)
            if verdict.kind == "deny":
                raise _denied(verdict.why)
            origin = Origin(asked.host, asked.port, guarded=True)
            recorded = verdict.kind == "intercept"
            route = Route(origin, prefix, len(prefix), forwarded=True, recorded=recorded)
            if len(self._routes) >= _MOST_SITES:
                self._routes.clear()
            found = self._routes[prefix] = RequestHeads(route, readable)
        return found

    # -- CONNECT

    def connect(self, target: bytes) -> Target:
        """Whom a client wants a connection to. Raises Refused."""
        rules = self._on()
        asked = _target(target)
        verdict = rules.verdict(asked)
        if verdict.kind == "deny":
            raise _denied(verdict.why)
        return asked

    def open(
        self, relay: Relay, target: Target, transport: asyncio.Transport, early: bytes
    ) -> None:
        """Take over a client's connection. `early`: bytes that came behind the head."""
        if self._on().verdict(target).kind == "intercept" and self.authority is not None:
            Interception(relay, target).begin(transport, early)
        else:
            self.tunnelled += 1
            BlindTunnel(relay, target).begin(transport, early, ESTABLISHED)

    def site(self, relay: Relay, target: Target) -> Site:
        found = self._sites.get(target)
        if found is None:
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
            found = self._sites[target] = Site(relay, target)
        return found

    def reject(self, client: str, host: str, alert: str) -> None:
        """Bounded: the first clients that fail are the ones to look at."""
        self.refused += 1
        key = (client, host, alert)
        found = self.rejections.get(key)
        if found is None:
            if len(self.rejections) >= _MOST_REJECTING:
                return
            found = self.rejections[key] = Rejection(client, host, alert)
        found.times += 1

    def _on(self) -> Rules:
        if self.rules is None:
            raise Refused(405, "forward_off", self.off)
        return self.rules

    def tick(self) -> None:
        """The authority on disk may be another by now."""
        if self.authority is None:
            return
        try:
            self.authority.reload()
        except AuthorityError as error:  # the one loaded before goes on
            print(f"understudy: {error}", file=sys.stderr, flush=True)

    def health(self) -> dict[str, Any]:
        return {
            "on": self.rules is not None,
            "why_off": None if self.rules is not None else self.off,
            "authority": None if self.authority is None else self.authority.fingerprint,
            "intercepted": self.intercepted,
            "tunnelled": self.tunnelled,
            "rejecting": [
                {"client": r.client, "host": r.host, "alert": r.alert, "times": r.times}
                for r in self.rejections.values()
            ],
        }


class Interception(asyncio.Protocol):
    """A client's connection from our 200 to the end of the TLS handshake."""

    def __init__(self, relay: Relay, target: Target) -> None:
        self._relay = relay
        self._target = target
        self._transport = cast(asyncio.Transport, None)
        self._since = time.monotonic()

    def begin(self, transport: asyncio.Transport, early: bytes) -> None:
        self._transport = transport
        self._relay.clients.add(self)
        transport.set_protocol(self)
        transport.write(ESTABLISHED)
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        forward = self._relay.forward
        assert forward.authority is not None
        if data[0] != _HANDSHAKE:
            self._relay.clients.discard(self)
            forward.tunnelled += 1
            BlindTunnel(self._relay, self._target).begin(self._transport, data)
            return
        try:
            context = forward.authority.context(self._target.host)
        except Exception as error:  # a leaf that can't be made must not go unnoticed, nor hang
            self._shaken(error)
            self._transport.abort()
            return
        client = ClientConnection(self._relay, forward.site(self._relay, self._target))
        Secured(context, client, self._shaken).start(self._transport, data)

    def _shaken(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)
        if error is None:
            self._relay.forward.intercepted += 1
            return
        peer = self._transport.get_extra_info("peername")
        client = peer[0] if isinstance(peer, tuple) else "local"
        self._relay.forward.reject(client, self._target.host, _alert(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)

    # -- as one of the relay's clients

    def check(self, now: float) -> None:
        if now - self._since > self._relay.timeouts.client_head:
            self._transport.abort()

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._transport.abort()


def _alert(error: Exception) -> str:
    """The class of a failure; never what the peer sent."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS_ENDED"
    return "CONNECTION_ENDED" if isinstance(error, OSError) else type(error).__name__


def _parts(target: bytes) -> tuple[Target, bytes]:
    """Whom an absolute target names, and what follows the authority."""
    rest = target[len(_HTTP) :]
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    return _target(rest[:end], default_port=80), rest[end:]


def _target(authority: bytes, default_port: int | None = None) -> Target:
    try:
        return target_of(authority, default_port)
    except TargetError as error:
        raise Refused(400, "bad_request", str(error)) from None


def _denied(why: str) -> Refused:
    return Refused(403, "target_denied", f"the sidecar does not go there: {why}")
