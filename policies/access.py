"""Who may use the data port: this machine, networks that are listed, and who knows the password."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self

from policies.listeners import address_of


@dataclass(frozen=True, slots=True)
class Access:
    """`authorization`: the value of Proxy-Authorization that lets anybody in, empty for none."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    authorization: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, networks: Iterable[str], credentials: str) -> Self:
        """`credentials`: user:password, or empty."""
        basic = b"Basic " + b64encode(credentials.encode()) if credentials else b""
        return cls(tuple(map(ip_network, networks)), basic)

    def trusts(self, peer: object) -> bool:
        """By its address alone. `peer`: what a socket says; a path for unix sockets."""
        if isinstance(peer, str | bytes):
            return True
        if not isinstance(peer, tuple):  # it has left already, and could be anybody
            return False
        address = address_of(peer[0])
        if address is None:
            return False
        return address.is_loopback or any(address in network for network in self.networks)

    def admits(self, authorization: bytes) -> bool:
        """By what it knows."""
        return bool(self.authorization) and hmac.compare_digest(authorization, self.authorization)
