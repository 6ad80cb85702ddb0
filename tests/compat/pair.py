"""Two equal upstreams, one of them behind the sidecar: the same calls, made to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.compat.upstream import Heard, ScriptedUpstream
from tests.e2e.harness import Sidecar, wait_for

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    direct: ScriptedUpstream
    behind: ScriptedUpstream
    sidecar: Sidecar

    def both(self, call: Callable[[str], T]) -> tuple[T, T]:
        """What `call` returns for the base URL of either: directly, through the sidecar."""
        return call(self.direct.base_url), call(self.sidecar.base_url)

    def heard(self) -> tuple[list[Heard], list[Heard]]:
        """What has arrived at either since it was asked last."""
        found = self.direct.heard[:], self.behind.heard[:]
        for upstream, heard in zip((self.direct, self.behind), found, strict=True):
            del upstream.heard[: len(heard)]
        return found

    def all_gone(self) -> None:
        """Whoever left an answer unfinished has left it on both sides, if later on one."""
        wait_for("as many clients gone", lambda: self.behind.gone >= self.direct.gone)


@contextmanager
def pair(home: Path) -> Iterator[Pair]:
    with (
        ScriptedUpstream() as direct,
        ScriptedUpstream() as behind,
        Sidecar(home, {"upstream": behind.url}) as sidecar,
    ):
        yield Pair(direct, behind, sidecar)
