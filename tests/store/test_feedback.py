"""Feedback finds its exchange by any of its ids, and is kept in words that may be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.feedback import FeedbackError, read
from policies.home import Home
from policies.words import Feedback, UnknownExchange, WriteUnfit
from store import queries
from tests.store.forgetting import in_database, said_by, write
from tests.store.making import Exchange, Run, home, record_all, row, rows

REQUEST_ID = "req_abc123"


def recorded(tmp_path: Path) -> Home:
    at = home(tmp_path)
    run = Run(at)
    for number in (1, 2):
        one = said_by(number, f"word{number}", "t")
        one.response_headers = [("content-type", "application/json")]
        if number == 2:
            one.response_headers.append(("x-request-id", REQUEST_ID))
        run.write(one.records())
    run.die()
    record_all(at)
    return at


def said(identity: str, **more: object) -> Feedback:
    values = {"at": 1.5, "score": 1.0, "label": None, "correction": None, "source": None}
    return Feedback(identity, **values | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [Exchange(number=2).uuid, Exchange(number=2).uuid.upper(), "chatcmpl-word2-2", REQUEST_ID,
     Exchange(number=2).uuid[:13]],
)  # fmt: skip
def test_by_any_of_its_ids(tmp_path: Path, given: str) -> None:
    at = recorded(tmp_path)
    write(at, said(given, label="good"))
    found = queries.exchange(at.database, Exchange(number=2).uuid).feedback
    assert found == [
        {"at": "1970-01-01T00:00:01.500Z", "score": 1.0, "label": "good", "correction": None,
         "source": None}
    ]  # fmt: skip
    assert queries.exchange(at.database, Exchange(number=1).uuid).feedback == []


@pytest.mark.parametrize(
    ("given", "why"),
    [("chatcmpl-none", "no exchange goes by 'chatcmpl-none'"), ("000", "no exchange"),
     ("0000", "several exchanges go by '0000'"), ("ffff", "no exchange"), ("%", "no exchange")],
)  # fmt: skip
def test_of_no_exchange_or_several(tmp_path: Path, given: str, why: str) -> None:
    at = recorded(tmp_path)
    with pytest.raises(UnknownExchange, match=why):
        write(at, said(Exchange(number=1).uuid), said(given))
    assert rows(at, "SELECT * FROM feedback") == []  # all or none


def test_the_same_sent_twice_is_one(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    one = said(REQUEST_ID, correction="better")
    write(at, one)
    write(at, one, said(REQUEST_ID, correction="better", at=2.5))
    assert row(at, "SELECT count(*) AS n FROM feedback") == {"n": 2}


def test_a_correction_is_redacted_as_its_exchange(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    secret = "sk-proj-" + "a1B2c3D4" * 6
    write(at, said(REQUEST_ID, correction=f"use {secret} and ann@example.com"))
    kept = row(at, "SELECT correction FROM feedback")["correction"]
    assert secret not in kept and "ann@example.com" in kept


@pytest.mark.parametrize("mode", ["metadata", "forgotten"])
def test_no_correction_where_no_text_is_kept(tmp_path: Path, mode: str) -> None:
    at = recorded(tmp_path)
    in_database(at, lambda db: db.execute("UPDATE exchanges SET privacy = ?", (mode,)))
    identity = Exchange(number=1).uuid
    with pytest.raises(WriteUnfit, match="say a score or a label"):
        write(at, said(identity, correction="text"))
    write(at, said(identity, score=0.5))
    assert row(at, "SELECT score FROM feedback") == {"score": 0.5}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"id": "a", "score": 1.5}, r"score: 1.5: must be a number from 0 \(bad\) to 1 \(good\)"),
        ({"id": "a", "score": "1"}, "score: '1': must be a number"),
        ({"id": "a", "score": True}, "score: True"),
        ({"id": "a", "score": float("nan")}, "score: nan"),
        ({"id": "a"}, "say a score, a label or a correction"),
        ({"score": 1}, "id: None: must be an exchange's id"),
        ({"id": " ", "score": 1}, "id: ' '"),
        ({"id": "a", "label": "so@so"}, "label: 'so@so': must be a word"),
        ({"id": "a", "correction": ""}, "correction: '': must be a text"),
        ({"id": "a", "correction": "\ud800"}, "UTF-8"),
        ({"id": "a", "correction": "x" * (1 << 21)}, r"\(2097154 characters\): must be a text"),
        ({"id": "a", "note": 1}, "note: 1: must be one of id, score"),
        ([], r"body: \[\]: must be a JSON object"),
    ],
)
def test_what_is_refused(given: object, why: str) -> None:
    with pytest.raises(FeedbackError, match=why):
        read(given)


def test_what_is_taken() -> None:
    found = read({"id": " a ", "score": 1, "label": "not so bad", "source": "ci"})
    assert (found.id, found.score, found.label, found.source) == ("a", 1.0, "not so bad", "ci")
