"""Forms, as clients send them and as they should not."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from store.multipart import File, Form, as_json, read
from tests.store.fixtures.shape import BOUNDARY, FORM_TYPE, Part, form

SOUND = bytes(range(256)) + f"\r\n--{BOUNDARY}x\r\n--".encode()
# A line that begins like the boundary is malformed; one that only resembles it is data.
SOUND_SAFE = SOUND.replace(BOUNDARY.encode(), b"----another")


def one(name: str, value: bytes, **more: Any) -> Form:
    found = read(form(Part(name, value, **more)), FORM_TYPE)
    assert found is not None and found.whole
    return found


def file(value: bytes = b"", **more: Any) -> File:
    """What a form says whose only part is a file."""
    (part,) = one("f", value, **more).parts
    assert isinstance(part, File)
    return part


def test_fields_and_files_in_their_order() -> None:
    body = form(
        Part("model", b"m"),
        Part("file", SOUND_SAFE, "a.wav", "audio/wav"),
        Part("prompt", "żółw\r\n".encode()),
        Part("model", b""),
    )
    sound = File("file", "a.wav", "audio/wav", SOUND_SAFE)
    assert read(body, FORM_TYPE) == Form(
        (("model", "m"), sound, ("prompt", "żółw\r\n"), ("model", ""))
    )


@pytest.mark.parametrize(
    "content_type",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;boundary={BOUNDARY}",
        f"multipart/form-data; charset=utf-8; boundary={BOUNDARY}; x=y",
        f"multipart/form-data ; BOUNDARY={BOUNDARY}",
    ],
)
def test_the_boundary_in_every_form(content_type: str) -> None:
    assert read(form(Part("a", b"b")), content_type) == Form((("a", "b"),))


def test_names_of_files() -> None:
    assert file(filename="żółw 🐢.wav").filename == "żółw 🐢.wav"
    assert file(filename="a%22b.wav").filename == 'a"b.wav'
    assert file(filename="").filename == ""
    extended = b"Content-Disposition: form-data; name=f; filename=z; filename*=UTF-8''%C5%BC.wav"
    body = b"--B\r\n" + extended + b"\r\n\r\nx\r\n--B--"
    found = read(body, "multipart/form-data; boundary=B")
    assert found == Form((File("f", "ż.wav", None, b"x"),))
    odd = read(body.replace(b"UTF-8''", b"unicode_escape''"), "multipart/form-data; boundary=B")
    assert odd == Form((File("f", "z", None, b"x"),))


def test_what_is_a_field() -> None:
    assert one("a", b"1", content_type="text/plain; charset=utf-8").parts == (("a", "1"),)
    assert one("a", b"{}", content_type="application/json").parts == (("a", "{}"),)
    latin = one("a", b"\xbf", content_type="text/plain; charset=iso-8859-1")
    assert latin.parts == (("a", "¿"),)
    assert file(b"\xff\xfe") == File("f", None, None, b"\xff\xfe")
    assert file(b"1", content_type="audio/wav").content_type == "audio/wav"
    rotated = file(b"\\ud800", content_type="text/plain; charset=unicode_escape")
    assert rotated.data == b"\\ud800"


def test_more_headers_than_the_usual_are_no_matter() -> None:
    lines = ["Content-Transfer-Encoding: binary", "X-Note: ż"]
    assert one("a", b"b", headers=lines).parts == (("a", "b"),)


WHOLE = form(Part("a", b"b"), Part("f", b"123456", "f.bin"))


def test_cut_anywhere_it_gives_the_parts_that_were_whole() -> None:
    ends = set()
    for cut in range(len(WHOLE)):
        found = read(WHOLE[:cut], FORM_TYPE)
        parts = found.parts if found is not None else ()
        assert parts == Form((("a", "b"), File("f", "f.bin", None, b"123456"))).parts[: len(parts)]
        if found is not None:
            ends.add((len(parts), found.whole))
    assert ends == {(1, False), (2, True)}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (WHOLE, "application/json"),
        (WHOLE, "multipart/mixed; boundary=" + BOUNDARY),
        (WHOLE, "multipart/form-data"),
        (WHOLE, "multipart/form-data; boundary="),
        (WHOLE, "multipart/form-data; boundary=" + "x" * 300),
        (WHOLE, "multipart/form-data; boundary=żółw"),
        (WHOLE, "multipart/form-data; boundary=other"),
        (WHOLE, ""),
        (b"", FORM_TYPE),
        (b"{}", FORM_TYPE),
        (WHOLE.replace(b"\r\n", b"\n"), FORM_TYPE),
        (WHOLE.replace(b"form-data", b"attachment"), FORM_TYPE),
        (WHOLE.replace(b"Content-Disposition", b"X-" + b"y" * 20_000), FORM_TYPE),
        (form(*[Part("a", b"")] * 10_001), FORM_TYPE),
    ],
)
def test_what_is_no_form_or_none_that_can_be_read(body: bytes, content_type: str) -> None:
    assert read(body, content_type) is None


def test_as_json() -> None:
    kept: list[tuple[bytes, str | None]] = []

    def keep(data: bytes, content_type: str | None) -> str | None:
        kept.append((data, content_type))
        return "here" if content_type else None

    parts = (
        ("model", "m"),
        ("a[]", "1"),
        File("image[]", "a.png", "image/png", b"png"),
        ("b", "1"),
        File("image[]", None, None, b"xy"),
        ("b", "2"),
        ("b", "3"),
        ("a[]", "2"),
    )
    told = as_json(Form(parts), keep)
    assert list(orjson.loads(told).items()) == [
        ("model", "m"),
        ("a[]", ["1", "2"]),
        (
            "image[]",
            [
                {"filename": "a.png", "content_type": "image/png", "bytes": 3, "file": "here"},
                {"filename": None, "content_type": None, "bytes": 2, "file": None},
            ],
        ),
        ("b", ["1", "2", "3"]),
    ]
    assert kept == [(b"png", "image/png"), (b"xy", None)]
