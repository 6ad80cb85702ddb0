"""The demo's app: a small support desk that knows nothing of a sidecar.

It uses OpenAI's own SDK and is told where the API is by OPENAI_BASE_URL alone. Each call is printed
as one JSON line. Its standard input switches between `mixed` (some calls are streamed) and `plain`
(none is); at the end of the input it finishes the calls it has begun, and ends.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import openai

from bin.tickets import Ticket, dataset
from policies.plan import SERVED_BY_HEADER

MODEL = "gpt-4o-mini"
_STREAMED = 0.3  # share of the calls, when mixed
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the app, as the app saw it. `at`: seconds since the epoch, when it began."""

    at: float
    ms: float
    streamed: bool
    served_by: str | None
    answer: str | None
    error: str | None


@dataclass(slots=True)
class Desk:
    """Workers take the next ticket, ask, and wait until their next call is due."""

    tickets: Iterator[Ticket]
    pace: float  # seconds from one call of a worker to its next
    client: openai.OpenAI
    ended: threading.Event = field(default_factory=threading.Event)
    plain: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _chance: random.Random = field(default_factory=lambda: random.Random(7))

    def work(self, delay: float) -> None:
        self.ended.wait(delay)
        while not self.ended.is_set():
            began = time.monotonic()
            ticket = self._next()
            if ticket is None:
                return
            self._say(self._call(ticket))
            self.ended.wait(max(0.0, self.pace - (time.monotonic() - began)))

    def _next(self) -> Ticket | None:
        with self._turn:
            return next(self.tickets, None)

    def _say(self, call: Call) -> None:
        with self._turn:
            print(json.dumps(asdict(call)), flush=True)

    def _call(self, ticket: Ticket) -> Call:
        streamed = not self.plain.is_set() and self._chance.random() < _STREAMED
        ask = self._streamed if streamed else self._whole
        at, began = time.time(), time.monotonic()
        served_by = answer = error = None
        try:
            served_by, answer = ask(ticket)
        except Exception as failure:  # a stream that breaks raises the HTTP library's own errors
            error = f"{type(failure).__name__}: {failure}"
        ms = (time.monotonic() - began) * 1000
        return Call(at, ms, streamed, served_by, answer, error)

    def _whole(self, ticket: Ticket) -> tuple[str | None, str]:
        raw = self.client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=_messages(ticket),
            temperature=0,
        )
        return raw.headers.get(SERVED_BY_HEADER), raw.parse().choices[0].message.content or ""

    def _streamed(self, ticket: Ticket) -> tuple[str | None, str]:
        raw = self.client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=_messages(ticket),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk for chunk in raw.parse() if chunk.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return raw.headers.get(SERVED_BY_HEADER), text

    def listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "plain":
                self.plain.set()
            elif line.strip() == "mixed":
                self.plain.clear()
        self.ended.set()


def _messages(
    ticket: Ticket,
) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [
        {"role": "system", "content": ticket.system},
        {"role": "user", "content": ticket.user},
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--tickets", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="calls a second, in all")
    options = parser.parse_args()
    pace = options.workers / options.rate
    # A failed call is a failed call: the SDK's retries would hide it.
    client = openai.OpenAI(max_retries=0, timeout=_PATIENCE)
    desk = Desk(iter(dataset(options.seed, options.tickets, 0)), pace, client)
    workers = [
        threading.Thread(target=desk.work, args=(pace * i / options.workers,))
        for i in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    desk.listen()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
