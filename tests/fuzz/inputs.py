"""Bytes in, and an AssertionError if the readers disagree about them: for a fuzzer that mutates.

An input says how it is read, then comes what is read:

    how   u8   flags, see below
    cuts  u8   how many lengths follow (its lower four bits)
          u8 each, the length of a read; what is left then comes in one
    the rest   bytes from a client; or from an upstream, SEPARATOR between those to one call and the
               next
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from proxy.known import KnownReplies, KnownRequests
from tests.fuzz.readings import (
    Call,
    NoReplies,
    NoRequests,
    agree,
    is_vague,
    read_replies,
    read_requests,
    taught,
    taught_replies,
)

REFUSES_OFFERS: Final = 1
OFFERS: Final = 1  # in replies: each call offers a WebSocket
TEACHES: Final = 2  # the bytes have been there before
METHODS: Final = (b"GET", b"POST", b"HEAD", b"GET")
SEPARATOR: Final = b"\0\0\xff"


@dataclass(frozen=True)
class Input:
    how: int
    lengths: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, raw: bytes) -> Input:
        how, count = (*raw[:2], 0, 0)[:2]
        end = 2 + count % 16
        return cls(how, tuple(raw[2:end]), raw[end:])

    def raw(self) -> bytes:
        return bytes((self.how, len(self.lengths), *self.lengths)) + self.data

    def cut(self, data: bytes) -> list[bytes]:
        pieces, at = [], 0
        for length in self.lengths:
            pieces.append(data[at : at + length])
            at += length
        return [piece for piece in (*pieces, data[at:]) if piece]


# -- requests


class Requests:
    """`usual`: messages whose heads are known from the start."""

    def __init__(self, usual: list[bytes]) -> None:
        self._known = taught(usual)

    def check(self, raw: bytes) -> None:
        given = Input.of(raw)
        if is_vague(given.data):
            return
        refuses = bool(given.how & REFUSES_OFFERS)
        measure = read_requests(NoRequests(), [given.data], refuses)
        pieces = given.cut(given.data)
        assert read_requests(NoRequests(), pieces, refuses) == measure, "cut"
        known = self._copy()
        if given.how & TEACHES:
            read_requests(known, [given.data], refuses)
        assert read_requests(known, pieces, refuses) == measure, "known and cut"
        assert read_requests(known, [given.data], refuses) == measure, "known"

    def _copy(self) -> KnownRequests:
        known = KnownRequests()
        known._by_line = dict(self._known._by_line)
        return known


# -- replies


class Replies:
    """`usual`: replies whose heads are known from the start."""

    def __init__(self, usual: list[bytes]) -> None:
        self._known = taught_replies(Call(b"GET", [wire]) for wire in usual)

    def check(self, raw: bytes) -> None:
        given = Input.of(raw)
        method = METHODS[given.how >> 2 & 3]
        offered = b"websocket" if given.how & OFFERS else b""
        parts = given.data.split(SEPARATOR)
        whole = [Call(method, [part], offered) for part in parts]
        calls = [replace(call, pieces=given.cut(call.pieces[0])) for call in whole]
        measure = read_replies(NoReplies(), whole)
        agree(read_replies(NoReplies(), calls), measure)
        known = self._copy()
        if given.how & TEACHES:
            for _ in range(3):
                read_replies(known, whole)
        agree(read_replies(known, calls), measure)
        agree(read_replies(known, whole), measure)

    def _copy(self) -> KnownReplies:
        known = KnownReplies()
        known._replies = list(self._known._replies)
        return known
