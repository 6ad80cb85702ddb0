"""A response out of its events: whole at its end, or what there was of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from openai.types.responses import ResponseStreamEvent

from store.streams import assemble
from tests.store.making import stream_of

FINAL_KINDS = ["response.completed", "response.incomplete", "response.failed"]


@pytest.mark.parametrize("kind", FINAL_KINDS)
def test_the_final_response_event_is_the_answer(kind: str) -> None:
    response = {"id": "resp", "usage": {"input_tokens": 1, "output_tokens": 2}, "output": []}
    events = [{"type": "response.created", "response": {}}, {"type": kind, "response": response}]
    found = assemble("responses", stream_of(*events, done=False), True)
    assert (found.body, found.finished) == (response, kind != "response.failed")
    assert found.error == (None if found.finished else "stream: the response failed")


def test_a_response_that_was_never_ended() -> None:
    created = {"type": "response.created", "response": {"id": "resp", "status": "in_progress"}}
    cut = assemble("responses", stream_of(created, done=False), False)
    assert cut.body == {"id": "resp", "status": "in_progress", "output": []}
    assert not cut.finished
    failed = stream_of({"type": "error", "message": "too much"}, done=False)
    found = assemble("responses", failed, True)
    assert (found.body, found.error) == (None, "stream: too much")
    assert found.note == "the stream had no response event"


def parts(*events: dict[str, Any]) -> list[Any]:
    found = assemble("responses", stream_of(*events, done=False), False)
    assert found.body is not None
    result: list[Any] = found.body["output"]
    return result


def test_parts_whose_beginning_was_missed() -> None:
    at = {"output_index": 2, "item_id": "i2"}
    said = {"type": "response.output_text.delta", "delta": "Hi", "content_index": 1}
    refused = {"type": "response.refusal.done", "refusal": "No", "content_index": 1}
    assert parts(said | at, refused | at) == [
        {
            "id": "i2", "type": "message", "role": "assistant", "status": "in_progress",
            "content": [
                {"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "No"},
            ],
        }
    ]  # fmt: skip
    mcp = {"type": "response.mcp_call_arguments.delta", "delta": "{}", "output_index": 0}
    thought = {"type": "response.reasoning_text.delta", "delta": "hm", "output_index": 1}
    assert parts(thought, mcp) == [
        {"type": "mcp_call", "arguments": "{}"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    ]


def test_what_a_shell_was_told_and_said() -> None:
    def shell(kind: str, **more: Any) -> dict[str, Any]:
        return {"type": f"response.shell_call_{kind}", "output_index": 0, **more}

    told = parts(
        shell("command.added", command_index=0, command="l"),
        shell("command.delta", command_index=0, delta="s"),
        shell("command.delta", command_index=0, delta=" -l"),
        shell("command.done", command_index=1, command="pwd"),
    )
    assert told == [{"type": "shell_call", "action": {"commands": ["ls -l", "pwd"]}}]
    said = [
        shell("output_content.delta", command_index=0, delta={"stdout": "a"}),
        shell("output_content.delta", command_index=0, delta={"stdout": "b", "stderr": "!"}),
    ]
    assert parts(*said)[0]["output"] == [{"stdout": "ab", "stderr": "!"}]
    whole = [{"stdout": "ab", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    assert parts(*said, shell("output_content.done", output=whole))[0]["output"] == whole


def test_log_probabilities_of_a_response_add_up() -> None:
    one = {"type": "response.output_text.delta", "delta": "a", "logprobs": [{"token": "a"}]}
    (item,) = parts(one, one | {"delta": "b", "logprobs": [{"token": "b"}]}, one | {"logprobs": 5})
    (part,) = item["content"]
    assert (part["text"], part["logprobs"]) == ("aba", [{"token": "a"}, {"token": "b"}])


KINDS = [
    get_args(kind.model_fields["type"].annotation)[0]
    for kind in get_args(get_args(ResponseStreamEvent)[0])
]


def test_every_kind_of_response_event_passes() -> None:
    assert len(KINDS) >= 58
    final = {"id": "resp", "output": [{"type": "message"}]}
    events = [{"type": kind, "sequence_number": 1} for kind in KINDS if kind != "error"]
    last = {"type": "response.completed", "response": final}
    found = assemble("responses", stream_of(*events, last, done=False), True)
    assert (found.body, found.finished, found.error) == (final, True, None)


ODD = [None, 5, -1, "x", [], [1], {}, {"text": 5}, True]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_events_of_a_response_break_nothing(kind: str) -> None:
    fields = (
        "delta", "part", "item", "output_index", "content_index", "command_index", "summary_index",
        "annotation", "annotation_index", "text", "output", "command", "response", "logprobs",
    )  # fmt: skip
    good = {"type": "response.output_text.delta", "output_index": 0, "delta": "a"}
    base = {name: 0 for name in fields if name.endswith("index")}
    for name in fields:
        for value in ODD:
            odd = base | {"type": kind, name: value}
            found = assemble("responses", stream_of(good, odd, good, odd, done=False), False)
            assert found.body is not None
            assert not found.finished or kind in FINAL_KINDS
