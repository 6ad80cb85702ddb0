"""Which upstream a path belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from policies.policy import Policy, Upstream
from proxy.origin import Origin


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """`prefix`: of the paths that go here; `strip`: bytes of it that the upstream is not shown.

    `forwarded`: a client named the upstream; no path of it is ours. `recorded`: may it be captured?
    """

    origin: Origin
    prefix: bytes = b""
    strip: int = 0
    forwarded: bool = False
    recorded: bool = True

    @classmethod
    def to(cls, url: str, prefix: str = "", strip: bool = False) -> Route:
        return cls(Origin.of(url), prefix.encode(), len(prefix) * strip)

    def owns(self, path: bytes) -> bool:
        """On whole segments: /openai owns /openai and /openai/x, not /openaix."""
        if not path.startswith(self.prefix):
            return False
        end = len(self.prefix)
        return path[end : end + 1] in (b"", b"/", b"?")

    def onward(self, target: bytes) -> bytes:
        """The target as the upstream is asked for it, behind the path of its URL."""
        if target == b"*":
            return target
        rest = target[self.strip :]
        if self.strip and not rest.startswith(b"/"):
            rest = b"/" + rest
        return self.origin.prefix + rest


class Routes:
    """`only`: the one route of a policy without further upstreams; there is nothing to find then.

    route = routes.only or routes.find(path)
    """

    __slots__ = ("_prefixed", "default", "only")

    def __init__(self, default: Route, prefixed: tuple[Route, ...] = ()) -> None:
        self.default = default
        self.only = None if prefixed else default
        self._prefixed = sorted(prefixed, key=lambda route: len(route.prefix), reverse=True)

    @classmethod
    def of(cls, policy: Policy) -> Routes:
        return cls(Route.to(policy.upstream), tuple(map(_route, policy.upstreams)))

    def find(self, path: bytes) -> Route:
        """The longest prefix wins. The path as it came, still encoded, with or without query."""
        for route in self._prefixed:
            if route.owns(path):
                return route
        return self.default


def _route(upstream: Upstream) -> Route:
    return Route.to(upstream.url, upstream.prefix, upstream.strip)
