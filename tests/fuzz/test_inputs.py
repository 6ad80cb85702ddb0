"""What the fuzzer starts from, and what it has found: the readers agree about it."""

from __future__ import annotations

import pytest

from tests.fuzz.inputs import Input, Replies, Requests
from tests.fuzz.seeds import reply_seeds, request_seeds, usual_replies, usual_requests


def test_requests() -> None:
    requests = Requests(usual_requests())
    for seed in request_seeds():
        requests.check(seed)


def test_replies() -> None:
    replies = Replies(usual_replies())
    for seed in reply_seeds():
        replies.check(seed)


@pytest.mark.parametrize("raw", [b"", b"\1", b"\1\3", b"\1\2\1", b"\1\1\2abc", b"\xff\xff" * 20])
def test_any_bytes_are_an_input(raw: bytes) -> None:
    given = Input.of(raw)
    assert b"".join(given.cut(given.data)) == given.data
    assert Input.of(given.raw()) == Input(given.how, given.lengths, given.data)
