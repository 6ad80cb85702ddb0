"""Small readers of values that apps, upstreams and damage may have made into anything."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

Json = dict[str, Any]

_MOST_INTEGER: Final = 2**63 - 1
_MOST_TIME: Final = 1e11  # seconds since the epoch; what is above is no time
_UTF8_LONGEST: Final = 4


def json_object(data: bytes | str | None) -> Json | None:
    """A JSON object, or None for anything else."""
    if not data:
        return None
    try:
        value = orjson.loads(data)
    except ValueError:
        value = _slowly(data)
    return value if isinstance(value, dict) else None


def _slowly(data: bytes | str) -> Any:
    """What orjson refuses, such as a lone surrogate. None where it is right."""
    try:
        text = data if isinstance(data, str) else data.decode()
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def headers_of(head: Json) -> dict[str, str] | None:
    """By lower-case name; of one that is repeated, the first. None when they can't be read."""
    try:
        found = {name.lower(): value for name, value in reversed(head["headers"])}
        "".join(found.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found


def text_of(value: object) -> str | None:
    """A string, or None. Lone surrogates are replaced: no column can hold them."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() else value.encode(errors="replace").decode()


def count_of(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_INTEGER
    return value if fits else None  # type: ignore[return-value]


def digits_of(value: str | None) -> int | None:
    plain = value and value.isascii() and value.isdecimal() and len(value) < 10
    return int(value) if value and plain else None


def is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _MOST_TIME


def milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 3)


def utf8(body: bytes, partial: bool) -> str | None:
    """As text; None when it is none. `partial`: a cut may go through the middle of a character,
    which is then left out."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        if partial and len(body) - error.start < _UTF8_LONGEST and error.reason.startswith("unexp"):
            return body[: error.start].decode()
        return None


def dumped(value: Any) -> str | None:
    """As JSON; None when it is nested too deeply, or no JSON can say it."""
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):
        pass  # a lone surrogate, a whole number over 64 bits, some hundred levels
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
