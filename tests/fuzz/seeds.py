"""What a fuzzer starts from: the requests of verify-wire, their replies, and the hazards' bytes."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import tests.hazards
from bin.wire_read import read_request
from bin.wire_replies import REPLIES
from bin.wire_request import Filling, Request, body_pieces, conversations, head_bytes
from bin.wire_set import SHIPPED
from tests.fuzz.inputs import OFFERS, REFUSES_OFFERS, SEPARATOR, TEACHES, Input
from tests.fuzz.messages import NASTY

MOST_BYTES = 4096
_FILLING = Filling(b"app")
_HOW = (0, REFUSES_OFFERS | TEACHES, TEACHES)
_LENGTHS = ((), (1,) * 15, (40, 3, 2, 1, 90))
_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PRI ")


def _small(request: Request) -> Request:
    """With no more than 300 bytes of body."""
    return replace(request, text=request.text[:300], options=replace(request.options, repeat=1))


def usual_requests() -> list[bytes]:
    """Each of the shipped set, and pipelined ones together."""
    found = []
    for conversation in conversations([_small(request) for request in SHIPPED]):
        wires = [head_bytes(one, _FILLING) + b"".join(body_pieces(one)) for one in conversation]
        found += [b"".join(wires), *wires]
    return [wire for wire in found if len(wire) < MOST_BYTES]


def usual_replies() -> list[bytes]:
    asked = read_request(b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\n{}")
    assert asked is not None
    wires = [b"".join(piece.data for piece in make(asked).pieces) for make in REPLIES.values()]
    return [wire for wire in wires if len(wire) < MOST_BYTES]


def hazards() -> Iterator[bytes]:
    """All bytes that the hazards' tables of cases hold."""
    for found in pkgutil.iter_modules(tests.hazards.__path__):
        if found.name.startswith("test_"):
            yield from _bytes_of(importlib.import_module(f"tests.hazards.{found.name}"))


def _bytes_of(module: ModuleType) -> Iterator[bytes]:
    for name, value in vars(module).items():
        values = value.values() if isinstance(value, Mapping) else value
        if name.isupper() and isinstance(value, bytes | Mapping | list | tuple):
            each = [value] if isinstance(value, bytes) else values
            yield from (one for one in each if isinstance(one, bytes))


_IN_CHUNKS = b"POST /v1/x HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n"
_REPLY_IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def request_seeds() -> list[bytes]:
    streams = usual_requests()
    for data in hazards():
        is_request = data.startswith(_METHODS)
        streams.append(data if is_request else _IN_CHUNKS + data)
    return _inputs(streams, 0)


def reply_seeds() -> list[bytes]:
    streams = usual_replies()
    streams += [SEPARATOR.join((one, one)) for one in streams[:8]]
    for data in hazards():
        if not data.startswith(_METHODS):
            is_reply = data.startswith(b"HTTP/")
            streams.append(data if is_reply else _REPLY_IN_CHUNKS + data)
    return _inputs(streams, OFFERS)


def _inputs(streams: list[bytes], flags: int) -> list[bytes]:
    """Each as it is, and read in one of some ways."""
    found = []
    for number, data in enumerate(streams):
        if len(data) <= MOST_BYTES:
            how, lengths = _HOW[number % 3], _LENGTHS[number % 3]
            found.append(Input(how | flags * (number % 2), lengths, data).raw())
            found.append(Input(number % 4 << 2, (), data).raw())
    return found


def write_words(path: Path) -> None:
    """Words to put in, as libFuzzer wants them."""
    shown = ("".join(f"\\x{byte:02x}" for byte in word) for word in (*NASTY, SEPARATOR))
    path.write_text("".join(f'"{word}"\n' for word in shown))


def write(folder: Path, seeds: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
