"""Helpers: traffic of several tenants that says a canary all over, and a look at every byte."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from policies.home import Home
from policies.words import Write
from store import daily, orders, schema
from store.database import transaction
from store.recorder import alone, carry_out
from tests.store.making import (
    JSON_HEADERS,
    SSE_HEADERS,
    Exchange,
    chat_answer,
    delta,
    making,
    stream_of,
)

SHARED = "You are the same for everyone. " * 20


def seen_in(root: Path, word: str) -> list[str]:
    """Files below the home folder that hold the word."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and word.encode() in path.read_bytes()
    ]


def image(word: str) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + word.encode() * 4 + os.urandom(9000)


def said_by(
    number: int, word: str, tenant: str, user: str | None = None, stream: bool = False
) -> Exchange:
    """An exchange that holds `word` wherever a person's data can be."""
    picture = f"data:image/png;base64,{b64encode(image(word)).decode()}"
    request = {
        "model": "gpt-4o",
        "user": user,
        "metadata": {"session_id": f"session-{word}"},
        "messages": [
            {"role": "system", "content": SHARED},
            {"role": "system", "content": f"Serve {word} well. " * 20},
            {"role": "user", "content": f"mail {word}@example.com about {word} {number}"},
            {"role": "assistant", "tool_calls": [{
                "id": "a", "type": "function",
                "function": {"name": "f", "arguments": f'{{"who": "{word}"}}'}}]},
            {"role": "tool", "tool_call_id": "a", "content": f"found {word} " * 40},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]},
        ],
        "stream": stream,
    }  # fmt: skip
    headers = [*JSON_HEADERS, ("x-understudy-tenant", tenant)]
    answer = f"{word} says {number} " * 10
    body = orjson.dumps(chat_answer(answer) | {"id": f"chatcmpl-{word}-{number}"})
    if stream:
        body = stream_of(delta(role="assistant"), delta(content=answer), delta(finish="stop"))
    return Exchange(
        number=number,
        request=orjson.dumps(request),
        response=body,
        request_headers=headers,
        response_headers=[*(SSE_HEADERS if stream else JSON_HEADERS)],
        routed=[{"to": "upstream", "why": f"for {word}"}],
        error=None,
    )


def order(at: Home, asked: orders.Order, **policy: Any) -> dict[str, Any]:
    """Carried out without a sidecar."""
    return alone(at, making(**policy), lambda to: carry_out(to, asked, _silent), patience=1.0)


def write(at: Home, *asked: Write, **policy: Any) -> None:
    alone(at, making(**policy), lambda to: to.write(list(asked)), patience=1.0)


def _silent(_: object) -> None:
    return None


def in_database(at: Home, work: Callable[[Any], None]) -> None:
    """Change the record as no part of ours would."""
    connection = schema.prepare(at.database)
    with transaction(connection):
        work(connection)
    connection.close()


def count_anew(at: Home) -> None:
    """The sums by day, of the exchanges that there are."""

    def counted(connection: Any) -> None:
        for table in ("daily", "reasons", "task_totals"):
            connection.execute(f"DELETE FROM {table}")
        daily.add(connection, 0)

    in_database(at, counted)
