"""What the load over TLS takes for an answer."""

from __future__ import annotations

import pytest

from tests.bench import bodies
from tests.bench.tls_load import WrongReply, missing

_BODY = bodies.answer().encode()


def reply(head: bytes = b"HTTP/1.1 200 OK", length: int = len(_BODY)) -> bytes:
    return b"%b\r\nServer: x\r\nContent-Length: %d\r\nVia: y\r\n\r\n%b" % (head, length, _BODY)


def test_a_whole_reply_misses_nothing() -> None:
    assert missing(reply()) == 0


@pytest.mark.parametrize("cut", [1, 10, len(_BODY)])
def test_the_rest_of_a_body_is_waited_for(cut: int) -> None:
    assert missing(reply()[:-cut]) == cut


def test_so_is_the_rest_of_a_head() -> None:
    assert missing(reply()[:20]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        reply(b"HTTP/1.1 502 Bad Gateway"),
        reply(length=len(_BODY) - 1),
        reply() + b"x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nContent-Length: %d\r\n" % len(_BODY),
        b"x" * 70_000,
    ],
)
def test_any_other_is_no_reply(wrong: bytes) -> None:
    with pytest.raises(WrongReply):
        missing(wrong)
