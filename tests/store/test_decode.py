"""Content-Encoding of the record's copy: undone within limits, or a reason why not."""

from __future__ import annotations

import gzip
import random
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from store.decode import ENDS_EARLY, MOST_DECODED, Decoded, decode

TEXT = b'{"hello": "' + "zażółć".encode() * 100 + b'"}'
BARE = zlib.compressobj(wbits=-15)
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
}


@pytest.mark.parametrize("name", CODED)
def test_what_was_coded_comes_back(name: str) -> None:
    assert decode(CODED[name], name) == Decoded(TEXT)
    assert decode(CODED[name], f" {name.upper()} ") == Decoded(TEXT)


@pytest.mark.parametrize("name", CODED)
def test_a_cut_body_gives_what_came_and_says_so(name: str) -> None:
    found = decode(CODED[name][:-2], name)
    assert found.error == ENDS_EARLY
    assert found.data is not None and TEXT.startswith(found.data)


@pytest.mark.parametrize("name", CODED)
def test_what_is_not_coded_that_way_is_an_error(name: str) -> None:
    found = decode(b"\x07" * 50, name)
    assert found.data is None
    assert found.error is not None and found.error.startswith("decode_error")


def test_other_shapes() -> None:
    bare = BARE.compress(TEXT) + BARE.flush()
    assert decode(bare, "deflate") == Decoded(TEXT)
    assert decode(gzip.compress(TEXT) * 2, "gzip") == Decoded(TEXT * 2)
    assert decode(zstandard.compress(TEXT) * 2, "zstd") == Decoded(TEXT * 2)
    assert decode(brotli.compress(gzip.compress(TEXT)), "gzip, br") == Decoded(TEXT)
    stacked = zlib.compress(zstandard.compress(brotli.compress(gzip.compress(TEXT))))
    assert decode(stacked, "gzip, br,zstd , Deflate") == Decoded(TEXT)
    assert decode(stacked, "gzip, br, zstd, identity, deflate") == Decoded(TEXT)
    assert decode(stacked, ",".join(["identity"] * 9)).error == "decode_error: 9 codings"
    assert decode(TEXT, "identity") == Decoded(TEXT)
    assert decode(b"", "gzip") == Decoded(b"")
    assert decode(TEXT, "sdch").error == "unknown_encoding: sdch"


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("br", brotli.compress),
        ("zstd", zstandard.compress),
    ],
)
def test_a_bomb_is_stopped(name: str, compress: object) -> None:
    assert callable(compress)
    bomb = compress(bytes(MOST_DECODED + 1))
    assert decode(bomb, name).error == "decode_error: inflates too much"
    small = compress(bytes(200_000))
    assert len(small) * 200 < 200_000
    assert decode(small, name).error == "decode_error: inflates too much"


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_members_are_counted(name: str) -> None:
    """Each costs a moment and may hold nothing: a body of nothing else must not take long."""
    empty = {"gzip": gzip.compress(b""), "deflate": zlib.compress(b"")}.get(
        name, zstandard.compress(b"")
    )
    assert decode(empty * 999 + CODED[name], name) == Decoded(TEXT)
    found = decode(empty * 1000 + CODED[name], name)
    assert found == Decoded(None, "decode_error: inflates too much")


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_members_of_many_pieces(name: str) -> None:
    plain = random.Random(1).randbytes(300_000)
    one = {"gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}.get(
        name, zstandard.compress(plain)
    )
    assert decode(one * 3, name) == Decoded(plain * 3)
    assert decode(one * 2 + one[:-9], name).error == ENDS_EARLY


def test_zeros_behind_a_member() -> None:
    filled = gzip.compress(TEXT) + b"\0" * 70_000
    assert decode(filled, "gzip") == Decoded(TEXT)
    assert decode(filled * 2, "gzip") == Decoded(TEXT * 2)
