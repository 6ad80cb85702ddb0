"""An app on the official Python SDK, 1.x to 3.x: sdk.py chat|stream|upload|realtime [sync|async].

It says nothing of where the API is and whom to trust. `aiohttp` instead of `async`: over that.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import openai

Said = tuple[int, str]
TIMEOUT, RETRIES = 20, 0
CHAT: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
UPLOAD: Any = {"file": ("tickets.jsonl", b'{"ticket": 1}\n' * 30_000), "purpose": "batch"}
SESSION: Any = {"type": "realtime", "instructions": "be brief"}


def chat(client: openai.OpenAI) -> Said:
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    return raw.status_code, raw.parse().choices[0].message.content or ""


def stream(client: openai.OpenAI) -> Said:
    chunks = client.chat.completions.create(**CHAT, stream=True)
    return 200, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def upload(client: openai.OpenAI) -> Said:
    return 200, client.files.create(**UPLOAD).id


def realtime(client: openai.OpenAI) -> Said:
    with client.realtime.connect(model="gpt-realtime") as connection:
        heard = [connection.recv().type]
        connection.session.update(session=SESSION)
        return 101, " ".join([*heard, connection.recv().type])


async def chat_async(client: openai.AsyncOpenAI) -> Said:
    raw = await client.chat.completions.with_raw_response.create(**CHAT)
    return raw.status_code, raw.parse().choices[0].message.content or ""


async def stream_async(client: openai.AsyncOpenAI) -> Said:
    chunks = await client.chat.completions.create(**CHAT, stream=True)
    return 200, "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def upload_async(client: openai.AsyncOpenAI) -> Said:
    return 200, (await client.files.create(**UPLOAD)).id


async def realtime_async(client: openai.AsyncOpenAI) -> Said:
    async with client.realtime.connect(model="gpt-realtime") as connection:
        heard = [(await connection.recv()).type]
        await connection.session.update(session=SESSION)
        return 101, " ".join([*heard, (await connection.recv()).type])


CALLS: dict[str, Callable[[openai.OpenAI], Said]] = {
    "chat": chat,
    "stream": stream,
    "upload": upload,
    "realtime": realtime,
}
CALLS_ASYNC: dict[str, Callable[[openai.AsyncOpenAI], Coroutine[None, None, Said]]] = {
    "chat": chat_async,
    "stream": stream_async,
    "upload": upload_async,
    "realtime": realtime_async,
}


def called(task: str) -> Said:
    with openai.OpenAI(timeout=TIMEOUT, max_retries=RETRIES) as client:
        return CALLS[task](client)


async def called_async(task: str, way: str) -> Said:
    transport = openai.DefaultAioHttpClient(timeout=TIMEOUT) if way == "aiohttp" else None
    async with openai.AsyncOpenAI(
        timeout=TIMEOUT, max_retries=RETRIES, http_client=transport
    ) as client:
        return await CALLS_ASYNC[task](client)


def causes(error: BaseException | None) -> str:
    """With what is behind it: the SDK says no more than 'Connection error.'"""
    told = []
    while error is not None:
        told.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " <- ".join(told)


def main(task: str = "chat", way: str = "sync") -> int:
    outcome: dict[str, Any] = {"ok": False, "status": None, "text": None, "error": None}
    try:
        status, text = called(task) if way == "sync" else asyncio.run(called_async(task, way))
        outcome |= {"ok": True, "status": status, "text": text}
    except Exception as error:
        outcome |= {"status": getattr(error, "status_code", None), "error": causes(error)}
    print(json.dumps(outcome))
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
