"""The sentences and JSON fields that the corpus puts its items into, and how they are drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any, Final

Row = dict[str, Any]
SPLIT: Final = "¦"  # inside each made-up key, so that no scanner takes the corpus for a leak

FIELDS: Final = (
    '{{"customer": "{0}"}}',
    '{{"contact": {{"primary": "{0}", "verified": true}}}}',
    '{{"rows": [["Jane Roe", "{0}", "open"]]}}',
    "name,value\nJane Roe,{0}\n",
    "| field | value |\n|---|---|\n| entry | {0} |",
    "- entry: {0}\n- state: open",
)


def found(text: str, *values: str, **more: Any) -> Row:
    return {"text": text, "found": list(values), **more}


def missed(text: str, **more: Any) -> Row:
    return {"text": text, "found": [], **more}


def within(
    draw: random.Random, values: Iterable[str], sentences: tuple[str, ...], **more: Any
) -> list[Row]:
    """Each value in a sentence of its own draw."""
    return [found(draw.choice(sentences).format(value), value, **more) for value in values]


def beside(
    draw: random.Random, values: Iterable[str], sentences: tuple[str, ...], **more: Any
) -> list[Row]:
    """Each near miss in a sentence of its own draw."""
    return [missed(draw.choice(sentences).format(value), **more) for value in values]


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("0123456789", k=count))


def word(draw: random.Random, letters: str, count: int) -> str:
    return "".join(draw.choices(letters, k=count))


def ordinary(draw: random.Random) -> list[str]:
    """What digits, dots, colons and hyphens are mostly used for: nobody's data."""
    year, month, day = draw.randint(1960, 2029), draw.randint(1, 12), draw.randint(1, 28)
    hour, minute, second = draw.randint(0, 23), draw.randint(0, 59), draw.randint(0, 59)
    sha = word(draw, "0123456789abcdef", 40)
    return [
        f"The meeting is on {year}-{month:02}-{day:02} in room {draw.randint(100, 999)}.",
        f"Delivered {day:02}/{month:02}/{year}, signed at {hour:02}:{minute:02}.",
        f"Rechnung vom {day:02}.{month:02}.{year}, Nr. {digits(draw, 5)}",
        f'{{"created_at": "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"}}',
        f'{{"at": "{year}{month:02}{day:02}T{hour:02}{minute:02}{second:02}"}}',
        f"It took from {hour:02}:{minute:02}:{second:02}.{digits(draw, 3)} until noon.",
        f'{{"created": 17{digits(draw, 8)}, "object": "chat.completion"}}',
        f'{{"timestamp_ms": 17{digits(draw, 11)}}}',
        f"The total is ${draw.randint(1, 999)},{digits(draw, 3)}.{digits(draw, 2)} before tax.",
        f"Revenue grew from 1,{digits(draw, 3)},{digits(draw, 3)} to 2.{digits(draw, 3)} million.",
        f"Commit {sha} broke the build, {sha[:8]} mended it.",
        f"Trace {sha[:8]}-{sha[8:12]}-4{sha[12:15]}-a{sha[15:18]}-{sha[18:30]} was slow.",
        f"We are at {draw.uniform(-89, 89):.6f}, {draw.uniform(-179, 179):.6f} by the lake.",
        f"loss={draw.random():.12f} after {draw.randint(1000, 99999)} steps",
        f"pip install example=={draw.randint(0, 30)}.{draw.randint(0, 30)}.{draw.randint(0, 30)}",
        f"The model gpt-4o-mini-{year}-{month:02}-{day:02} answered in {second} ms.",
        f"See pages {draw.randint(100, 400)}-{draw.randint(401, 999)} of volume {month}.",
        f"ISBN 978-3-16-{digits(draw, 6)}-{draw.randint(0, 9)} is out of print.",
        f"It was open from {draw.randint(1900, 1950)}-{draw.randint(1951, 2020)}.",
        f"x = [{', '.join(str(draw.randint(0, 255)) for _ in range(8))}]",
        f"#{digits(draw, 2)}{sha[:4]} is a shade of {draw.choice(['blue', 'red', 'green'])}.",
        f"The score was {draw.randint(0, 9)}:{draw.randint(0, 9)} after {minute} minutes.",
    ]


def many(draw: random.Random, times: int) -> list[Row]:
    return [missed(text) for _ in range(times) for text in ordinary(draw)]


def lines(rows: list[Row]) -> str:
    """Without doubles: the same item twice would count twice."""
    made = (json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    return "".join(f"{line}\n" for line in dict.fromkeys(made))
