"""Where the sidecar itself listens: no call of its own may ever go there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address


def address_of(host: str) -> Address | None:
    """The address that `host` spells, None for a name. A mapped IPv4 address is that address."""
    try:
        found = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


@dataclass(frozen=True, slots=True)
class Listeners:
    """Addresses and ports as they were bound; 0.0.0.0 and :: stand for all of this machine's."""

    bound: tuple[tuple[Address, int], ...] = ()

    @classmethod
    def of(cls, shown: Iterable[str]) -> Listeners:
        """From `127.0.0.1:4141` or `[::]:4141`."""
        parts = [text.rpartition(":") for text in shown]
        return cls(tuple((ip_address(host.strip("[]")), int(port)) for host, _, port in parts))

    def named(self, host: str, port: int) -> bool:
        """Is that literally one of them? What a name resolves to is not known here."""
        address = address_of(host)
        if address is None and host.lower().rstrip(".") != "localhost":
            return False
        return any(port == own and _same(address, at) for at, own in self.bound)

    def reached(self, peer: tuple[str, int], local: str) -> bool:
        """Did a connection from `local` to `peer` arrive at one of them?

        A machine that calls itself does so from the address it calls, or on a loopback address.
        """
        address, port = address_of(peer[0]), peer[1]
        if address is None:
            return False
        here = address.is_loopback or address == address_of(local)
        return any(
            port == own and (address == at or (here and _covers(at, address)))
            for at, own in self.bound
        )


def _covers(at: Address, address: Address) -> bool:
    return at.is_unspecified and at.version == address.version


def _same(address: Address | None, at: Address) -> bool:
    """`address` None: localhost. Who calls 0.0.0.0 calls a loopback address."""
    if address is None:
        return at.is_loopback or at.is_unspecified
    if address == at:
        return True
    return address.version == at.version and (
        (at.is_unspecified and address.is_loopback) or (at.is_loopback and address.is_unspecified)
    )
