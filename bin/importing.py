"""The work of `understudy import`: files to records, records to runs of the spool, and the wait
until the recorder has taken them in, between all else that it does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bin.recorder_at_work import Reading, recorder_at_work, wait_until_read
from bin.supervisor import secret_file
from policies.home import Home
from policies.policy import Policy
from store.import_helicone import HELICONE
from store.import_langfuse import LANGFUSE
from store.import_lines import Backlog
from store.import_litellm import LITELLM
from store.import_openai import STORED, TRAINING
from store.import_openpipe import OPENPIPE
from store.import_run import PREFIX, Importer, RunWriter, Tally, end_staging, newest, recorded
from store.imports import Format

# In the order in which a record is tried: the last asks for the least.
FORMATS: Final = {
    each.name: each for each in (STORED, LITELLM, LANGFUSE, HELICONE, OPENPIPE, TRAINING)
}
_TRIED: Final = 20  # records of a file that are looked at
_RUN_BYTES: Final = 32 << 20
_MOST_RUNS: Final = 3  # waiting for the recorder: the spool's bounds are there for live traffic
_MOST_SHOWN: Final = 20
_SUFFIXES: Final = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")


class UnknownFormat(ValueError):
    """No record tells which it is."""


@dataclass(slots=True)
class Result:
    """`new`: rows that were not there. `shown`: why records can't be used, the first of them."""

    format: str
    tally: Tally
    files: int
    seconds: float = 0.0
    new: int = 0
    shown: list[str] = field(default_factory=list)


def run_import(
    root: Path, given: tuple[Path, ...], format_: str | None, policy: Policy, host: str | None
) -> Result:
    """`format_`: None to guess. Raises UnknownFormat, StartError, Stopped, OSError."""
    files = list(_files(given))
    chosen = _guess(files) if format_ is None else FORMATS[format_]
    with recorder_at_work(root, policy) as reading:
        return _import(root, files, chosen, policy, host, reading)


def _files(given: tuple[Path, ...]) -> Iterator[Path]:
    for path in given:
        if not path.is_dir():
            yield path
            continue
        for each in sorted(path.rglob("*")):
            if each.name.endswith(_SUFFIXES) and each.is_file():
                yield each


def _guess(files: list[Path]) -> Format:
    for path in files:
        backlog = Backlog(path)
        try:
            for _, record in islice(backlog.records(), _TRIED):
                for format_ in FORMATS.values():
                    if isinstance(record, dict) and any(map(format_.fits, format_.split(record))):
                        return format_
        finally:
            backlog.close()
    raise UnknownFormat("no record looks like one of a format that is known: use --format")


def _import(
    root: Path, files: list[Path], format_: Format, policy: Policy, host: str | None,
    reading: Reading,
) -> Result:  # fmt: skip
    home = Home(root.resolve(), root)
    key = bytes.fromhex(secret_file(home.install_key))
    importer = Importer(format_, key, policy.privacy, policy.identity, host)
    result = Result(format_.name, importer.tally, len(files))
    before, started = newest(home.database), time.monotonic()
    with _progress() as progress:
        runs = _Runs(home, reading)
        try:
            for path in files:
                _import_file(path, importer, runs, result, progress)
            runs.end(progress)
        finally:
            runs.close()
    result.seconds = time.monotonic() - started
    result.new = recorded(home.database, before, runs.prefix)
    return result


def _import_file(
    path: Path, importer: Importer, runs: _Runs, result: Result, progress: Progress
) -> None:
    backlog = Backlog(path)
    task = progress.add_task(path.name, total=backlog.size)
    try:
        for number, record in backlog.records():
            if isinstance(record, dict):
                problems = importer.take(record, backlog.time, runs.write)
            else:
                problems = [record]
                importer.tally.read += 1
                importer.tally.unusable += 1
            for problem in problems:
                if len(result.shown) < _MOST_SHOWN:
                    result.shown.append(f"{path}:{number}: {problem}")
            progress.update(task, completed=backlog.position)
        progress.update(task, completed=backlog.size)
    finally:
        backlog.close()


class _Runs:
    """The runs that an import consists of."""

    def __init__(self, home: Home, reading: Reading) -> None:
        self.prefix = f"{PREFIX}{time.time_ns() // 1_000_000:013d}-{os.getpid()}-"
        self._home = home
        self._reading = reading
        self._writer: RunWriter | None = None
        self._handed: list[Path] = []

    def write(self, records: bytes) -> None:
        if self._writer is None:
            self._writer = RunWriter(self._home)
        self._writer.write(records)
        if self._writer.size >= _RUN_BYTES:
            self._hand_over()
            wait_until_read(self._reading, self._handed, _MOST_RUNS)

    def _hand_over(self) -> None:
        if self._writer is not None:
            name = f"{self.prefix}{len(self._handed):06d}"
            self._handed.append(self._writer.hand_over(name))
            self._writer = None

    def end(self, progress: Progress) -> None:
        self._hand_over()
        task = progress.add_task("into the record", total=None)
        wait_until_read(self._reading, self._handed)
        progress.update(task, total=1, completed=1)

    def close(self) -> None:
        """After a failure, too: what was handed over is recorded all the same."""
        if self._writer is not None:
            self._writer.drop()
        end_staging(self._home)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
