"""Control against candidate: a table of what agrees, what does not, and why."""

from __future__ import annotations

import pytest

from policies.compare import compare

MATCHED = [
    ("billing_refund", "billing_refund"),
    ("billing_refund", "  Billing_Refund\n"),
    ("Straße", "STRASSE"),
    ("ﬁle", "file"),
    ("e\u0301t\u00e9", "\u00e9te\u0301"),
    ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}'),
    ("[1, 2]", " [1,2.0]\n"),
    ("<|im_end|> ends a turn", "<|im_end|> ends a turn"),
    ("12", "12"),
]
MISMATCHED = [
    ("billing_refund", "shipping_delay", "'billing_refund' against 'shipping_delay'"),
    ("yes", "", "empty"),
    ("yes", " \n", "empty"),
    ("yes", "yes<|im_end|>", "<|im_end|>"),
    ("yes", "<|im_start|>assistant\nyes", "<|im_start|>"),
    ("yes", "[INST] yes", "[INST]"),
    ('{"a": 1}', "a is 1", "not JSON"),
    ('{"a": 1}', '{"a": 1', "not JSON"),
    ('{"a": 1}', '{"a": NaN}', "not JSON"),
    ('{"a": 1}', '{"a": 2}', "$.a: '1' against '2'"),
    ('{"a": 1}', '{"a": true}', "$.a"),
    ('{"a": 1}', '{"a": "1"}', "$.a"),
    ('{"a": {"b": [1, 2]}}', '{"a": {"b": [1]}}', "$.a.b: 2 items against 1"),
    ('{"id": "AB"}', '{"id": "ab"}', "$.id"),
    ('{"id": "x"}', '{"ID": "x"}', "key 'ID'"),
    ("[1]", '{"0": 1}', "$"),
    ("[" * 900 + "]" * 900, "[" * 901 + "]" * 901, "items"),
]


@pytest.mark.parametrize(("control", "candidate"), MATCHED)
def test_matches(control: str, candidate: str) -> None:
    verdict, score, _ = compare(control, candidate)
    assert (verdict, score) == ("matched", 1.0)


@pytest.mark.parametrize(("control", "candidate", "why"), MISMATCHED)
def test_mismatches_with_the_reason(control: str, candidate: str, why: str) -> None:
    verdict, score, said = compare(control, candidate)
    assert (verdict, score) == ("mismatched", 0.0)
    assert why in said


def test_without_text_from_the_upstream_there_is_nothing_to_compare() -> None:
    assert compare(" ", "anything")[:2] == ("ignored", None)


def test_a_reason_quotes_only_the_beginning_of_an_answer() -> None:
    assert len(compare("a" * 10_000, "b" * 10_000)[2]) < 120
