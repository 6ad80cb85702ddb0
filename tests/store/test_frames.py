"""WebSocket messages out of raw bytes: whatever the cuts, the same messages, and never a raise."""

from __future__ import annotations

import random
import zlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.deflate import MOST_MESSAGE, Deflate, Side, agreed
from store.frames import Closing, FrameReader, Message, Socket
from tests.store.sockets import AGREEMENTS, NO_TAKEOVER, PLAIN, TAKEOVER, Talk, frame

SIDES: tuple[Side, Side] = ("client", "server")
LONG = "".join(random.Random(7).choices("abcdefgh zażółć 🎭", k=150))
SAID: list[tuple[str | bytes, int]] = [
    ("hello", 1),
    ("", 1),
    ("zażółć gęślą jaźń 🎭 " * 3, 3),
    (b"\x00\xff\xfe binary", 1),
    (LONG, 1),
    (LONG, 2),
    ("hello", 1),
]
EXPECTED = [text.encode() if isinstance(text, str) else text for text, _ in SAID]


def talk(agreement: str) -> Talk:
    made = Talk(agreement)
    for side in SIDES:
        made.ping(side, b"are you there")
        for text, fragments in SAID:
            made.say(side, text, fragments)
        made.close(side, 1001, "going")
    return made


def read(reader: FrameReader, *pieces: bytes) -> list[Message]:
    found: list[Message] = []
    for at, piece in enumerate(pieces):
        found += reader.feed(float(at), piece)
    return found


def data_of(messages: list[Message]) -> list[bytes]:
    return [message.data for message in messages]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_messages_are_the_same_for_every_cut_in_two(agreement: str, side: Side) -> None:
    made = talk(agreement)
    raw = made.raw(side)
    for cut in range(len(raw) + 1):
        reader = Socket(made.extensions).side(side)
        found = read(reader, raw[:cut], raw[cut:])
        assert data_of(found) == EXPECTED
        assert [message.text for message in found] == [isinstance(text, str) for text, _ in SAID]
        assert reader.closing == Closing(1001, "going")
        assert reader.note is None
        assert reader.read == len(raw)


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_messages_are_the_same_byte_by_byte(agreement: str) -> None:
    made = talk(agreement)
    for side in SIDES:
        raw = made.raw(side)
        pieces = [raw[at : at + 1] for at in range(len(raw))]
        assert data_of(read(Socket(made.extensions).side(side), *pieces)) == EXPECTED


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_another_reader_goes_on_from_the_state_at_any_byte(agreement: str, side: Side) -> None:
    made = talk(agreement)
    raw = made.raw(side)
    for cut in range(len(raw) + 1):
        first = Socket(made.extensions)
        found = read(first.side(side), raw[:cut])
        state = orjson.loads(orjson.dumps(first.state()))
        second = Socket(made.extensions, state)
        found += read(second.side(side), raw[state[side]["read"] :])
        assert data_of(found) == EXPECTED
        assert second.side(side).closing == Closing(1001, "going")
        assert second.side(side).read == len(raw)


def test_a_state_holds_text_only_where_later_messages_may_refer_to_it() -> None:
    sizes = {}
    for agreement in (PLAIN, NO_TAKEOVER, TAKEOVER):
        made = Talk(agreement)
        for _ in range(400):
            made.say("server", random.Random(3).randbytes(50).hex())
        socket = Socket(made.extensions)
        assert len(read(socket.server, made.raw("server"))) == 400
        sizes[agreement] = len(socket.server.window())
    assert sizes == {PLAIN: 0, NO_TAKEOVER: 0, TAKEOVER: 1 << 15}


def test_the_window_is_the_end_of_all_that_was_said() -> None:
    made = Talk(TAKEOVER)
    generator = random.Random(3)
    reader = Socket(made.extensions).server
    said = b""
    for number in range(800):
        made.say("server", generator.randbytes(5 if number % 9 else 500).hex())
        said += b"".join(data_of(read(reader, made.pieces.pop()[2])))
        assert reader.window() == said[-(1 << 15) :]
    assert len(said) > 2 << 15


def test_a_hidden_agreement_is_read_whatever_it_was() -> None:
    for agreement in AGREEMENTS:
        made = talk(agreement)
        for side in SIDES:
            assert data_of(read(Socket("hash:0a1b2c").side(side), made.raw(side))) == EXPECTED


@pytest.mark.parametrize(
    ("extensions", "client", "server"),
    [
        (None, None, None),
        ("", None, None),
        ("x-other; a=1", None, None),
        ("permessage-deflate", Deflate(), Deflate()),
        ("x-other, Permessage-Deflate ; server_no_context_takeover", Deflate(), Deflate(False)),
        ("permessage-deflate; client_no_context_takeover", Deflate(False), Deflate()),
        (
            'permessage-deflate; server_max_window_bits=8; client_max_window_bits="12"',
            Deflate(True, 4096),
            Deflate(True, 256),
        ),
        ("permessage-deflate; server_max_window_bits=99", Deflate(), Deflate()),
        ("permessage-deflate; server_max_window_bits=" + "9" * 5000, Deflate(), Deflate()),
    ],
)
def test_what_was_agreed(
    extensions: str | None, client: Deflate | None, server: Deflate | None
) -> None:
    assert (agreed(extensions, "client"), agreed(extensions, "server")) == (client, server)


def test_times_are_those_of_the_first_and_the_last_byte() -> None:
    one, two = frame(0x01, b"on") + frame(0x89, b"ping"), frame(0x80, b"ce") + frame(0x81, b"two")
    reader = FrameReader("server")
    found = read(reader, one[:1], one[1:], b"", two[:5], two[5:])
    assert [(message.began_at, message.at) for message in found] == [(0.0, 3.0), (3.0, 4.0)]
    three = frame(0x81, b"one") + frame(0x81, b"two") + frame(0x81, b"three")
    found = read(FrameReader("server"), three[:3], three[3:7], three[7:])
    assert [(message.began_at, message.at) for message in found] == [
        (0.0, 1.0),
        (1.0, 2.0),
        (2.0, 2.0),
    ]


# -- what can't be read


BROKEN: list[tuple[Side, bytes, str]] = [
    ("server", b"\x83\x00", "begins with 0x83"),
    ("server", b"\xa1\x00", "begins with 0xa1"),
    ("server", frame(0xC1, b"x"), "begins with 0xc1"),  # compressed, which was not agreed
    ("server", b"\x08\x00", "begins with 0x08"),  # a control frame in fragments
    ("server", frame(0x81, b"x", b"\1\2\3\4"), "a masked frame"),
    ("client", frame(0x81, b"x"), "without its mask"),
    ("server", frame(0x80, b"x"), "a continuation of nothing"),
    ("server", frame(0x01, b"x") + frame(0x81, b"y"), "a message within another"),
    ("server", frame(0x89, b"x" * 126), "a control frame that is too long"),
    ("server", b"\x81\x7e\x00\x05hello", "shortest form"),
    ("server", b"\x81\x7f" + (65535).to_bytes(8), "shortest form"),
    ("server", b"\x81\x7f" + (1 << 40).to_bytes(8), "a message of 1099511627776 bytes"),
    ("server", frame(0x81, b"\xff\xfe"), "not UTF-8"),
    ("server", frame(0x88, b"\x03"), "a close frame of one byte"),
]


@pytest.mark.parametrize(("side", "raw", "note"), BROKEN)
def test_what_is_broken_stops_its_side_with_a_note(side: Side, raw: bytes, note: str) -> None:
    key = b"\5\6\7\x08" if side == "client" else b""
    good = frame(0x81, b"good", key)
    for cut in range(len(good) + len(raw) + 1):
        socket = Socket(None)
        whole = good + raw
        found = read(socket.side(side), whole[:cut], whole[cut:], good)
        assert data_of(found) == [b"good"]
        assert note in socket.notes()[side]
        assert list(socket.notes()) == [side]
        assert socket.side(side).read == len(whole) + len(good)


def test_fragments_are_bounded_together() -> None:
    half = bytes(MOST_MESSAGE // 2)
    reader = FrameReader("server")
    assert read(reader, frame(0x02, half), frame(0x00, half), frame(0x80, b"x")) == []
    assert reader.note == f"a message of {MOST_MESSAGE + 1} bytes, over {MOST_MESSAGE}"


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


@pytest.mark.parametrize(
    ("size", "fine"), [(1 << 20, True), ((1 << 20) + 1, False), (9 << 20, False)]
)
def test_a_message_may_not_inflate_without_end(size: int, fine: bool) -> None:
    reader = FrameReader("server", Deflate())
    found = read(reader, frame(0xC1, deflated(b"x" * size)))
    assert [len(message.data) for message in found] == ([size] if fine else [])
    assert reader.note == (None if fine else "a message that inflates too much")


def test_a_sender_may_end_its_deflate_stream() -> None:
    """RFC 7692 section 7.2.3.4: after a block with BFINAL comes one octet of zero."""
    texts = [b"Hello, hello", b"goodbye", b"Hello, hellogoodbye!"]
    ended = zlib.compressobj(wbits=-15)
    last = zlib.compressobj(wbits=-15, zdict=b"Hello, hellogoodbye")
    raw = frame(0xC1, deflated(texts[0]))
    raw += frame(0xC1, ended.compress(texts[1]) + ended.flush(zlib.Z_FINISH) + b"\0")
    more = last.compress(texts[2]) + last.flush(zlib.Z_SYNC_FLUSH)
    assert len(more) < len(texts[2])
    raw += frame(0xC1, more.removesuffix(b"\0\0\xff\xff"))
    assert data_of(read(FrameReader("server", Deflate()), raw)) == texts


def test_a_message_of_countless_deflate_streams_is_refused() -> None:
    reader = FrameReader("server", Deflate())
    assert read(reader, frame(0xC1, b"\x03\x00" * 100_000)) == []
    assert reader.note == "a message of too many deflate streams"


def test_what_is_no_deflate_is_a_note() -> None:
    reader = FrameReader("server", Deflate())
    assert read(reader, frame(0xC1, b"\xff\xff\xff")) == []
    assert reader.note is not None and reader.note.startswith("inflating: ")


@pytest.mark.parametrize("agreement", [PLAIN, TAKEOVER])
def test_of_a_side_with_a_hole_the_part_before_it_is_read(agreement: str) -> None:
    made = talk(agreement)
    for side in SIDES:
        raw = made.raw(side)
        for hole in range(0, len(raw) - 40, 3):
            before = data_of(read(Socket(made.extensions).side(side), raw[:hole]))
            socket = Socket(made.extensions)
            found = data_of(read(socket.side(side), raw[:hole], raw[hole + 37 :]))
            assert found[: len(before)] == before == EXPECTED[: len(before)]


def test_after_a_known_hole_nothing_more_is_read() -> None:
    raw = talk(PLAIN).raw("server")
    reader = FrameReader("server")
    found = read(reader, raw[:30])
    reader.stop("bytes are missing")
    reader.stop("and more")
    assert data_of(found + read(reader, raw[30:])) == EXPECTED[:2]
    assert (reader.note, reader.read) == ("bytes are missing", len(raw))


def test_the_close_frame_is_the_end() -> None:
    for payload, closing in [
        (b"", Closing(None, "")),
        (b"\x03\xe8", Closing(1000, "")),
        (b"\x03\xf3too late \xff", Closing(1011, "too late �")),
    ]:
        reader = FrameReader("server")
        raw = frame(0x88, payload) + frame(0x81, b"late") + b"\xff\xff"
        assert read(reader, raw, b"more") == []
        assert (reader.closing, reader.note, reader.read) == (closing, None, len(raw) + 4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans(), st.sampled_from(SIDES))
def test_no_bytes_raise(pieces: list[bytes], compressed: bool, side: Side) -> None:
    reader = FrameReader(side, Deflate() if compressed else None)
    read(reader, *pieces)
    assert reader.read <= sum(map(len, pieces))
    assert not reader.stopped or reader.read == sum(map(len, pieces))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20_000), st.binary(min_size=4, max_size=4))
def test_any_length_is_unmasked(size: int, key: bytes) -> None:
    data = random.Random(size).randbytes(size)
    assert data_of(read(FrameReader("client"), frame(0x82, data, key))) == [data]
