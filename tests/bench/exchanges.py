"""Exchanges as the proxy spools them, made up: prose of plain words, and no two the same.

`single`: one question and its answer, 5 KB up and 2 KB down. `chat`: the turns of conversations,
each of which sends all that was said before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from policies.spool import Event, Kind
from tests.bench.bodies import SYSTEM, prose

Events = list[Event]

TURNS: Final = 20
_MODEL: Final = "gpt-4o-mini-2024-07-18"
_REQUEST_HEADERS: Final = [
    ["content-type", "application/json"], ["user-agent", "OpenAI/Python 3.52.0"],
    ["x-stainless-lang", "python"], ["x-stainless-retry-count", "0"],
]  # fmt: skip
_RESPONSE_HEADERS: Final = [
    ["content-type", "application/json"], ["openai-processing-ms", "312"],
    ["x-ratelimit-limit-requests", "10000"], ["x-ratelimit-remaining-requests", "9999"],
    ["x-ratelimit-reset-requests", "6ms"], ["x-ratelimit-limit-tokens", "200000"],
    ["x-ratelimit-remaining-tokens", "198765"], ["x-ratelimit-reset-tokens", "370ms"],
]  # fmt: skip
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "look_up_order",
        "description": prose(300),
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}},
    },
}
_WORDS: Final = sorted(set(prose(400).split()) | set("order box late mother week refund".split()))


@dataclass(frozen=True, slots=True)
class Made:
    """`raw`: bytes of both bodies."""

    events: Events
    raw: int


class Maker:
    """`mode`: of privacy. The same seed makes the same exchanges."""

    def __init__(self, mode: str = "full", seed: int = 1, begin: float = 1.78e9) -> None:
        self._mode = mode
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._begin = begin
        self._seed = seed

    def single(self) -> Iterator[Made]:
        while True:
            user = f"{self._said(2900)}"
            yield self.exchange([_message("system", SYSTEM), _message("user", user)], 1700)

    def chat(self, turns: int = TURNS) -> Iterator[Made]:
        while True:
            messages = [_message("system", SYSTEM)]
            for _ in range(turns):
                messages.append(_message("user", self._said(self._chance.randrange(40, 600))))
                made = self.exchange(messages, self._chance.randrange(300, 2000), [_TOOL] * 3)
                yield made
                answer = orjson.loads(made.events[3].payload)["choices"][0]["message"]["content"]
                messages.append(_message("assistant", answer))

    def exchange(self, messages: list[Any], answer: int, tools: list[Any] | None = None) -> Made:
        number = next(self._numbers)
        asked: dict[str, Any] = {"model": "gpt-4o-mini", "messages": messages, "temperature": 0.2}
        request = orjson.dumps(asked | ({"tools": tools} if tools else {}))
        response = orjson.dumps(_answer(number, self._said(answer), len(request)))
        return Made(self._events(number, request, response), len(request) + len(response))

    def _said(self, length: int) -> str:
        words: list[str] = []
        size = 0
        while size < length:
            words += self._chance.choices(_WORDS, k=16)
            size = len(words) * 5
        return " ".join(words)[:length]

    def _events(self, number: int, request: bytes, response: bytes) -> Events:
        at = self._begin + number * 0.5
        # A UUIDv7's own time, then what tells makers and exchanges apart.
        identity = (int(at * 1000) << 80) | (7 << 76) | (self._seed << 64) | (2 << 62) | number
        exchange = identity.to_bytes(16)
        opened = {
            "seq": number, "at": at, "method": "POST", "target": "/v1/chat/completions",
            "headers": _REQUEST_HEADERS, "key": f"{number % 7:024x}",
        }  # fmt: skip
        if self._mode != "full":
            opened["mode"] = self._mode
        head = {
            "status": 200,
            "headers": [*_RESPONSE_HEADERS, ["x-request-id", f"req_{number:032x}"]],
        }
        closed: dict[str, Any] = {"outcome": "ok", "error": None, "request_bytes": len(request),
                  "response_bytes": len(response), "cut": {}}  # fmt: skip
        return [
            Event(Kind.OPENED, exchange, 100.0, orjson.dumps(opened)),
            Event(Kind.REQUEST_BODY, exchange, 100.0, request),
            Event(Kind.RESPONSE_HEAD, exchange, 100.7, orjson.dumps(head)),
            Event(Kind.RESPONSE_BODY, exchange, 100.9, response),
            Event(Kind.CLOSED, exchange, 101.0, orjson.dumps(closed)),
        ]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _answer(number: int, content: str, asked: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": [],
    }
    given, made = asked // 4, len(content) // 4
    usage = {
        "prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }  # fmt: skip
    return {
        "id": f"chatcmpl-{number:029x}", "object": "chat.completion", "created": 1_780_000_000,
        "model": _MODEL, "service_tier": "default", "system_fingerprint": "fp_07871e2ad8",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }  # fmt: skip
