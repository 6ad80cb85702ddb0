"""Each recogniser against its frozen corpus: what it must find, and what only looks like it."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from policies.recognisers import RECOGNISERS
from store.redaction import Redaction
from tests.store.redaction_corpus.make import MAKERS
from tests.store.redaction_corpus.sentences import SPLIT

FOLDER: Final = Path(__file__).parent / "redaction_corpus"
LEAST_ITEMS: Final = 200
LEAST: Final = 0.98
# Made before the recognisers were: a rule may change because of an item, no item because of a rule.
FROZEN: Final = {
    "card": "8d73346d2789f7e488f7bfa499f918befbfe072275d4bd31b847d15069804644",
    "credentials": "344946e8e2d4f8f85e0c2fa64f0b47c726f529dc446d67503c4a382005450173",
    "email": "3800d70218ebf1d2142ff049384af8a1397bca8f8bc577a5fd49ae31c0eb7033",
    "iban": "50ffe1afb0d19f6bf52a5b150df12d460d5a0fca8a0f521cbea09600087675c3",
    "ip": "3a245f1aa54710a19d0ba1825d3501ea251fccfaeeea9b7c0f7b6d8a52a96775",
    "national_id": "2301cafffa6a8110fefef4b96aa72ed8f1ae4fc6dac6ebe63e6db64b79d1a2ff",
    "phone": "ed3a1fd4ff22c7b2eb1ce6dbd096adacf75939d11430206b611a6cd030a6171f",
}


def rows(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{name}.jsonl").read_text("utf-8").replace(SPLIT, "")
    return [json.loads(line) for line in text.splitlines()]


@cache
def redaction(name: str, region: str | None) -> Redaction:
    return Redaction([name], region)


def results(row: dict[str, Any], name: str) -> set[str]:
    """The text as it is kept: by itself and inside a body, both ways that bodies are written."""
    made, text = redaction(name, row.get("region")), row["text"]
    if row.get("json"):
        kept = {made.text(text, made.begin())}
    else:
        kept = {made.plain(text, made.begin())}
        for ascii_only in (True, False):
            sent = json.dumps({"messages": [{"content": text}]}, ensure_ascii=ascii_only)
            got = json.loads(made.text(sent, made.begin()))
            kept.add(got["messages"][0]["content"])
    return {re.sub(r"<([A-Z]+)_[0-9]+>", r"<\1>", text) for text in kept}


def wanted(row: dict[str, Any], name: str) -> str:
    text, placeholder = str(row["text"]), f"<{RECOGNISERS[name].label}>"
    for value in row["found"]:
        text = text.replace(value, f'"{placeholder}"' if row.get("bare") else placeholder)
    return text


@pytest.mark.parametrize("name", FROZEN)
def test_the_corpus_is_the_one_that_the_rules_were_written_for(name: str) -> None:
    assert hashlib.sha256((FOLDER / f"{name}.jsonl").read_bytes()).hexdigest() == FROZEN[name]
    found = sum(bool(row["found"]) for row in rows(name))
    missed = len(rows(name)) - found
    assert found >= LEAST_ITEMS and missed >= found


def test_every_recogniser_has_a_corpus_but_the_one_that_needs_a_model() -> None:
    assert {*FROZEN} == {*MAKERS} == {*RECOGNISERS} - {"person"}


@pytest.mark.parametrize("name", FROZEN)
def test_recall_and_precision(name: str) -> None:
    """An item counts as found only when it is all that was taken out, each way it is kept."""
    right = missed = wrong = 0
    for row in rows(name):
        got, text = results(row, name), wanted(row, name)
        if not row["found"]:
            wrong += got != {text}
        elif got == {text}:
            right += 1
        else:
            missed += 1
            wrong += got != {row["text"]}
    assert right / (right + missed) >= LEAST, f"recall: {missed} missed of {right + missed}"
    assert right / (right + wrong) >= LEAST, f"precision: {wrong} wrong beside {right}"


def test_nothing_that_one_finds_alone_is_left_when_all_look() -> None:
    names = [name for name in RECOGNISERS if name != "person"]
    made = {region: Redaction(names, region) for region in (None, "US", "DE", "GB", "FR")}
    left = total = 0
    for name in FROZEN:
        for row in rows(name):
            if row["found"] and row.get("region") in made and not row.get("json"):
                redacting = made[row.get("region")]
                kept = redacting.plain(row["text"], redacting.begin())
                total += 1
                left += any(value in kept for value in row["found"])
    assert total > 1000 and left / total <= 1 - LEAST
