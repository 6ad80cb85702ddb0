"""What a forgetting leaves behind: a look through all files, and a receipt that names nobody."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import orjson

_AT_ONCE: Final = 8 << 20
_LEAST_NAME: Final = 4  # characters; shorter ones are in every file


@dataclass(frozen=True, slots=True)
class Search:
    """Paths below the home folder that hold one of the words, byte for byte."""

    files: int
    bytes: int
    words: int
    found_in: list[str]
    name_in: list[str]


def search(root: Path, words: Sequence[str], name: str | None) -> Search:
    """Every file below `root`. Not from the process that writes the database: closing a file takes
    SQLite's locks on it away (sqlite.org/howtocorrupt.html, 2.2)."""
    files = size = 0
    found_in, name_in = [], []
    wanted = [word.encode() for word in words]
    sought = name.encode() if name is not None and len(name) >= _LEAST_NAME else None
    for path in sorted(root.rglob("*")):
        with suppress(FileNotFoundError):  # files come and go
            if path.is_symlink() or not path.is_file():
                continue
            seen, length = _words_in(path, wanted if sought is None else [*wanted, sought])
            shown = str(path.relative_to(root))
            files, size = files + 1, size + length
            if seen - {sought}:
                found_in.append(shown)
            if sought in seen:
                name_in.append(shown)
    return Search(files, size, len(words), found_in, name_in)


def _words_in(path: Path, words: Sequence[bytes]) -> tuple[set[bytes | None], int]:
    found: set[bytes | None] = set()
    before, size = b"", 0
    longest = max((len(word) for word in words), default=1)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_AT_ONCE):
            size += len(piece)
            data = before + piece
            found |= {word for word in words if word in data}
            before = data[-longest:]
    return found, size


def write(
    folder: Path, key: bytes, asked: tuple[str, str], removed: dict[str, Any], found: Search
) -> Path:
    """`asked`: by what, and its value, of which only a hash with the install's key is written.
    `verified` is null where there was no word to look for."""
    by, value = asked
    now = datetime.now(UTC)
    said = {
        "at": now.isoformat(timespec="seconds"),
        "asked": {"by": by, "hash": blake2b(f"{by}:{value}".encode(), key=key).hexdigest()[:32]},
        "removed": removed,
        "searched": {"files": found.files, "bytes": found.bytes, "words": found.words},
        "found_in": found.found_in,
        "verified": not found.found_in if found.words else None,
    }
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"forget-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}.json"
    made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(made, "wb") as out:
        out.write(orjson.dumps(said, option=orjson.OPT_INDENT_2) + b"\n")
    return path
