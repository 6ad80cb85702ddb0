"""The stand-in through OpenAI's own SDK: what the SDK accepts, an app accepts."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from bin.standin import LIMIT_MARKER, Standin
from bin.tickets import LABELS, SYSTEM_TRIAGE, dataset

MODEL = "gpt-4o-mini"
TICKETS = dataset(31, 40, 10)
ANSWERS = {ticket.user: ticket.answer for ticket in TICKETS}
TRIAGE, EXTRACT = TICKETS[0], TICKETS[-1]

Scene = Callable[[AsyncOpenAI, Standin], Awaitable[None]]


def play(scene: Scene, upstream: Standin | None = None, key: str = "sk-good") -> Standin:
    upstream = upstream or Standin(ANSWERS, keys={"sk-good"})

    async def run() -> None:
        async with (
            upstream,
            AsyncOpenAI(base_url=upstream.base_url, api_key=key, max_retries=0) as client,
        ):
            await scene(client, upstream)

    asyncio.run(run())
    return upstream


def ask(text: str, system: str = SYSTEM_TRIAGE) -> list[ChatCompletionMessageParam]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


async def said(client: AsyncOpenAI, text: str) -> str | None:
    answer = await client.chat.completions.create(model=MODEL, messages=ask(text))
    return answer.choices[0].message.content


def test_a_plain_answer_has_openais_shape_and_headers() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=ask(TRIAGE.user)
        )
        answer = raw.parse()
        choice = answer.choices[0]
        assert answer.object == "chat.completion"
        assert answer.model == "gpt-4o-mini-2024-07-18"
        assert answer.id.startswith("chatcmpl-")
        assert (choice.message.role, choice.message.content) == ("assistant", TRIAGE.answer)
        assert choice.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.headers["openai-processing-ms"].isdigit()
        assert int(raw.headers["x-ratelimit-remaining-requests"]) > 0

    play(scene)


def test_a_stream_names_the_role_first_and_the_usage_last() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=ask(TRIAGE.user),
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert len(deltas) > 3
        assert "".join(delta.content or "" for delta in deltas) == TRIAGE.answer
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == [] and chunks[-1].usage is not None
        assert {chunk.id for chunk in chunks} == {chunks[0].id}

    assert play(scene).counts["streams"] == 1


def test_a_stream_without_options_has_no_usage_and_ends_with_done() -> None:
    body = {"model": MODEL, "messages": ask(TRIAGE.user), "stream": True}

    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        raw = await asyncio.to_thread(_post, f"{upstream.base_url}/chat/completions", body)
        lines = [line for line in raw.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])

    play(scene)


def _post(url: str, body: dict[str, Any]) -> bytes:
    headers = {"Authorization": "Bearer sk-good", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        data: bytes = response.read()
    return data


def test_an_extraction_is_answered_with_its_json() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        assert await said(client, EXTRACT.user) == EXTRACT.answer

    play(scene)


FILE_TICKET: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "file_ticket",
        "parameters": {
            "type": "object",
            "properties": {
                "label": {"type": "string", "enum": list(LABELS)},
                "copies": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["label", "copies", "tags"],
        },
    },
}
FILED = {"label": TRIAGE.answer, "copies": 1, "tags": [TRIAGE.answer]}


def test_the_first_tool_is_called_with_arguments_of_its_schema() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        answer = await client.chat.completions.create(
            model=MODEL, messages=ask(TRIAGE.user), tools=[FILE_TICKET]
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        call = choice.message.tool_calls[0]
        assert call.type == "function" and call.function.name == "file_ticket"
        assert json.loads(call.function.arguments) == FILED

    play(scene)


def test_a_tool_call_can_be_streamed() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        async with client.chat.completions.stream(
            model=MODEL, messages=ask(TRIAGE.user), tools=[FILE_TICKET]
        ) as stream:
            answer = await stream.get_final_completion()
        calls = answer.choices[0].message.tool_calls
        assert calls and calls[0].function.name == "file_ticket"
        assert json.loads(calls[0].function.arguments) == FILED

    play(scene)


def test_structured_output_follows_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string"}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    }

    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=ask(TRIAGE.user),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "triage", "strict": True, "schema": schema},
            },
        )
        content = answer.choices[0].message.content or ""
        assert json.loads(content) == {"label": TRIAGE.answer, "sure": True}

    play(scene)


def test_a_bad_key_is_refused_and_a_good_one_can_be_revoked() -> None:
    async def bad(client: AsyncOpenAI, upstream: Standin) -> None:
        with pytest.raises(openai.AuthenticationError) as refused:
            await said(client, TRIAGE.user)
        assert refused.value.code == "invalid_api_key"
        assert "Incorrect API key provided" in str(refused.value)

    async def revoked(client: AsyncOpenAI, upstream: Standin) -> None:
        assert await said(client, TRIAGE.user) == TRIAGE.answer
        upstream.keys = set()
        with pytest.raises(openai.AuthenticationError):
            await said(client, TRIAGE.user)

    play(bad, key="sk-stranger")
    play(revoked)


def test_the_marker_runs_into_the_rate_limit() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        with pytest.raises(openai.RateLimitError) as limited:
            await said(client, f"{TRIAGE.user} {LIMIT_MARKER}")
        assert limited.value.response.headers["retry-after"] == "1"
        assert limited.value.code == "rate_limit_exceeded"

    upstream = play(scene)
    assert (upstream.counts["429"], upstream.counts["chat"]) == (1, 0)


def test_what_is_not_a_request_is_refused_as_openai_does() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.chat.completions.create(model=MODEL, messages=[])
        with pytest.raises(openai.NotFoundError, match="Invalid URL"):
            await client.files.list()

    play(scene)


def test_embeddings_and_models() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        found = await client.embeddings.create(
            model="text-embedding-3-small", input=["one", "two", "one"], encoding_format="float"
        )
        one, two, again = (item.embedding for item in found.data)
        assert one == again != two
        assert sum(value * value for value in one) == pytest.approx(1.0)
        assert MODEL in [model.id async for model in client.models.list()]

    play(scene)


def test_it_contradicts_itself_at_the_rate_it_is_told_and_the_same_way_each_time() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        heard.extend([await said(client, TRIAGE.user) for _ in range(200)])

    heard: list[str | None] = []
    play(scene, Standin(ANSWERS, disagreement=0.2))
    first, heard = heard, []
    play(scene, Standin(ANSWERS, disagreement=0.2))
    assert first == heard
    wrong = [answer for answer in first if answer != TRIAGE.answer]
    assert 20 <= len(wrong) <= 60
    assert set(wrong) <= set(LABELS)


def test_labels_can_change_while_it_runs() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        upstream.relabel[TRIAGE.answer] = "new_label"
        assert await said(client, TRIAGE.user) == "new_label"

    play(scene)


def test_what_arrived_is_kept_up_to_a_bound_or_not_at_all() -> None:
    async def scene(client: AsyncOpenAI, upstream: Standin) -> None:
        for ticket in TICKETS[:3]:
            await said(client, ticket.user)

    kept = play(scene, Standin(ANSWERS, keep=2)).received
    assert [json.loads(r.body)["messages"] for r in kept] == [t.messages for t in TICKETS[1:3]]
    assert ("Authorization", "Bearer sk-good") in kept[0].headers
    assert not play(scene, Standin(ANSWERS, keep=0)).received
