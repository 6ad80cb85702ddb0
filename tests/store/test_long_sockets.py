"""A socket that lives for hours: its turns are recorded as they end, and their bytes go."""

from __future__ import annotations

import string
from pathlib import Path
from random import Random

import pytest

from tests.store.making import Run, home, record_all, rows
from tests.store.sockets import AGREEMENTS, Talk
from tests.store.test_rows_kept import USED, talked, turn

TURNS = 40
TEXT = 30_000
LETTERS = string.ascii_letters + string.digits + " .,"
STAGED = "SELECT coalesce(sum(length(payload)), 0) AS bytes FROM staged"
TURN_ROWS = """
    SELECT e.response_id, t.request, t.response FROM exchanges AS e
    JOIN texts AS t USING (number) WHERE e.endpoint = 'responses' ORDER BY number"""


BEHIND = {"upstreams": [{"prefix": "/eu", "url": "https://api.openai.com", "strip": True}]}


@pytest.mark.parametrize(
    ("agreement", "target"),
    [*((each, "/v1/responses") for each in AGREEMENTS), (AGREEMENTS[0], "/eu/v1/responses")],
)
def test_its_turns_do_not_wait_for_its_end(tmp_path: Path, agreement: str, target: str) -> None:
    """The recorder starts anew at every piece, cut anywhere."""
    at, run, chance = home(tmp_path), Run(home(tmp_path)), Random(agreement)
    talk = Talk(agreement)
    texts = []
    for number in range(TURNS):
        answer = "".join(chance.choices(LETTERS, k=TEXT))
        response = f'{{"id":"r{number}","model":"gpt-5","output":["{answer}"],{USED}}}'
        texts.append(turn(talk, f"r{number}", f"turn {number}", response))
    whole = talked(talk, target)
    most, done = 0, 0
    for start in range(0, len(whole), size := len(whole) // 12):
        run.write(whole[start : start + size])
        record_all(at, **BEHIND)
        [staged] = rows(at, STAGED)
        most = max(most, staged["bytes"])
        if start == 6 * size:
            done = len(rows(at, TURN_ROWS))
    run.die()
    record_all(at, **BEHIND)
    found = rows(at, TURN_ROWS)
    assert [(row["request"], row["response"]) for row in found] == texts
    assert done >= TURNS // 4
    assert most < len(whole) / 2
    assert rows(at, "SELECT * FROM incidents") == []
    assert rows(at, STAGED) == [{"bytes": 0}]
    sql = "SELECT recorded, highest_seq FROM runs"
    assert rows(at, sql) == [{"recorded": 1, "highest_seq": 1}]
