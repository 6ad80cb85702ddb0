"""Train the network on drawn tickets, in steps counted rather than timed, from fixed seeds."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional, utils
from torch.optim import AdamW

from bin.tickets import Ticket

from .corpus import USUAL, corpus
from .network import Network, Shape
from .tokenizer import EOS_ID, PAD_ID, learn, prompt

WARM_UP_STEPS = 800
STEPS = 1900
BATCH = 64
PEAK_RATE = 2.5e-3
IGNORED = -100

Report = Callable[[str], None]


def train(report: Report = print) -> tuple[Network, Tokenizer]:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    drawn = corpus()
    # Every fifth of the usual tickets: all phrases many times over, without counting them all.
    texts = (prompt(t.system, t.user) + t.answer for t in drawn[: 2 * USUAL : 5])
    tokenizer = learn(texts, size=1024)
    network = Network(Shape())
    teacher = Teacher(network)
    _warm_up(teacher, network.shape, report)
    _fit(teacher, _batches(_encoded(tokenizer, drawn), random.Random(3)), report)
    return network, tokenizer


class Teacher:
    """A network with its optimizer."""

    def __init__(self, network: Network) -> None:
        self._network = network
        weights = [p for p in network.parameters() if p.dim() == 2]
        scales = [p for p in network.parameters() if p.dim() == 1]
        groups = [
            {"params": weights, "weight_decay": 0.05},
            {"params": scales, "weight_decay": 0.0},
        ]
        self._optimizer = AdamW(groups, betas=(0.9, 0.98))

    def step(self, ids: Tensor, targets: Tensor, rate: float) -> float:
        """One step on the next-token loss where `targets` is not ignored; returns that loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        wanted = targets != IGNORED
        loss = functional.cross_entropy(self._network(ids, wanted), targets[wanted])
        self._optimizer.zero_grad()
        loss.backward()
        utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


def _warm_up(teacher: Teacher, shape: Shape, report: Report) -> None:
    """Learn to continue a random run of tokens that was seen before.

    Copying an order id takes attention heads that look for what came after the same token earlier.
    Repetition alone starts them within two minutes; 500 steps on the tickets alone left no JSON
    answer exact.
    """
    rng = random.Random(0)
    losses: list[float] = []
    while len(losses) < WARM_UP_STEPS:
        ids, targets = _repetition(rng, shape)
        losses.append(teacher.step(ids, targets, 2e-3 * min(1, (len(losses) + 1) / 50)))
        if len(losses) % 100 == 0:
            report(f"warm-up {len(losses)}: loss {_mean(losses[-100:]):.3f}")
            if _mean(losses[-10:]) < 0.3:
                return


def _repetition(rng: random.Random, shape: Shape) -> tuple[Tensor, Tensor]:
    run = torch.randint(4, shape.vocabulary, (BATCH, rng.randrange(8, 24)))
    gap = torch.randint(4, shape.vocabulary, (BATCH, rng.randrange(12)))
    ids = torch.cat([run, gap, run], 1)
    targets = ids[:, 1:].clone()
    targets[:, : run.shape[1] + gap.shape[1]] = IGNORED
    return ids[:, :-1], targets


def _fit(teacher: Teacher, batches: Iterator[list[Example]], report: Report) -> None:
    losses: list[float] = []
    start = time.monotonic()
    for step in range(STEPS):
        losses.append(teacher.step(*_tensors(next(batches)), _rate(step)))
        if (step + 1) % 100 == 0:
            elapsed = time.monotonic() - start
            report(f"step {step + 1}: loss {_mean(losses[-100:]):.4f}, {elapsed:.0f} s")


def _rate(step: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / STEPS))
    return PEAK_RATE * min(1, (step + 1) / 100) * max(0.01, cosine)


@dataclass(frozen=True, slots=True)
class Example:
    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def _encoded(tokenizer: Tokenizer, drawn: Sequence[Ticket]) -> list[Example]:
    prompts = tokenizer.encode_batch([prompt(ticket.system, ticket.user) for ticket in drawn])
    answers = tokenizer.encode_batch([ticket.answer for ticket in drawn])
    pairs = zip(prompts, answers, strict=True)
    return [Example(before.ids, [*after.ids, EOS_ID]) for before, after in pairs]


def _batches(examples: Sequence[Example], rng: random.Random) -> Iterator[list[Example]]:
    """Batches of examples of about one length, so that little of a batch is padding."""
    while True:
        shuffled = rng.sample(examples, len(examples))
        for start in range(0, len(shuffled), BATCH * 32):
            similar = sorted(shuffled[start : start + BATCH * 32], key=len)
            batches = [similar[at : at + BATCH] for at in range(0, len(similar), BATCH)]
            rng.shuffle(batches)
            yield from batches


def _tensors(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Token ids, and beside each the token to predict next: only answers count."""
    length = max(map(len, batch)) - 1
    ids = torch.full((len(batch), length), PAD_ID)
    targets = torch.full((len(batch), length), IGNORED)
    for row, example in enumerate(batch):
        end, first = len(example) - 1, len(example.prompt) - 1
        ids[row, :end] = torch.tensor([*example.prompt, *example.answer[:-1]])
        targets[row, first:end] = torch.tensor(example.answer)
    return ids, targets


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
