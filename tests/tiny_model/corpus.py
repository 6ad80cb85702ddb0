"""Which tickets the model learns from and which it is measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bin import tickets
from bin.tickets import Ticket

HELDOUT_SEED = 777
PER_TASK = 2000
SHIPPED_PER_TASK = 150
USUAL = 40000


def heldout() -> list[Ticket]:
    return tickets.dataset(HELDOUT_SEED, triage=PER_TASK, extract=PER_TASK)


def corpus() -> list[Ticket]:
    """What is learned from: none of it is held out.

    The rare label and upper case get more than their share. A byte-pair vocabulary learned from
    mostly lower-case text spells capitals letter by letter, which makes them a task of their own.
    """
    unseen = {ticket.user for ticket in heldout()}
    usual = tickets.dataset(1, triage=USUAL, extract=USUAL, exclude=unseen)
    rare = tickets.dataset(2, triage=3000, extract=0, exclude=unseen, label=tickets.RARE)
    calm = tickets.dataset(4, triage=7000, extract=0, exclude=unseen)
    shouted = [replace(ticket, user=ticket.user.upper()) for ticket in calm]
    return [*usual, *rare, *(ticket for ticket in shouted if ticket.user not in unseen)]


def unlearned(seed: int) -> list[Ticket]:
    """Tickets of another seed, less those the corpus happens to hold."""
    learned = {ticket.user for ticket in corpus()}
    return tickets.dataset(seed, triage=PER_TASK, extract=PER_TASK, exclude=learned)


def shipped_heldout() -> list[Ticket]:
    """The first few held-out tickets of each task: enough to measure by, small enough to ship."""
    drawn = heldout()
    return [*drawn[:SHIPPED_PER_TASK], *drawn[PER_TASK : PER_TASK + SHIPPED_PER_TASK]]


def write_heldout(path: Path, chosen: Iterable[Ticket]) -> None:
    lines = ({"messages": ticket.messages, "reference": ticket.answer} for ticket in chosen)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
