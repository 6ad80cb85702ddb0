"""How much of an exchange may be kept, by what its head says."""

from __future__ import annotations

from policies.identity import Sources, header_names, tenant_of
from policies.privacy import Mode, Privacy, mode_for
from proxy.heads import RequestHead


class Modes:
    """Decided once for a head, with all else that follows from it.

    `readable`: headers whose values are recorded because they say who asks, in lower case.
    `usual`: the mode of what no rule and no header speaks of.
    """

    def __init__(self, privacy: Privacy | None = None, sources: Sources | None = None) -> None:
        self._privacy = privacy or Privacy()
        self._sources = sources or Sources()
        self._by_tenant = any(rule.tenant is not None for rule in self._privacy.rules)
        self.usual = self._privacy.mode
        self.readable = frozenset(name.encode() for name in header_names(self._sources))

    def of(self, head: RequestHead, key: str | None) -> Mode:
        """`key`: the hash of its credentials."""
        if head.no_store:
            return "off"
        if not self._privacy.rules:
            return self.usual
        tenant = None
        if self._by_tenant:
            tenant = tenant_of(head.named(self.readable), key, self._sources)
        # What names another host in front of the path is no part of it.
        path = head.below or b"/" if head.route.forwarded else head.path
        return mode_for(self._privacy, tenant, path.decode("latin-1"))
