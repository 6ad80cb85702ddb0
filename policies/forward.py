"""Whom a client may reach that uses the sidecar as its HTTP proxy. Decisions alone, no I/O.

A target is checked by its name before anything is looked up, and by each address it resolves to
before that address is dialled. What is denied stands in lists; all else is tunnelled blind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, NamedTuple, Self

from policies.listeners import Address, Listeners, address_of
from policies.policy import Forward

Network = IPv4Network | IPv6Network

# Each dot stands between two labels: with an optional one the match takes exponential time.
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
# The last label decides whether a resolver takes a name for an address (WHATWG URL, host parser).
_NUMERIC: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)")
_LOCAL_NAMES: Final = re.compile(
    r"(.*\.)?localhost6?|localhost6?\.localdomain6?|ip6-(localhost|loopback)|metadata(\.goog)?"
    r"|metadata\.google\.internal|instance-data(\..*)?"
)
# Where clouds hand out credentials to whoever runs on the machine.
_METADATA: Final = frozenset(
    map(ip_address, ("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
                     "fd00:ec2::254", "fd20:ce::254")),
)  # fmt: skip
# What carries an IPv4 address in its last 32 bits: NAT64 (RFC 6052, RFC 8215), SIIT (RFC 2765).
_CARRYING: Final = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")))
_ISATAP: Final = (0x5EFE, 0x02005EFE)  # before them (RFC 5214 section 6.1)
_SHARED: Final = ip_network("100.64.0.0/10")  # RFC 6598: private to providers and clouds


class Target(NamedTuple):
    """Whom a client asks for: a name in lower case without the last dot, or an address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TargetError(ValueError):
    """It is no host and port; the text says what is wrong, and never repeats it."""


def target_of(authority: bytes, default_port: int | None = None) -> Target:
    """`host:port` as in RFC 9110 section 4.3.1, or RFC 9112 section 3.2.3 without a default."""
    text = authority.decode("latin-1")
    if "@" in text:
        raise TargetError("the target holds user information")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        address = address_of(host) if bracket and "%" not in host else None
        if address is None or ":" not in host:
            raise TargetError("the target's address is not one")
        host = str(address)
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
        if not _NAME.fullmatch(host):
            raise TargetError("the target's host is not a name")
    return Target(host.lower().removesuffix("."), _port(rest, default_port))


def _port(rest: str, default: int | None) -> int:
    if rest in ("", ":") and default is not None:
        return default
    port = rest.removeprefix(":")
    if not rest.startswith(":") or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise TargetError("the target has no port from 1 to 65535")
    return int(port)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why`: of a denial, for the client."""

    kind: Literal["intercept", "tunnel", "deny"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """`exposed`: others than this machine may use it; what is
    private to its networks is then reached only if it is listed."""

    intercept: tuple[str, ...]
    denied_names: tuple[str, ...]
    denied_networks: tuple[Network, ...]
    allow: frozenset[str]
    listeners: Listeners
    exposed: bool

    @classmethod
    def of(cls, forward: Forward, listeners: Listeners) -> Self:
        networks, names = [], []
        for entry in forward.deny:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                names.append(entry)
        return cls(
            intercept=forward.intercept,
            denied_names=tuple(names),
            denied_networks=tuple(networks),
            allow=frozenset(forward.allow),
            listeners=listeners,
            exposed=any(not at.is_loopback for at, _ in listeners.bound),
        )

    def verdict(self, target: Target, usual_port: int = 443) -> Verdict:
        """By the name alone. `usual_port`: the one that needs no listing."""
        if self.listeners.named(target.host, target.port):
            return Verdict("deny", "it is the sidecar's own address")
        if str(target) in self.allow:
            return self._taken(target)
        if target.port != usual_port:
            return Verdict("deny", f"of ports only {usual_port} is reached (forward.allow)")
        address = address_of(target.host)
        if address is None:
            why = self._why_no_name(target.host)
        else:
            why = self.why_not(address, target)
        return Verdict("deny", why) if why else self._taken(target)

    def _taken(self, target: Target) -> Verdict:
        return Verdict("intercept" if self.intercepts(target.host) else "tunnel")

    def intercepts(self, host: str) -> bool:
        mutual = host.startswith("mtls-")  # a client's certificate can't be passed on
        return not mutual and _matches(self.intercept, host)

    def _why_no_name(self, host: str) -> str:
        if _NUMERIC.fullmatch(host.rpartition(".")[2]):
            return "it is an address in a spelling that is not taken"
        if _LOCAL_NAMES.fullmatch(host):
            return "it names this machine, or what only this machine may ask"
        if _matches(self.denied_names, host):
            return "it is denied (forward.deny)"
        return ""

    def why_not(self, address: Address, target: Target) -> str:
        """Why that address, which `target` resolved to, is not dialled; empty if it may be."""
        if self.listeners.named(str(address), target.port):
            return "it is the sidecar's own address"
        if str(target) in self.allow:
            return ""
        for each in (address, *_embedded(address)):
            if _is_local(each):
                return "it is a loopback, link-local, metadata or reserved address"
            if any(each in network for network in self.denied_networks):
                return "its address is denied (forward.deny)"
            if self.exposed and _is_private(each):
                return "its address is private, and others use this sidecar (forward.allow)"
        return ""


def _matches(patterns: Iterable[str], host: str) -> bool:
    """`*.x` stands for whatever is below x, and not for x."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


def _is_local(address: Address) -> bool:
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
        or (address.version == 4 and (address.is_reserved or address in _THIS_NETWORK))
    )


_THIS_NETWORK: Final = ip_network("0.0.0.0/8")


def _is_private(address: Address) -> bool:
    site_local = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_private or site_local or address in _SHARED


def _embedded(address: Address) -> list[IPv4Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    if not isinstance(address, IPv6Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    carrying = any(address in network for network in (*_CARRYING, _COMPATIBLE))
    if carrying or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


_COMPATIBLE: Final = ip_network("::/96")  # deprecated by RFC 4291, and still routed by some
