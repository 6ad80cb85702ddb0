"""A model that generates flat out, as the model process does under a backlog: nice 19, one thread.

python -m tests.bench.generator GGUF REQUESTS.jsonl
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from policies.policy import Candidate
from shadow import engine, wire


def asks(path: Path, context: int) -> Iterator[wire.Ask]:
    """The requests of the file, over and over."""
    texts = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    bodies = [json.dumps({"model": "gpt-4o-mini", "messages": messages}) for messages in texts]
    for body in itertools.cycle(bodies):
        yield wire.parse(body.encode(), context, greedy=True)


def main(gguf: Path, requests: Path) -> None:
    os.nice(19)
    loaded = engine.load(Candidate("bench", str(gguf)))
    never = threading.Event()
    for ask in asks(requests, loaded.context):
        for _ in loaded.answer(ask, loaded.prompt(ask), 256, never):
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
