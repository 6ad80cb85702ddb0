"""What an answer says of the caller's rate limits, and what being limited cost in time. Pure.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: resets are durations as Go writes them
(`12ms`, `6m0s`). Azure sends -1 or 0 where it has nothing to say: those are None, so that nobody
divides by them; a remaining of 0 counts only beside a real limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, NamedTuple

_UNITS: Final = {
    "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9
}  # fmt: skip
_AMOUNT: Final = r"(\d{1,12}(?:\.\d{1,12})?)(ms|us|µs|ns|d|h|m|s)"
_DURATION: Final = re.compile(f"(?:{_AMOUNT})+", re.ASCII)
_PIECE: Final = re.compile(_AMOUNT, re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)
_WHOLE: Final = re.compile(r"\d{1,18}", re.ASCII)
_LONGEST: Final = 64
_HOUR: Final = 3600.0
# Limits are per minute: without a stated wait, a bucket is full again after one.
_REFILLED: Final = 60.0
_TOO_MANY: Final = 429


class RateLimits(NamedTuple):
    """Counts, and seconds (`_s`). None: not stated, or not to be believed."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None
    retry_after_s: float | None = None


_NOTHING: Final = RateLimits()


def read(headers: Mapping[str, str]) -> RateLimits | None:
    """`headers` by lower-case name. None: they say nothing of limits."""
    if not any(name in headers for name in _NAMES):
        return None
    requests = _group(headers, _REQUESTS)
    tokens = _group(headers, _TOKENS)
    found = RateLimits(*requests, *tokens, _retry_after(headers))
    return None if found == _NOTHING else found


def hours_lost(rows: Iterable[tuple[float, int | None, float | None]]) -> float:
    """Hours in which the caller was held off. `rows`: (at, status, retry_after), in seconds.

    A 429 holds off for as long as it says; else until the next answer that is none, at most a
    minute. Calls that were held off at the same time lose that time once. For rows of one key and
    model: limits are counted by these.
    """
    lost = 0.0
    until = float("-inf")  # the end of what is counted already
    open_since: float | None = None  # of a 429 that didn't say how long
    for at, status, retry_after in sorted(rows, key=lambda row: row[0]):
        if open_since is not None:
            end = min(at, open_since + _REFILLED)
            lost, until = lost + _beyond(open_since, end, until), max(until, end)
            open_since = None
        if status != _TOO_MANY:
            continue
        if retry_after is None:
            open_since = at
        else:
            end = at + retry_after
            lost, until = lost + _beyond(at, end, until), max(until, end)
    if open_since is not None:
        lost += _beyond(open_since, open_since + _REFILLED, until)
    return lost / _HOUR


def _beyond(start: float, end: float, until: float) -> float:
    """Of start..end, what lies after `until`."""
    return max(0.0, end - max(start, until))


# -- headers


Names = tuple[str, str, str]


def _names(of: str) -> Names:
    return f"x-ratelimit-limit-{of}", f"x-ratelimit-remaining-{of}", f"x-ratelimit-reset-{of}"


_REQUESTS: Final = _names("requests")
_TOKENS: Final = _names("tokens")
_NAMES: Final = (*_REQUESTS, *_TOKENS, "retry-after", "retry-after-ms")


def _group(headers: Mapping[str, str], names: Names) -> tuple[int | None, int | None, float | None]:
    limit = _whole(headers.get(names[0])) or None
    remaining = _whole(headers.get(names[1]))
    if limit is None and not remaining:
        return None, None, None
    return limit, remaining, duration(headers.get(names[2]))


@lru_cache(maxsize=1024)  # most calls of an app come with the same ones
def duration(value: str | None) -> float | None:
    """Seconds of `12ms`, `6m0s`, `1h2m3.5s`, or of a bare number of seconds."""
    text = value.strip() if value else ""
    if not text or len(text) > _LONGEST:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return round(sum(float(n) * _UNITS[unit] for n, unit in _PIECE.findall(text)), 9)


def _whole(value: str | None) -> int | None:
    text = value.strip() if value else ""
    return int(text) if _WHOLE.fullmatch(text) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Milliseconds first, as the SDKs read it; seconds; or a date, from the answer's own."""
    milliseconds = _plain(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    seconds = _plain(headers.get("retry-after"))
    if seconds is not None:
        return seconds
    until, now = _date(headers.get("retry-after")), _date(headers.get("date"))
    return max(0.0, (until - now).total_seconds()) if until and now else None


def _plain(value: str | None) -> float | None:
    text = value.strip() if value else ""
    return float(text) if _NUMBER.fullmatch(text) else None


def _date(value: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(value) if value and len(value) <= _LONGEST else None
    except (ValueError, TypeError):
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)
