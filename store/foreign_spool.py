"""Runs of another machine's spool, brought here: each once, as a run that is over.

A run goes by what it holds: its name here begins with a hash of its segments. A name that is in the
spool or in the table of runs was brought before, and is not again; and whatever is brought, an
exchange that is in the record is not recorded twice.

Where the home's policy keeps all, a run comes in byte by byte. Else it is written anew, so that on
this disk, too, it looks as if a proxy of this home had spooled it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, cast

from policies.home import Home
from policies.identity import tenant_of
from policies.policy import Policy
from policies.privacy import MODES, Mode, mode_for, stricter
from policies.spool import ALIVE_FILE, BATCH, Event, Kind, pack
from store.database import reading
from store.groups import CONTENT_KINDS
from store.import_run import PREFIX, RunWriter, is_readable
from store.locks import is_held
from store.recording import without_origin
from store.spool_reader import Position, read, segment_path, segments
from store.values import Json, count_of, dumped, headers_of, json_object, text_of

_CHUNK: Final = 1 << 20
_DIGEST_BYTES: Final = 8
_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME: Final = 60
_UNKNOWN: Final = pack(0, bytes(16), 0.0, b"")  # a record of no kind


class Refused(ValueError):
    """Not a spool's folder that can be taken. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Brought:
    """`name`: of the run here; `before`: it had been brought already. `kept_out`: exchanges that
    the policy lets nothing in of; they are none of `exchanges`."""

    folder: Path
    name: str
    before: bool = False
    exchanges: int = 0
    kept_out: int = 0
    segments: int = 0
    bytes: int = 0


def find(folder: Path, home: Home) -> list[Path]:
    """The folder itself, or those in it that hold segments. Raises Refused."""
    own = home.root.resolve()
    if folder.resolve() == own or own in folder.resolve().parents:
        raise Refused(f"{folder}: belongs to this home; its recorder reads it by itself")
    found = [folder] if segments(folder) else []
    if not found:
        found = sorted(each for each in folder.iterdir() if each.is_dir() and segments(each))
    if not found:
        raise Refused(f"{folder}: no segments in it; give a run's folder, or a spool's")
    for run in found:
        if _is_written(run):
            raise Refused(f"{run}: a proxy of this machine is writing to it; stop that one first")
    return found


def _is_written(run: Path) -> bool:
    try:
        return is_held(run / ALIVE_FILE)
    except FileNotFoundError:
        return False


def bring(run: Path, home: Home, policy: Policy) -> Brought:
    """Into the spool, checked; of each exchange what both its own mode and the policy let in.
    Raises Refused, OSError."""
    prefix = f"{PREFIX}{_digest(run)}-"
    known = _known(home, prefix)
    if known is not None:
        return Brought(run, known, before=True)
    writer = RunWriter(home)
    try:
        exchanges, kept_out, size = _fill(writer, run, policy)
        if not exchanges and not kept_out:
            raise Refused(f"{run}: no exchange in it that can be read")
        number = len(segments(writer.folder))
        name = prefix + _NAME.sub("_", run.resolve().name)[:_LONGEST_NAME]
        writer.hand_over(name, _began(run))
    except BaseException:
        writer.drop()
        raise
    return Brought(run, name, False, exchanges, kept_out, number, size)


def _digest(run: Path) -> str:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for number in segments(run):
        digest.update(number.to_bytes(8, "big"))
        for piece in _pieces(segment_path(run, number)):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _known(home: Home, prefix: str) -> str | None:
    if home.spool.is_dir():
        for name in os.listdir(home.spool):
            if name.startswith(prefix):
                return name
    if not is_readable(home.database):
        return None
    sql = "SELECT id FROM runs WHERE id >= ? AND id < ? LIMIT 1"
    with reading(home.database) as connection:
        row = connection.execute(sql, (prefix, prefix + "\x7f")).fetchone()
    return None if row is None else str(row[0])


def _fill(writer: RunWriter, run: Path, policy: Policy) -> tuple[int, int, int]:
    """Exchanges, exchanges kept out, bytes."""
    if policy.privacy.mode == "full" and not policy.privacy.rules:
        size = _copy(run, writer.folder)
        return _exchanges(writer.folder), 0, size
    sieve = _Sieve(policy)
    _write_anew(writer, run, sieve)
    return sieve.exchanges, sieve.kept_out, writer.size


def _copy(run: Path, to: Path) -> int:
    size = 0
    for number in segments(run):
        path = segment_path(to, number)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in _pieces(segment_path(run, number)):
                size += file.write(piece)
            file.flush()
            os.fdatasync(file.fileno())
    return size


def _exchanges(folder: Path) -> int:
    """How many begin in what can be read of it."""
    found = 0
    at, more = Position(), True
    while more:
        piece = read(folder, at)
        found += sum(event.kind is Kind.OPENED for event in piece.events)
        at, more = piece.position, piece.more
    return found


def _write_anew(writer: RunWriter, run: Path, sieve: _Sieve) -> None:
    """What can't be read is only counted: as much of it is there for the recorder to count."""
    torn, at, more = 0, Position(), True
    while more:
        piece = read(run, at)
        let_in = [(event, sieve.let_in(event)) for event in piece.events]
        records = [
            pack(event.kind, event.exchange, event.at, payload)
            for event, payload in let_in
            if payload is not None
        ]
        writer.write(b"".join(records) + _UNKNOWN * piece.unreadable)
        torn += piece.torn
        at, more = piece.position, piece.more
    if not piece.finished:  # copied just now: too young to be sure that nobody writes to it
        torn += _rest(segment_path(run, at.segment), at.offset)
    if torn:
        writer.tear(torn)


def _rest(path: Path, offset: int) -> int:
    """Bytes from there on, if they are no zeros of a segment that was to be written over."""
    with path.open("rb") as file:
        file.seek(offset)
        is_torn = any(file.read(BATCH.size))
        return os.fstat(file.fileno()).st_size - offset if is_torn else 0


@dataclass(slots=True)
class _Sieve:
    """A run's events, in their order, as a policy lets them in."""

    policy: Policy
    exchanges: int = 0
    kept_out: int = 0
    _unnumbered: int = 0  # of the kept out: the proxy counted them, and no row will
    _modes: dict[bytes, Mode | None] = field(default_factory=dict)  # of the open; None: not known

    def let_in(self, event: Event) -> bytes | None:
        """Its payload, or None. What nobody can tell the mode of is counted, and holds nothing."""
        if event.kind is Kind.OPENED and event.exchange not in self._modes:
            return self._opening(event)
        mode = self._modes.get(event.exchange)
        if event.kind is Kind.CLOSED:
            self._modes.pop(event.exchange, None)
        if mode == "off" or (mode == "metadata" and event.kind in CONTENT_KINDS):
            return None
        if mode is None or event.kind is Kind.OPENED:
            return b""
        ends_bare = mode == "metadata" and event.kind is Kind.CLOSED
        return _bare_ending(event.payload) if ends_bare else event.payload

    def _opening(self, event: Event) -> bytes | None:
        opened = json_object(event.payload)
        headers = None if opened is None else headers_of(opened)
        if opened is None or headers is None:
            self._modes[event.exchange] = None
            return b""
        mode = stricter(_own_mode(opened), self._wanted(opened, headers))
        self._modes[event.exchange] = mode
        number = count_of(opened.get("seq"))
        if mode == "off":
            self.kept_out += 1
            self._unnumbered += number is not None
            return None
        self.exchanges += 1
        opened["mode"] = mode
        if number is not None:  # a gap would say that it was lost
            opened["seq"] = number - self._unnumbered
        return (dumped(opened) or "").encode()

    def _wanted(self, opened: Json, headers: dict[str, str]) -> Mode:
        """As the proxy of this home would have chosen it."""
        privacy = self.policy.privacy
        if opened.get("method") == "CONNECT":  # of a tunnel, no path and nobody is known
            return privacy.mode
        tenant = tenant_of(headers, text_of(opened.get("key")), self.policy.identity)
        path = (text_of(opened.get("target")) or "").partition("?")[0]
        if "host" in opened:  # a client named it, perhaps in front of the path
            path = without_origin(path) or "/"
        return mode_for(privacy, tenant, path)


def _own_mode(opened: Json) -> Mode:
    said = opened.get("mode")
    return cast(Mode, said) if said in MODES else "full"


def _bare_ending(payload: bytes) -> bytes:
    """Of an exchange whose bodies go now: that they had been cut says nothing any more."""
    closed = json_object(payload)
    return b"" if closed is None else (dumped(closed | {"cut": {}}) or "").encode()


def _began(run: Path) -> float:
    """As its proxy's lock file says, else its first segment."""
    named = run / ALIVE_FILE
    path = named if named.exists() else segment_path(run, segments(run)[0])
    return path.stat().st_mtime


def torn(database: Path, names: list[str]) -> int:
    """Bytes of these runs that the recorder had to leave out."""
    if not names or not is_readable(database):
        return 0
    sql = f"SELECT sum(torn_bytes) FROM runs WHERE id IN ({', '.join('?' * len(names))})"
    with reading(database) as connection:
        (found,) = connection.execute(sql, names).fetchone()
    return int(found or 0)
