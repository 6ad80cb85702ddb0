"""The official SDK through the real command line: what the app sees, and what is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from bin.standin import LIMIT_MARKER, Standin
from bin.tickets import SYSTEM_TRIAGE, dataset
from tests.e2e.harness import Sidecar, Upstream, wait_for

TICKETS = dataset(901, 30, 5)
ANSWERS = {ticket.user: ticket.answer for ticket in TICKETS}
KEY = "sk-canary-5f0e1d2c3b4a59687786"
CONTROL_WORD = "quetzalcoatlus"
# The same in direct and relayed calls but for when they were made.
TIMED = {"created"}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "file_ticket",
        "parameters": {"type": "object", "properties": {"label": {"type": "string"}}},
    },
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "label",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"label": {"type": "string"}},
            "required": ["label"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Setting:
    direct: Standin
    relayed: Standin
    sidecar: Sidecar

    def bases(self) -> tuple[str, str]:
        return self.direct.base_url, self.sidecar.base_url


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """Two equal stand-ins, one of them behind the sidecar: the same calls, the same answers."""
    home = tmp_path_factory.mktemp("sdk") / "home"
    with (
        Upstream(Standin(ANSWERS, keys={KEY}, latency=0.0)) as direct,
        Upstream(Standin(ANSWERS, keys={KEY}, latency=0.0)) as relayed,
        Sidecar(home, {"upstream": relayed.url}) as sidecar,
    ):
        yield Setting(direct, relayed, sidecar)


def messages(text: str) -> Any:
    return [{"role": "system", "content": SYSTEM_TRIAGE}, {"role": "user", "content": text}]


def plain(model: Any) -> Any:
    """A model of the SDK as plain values, without what tells the time."""
    return _untimed(json.loads(model.model_dump_json()))


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in TIMED}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def both(setting: Setting, call: Any) -> tuple[Any, Any]:
    found = []
    for base in setting.bases():
        with OpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
            found.append(call(client))
    return found[0], found[1]


def create(client: OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o-mini", messages=messages(text), **more)


@pytest.mark.parametrize(
    "more",
    [{}, {"tools": [TOOL]}, {"response_format": SCHEMA}, {"temperature": 0, "user": "u1"}],
    ids=["plain", "tools", "structured", "settings"],
)
def test_an_answer_is_the_direct_one_field_by_field(setting: Setting, more: Any) -> None:
    direct, relayed = both(setting, lambda c: plain(create(c, TICKETS[0].user, **more)))
    assert relayed == direct
    assert relayed["choices"]


@pytest.mark.parametrize(
    "more",
    [{}, {"stream_options": {"include_usage": True}}, {"tools": [TOOL]}],
    ids=["plain", "usage", "tools"],
)
def test_a_stream_is_the_direct_one_chunk_by_chunk(setting: Setting, more: Any) -> None:
    direct, relayed = both(
        setting, lambda c: [plain(p) for p in create(c, TICKETS[1].user, stream=True, **more)]
    )
    assert relayed == direct
    assert len(relayed) > 2


def test_parsed_output_of_the_sdk_helper(setting: Setting) -> None:
    direct, relayed = both(
        setting,
        lambda c: plain(
            c.chat.completions.parse(
                model="gpt-4o-mini", messages=messages(TICKETS[2].user), response_format=SCHEMA
            )
        ),
    )
    assert relayed == direct


def test_asynchronous_calls_do_not_mix(setting: Setting) -> None:
    async def ask(client: AsyncOpenAI, text: str) -> str | None:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages(text))
        return answer.choices[0].message.content

    async def main() -> None:
        async with AsyncOpenAI(base_url=setting.sidecar.base_url, api_key=KEY) as client:
            texts = [ticket.user for ticket in TICKETS] * 4
            said = await asyncio.gather(*(ask(client, text) for text in texts))
        assert said == [ANSWERS[text] for text in texts]

    asyncio.run(main())


def test_a_rate_limit_reaches_the_app_as_it_is(setting: Setting) -> None:
    def limited(client: OpenAI) -> tuple[int, str | None, Any]:
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, f"{LIMIT_MARKER} too much")
        response = caught.value.response
        return response.status_code, response.headers.get("retry-after"), caught.value.body

    before = setting.relayed.counts["429"]
    direct, relayed = both(setting, limited)
    assert relayed == direct
    assert relayed[:2] == (429, "1")
    assert setting.relayed.counts["429"] == before + 1, "the sidecar must not retry"


def test_other_endpoints(setting: Setting) -> None:
    direct, relayed = both(
        setting,
        lambda c: plain(c.embeddings.create(model="text-embedding-3-small", input=["a", "b"])),
    )
    assert relayed == direct
    models = both(setting, lambda c: [plain(m) for m in c.models.list()])
    assert models[0] == models[1]


def test_a_client_that_stops_reading_is_recorded_as_gone(setting: Setting) -> None:
    def row() -> Any:
        return setting.sidecar.query(
            "SELECT outcome, complete, response FROM exchanges JOIN pairs USING (id)"
            " WHERE request LIKE ?", f"%{CONTROL_WORD} stops%",
        )  # fmt: skip

    setting.relayed.latency = 4.0  # stretches the pauses between deltas too
    try:
        with OpenAI(base_url=setting.sidecar.base_url, api_key=KEY, max_retries=0) as client:
            stream = create(client, f"{CONTROL_WORD} stops reading", stream=True)
            next(iter(stream))
            stream.close()
            outcome, complete, response = wait_for("the aborted stream's row", row)[0]
    finally:
        setting.relayed.latency = 0.0
    assert (outcome, complete) == ("client_abort", 0)
    assert json.loads(response)["choices"][0]["message"]["role"] == "assistant"


def test_every_pair_is_in_the_database_as_it_was_sent_and_received(setting: Setting) -> None:
    marker = "every pair is kept"
    answers = {}
    with OpenAI(base_url=setting.sidecar.base_url, api_key=KEY, max_retries=0) as client:
        for number in range(20):
            text = f"{marker} {number}"
            answers[text] = create(client, text, stream=False)
    sent = {
        request.body.decode()
        for request in setting.relayed.received
        if marker.encode() in request.body
    }

    def rows() -> Any:
        found = setting.sidecar.query(
            "SELECT request, response FROM pairs WHERE request LIKE ?", f"%{marker}%"
        )
        return found if len(found) >= len(answers) else None

    kept = wait_for("all pairs", rows)
    assert len(kept) == len(sent) == 20
    assert {request for request, _ in kept} == sent
    for request, response in kept:
        text = json.loads(request)["messages"][-1]["content"]
        recorded = openai.types.chat.ChatCompletion.model_validate_json(response)
        assert plain(recorded) == plain(answers[text])


def test_the_key_is_nowhere_and_a_word_of_a_prompt_is_found(setting: Setting) -> None:
    with OpenAI(base_url=setting.sidecar.base_url, api_key=KEY, max_retries=0) as client:
        create(client, f"remember {CONTROL_WORD}")
        with pytest.raises(openai.AuthenticationError):
            create(client.with_options(api_key=KEY + "-bad"), "who am I?")
    wait_for(
        "the control word",
        lambda: setting.sidecar.query(
            "SELECT 1 FROM pairs WHERE request LIKE ?", f"%remember {CONTROL_WORD}%"
        ),
    )
    files = [path for path in setting.sidecar.home.rglob("*") if path.is_file()]
    contents = {path: path.read_bytes() for path in [*files, setting.sidecar.log]}
    leaks = [path.name for path, data in contents.items() if KEY.encode() in data]
    assert not leaks
    assert any(CONTROL_WORD.encode() in data for data in contents.values())
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
