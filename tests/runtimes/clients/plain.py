"""An app without an SDK: plain.py requests|httpx|aiohttp|urllib [ignoring].

It says nothing of whom to trust. `ignoring`: nor does the environment (trust_env=False; for
aiohttp that is how it comes, so there it must be asked for).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

Said = tuple[int, str]
URL = "https://api.openai.com/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
HEADERS = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
TIMEOUT = 20


def by_requests(trusting: bool) -> Said:
    import requests  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with requests.Session() as session:
        session.trust_env = trusting
        answer = session.post(URL, json=ASKED, headers=HEADERS, timeout=TIMEOUT)
        return answer.status_code, answer.text


def by_httpx(trusting: bool) -> Said:
    import httpx  # type: ignore[import-not-found, unused-ignore]

    with httpx.Client(trust_env=trusting, timeout=TIMEOUT) as client:
        answer = client.post(URL, json=ASKED, headers=HEADERS)
        return answer.status_code, answer.text


def by_aiohttp(trusting: bool) -> Said:
    import aiohttp

    async def post() -> Said:
        limit = aiohttp.ClientTimeout(TIMEOUT)
        async with (
            aiohttp.ClientSession(trust_env=trusting, timeout=limit) as session,
            session.post(URL, json=ASKED, headers=HEADERS) as answer,
        ):
            return answer.status, await answer.text()

    return asyncio.run(post())


def by_urllib(trusting: bool) -> Said:
    body = json.dumps(ASKED).encode()
    request = urllib.request.Request(URL, body, HEADERS | {"Content-Type": "application/json"})
    handlers = [] if trusting else [urllib.request.ProxyHandler({})]
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


CALLS: dict[str, Callable[[bool], Said]] = {
    "requests": by_requests,
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
    "urllib": by_urllib,
}


def main(library: str, way: str = "trusting") -> int:
    outcome: dict[str, Any] = {"ok": False, "status": None, "text": None, "error": None}
    try:
        outcome["status"], body = CALLS[library](way == "trusting")
        if outcome["status"] == 200:
            text = json.loads(body)["choices"][0]["message"]["content"]
            outcome |= {"ok": True, "text": text}
        else:
            outcome["error"] = body
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(outcome))
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
