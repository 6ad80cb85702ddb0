"""Large parts of bodies, images and audio, as files named by their hash.

In the record's text the bytes stand as `understudy:file/<hash>`, in place of their base64.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCHEME: Final = "understudy:file/"
_LEAST: Final = 8192  # characters; what is shorter stays in the text
# A string of a JSON text that is nothing but base64 (RFC 4648 section 4), or a data: URL of it.
_LARGE: Final = re.compile(
    rf'"(data:[\w.+/-]{{1,100}}(?:;[\w.=-]{{1,100}}){{0,4}};base64,)?'
    rf'([A-Za-z0-9+/]{{{_LEAST},}}+={{0,2}})"'
)
_NAMED: Final = re.compile(re.escape(SCHEME) + r"([0-9a-f]{32})")
_DATA_URL: Final = re.compile(r"data:([^;,]+)")
_HASH_BYTES: Final = 16

# By their first bytes; what is not known is an octet stream.
_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)


@dataclass(frozen=True, slots=True)
class File:
    """A part that was taken out. `media_type` is a guess where nobody said it."""

    hash: str  # 32 hex digits
    data: bytes
    media_type: str


def place(folder: Path, name: str) -> Path:
    """Where the bytes of a hash lie: two levels, so that no folder grows without bound."""
    return folder / name[:2] / name[2:]


def named(text: str) -> Iterator[str]:
    """Hashes of the files that a recorded text refers to, as often as it does."""
    return (match[1] for match in _NAMED.finditer(text))


class Media:
    """Takes the large parts out of one exchange's bodies, and remembers them until written.

    `clean`: takes out of a text what must not be kept; of files, those that are text go through it.
    """

    def __init__(self, key: bytes, clean: Callable[[str], str]) -> None:
        self._key = key
        self._clean = clean
        self.files: dict[str, File] = {}

    def keep(self, data: bytes, media_type: str | None = None) -> str:
        """How the record's text names it."""
        data = self._cleaned(data)
        media_type = None if media_type is None else self._clean(media_type)
        digest = hashlib.blake2b(data, key=self._key, digest_size=_HASH_BYTES).hexdigest()
        self.files[digest] = File(digest, data, media_type or _sniffed(data))
        return SCHEME + digest

    def without(self, text: str, redact: Callable[[str], str]) -> str:
        """The redacted JSON text with its large parts named; the same object if nothing changed.

        What is large is taken out first, as reading it for names takes long. Of a part that went
        with the whole value it was in, no file is kept."""
        before = set(self.files)
        short = text if len(text) < _LEAST else _LARGE.sub(self._name, text)
        clean = redact(short)
        if clean is not short:
            for name in self.files.keys() - before - set(named(clean)):
                del self.files[name]
        return clean

    def _cleaned(self, data: bytes) -> bytes:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return data
        clean = self._clean(text)
        return data if clean is text else clean.encode()

    def _name(self, match: re.Match[str]) -> str:
        try:
            data = b64decode(match[2], validate=True)
        except NotBase64:
            return match[0]
        if b64encode(data).decode() != match[2]:  # bits that decoding drops
            return match[0]
        before = match[1] or ""
        said = _DATA_URL.match(before)
        return f'"{before}{self.keep(data, said[1] if said else None)}"'


def _sniffed(data: bytes) -> str:
    if data.startswith(b"RIFF"):
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp"}.get(data[8:12], "application/riff")
    return next(
        (kind for signature, kind in _SIGNATURES if data.startswith(signature)),
        "application/octet-stream",
    )


def write(folder: Path, file: File) -> None:
    """Whole or not at all, once. Raises OSError."""
    path = place(folder, file.hash)
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(file.data)
    part.rename(path)


def remove(folder: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        place(folder, name).unlink()


def restored(folder: Path, text: str) -> str:
    """The text as it went over the wire: files that are still there as base64 again."""

    def put_back(match: re.Match[str]) -> str:
        try:
            return b64encode(place(folder, match[1]).read_bytes()).decode()
        except FileNotFoundError:
            return match[0]

    return _NAMED.sub(put_back, text) if SCHEME in text else text
