"""What the recorder keeps of bodies besides their text, and for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from policies.setting import PolicyError, choice, duration, optional, setting, truth

_SIZES: Final = {"": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}


def _size(value: Any, path: str) -> int:
    """Bytes: a whole number, or a text such as `500MB`, `20GB`."""
    hint = "must be bytes, or a size such as 500MB, 20GB"
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b?)", str(value).strip().lower())
    if isinstance(value, bool) or match is None or match[2] not in _SIZES:
        raise PolicyError(path, value, hint)
    return int(float(match[1]) * _SIZES[match[2]])


def _realtime(value: Any, path: str) -> str:
    """YAML 1.1 reads a bare `off` as false."""
    return choice("off" if value is False else value, path, ("off", "text", "audio"))


@dataclass(frozen=True, slots=True)
class Record:
    search: bool = setting(truth, "index prompts and answers for `understudy search`", True)
    media: bool = setting(
        truth,
        "keep images, audio and files, once each, below <home>/files; else only their hashes",
        True,
    )
    stream_events: bool = setting(
        truth, "keep the events of streams too, not only what they amount to", False
    )
    realtime: str = setting(
        _realtime, "of Realtime sessions keep off, text (audio as its size) or audio", "text"
    )
    keep_bodies: float | None = setting(
        optional(duration), "delete bodies that are older, e.g. 30d; counts and costs stay", None
    )
    keep_rows: float | None = setting(
        optional(duration), "delete whole exchanges that are older, e.g. 400d", None
    )
    most_bytes: int | None = setting(
        optional(_size), "delete the oldest bodies while database and files are larger", None
    )
