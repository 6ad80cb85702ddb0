"""Measure a GGUF file on every held-out ticket, through llama-cpp-python, decoding greedily.

    python -m tests.tiny_model.accuracy shadow/models/triage.gguf

Beside the share of exact answers it prints the distribution of each answer's confidence: the
smallest lead, in logits, that its most likely token had over the second at any position. One seed
can be lucky: with `--seed` it measures on other tickets the model did not learn from.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_cpp import Llama, LogitsProcessorList

from bin import tickets
from bin.tickets import Ticket

from .corpus import HELDOUT_SEED, unlearned

_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_FLOORS = (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True, slots=True)
class Answer:
    ticket: Ticket
    text: str
    margin: float
    seconds: float

    @property
    def right(self) -> bool:
        return self.text == self.ticket.answer


class Actor:
    """The model, noting the margin of every token it decodes."""

    def __init__(self, path: str) -> None:
        # One thread is fastest at this size: threads would spend their time waiting for each other.
        self._llm: Any = Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
        self._margins: list[float] = []

    def answer(self, ticket: Ticket) -> Answer:
        self._margins.clear()
        start = time.perf_counter()
        reply = self._llm.create_chat_completion(
            ticket.messages,
            temperature=0,
            max_tokens=64,
            logits_processor=LogitsProcessorList([self._note]),
        )
        seconds = time.perf_counter() - start
        text = str(reply["choices"][0]["message"]["content"])
        return Answer(ticket, text, min(self._margins), seconds)

    def _note(self, _ids: Any, logits: Any) -> Any:
        second, first = sorted(logits[logits.argpartition(-2)[-2:]].tolist())
        self._margins.append(first - second)
        return logits


def by_label(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.ticket.answer].append(answer)
    return dict(groups)


def exact(answers: Sequence[Answer]) -> float:
    return sum(answer.right for answer in answers) / len(answers)


def _quantiles(values: Iterable[float]) -> str:
    ranked = sorted(values)
    if not ranked:
        return "none"
    at = [ranked[min(int(share * len(ranked)), len(ranked) - 1)] for share in _QUANTILES]
    return " ".join(f"{value:.2f}" for value in at)


def _print_task(task: str, answers: Sequence[Answer]) -> None:
    print(f"{task}: {exact(answers):.2%} of {len(answers)} exact")
    print(f"  ms, median and p95: {_milliseconds(answers)}")
    print(f"  margin quantiles {_QUANTILES}")
    print("    right:", _quantiles(answer.margin for answer in answers if answer.right))
    print("    wrong:", _quantiles(answer.margin for answer in answers if not answer.right))
    for floor in _FLOORS:
        print(f"  margin >= {floor}: {_above(floor, answers)}")


def _milliseconds(answers: Sequence[Answer]) -> str:
    ranked = sorted(answer.seconds * 1e3 for answer in answers)
    return f"{ranked[len(ranked) // 2]:.2f} {ranked[len(ranked) * 95 // 100]:.2f}"


def _above(floor: float, answers: Sequence[Answer]) -> str:
    kept = [answer for answer in answers if answer.margin >= floor]
    if not kept:
        return "none"
    return f"{len(kept) / len(answers):.2%} kept, {exact(kept):.2%} of them exact"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=HELDOUT_SEED)
    arguments = parser.parse_args()
    actor = Actor(arguments.model)
    answers = [actor.answer(ticket) for ticket in unlearned(arguments.seed)]
    triage = [answer for answer in answers if answer.ticket.task == tickets.TRIAGE]
    _print_task(tickets.TRIAGE, triage)
    for label, group in sorted(by_label(triage).items()):
        print(f"  {label}: {exact(group):.2%} of {len(group)}")
    _print_task(tickets.EXTRACT, [a for a in answers if a.ticket.task == tickets.EXTRACT])


if __name__ == "__main__":
    main()
