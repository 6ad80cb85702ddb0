"""What `understudy verify-wire` prints: tables for a person, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bin.wire import Report
from bin.wire_diff import ALLOWED, HELD_SECONDS
from bin.wire_mask import MASKED

Scrub = Callable[[str], str]


def scrubber(key: bytes | None) -> Scrub:
    """Takes the API key out of a text, wherever an upstream has put it."""
    if not key:
        return lambda text: text
    secret = key.decode("latin-1")
    return lambda text: text.replace(secret, "***")


def as_json(report: Report, scrub: Scrub) -> str:
    return scrub(json.dumps(_plain(report), indent=2))


def _plain(report: Report) -> dict[str, Any]:
    seen = _seen(report)
    return {
        "ok": report.exit_code == 0,
        "requests": len({outcome.request.name for outcome in report.outcomes}),
        "runs": list(dict.fromkeys(outcome.run for outcome in report.outcomes)),
        "differences": [
            {"request": outcome.request.name, "run": outcome.run, "side": found.side,
             "what": found.what, "direct": found.direct, "through": found.through}
            for outcome, found in report.differences
        ],
        "allowed": [
            {"what": allowed.what, "reason": allowed.reason, "seen": seen[allowed.what]}
            for allowed in ALLOWED
        ],
        "longest_added_delay_ms": None if report.masked else round(_longest(report) * 1000, 3),
        "masked": list(MASKED) if report.masked else [],
        "skipped": list(report.skipped),
    }  # fmt: skip


def print_report(report: Report, scrub: Scrub) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if report.differences:
        console.print(_differences(report, scrub))
    console.print(_allowed(report))
    for mask in MASKED if report.masked else ():
        console.print(f"masked: {escape(mask)}")
    if report.skipped:
        names = ", ".join(report.skipped)
        console.print(f"not sent, for they cost money (--spend): {escape(names)}")
    console.print(_summary(report))


def _differences(report: Report, scrub: Scrub) -> Table:
    table = Table("request", "run", "where", "what", "direct", "through", title="differences")
    for outcome, found in report.differences:
        cells = (outcome.request.name, outcome.run, found.side, found.what,
                 found.direct, found.through)  # fmt: skip
        table.add_row(*(escape(scrub(cell)) for cell in cells))
    return table


def _allowed(report: Report) -> Table:
    table = Table("seen", "allowed difference", "why", title="allowed, hop by hop")
    seen = _seen(report)
    for allowed in ALLOWED:
        if seen[allowed.what]:
            table.add_row(str(seen[allowed.what]), allowed.what, allowed.reason)
    return table


def _seen(report: Report) -> Counter[str]:
    return Counter(item.what for o in report.outcomes for item in o.comparison.allowed)


def _longest(report: Report) -> float:
    return max((outcome.comparison.added for outcome in report.outcomes), default=0.0)


def _summary(report: Report) -> str:
    runs = list(dict.fromkeys(outcome.run for outcome in report.outcomes))
    requests = len(report.outcomes) // max(len(runs), 1)
    found = len(report.differences)
    verdict = "[green]no difference[/]" if not found else f"[red]{found} differences[/]"
    text = f"{requests} requests, {' and '.join(runs)}: {verdict}"
    if report.masked:
        return text
    longest, limit = _longest(report) * 1000, HELD_SECONDS * 1000
    return f"{text}; longest added delay {longest:.1f} ms (limit {limit:g} ms + jitter)"
