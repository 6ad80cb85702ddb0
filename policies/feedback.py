"""What a person or a program says of an answer: a score, a label, what it should have been."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LONGEST_CORRECTION: Final = 1 << 20  # characters
_LONGEST_ID: Final = 200
_LONGEST_SOURCE: Final = 100
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,39}")
_FIELDS: Final = ("id", "score", "label", "correction", "source")


class FeedbackError(ValueError):
    """`field`, `value` and what to do, in one line."""

    def __init__(self, field: str, value: object, hint: str) -> None:
        super().__init__(f"{field}: {_shown(value)}: {hint}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class Said:
    """`id`: ours or its beginning, the answer's `id`, or its x-request-id. `score`: 0..1."""

    id: str
    score: float | None = None
    label: str | None = None
    correction: str | None = None
    source: str | None = None


def read(given: Any) -> Said:
    """A JSON object, checked. Raises FeedbackError."""
    if not isinstance(given, Mapping):
        raise FeedbackError("body", given, f"must be a JSON object of {', '.join(_FIELDS)}")
    for name in given:
        if name not in _FIELDS:
            raise FeedbackError(str(name), given[name], f"must be one of {', '.join(_FIELDS)}")
    said = Said(
        _id(given.get("id")),
        _score(given.get("score")),
        _label(given.get("label")),
        _text(given, "correction", LONGEST_CORRECTION),
        _text(given, "source", _LONGEST_SOURCE),
    )
    if said.score is None and said.label is None and said.correction is None:
        raise FeedbackError("score", None, "say a score, a label or a correction")
    return said


def _id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= _LONGEST_ID:
        raise FeedbackError(
            "id", value, "must be an exchange's id, the `id` of the answer or its x-request-id"
        )
    return value.strip()


def _score(value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise FeedbackError("score", value, "must be a number from 0 (bad) to 1 (good)")
    return float(value)  # type: ignore[arg-type]


def _label(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        hint = "must be a word such as good or bad: letters, digits, space, _ . -, at most 40"
        raise FeedbackError("label", value, hint)
    return value


def _text(given: Mapping[str, Any], name: str, most: int) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise FeedbackError(name, value, f"must be a text of 1 to {most} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FeedbackError(name, value, "must be text that UTF-8 can hold") from None
    return value
