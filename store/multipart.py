"""Forms as HTTP clients send them: multipart/form-data (RFC 7578, RFC 2046), and what they say.

The parsing is `multipart`'s; here are the limits, and the JSON that a form is recorded as.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import orjson
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

_FORM_DATA: Final = "multipart/form-data"
# RFC 2046 section 5.1.1 allows 70 characters; some clients take a little more.
_LONGEST_BOUNDARY: Final = 256
# Those that a text may be in; Python knows others that give no text, or half a character.
_CHARSETS: Final = ("utf-8", "utf8", "us-ascii", "iso-8859-1", "latin-1", "windows-1252")
_EXTENDED: Final = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]*)", re.IGNORECASE)
_MOST_PARTS: Final = 10_000
_MOST_HEADERS: Final = 32
_LONGEST_HEADER: Final = 16 << 10

KeepFile = Callable[[bytes, str | None], str | None]


@dataclass(frozen=True, slots=True)
class File:
    """`filename` and `content_type` are as the client says; both may be missing."""

    name: str
    filename: str | None
    content_type: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """`parts` in the order they came: (name, text), or a file. `whole`: the end had come too."""

    parts: tuple[tuple[str, str] | File, ...]
    whole: bool = True


def read(body: bytes, content_type: str) -> Form | None:
    """None for what is no form or can't be read. Of a body that is cut, its whole parts."""
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != _FORM_DATA or not boundary or len(boundary) > _LONGEST_BOUNDARY:
        return None
    try:
        parser = PushMultipartParser(
            boundary.encode("latin-1"),
            max_header_size=_LONGEST_HEADER,
            max_header_count=_MOST_HEADERS,
            max_segment_count=_MOST_PARTS,
        )
        parts = _parts(parser, body)
    except (MultipartError, UnicodeError):
        return None
    try:
        parser.close()
    except MultipartError:
        return Form(tuple(parts), whole=False) if parts else None
    return Form(tuple(parts))


def _parts(parser: PushMultipartParser, body: bytes) -> list[tuple[str, str] | File]:
    parts: list[tuple[str, str] | File] = []
    segment: MultipartSegment | None = None
    pieces: list[bytes] = []
    if not body:
        return parts
    for event in parser.parse(body):
        if isinstance(event, MultipartSegment):
            segment, pieces = event, []
        elif event is None and segment is not None:
            parts.append(_part(segment, b"".join(pieces)))
        elif event:
            pieces.append(bytes(event))
    return parts


def _part(segment: MultipartSegment, data: bytes) -> tuple[str, str] | File:
    """A field is what has neither a file's name nor a type that is not text."""
    filename, kind = _filename(segment), segment.content_type
    textual = kind is None or kind.startswith("text/") or kind == "application/json"
    text = _decoded(data, segment.charset or "utf-8") if textual and filename is None else None
    if text is not None:
        return segment.name or "", text
    return File(segment.name or "", filename, kind, data)


def _decoded(data: bytes, charset: str) -> str | None:
    try:
        return data.decode(charset) if charset.lower() in _CHARSETS else None
    except UnicodeDecodeError:
        return None


def _filename(segment: MultipartSegment) -> str | None:
    """`filename*` (RFC 8187), which RFC 7578 forbids and clients send, knows the better name."""
    found = _EXTENDED.search(segment.header("Content-Disposition", ""))
    better = _decoded(unquote_to_bytes(found[2]), found[1]) if found else None
    plain: str | None = segment.filename
    return plain if better is None else better


def as_json(form: Form, keep_file: KeepFile) -> bytes:
    """The form as a JSON object, in its order: fields as texts, files described.

    A name that comes more than once, or ends in `[]`, has a list. `keep_file(data, content_type)`
    gives where the file is kept; None says that it is not.
    """
    said: dict[str, Any] = {}
    for part in form.parts:
        name, value = part if isinstance(part, tuple) else (part.name, _described(part, keep_file))
        if name not in said:
            said[name] = [value] if name.endswith("[]") else value
        elif isinstance(said[name], list):
            said[name].append(value)
        else:
            said[name] = [said[name], value]
    return orjson.dumps(said)


def _described(file: File, keep_file: KeepFile) -> dict[str, Any]:
    return {
        "filename": file.filename,
        "content_type": file.content_type,
        "bytes": len(file.data),
        "file": keep_file(file.data, file.content_type),
    }
