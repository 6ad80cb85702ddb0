"""Where an answer ends: bytes of tokens in, text that may be shown out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class Cutter:
    """Cuts an answer before the first stop text, also one that is spread over tokens.

    What may be the beginning of a stop text, or half a character, is held back until it is known.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        return self._release(self._decoder.decode(data))

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = self._beginning()
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def _beginning(self) -> int:
        """How many characters at the end may turn out to be a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
