"""Rate limits as headers state them, and hours lost to them."""

from __future__ import annotations

import pytest

from store.rate_limits import RateLimits, duration, hours_lost, read

OPENAI = {
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-limit-tokens": "30000000",
    "x-ratelimit-remaining-tokens": "29999000",
    "x-ratelimit-reset-tokens": "6m0s",
}


def test_the_six_headers() -> None:
    assert read(OPENAI) == RateLimits(10000, 9999, 0.006, 30_000_000, 29_999_000, 360.0)


DURATIONS = [
    ("12ms", 0.012),
    ("6m0s", 360.0),
    ("1h2m3.5s", 3723.5),
    ("1d2h", 93600.0),
    ("59.706s", 59.706),
    ("500µs", 0.0005),
    ("0s", 0.0),
    ("10", 10.0),
    (" 1.5 ", 1.5),
    ("", None),
    (None, None),
    ("-1", None),
    ("-1s", None),
    ("soon", None),
    ("1s soon", None),
    ("1e3", None),
    ("1" * 13, None),
    ("1s" * 40, None),
    ("\u0661s", None),  # a digit, but not one of a header
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_reset_in_seconds(text: str | None, seconds: float | None) -> None:
    assert duration(text) == seconds


AZURE = [
    ("-1", "-1", None, None),
    ("0", "0", None, None),
    ("-1", "77", None, 77),
    ("100", "0", 100, 0),
    ("100", "-1", 100, None),
    ("many", "few", None, None),
    ("9" * 30, "9", None, 9),
]


@pytest.mark.parametrize(("limit", "remaining", "known_limit", "known_rest"), AZURE)
def test_what_azure_says_when_it_has_nothing_to_say(
    limit: str, remaining: str, known_limit: int | None, known_rest: int | None
) -> None:
    headers = {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": remaining}
    found = read(headers) or RateLimits()
    assert (found.limit_tokens, found.remaining_tokens) == (known_limit, known_rest)


def test_headers_that_say_nothing_are_no_row() -> None:
    assert read({}) is None
    assert read({"x-request-id": "r"}) is None
    assert read({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-reset-tokens": "0"}) is None


RETRIES = [
    ({"retry-after": "20"}, 20.0),
    ({"retry-after": "20", "retry-after-ms": "1500"}, 1.5),
    (
        {
            "retry-after": "Sun, 01 Nov 2026 12:00:30 GMT",
            "date": "Sun, 01 Nov 2026 12:00:00 GMT",
        },
        30.0,
    ),
    (
        {
            "retry-after": "Sun, 01 Nov 2026 11:00:00 GMT",
            "date": "Sun, 01 Nov 2026 12:00:00 GMT",
        },
        0.0,
    ),
    ({"retry-after": "Sun, 01 Nov 2026 12:00:30 GMT"}, None),
    ({"retry-after": "later", "date": "never"}, None),
    ({"retry-after": "-3"}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), RETRIES)
def test_when_to_come_again(headers: dict[str, str], seconds: float | None) -> None:
    assert (read(headers) or RateLimits()).retry_after_s == seconds


LOST = [
    ([], 0.0),
    ([(0.0, 200, None), (5.0, 500, 60.0), (6.0, None, None)], 0.0),
    # as long as it says
    ([(0.0, 429, 20.0), (30.0, 200, None)], 20.0),
    # until the next answer that is none, at most a minute
    ([(0.0, 429, None), (15.0, 200, None)], 15.0),
    ([(0.0, 429, None), (500.0, 200, None)], 60.0),
    ([(0.0, 429, None)], 60.0),
    ([(0.0, 429, None), (10.0, 429, None), (25.0, 200, None)], 25.0),
    # held off at the same time: once
    ([(0.0, 429, 20.0), (5.0, 429, 20.0), (8.0, 429, 5.0)], 25.0),
    ([(0.0, 429, 100.0), (10.0, 429, None), (200.0, 200, None)], 100.0),
    ([(0.0, 429, 10.0), (1000.0, 429, 10.0)], 20.0),
    # in any order
    ([(15.0, 200, None), (0.0, 429, None)], 15.0),
]


@pytest.mark.parametrize(("rows", "seconds"), LOST)
def test_time_lost(rows: list[tuple[float, int | None, float | None]], seconds: float) -> None:
    assert hours_lost(rows) == pytest.approx(seconds / 3600)
