"""The operator's bounds on one worker: at one of them it refuses what is new, and serves the rest.

Without a bound set it relays, up to what its descriptors carry: a call takes two, the client's and
the upstream's. At the last descriptor nothing works any more: no upstream is reached, no spool is
written, no plan is read. So it never comes to that.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from typing import Final, Self

from policies.policy import Limits as LimitsPolicy
from proxy.heads import Refused

_SHARE: Final = 0.4  # of the descriptors, for clients; as many again for upstreams
_TOLD: Final = 1 / 16  # of the descriptors, for those who are told why they are not served
_OWN: Final = 40  # about 20 are open in a worker that does nothing; look-ups and files come and go


@dataclass(frozen=True, slots=True)
class Limits:
    """None bounds nothing. `told`: connections above the bound that may wait for their 503."""

    connections: int | None = None
    in_flight: int | None = None
    memory: int | None = None  # bytes
    told: int = 0

    @classmethod
    def of(cls, policy: LimitsPolicy, descriptors: int) -> Self:
        """`descriptors`: how many files the process may open."""
        told = int(descriptors * _TOLD)
        carried = max(1, min(int(descriptors * _SHARE), (descriptors - _OWN - told) // 2))
        return cls(
            min(policy.connections or carried, carried),
            policy.in_flight,
            policy.memory,
            told,
        )

    def obstacle(self, clients: int, in_flight: int, resident: int) -> Refused | None:
        """Why one more is not taken; the numbers are those without it.

        Memory refuses only while something is served: nothing else gives any back, and a worker
        with nothing to do that refuses would do so for ever.
        """
        if self.connections is not None and clients >= self.connections:
            return _overloaded(f"{self.connections} connections are open", "limits.connections")
        if self.in_flight is not None and in_flight >= self.in_flight:
            return _overloaded(f"{self.in_flight} requests are being served", "limits.in_flight")
        if self.heavy(resident) and in_flight:
            return _overloaded("the memory it may use is in use", "limits.memory")
        return None

    @property
    def bounds_requests(self) -> bool:
        return self.in_flight is not None or self.memory is not None

    def heavy(self, resident: int) -> bool:
        return self.memory is not None and resident >= self.memory


def _overloaded(why: str, setting: str) -> Refused:
    return Refused(503, "overloaded", f"the sidecar takes no more now: {why} ({setting})")


def give_back() -> None:
    """Memory that is free but still ours, to the system: else a peak would count for ever."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc alone has it, and alone needs it
        libc.malloc_trim(0)
