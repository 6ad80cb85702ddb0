"""Names of persons, by Presidio: a model of its own, slow, and an install of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

from store.recogniser import Found, Glance

_LETTERS: Final = re.compile(r"[^\W\d_]{2}")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_SURE: Final = 0.5  # Presidio's score


class MissingExtra(RuntimeError):
    """A recogniser was chosen whose library is not installed."""


def _engine() -> Any:
    try:
        presidio = import_module("presidio_analyzer")
    except ImportError:
        raise MissingExtra(
            "recogniser 'person' needs Presidio: pip install 'understudy[names]'"
        ) from None
    return presidio.AnalyzerEngine()


class Persons:
    def __init__(self) -> None:
        """Raises MissingExtra."""
        self._analyse = _engine().analyze

    def may(self, glance: Glance) -> bool:
        return bool(_LETTERS.search(glance.text))

    def find(self, text: str, beside: str) -> Iterator[Found]:
        # Half a surrogate pair can't be encoded, which its models need.
        shown = _SURROGATE.sub("\ufffd", text)
        for match in self._analyse(
            text=shown, language="en", entities=["PERSON"], score_threshold=_SURE
        ):
            name = text[match.start : match.end]
            if not name.startswith("<"):
                yield Found(match.start, match.end, "PERSON", " ".join(name.casefold().split()))
