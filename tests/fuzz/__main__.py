"""Fuzz both readers, guided by coverage: python -m tests.fuzz [--seconds 60] [--folder DIR]

Prints executions and coverage; exit 1 with the input that made the readers disagree, or crashed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.seeds import MOST_BYTES, reply_seeds, request_seeds, write, write_words

_TARGETS: Final[dict[str, Callable[[], list[bytes]]]] = {
    "requests": request_seeds,
    "replies": reply_seeds,
}
_FIGURE: Final = re.compile(r"stat::(\w+): +(\d+)")
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+)")
_SLOWEST_SECONDS: Final = 5  # one input; beyond it the reader hangs


@dataclass(frozen=True)
class Fuzzed:
    """`edges` and `features` of the instrumented code, `crashed`: the input it ended with."""

    executions: int
    per_second: int
    edges: int
    features: int
    crashed: Path | None


def fuzz(target: str, seconds: int, folder: Path) -> Fuzzed:
    corpus, seeds = folder / target, folder / f"{target}-seeds"
    corpus.mkdir(parents=True, exist_ok=True)
    write(seeds, _TARGETS[target]())
    words = folder / "words"
    write_words(words)
    log = folder / f"{target}.log"
    with log.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.target", target, f"-max_total_time={seconds}",
             f"-max_len={MOST_BYTES}", f"-timeout={_SLOWEST_SECONDS}", "-print_final_stats=1",
             f"-dict={words}", f"-artifact_prefix={folder}/{target}-", str(corpus), str(seeds)],
            stdout=out, stderr=out, check=False,
        )  # fmt: skip
    said = log.read_text(errors="replace")
    figures = dict(_FIGURE.findall(said))
    edges, features = (_COVERAGE.findall(said) or [(0, 0)])[-1]
    found = re.findall(r"Test unit written to (\S+)", said)
    return Fuzzed(
        int(figures.get("number_of_executed_units", 0)),
        int(figures.get("average_exec_per_sec", 0)),
        int(edges),
        int(features),
        Path(found[-1] if found else log) if done.returncode else None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each of the two")
    parser.add_argument("--folder", type=Path, help="keeps the corpus, to go on from")
    parser.add_argument("--only", choices=_TARGETS)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="understudy-fuzz-"))
    status = 0
    for target in [asked.only] if asked.only else _TARGETS:
        done = fuzz(target, asked.seconds, folder)
        print(
            f"{target}: {done.executions} executions, {done.per_second}/s, "
            f"{done.edges} edges, {done.features} features"
        )
        if done.crashed is not None:
            print(f"{target}: failed, see {done.crashed} and {folder / target}.log")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
