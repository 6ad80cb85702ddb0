"""What is sent and answered: 5 KB up and 2 KB down, the same for every system."""

from __future__ import annotations

import json
from typing import Final

from tests.bench.account import TOKEN_CHARACTERS, token

PATH: Final = "/v1/chat/completions"
_SDK: Final = ("Lang", "OS", "Arch", "Runtime", "Runtime-Version", "Package-Version", "Async",
               "Retry-Count", "Read-Timeout")  # fmt: skip
HEADERS: Final = {
    "Content-Type": "application/json",
    "Authorization": "Bearer sk-bench",
    "User-Agent": "OpenAI/Python 3.52.0",
    **{f"X-Stainless-{name}": "0" for name in _SDK},
}
_WORDS: Final = (
    "the parcel came late and the box was open so I would like to know who can help me with a "
    "refund or a new one before the end of the week because it is a present for my mother "
)


def prose(length: int) -> str:
    """Plain words: what looks for keys and telephone numbers finds none, as in most messages."""
    return (_WORDS * (length // len(_WORDS) + 1))[:length]


SYSTEM: Final = prose(2000)
_USER: Final = prose(2900 - TOKEN_CHARACTERS - 1)


def request(user: str) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    return json.dumps({"model": "gpt-4o-mini", "messages": messages}).encode()


class Tokened:
    """A whole HTTP request whose user message begins with a token of its own."""

    def __init__(self) -> None:
        body = request(f"{token(0)} {_USER}")
        self.body_bytes = len(body)
        head = [f"POST {PATH} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in HEADERS.items()]
        whole = "\r\n".join([*head, "", ""]).encode() + body
        self._before, _, self._after = whole.partition(token(0).encode())

    def __call__(self, number: int) -> bytes:
        return b"%b%b%b" % (self._before, token(number).encode(), self._after)


def answer(identity: str = "chatcmpl-bench") -> str:
    message = {"role": "assistant", "content": prose(2000)}
    return json.dumps(
        {
            "id": identity,
            "object": "chat.completion",
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1200, "completion_tokens": 400, "total_tokens": 1600},
        }
    )


# nginx puts its own number of the request in: no two answers are the same.
DISTINCT_ANSWER: Final = answer("chatcmpl-$request_id")


def wrk_script() -> str:
    """The request for wrk, and its results as one line of JSON, in whole microseconds."""
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in HEADERS.items())
    body = request(prose(2900)).decode()
    return f"""
wrk.method = "POST"
wrk.body = '{body}'
{headers}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {{"requests":%d,"microseconds":%d,"errors":%d,' ..
    '"p50":%d,"p99":%d}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
