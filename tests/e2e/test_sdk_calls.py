"""The official Python SDK's uploads, downloads, errors, retries and timeouts, through the sidecar.

Each call is made directly and through it: the app must see the same, and the same must arrive,
header by header and byte by byte.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.compat.pair import Pair, pair
from tests.compat.upstream import ENDLESS, PARTS, SLOW, Heard, noise
from tests.e2e.harness import wait_for

# Of the connection, or of the moment.
OF_THE_HOP = {"connection", "keep-alive", "date"}
Call = Callable[[OpenAI], Any]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("calls") / "home") as sides:
        yield sides


def compared(sides: Pair, call: Call, **options: Any) -> tuple[Any, list[Heard]]:
    """What a call found and what arrived, after both have been found to be the direct ones."""

    def made(base_url: str) -> Any:
        chosen = {"max_retries": 0} | options
        with OpenAI(base_url=base_url, api_key="sk-python", **chosen) as client:
            return call(client)

    sides.heard()
    direct, through = sides.both(made)
    assert through == direct
    sent, relayed = sides.heard()
    assert relayed == sent
    return through, relayed


def alike(sides: Pair, call: Call, **options: Any) -> Any:
    return compared(sides, call, **options)[0]


def retry_counts(sides: Pair, call: Call) -> list[str]:
    """Of the requests that arrived for a call with two retries, as the SDK counts them."""
    _, heard = compared(sides, call, max_retries=2)
    return [dict(one.headers)["x-stainless-retry-count"] for one in heard]


def create(client: OpenAI, model: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def failure(call: Call) -> Call:
    """The error that a call raises, as the app sees it."""

    def failed(client: OpenAI) -> tuple[Any, ...]:
        with pytest.raises(openai.APIStatusError) as caught:
            call(client)
        error = caught.value
        return type(error), error.status_code, error.body, error.request_id, error.message

    return failed


def upload(name: str, size: int) -> Call:
    return lambda client: client.files.create(
        file=(name, noise(size)), purpose="batch"
    ).model_dump()


def transcribe(model: str) -> Call:
    return lambda client: client.audio.transcriptions.create(
        model=model,
        file=("speech.mp3", noise(300_007), "audio/mpeg"),
        timestamp_granularities=["word", "segment"],
    ).model_dump()


@pytest.mark.parametrize("size", [0, 1, 70_000, 9_000_001])
def test_an_upload_arrives_as_it_was_sent(sides: Pair, size: int) -> None:
    answer = alike(sides, upload('a "ü".jsonl', size))
    assert answer["bytes"] > size


def test_a_transcription(sides: Pair) -> None:
    assert "sha256" in alike(sides, transcribe("whisper-1"))["text"]


def test_a_download(sides: Pair) -> None:
    def download(client: OpenAI) -> tuple[str, list[tuple[str, str]]]:
        answer = client.files.content("file-a")
        headers = answer.response.headers.multi_items()
        kept = [(name, value) for name, value in headers if name not in OF_THE_HOP]
        return hashlib.sha256(answer.content).hexdigest(), kept

    digest, headers = alike(sides, download)
    assert digest == hashlib.sha256(noise(2_000_003)).hexdigest()
    assert ("content-length", "2000003") in headers


def test_sound_that_is_streamed(sides: Pair) -> None:
    def speak(client: OpenAI) -> bytes:
        speech = client.audio.speech.with_streaming_response
        with speech.create(model="tts-1", voice="ash", input="x") as answer:
            return b"".join(answer.iter_bytes())

    assert alike(sides, speak) == noise(300_001)


def test_pages_and_a_deletion(sides: Pair) -> None:
    assert len(alike(sides, lambda c: [f.model_dump() for f in c.files.list()])) == 4
    assert alike(sides, lambda c: c.files.delete("file-a").model_dump())["deleted"]


def test_a_stream_with_named_events(sides: Pair) -> None:
    def events(client: OpenAI) -> list[Any]:
        stream = client.responses.create(model="gpt-4o", input="hi", stream=True)
        return [event.model_dump(warnings=False) for event in stream]

    assert alike(sides, events)[-1]["type"] == "response.completed"


@pytest.mark.parametrize("model", [name for name in PARTS if name.startswith("fail-")])
def test_an_error_is_the_upstreams(sides: Pair, model: str) -> None:
    found = alike(sides, failure(lambda client: create(client, model)))
    assert found[1] == PARTS[model].status


def test_an_error_instead_of_a_stream(sides: Pair) -> None:
    assert alike(sides, failure(lambda c: create(c, "fail-429", stream=True)))[1] == 429


@pytest.mark.parametrize(
    "model", ["limited-ms", "limited-s", "broken", "conflict", "odd-but-retry"]
)
def test_the_sdk_retries_as_it_would_directly(sides: Pair, model: str) -> None:
    counts = retry_counts(sides, lambda c: create(c, model).model_dump())
    assert counts == [str(number) for number in range(PARTS[model].times + 1)]


def test_an_upload_is_sent_again_whole(sides: Pair) -> None:
    assert retry_counts(sides, transcribe("limited-ms")) == ["0", "1", "2"]


def test_no_retry_where_the_upstream_forbids_it(sides: Pair) -> None:
    call = failure(lambda client: create(client, "stubborn"))
    assert retry_counts(sides, call) == ["0"]


def test_a_timeout_of_the_app_lets_the_upstream_go(sides: Pair) -> None:
    def late(client: OpenAI) -> str:
        with pytest.raises(openai.APITimeoutError) as caught:
            create(client, SLOW)
        return caught.value.message

    gone = sides.direct.gone
    alike(sides, late, timeout=0.3, max_retries=1)
    wait_for("the direct one gone", lambda: sides.direct.gone == gone + 2)
    sides.all_gone()


def test_a_stream_that_is_left_lets_the_upstream_go(sides: Pair) -> None:
    async def first(base_url: str) -> Any:
        async with AsyncOpenAI(base_url=base_url, api_key="sk-python") as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            stream: Any = await client.chat.completions.create(
                model=ENDLESS, messages=messages, stream=True
            )
            async with stream:
                chunks = [await anext(stream) for _ in range(3)]
        return [chunk.model_dump() for chunk in chunks]

    gone = sides.direct.gone
    direct, through = sides.both(lambda base_url: asyncio.run(first(base_url)))
    assert through == direct
    wait_for("the direct one gone", lambda: sides.direct.gone == gone + 1)
    sides.all_gone()
