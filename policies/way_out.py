"""The sidecar's own way out: the HTTP proxy of a corporate network, and what is reached without.

`from_environment` reads what was set for the sidecar itself, once, where it starts; only the
process that calls upstreams gets the result.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from policies.listeners import Listeners, address_of
from policies.setting import PolicyError

_OURS: Final = "UNDERSTUDY_UPSTREAM_PROXY"
_HIDDEN: Final = "(not shown)"  # the value may hold a password
_HINT: Final = (
    "must be http://host:port or http://user:password@host:port, percent-encoded; "
    "proxies spoken to over TLS or SOCKS are not supported"
)


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """A proxy that opens tunnels. `authorization`: the value to send, empty without credentials."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, url: str, name: str) -> UpstreamProxy:
        """From the value of the variable `name`. Raises PolicyError, without the value."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = 80 if parts.port is None else parts.port
        except ValueError:
            raise PolicyError(name, _HIDDEN, _HINT) from None
        host = parts.hostname or ""
        odd = re.search(r"[^\x21-\x7e]", host) or parts.query or parts.fragment
        if parts.scheme != "http" or not host or odd or parts.path not in ("", "/") or not port:
            raise PolicyError(name, _HIDDEN, _HINT)
        if parts.username is None:
            return cls(host, port)
        user = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        return cls(host, port, b"Basic " + b64encode(user))


@dataclass(frozen=True, slots=True)
class _Exempt:
    """One entry of NO_PROXY. `host` "*": any; `port` 0: any."""

    host: str
    network: IPv4Network | IPv6Network | None
    port: int

    def covers(self, host: str, port: int) -> bool:
        if self.port not in (0, port):
            return False
        if self.network is not None:
            address = address_of(host)
            return address is not None and address in self.network
        return self.host in ("*", host) or host.endswith("." + self.host)


@dataclass(frozen=True, slots=True)
class WayOut:
    """Which proxy a call goes through: one for https upstreams, one for http ones, or none."""

    https: UpstreamProxy | None = None
    http: UpstreamProxy | None = None
    exempt: tuple[_Exempt, ...] = ()

    @classmethod
    def of(cls, https: str = "", http: str = "", no_proxy: str = "") -> WayOut:
        """From what `from_environment` returned. Entries of NO_PROXY that mean nothing are none."""
        entries = (_entry(text) for text in re.split(r"[,\s]+", no_proxy.lower()))
        return cls(
            UpstreamProxy.of(https, "HTTPS_PROXY") if https else None,
            UpstreamProxy.of(http, "HTTP_PROXY") if http else None,
            tuple(entry for entry in entries if entry is not None),
        )

    def proxy_for(self, host: str, port: int, tls: bool) -> UpstreamProxy | None:
        proxy = self.https if tls else self.http
        host = host.lower().rstrip(".")
        if proxy is None or _is_loopback(host):
            return None
        return None if any(entry.covers(host, port) for entry in self.exempt) else proxy


def from_environment(environment: Mapping[str, str], listeners: Listeners) -> dict[str, str]:
    """What `WayOut.of` takes: UNDERSTUDY_UPSTREAM_PROXY for all, else each scheme's own variable.

    As everywhere, the lower-case name wins. The app's variables may point at this very sidecar
    and are then no way out of it: ignored. Raises PolicyError.
    """
    return {
        "https": _proxy(environment, (_OURS, "https_proxy", "HTTPS_PROXY"), listeners),
        "http": _proxy(environment, (_OURS, "http_proxy", "HTTP_PROXY"), listeners),
        "no_proxy": environment.get("no_proxy") or environment.get("NO_PROXY", ""),
    }


def _proxy(environment: Mapping[str, str], names: tuple[str, ...], listeners: Listeners) -> str:
    for name in names:
        url = environment.get(name, "").strip()
        if not url:
            continue
        proxy = UpstreamProxy.of(url, name)
        if not listeners.named(proxy.host, proxy.port):
            return url
        if name == _OURS:
            raise PolicyError(name, _HIDDEN, "is this sidecar itself; name the proxy beyond it")
    return ""


def _is_loopback(host: str) -> bool:
    address = address_of(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback


def _entry(text: str) -> _Exempt | None:
    """`example.com` (and below it), `.example.com`, `*`, an address, a CIDR range; with :port."""
    host, port = text, 0
    head, colon, tail = text.rpartition(":")
    if colon and tail.isdigit() and _network(text) is None:
        host, port = head, int(tail)
    network = _network(host)
    if network is None and host != "*":
        host = host.removeprefix("*").strip(".")
    return _Exempt(host, network, port) if host else None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None
