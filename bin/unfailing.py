"""Standard error that never fails: it may be a file, on the disk that is full."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import TextIO


class Unfailing(io.TextIOBase):
    """Passes text on as long as that works; what can't be written is not said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # full, gone, or closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def install() -> None:
    """From here on a warning costs nobody more than itself."""
    sys.stderr = Unfailing(sys.stderr)
