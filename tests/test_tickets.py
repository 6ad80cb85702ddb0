"""The ticket grammar, and the shipped model measured against tickets it was not trained on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pytest

from bin import tickets
from bin.tickets import Ticket
from tests.tiny_model.corpus import HELDOUT_SEED, corpus

MODELS = resources.files("shadow") / "models"
MODEL = MODELS / "triage.gguf"
HELDOUT = MODELS / "triage-heldout.jsonl"

# Model, held-out file and grammar belong together: a change of the grammar asks for a new training.
MODEL_SHA256 = "f412ce3a53f6a09c88e6132e4e049ed4455bf77f5d18bd2a42343cd2c23570a8"
HELDOUT_SHA256 = "db4080640b490b988c6a95714ad2c139b0c59fc88cf4cd029d210fcb8e4a913e"
DRAWN_SHA256 = "71fc176cb92f1a01ebfc1da1f399a5e857be4084a8850ab6a6d8859c25dc2aa5"

TRAINING_SEED = 1


def sha256(drawn: Iterable[Ticket]) -> str:
    text = json.dumps([[t.task, t.system, t.user, t.answer] for t in drawn])
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def drawn() -> list[Ticket]:
    return tickets.dataset(HELDOUT_SEED, triage=2000, extract=2000)


class TestDataset:
    def test_a_seed_names_a_dataset_for_good(self) -> None:
        assert sha256(tickets.dataset(5, triage=500, extract=500)) == DRAWN_SHA256

    def test_another_seed_draws_another_dataset(self) -> None:
        assert sha256(tickets.dataset(6, triage=500, extract=500)) != DRAWN_SHA256

    def test_counts_and_order_are_as_asked(self) -> None:
        tasks = [ticket.task for ticket in tickets.dataset(5, triage=7, extract=3)]
        assert tasks == [tickets.TRIAGE] * 7 + [tickets.EXTRACT] * 3

    def test_no_text_is_drawn_twice(self, drawn: list[Ticket]) -> None:
        assert len({ticket.user for ticket in drawn}) == len(drawn)

    def test_excluded_texts_are_not_drawn(self, drawn: list[Ticket]) -> None:
        heldout = {ticket.user for ticket in drawn}
        usual = tickets.dataset(TRAINING_SEED, triage=5000, extract=500)
        kept = tickets.dataset(TRAINING_SEED, triage=5000, extract=500, exclude=heldout)
        assert heldout & {ticket.user for ticket in usual}, "the seeds never meet: nothing is shown"
        assert not heldout & {ticket.user for ticket in kept}

    def test_a_label_restricts_triage(self) -> None:
        drawn = tickets.dataset(5, triage=50, extract=0, label=tickets.RARE)
        assert {ticket.answer for ticket in drawn} == {tickets.RARE}


class TestTriage:
    def test_every_label_is_drawn_and_the_rare_one_least(self, drawn: list[Ticket]) -> None:
        counts = Counter(ticket.answer for ticket in drawn if ticket.task == tickets.TRIAGE)
        assert set(counts) == set(tickets.LABELS)
        assert min(counts, key=counts.__getitem__) == tickets.RARE
        assert counts[tickets.RARE] > 50

    def test_the_system_prompt_names_every_label(self) -> None:
        named = re.findall(r"[a-z]+_[a-z]+", tickets.SYSTEM_TRIAGE)
        assert tuple(named) == tickets.LABELS

    def test_a_ticket_is_made_for_the_label_asked(self) -> None:
        ticket = tickets.make_triage(random.Random(1), "bug_report")
        assert (ticket.system, ticket.answer) == (tickets.SYSTEM_TRIAGE, "bug_report")

    def test_no_slot_is_left_open(self, drawn: list[Ticket]) -> None:
        assert not [ticket.user for ticket in drawn if re.search(r"[{}<>]", ticket.user)]


class TestExtraction:
    def test_answers_are_json_that_copies_from_the_text(self, drawn: list[Ticket]) -> None:
        for ticket in drawn:
            if ticket.task == tickets.EXTRACT:
                answer = json.loads(ticket.answer)
                assert list(answer) == ["order_id", "product", "urgency"]
                assert answer["order_id"] in ticket.user
                assert answer["product"] in ticket.user

    def test_every_urgency_is_drawn(self) -> None:
        rng = random.Random(1)
        answers = (json.loads(tickets.make_extract(rng).answer) for _ in range(100))
        assert {answer["urgency"] for answer in answers} == {"low", "medium", "high"}


@dataclass(frozen=True, slots=True)
class Heldout:
    messages: list[dict[str, str]]
    reference: str

    @property
    def task(self) -> str:
        system = self.messages[0]["content"]
        return tickets.TRIAGE if system == tickets.SYSTEM_TRIAGE else tickets.EXTRACT


@pytest.fixture(scope="module")
def heldout() -> list[Heldout]:
    return [Heldout(**json.loads(line)) for line in HELDOUT.read_text().splitlines()]


class TestShippedFiles:
    def test_the_model_is_the_one_measured(self) -> None:
        content = MODEL.read_bytes()
        assert hashlib.sha256(content).hexdigest() == MODEL_SHA256
        assert len(content) < 6_000_000

    def test_the_heldout_file_is_the_one_measured(self) -> None:
        content = HELDOUT.read_bytes()
        assert hashlib.sha256(content).hexdigest() == HELDOUT_SHA256
        assert len(content) < 250_000

    def test_heldout_lines_are_the_first_heldout_tickets_of_each_task(
        self, drawn: list[Ticket], heldout: list[Heldout]
    ) -> None:
        first = drawn[:150] + drawn[2000:2150]
        expected = [Heldout(ticket.messages, ticket.answer) for ticket in first]
        assert heldout == expected

    def test_no_heldout_text_is_in_the_training_set(self, drawn: list[Ticket]) -> None:
        texts = {ticket.user for ticket in drawn}
        learned = {ticket.user for ticket in corpus()}
        assert len(learned) > 80000
        assert not texts & learned


class Actor:
    def __init__(self, path: str) -> None:
        # Read when llama_cpp is imported. Threads left spinning starve whatever else is running.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        from llama_cpp import Llama

        self._llm: Any = Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)

    def answer(self, messages: list[dict[str, str]]) -> str:
        reply = self._llm.create_chat_completion(messages, temperature=0, max_tokens=64)
        return str(reply["choices"][0]["message"]["content"])


class TestShippedModel:
    def test_it_answers_heldout_tickets_as_recorded(self, heldout: list[Heldout]) -> None:
        start = time.monotonic()
        actor = Actor(str(MODEL))
        exact: Counter[str] = Counter()
        for ticket in heldout:
            exact[ticket.task] += actor.answer(ticket.messages) == ticket.reference
        assert exact[tickets.TRIAGE] >= 0.96 * 150
        assert exact[tickets.EXTRACT] >= 0.98 * 150
        assert time.monotonic() - start < 10
