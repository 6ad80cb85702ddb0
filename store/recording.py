"""What rows are made with, chosen once for a recorder's life: redaction, prices, who is who."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final
from urllib.parse import urlsplit

from policies.endpoints import OTHER, Endpoint, classify
from policies.identity import Sources
from policies.policy import Policy
from policies.record import Record
from store.prices import Prices
from store.redaction import Redaction

_ABSOLUTE: Final = re.compile(r"http://[^/]*", re.IGNORECASE)  # RFC 9112 section 3.2.2


@dataclass(frozen=True, slots=True)
class Recording:
    """`key`: the install's. `hosts`: of upstreams by the prefix of paths, the longest first.
    `credentials` are removed always, `private` under `redacted`."""

    key: bytes = field(repr=False)
    hosts: tuple[tuple[str, str | None], ...]
    sources: Sources
    record: Record
    prices: Prices
    credentials: Redaction
    private: Redaction

    @classmethod
    def of(cls, policy: Policy, key: bytes) -> Recording:
        privacy = policy.privacy
        routes = [(each.prefix, each.url) for each in policy.upstreams] + [("", policy.upstream)]
        routes.sort(key=lambda route: len(route[0]), reverse=True)
        return cls(
            key,
            tuple((prefix, urlsplit(url).hostname) for prefix, url in routes),
            policy.identity,
            policy.record,
            Prices(policy.prices),
            Redaction(()),
            Redaction(privacy.recognisers, privacy.region),
        )

    def host_of(self, path: str) -> str | None:
        """The upstream's, for the path that a client sent to the data port. None for what is no
        path: a tunnel's target names its host itself."""
        return next((host for prefix, host in self.hosts if _owns(prefix, path)), None)

    def endpoint(self, method: str, path: str, is_named: bool) -> tuple[Endpoint, str]:
        """What was asked for, and the path that says so, without a query. `is_named`: the client
        named the host itself."""
        plain = path.partition("?")[0]
        found = classify(method, plain)
        if found is not OTHER:
            return found, plain
        below = self._below(plain, is_named)
        return classify(method, below), below

    def _below(self, path: str, is_named: bool) -> str:
        """Without what led to its upstream: the prefix of a route, or what stands before the path
        where a client named the host."""
        if is_named:
            return without_origin(path)
        return next((path[len(prefix) :] for prefix, _ in self.hosts if _owns(prefix, path)), path)

    def hashed(self, value: str) -> str:
        """A name that says nothing, the same for the same value."""
        return "hash:" + blake2b(value.encode(), key=self.key, digest_size=12).hexdigest()

    def redaction(self, mode: object) -> Redaction:
        return self.private if mode == "redacted" else self.credentials


def without_origin(target: str) -> str:
    """The path of a target that may be a whole URL, as a client of a forward proxy sends it."""
    return _ABSOLUTE.sub("", target, count=1)


def _owns(prefix: str, path: str) -> bool:
    """On whole segments."""
    return f"{path.partition('?')[0]}/".startswith(prefix + "/")
