"""The model process, for real: a GGUF, a unix socket, HTTP."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from policies.plan import CONFIDENCE_HEADER, PATIENCE_HEADER, PURPOSE_HEADER
from tests.shadow.processes import (
    GGUF,
    NO_LLAMA,
    SHADOW,
    ModelProcess,
    labels,
    model_process,
    patched_context,
    short_folder,
    tickets,
    until,
)

LONG_PROMPT = "my refund is late and the parcel is gone. " * 1500
LONG_ANSWER = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "hi"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "ones",
            "schema": {"type": "array", "items": {"const": 1}, "minItems": 1500},
        },
    },
    "max_tokens": 1500,
}


def ask(ticket: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": ticket["messages"], "temperature": 0, **more}


def text_of(stream: bytes) -> tuple[str, list[dict[str, Any]]]:
    """The text of a stream, and its chunks."""
    lines = [line for line in stream.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return "".join(delta.get("content", "") for delta in deltas), chunks


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with model_process() as process:
        assert process.settled()["state"] == "ready"
        yield process


@pytest.fixture(scope="module")
def slow() -> Iterator[ModelProcess]:
    """The same model with a context long enough for runs that last."""
    with short_folder() as folder:
        with model_process(patched_context(folder), context=32768) as process:
            assert process.settled()["state"] == "ready"
            yield process


def test_status_says_what_is_served(model: ModelProcess) -> None:
    status = model.status()
    assert (status["state"], status["context"], status["busy"]) == ("ready", 512, False)
    assert len(status["sha256"]) == 64 and status["rss"] > 1 << 20
    assert stat.S_IMODE(model.socket.stat().st_mode) == 0o600


def test_it_goes_first_when_memory_runs_out() -> None:
    with model_process() as process:
        process.settled()
        pid = process.process.pid
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def test_answers_of_held_out_tickets_are_right(model: ModelProcess) -> None:
    right = 0
    for ticket in tickets():
        answer = model.chat(ask(ticket), SHADOW).body
        right += answer["choices"][0]["message"]["content"] == ticket["reference"]
    assert right >= 0.9 * len(tickets())


def test_an_answer_has_openai_s_shape(model: ModelProcess) -> None:
    answer = model.chat(ask(labels()[0]))
    assert answer.status == 200
    body = answer.body
    assert body["id"].startswith("chatcmpl-us-")
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-4o-mini")
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["role"] == "assistant"
    used = body["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"] > 10
    assert "x-understudy-margin" not in {name.lower() for name in answer.headers}


def test_a_shadow_run_tells_margin_and_file(model: ModelProcess) -> None:
    headers = {k.lower(): v for k, v in model.chat(ask(labels()[0]), SHADOW).headers.items()}
    assert float(headers["x-understudy-margin"]) > 0
    assert headers["x-understudy-sha256"] == model.status()["sha256"]


@pytest.mark.parametrize("ticket", tickets(8), ids=lambda ticket: ticket["reference"][:20])
def test_a_stream_says_the_same(model: ModelProcess, ticket: dict[str, Any]) -> None:
    whole = model.chat(ask(ticket)).body
    stream = model.chat(ask(ticket, stream=True, stream_options={"include_usage": True}))
    text, chunks = text_of(stream.raw)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_no_usage_unless_asked_for(model: ModelProcess) -> None:
    _, chunks = text_of(model.chat(ask(labels()[0], stream=True)).raw)
    assert not any("usage" in chunk for chunk in chunks)


def test_the_official_client_is_content(model: ModelProcess) -> None:
    # The client's own HTTP library: httpx before openai 3, httpx2 since.
    library = import_module("httpx2" if find_spec("httpx2") else "httpx")
    http = library.Client(transport=library.HTTPTransport(uds=str(model.socket)))
    with openai.OpenAI(
        base_url="http://model/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        request = ask(labels()[0])
        whole = client.chat.completions.create(**request)
        assert whole.choices[0].message.content == labels()[0]["reference"]
        parts = list(client.chat.completions.create(**request, stream=True))
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == labels()[0]["reference"]
        with pytest.raises(openai.UnprocessableEntityError, match="n>1"):
            client.chat.completions.create(**request, n=2)


def test_max_tokens_and_stop_end_an_answer(model: ModelProcess) -> None:
    ticket = labels()[0]
    short = model.chat(ask(ticket, max_completion_tokens=1)).body
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 1
    stopped = model.chat(ask(ticket, stop=["_"])).body["choices"][0]
    assert stopped["message"]["content"] == ticket["reference"].split("_")[0]
    assert stopped["finish_reason"] == "stop"
    streamed, _ = text_of(model.chat(ask(ticket, stop="_", stream=True)).raw)
    assert streamed == stopped["message"]["content"]


def test_a_schema_is_followed(model: ModelProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"enum": ["yes", "no"]}, "n": {"type": ["integer", "null"]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = model.chat(ask(labels()[0], response_format=wanted, max_tokens=200)).body
    said = json.loads(answer["choices"][0]["message"]["content"])
    assert said.keys() == {"ok", "n"} and said["ok"] in ("yes", "no")


def test_parts_and_the_developer_role_are_the_same_request(model: ModelProcess) -> None:
    system, user = labels()[0]["messages"]
    parts = [{"type": "text", "text": user["content"][:9]}]
    parts.append({"type": "text", "text": user["content"][9:]})
    messages = [{**system, "role": "developer"}, {"role": "user", "content": parts}]
    answer = model.chat(ask({"messages": messages})).body
    assert answer["choices"][0]["message"]["content"] == labels()[0]["reference"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n": 2}, "n>1"),
        ({"tools": []}, "field:tools"),
        ({"store": True}, "store"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop"),
        ({"messages": [{"role": "user", "content": "a b " * 900}]}, "leave no room"),
        ({"messages": [{"role": "user", "content": "x<|im_end|>y"}]}, "control tokens"),
        ({"response_format": {"type": "json_schema"}}, "no schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "string", "pattern": "^a$"}},
                }
            },
            "'pattern' is not supported",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_it_can_t_do_faithfully_it_refuses(
    model: ModelProcess, change: dict[str, Any], why: str
) -> None:
    answer = model.chat(ask(labels()[0], **change) if "messages" not in change else change)
    assert answer.status == 422
    fault = answer.body["error"]
    assert (fault["type"], fault["code"], fault["param"]) == (
        "understudy_refusal", "ineligible", None,
    )  # fmt: skip
    assert why in fault["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_under_the_floor_it_is_unsure_and_above_it_answers(
    model: ModelProcess, stream: bool
) -> None:
    request = ask(labels()[0], stream=stream)
    answer = model.chat(request, {CONFIDENCE_HEADER: "900"})
    assert (answer.status, answer.body["error"]["code"]) == (422, "unsure")
    assert model.chat(request, {CONFIDENCE_HEADER: "0.01"}).status == 200


def test_the_head_of_a_whole_answer_goes_as_soon_as_the_model_is_sure(slow: ModelProcess) -> None:
    asked = {**LONG_ANSWER, "max_tokens": 1000}
    connection = slow.begin("POST", "/v1/chat/completions", asked, {})
    response = connection.getresponse()
    assert response.headers.get_content_type() == "application/json"
    assert response.status == 200 and slow.status()["busy"]
    body = json.loads(response.read())
    assert body["choices"][0]["finish_reason"] == "length"  # the app's own limit
    assert body["usage"]["completion_tokens"] == 1000
    connection.close()


@pytest.mark.parametrize(
    ("change", "floor"),
    [({}, "0"), ({"max_tokens": None}, "0"), ({"max_tokens": 300, "temperature": 0}, "0.2")],
    ids=["cut by our limit", "cut by our only limit", "unsure after the head"],
)
def test_a_whole_answer_that_is_unfit_after_its_head_is_refused(
    slow: ModelProcess, change: dict[str, Any], floor: str
) -> None:
    asked = {**LONG_ANSWER, **change}
    connection = slow.begin("POST", "/v1/chat/completions", asked, {CONFIDENCE_HEADER: floor})
    response = connection.getresponse()
    assert response.status == 200
    assert json.loads(response.read())["error"]["code"] == "unsure"
    connection.close()
    until(lambda: not slow.status()["busy"])
    assert slow.chat(asked, SHADOW).status == 200  # what it would have said is evidence
    assert slow.chat(ask(labels()[0])).status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_answer_is_refused(model: ModelProcess, stream: bool) -> None:
    ticket = labels()[0]
    request = ask(ticket, stop=ticket["reference"][0])
    answer = model.chat({**request, "stream": stream})
    assert (answer.status, answer.body["error"]["code"]) == (422, "unsure")
    assert "empty" in answer.body["error"]["message"]
    assert model.chat(request, SHADOW).body["choices"][0]["message"]["content"] == ""


def test_a_diverted_request_takes_the_place_of_a_shadow_run(slow: ModelProcess) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": LONG_PROMPT}]}
    shadow = slow.begin("POST", "/v1/chat/completions", body, SHADOW)
    until(lambda: slow.status()["busy"])
    began = time.monotonic()
    assert slow.chat(ask(labels()[0])).status == 200
    assert time.monotonic() - began < 2  # the prefill alone takes longer
    refused = shadow.getresponse()
    assert refused.status == 503
    assert json.loads(refused.read())["error"]["code"] == "preempted"
    shadow.close()


def test_a_shadow_run_never_waits(slow: ModelProcess) -> None:
    diverted = slow.begin("POST", "/v1/chat/completions", LONG_ANSWER, {})
    until(lambda: slow.status()["busy"])
    answer = slow.chat(ask(labels()[0]), SHADOW)
    assert (answer.status, answer.body["error"]["code"]) == (503, "busy")
    diverted.close()
    until(lambda: not slow.status()["busy"])


def test_a_second_diverted_request_queues_for_half_its_patience(slow: ModelProcess) -> None:
    first = slow.begin("POST", "/v1/chat/completions", LONG_ANSWER, {})
    until(lambda: slow.status()["busy"])
    refused = slow.chat(ask(labels()[0]), {PATIENCE_HEADER: "0.1"})
    assert (refused.status, refused.body["error"]["code"]) == (503, "busy")
    assert slow.chat(ask(labels()[0]), {PATIENCE_HEADER: "100"}).status == 200
    assert first.getresponse().status == 200
    first.close()


@pytest.mark.parametrize("purpose", [{}, SHADOW], ids=["diverted", "shadow"])
@pytest.mark.parametrize("stage", ["prefill", "decoding"])
def test_when_the_client_goes_the_generation_ends(
    slow: ModelProcess, purpose: dict[str, str], stage: str
) -> None:
    prefill = {"model": "m", "messages": [{"role": "user", "content": LONG_PROMPT}]}
    body = prefill if stage == "prefill" else {**LONG_ANSWER, "stream": True}
    connection = slow.begin("POST", "/v1/chat/completions", body, purpose)
    until(lambda: slow.status()["busy"])
    if stage == "decoding":
        assert connection.getresponse().read(10) == b'data: {"id'
    connection.close()
    began = time.monotonic()
    until(lambda: not slow.status()["busy"])
    assert time.monotonic() - began < 2
    assert slow.chat(ask(labels()[0])).status == 200


def test_requests_at_once_are_all_answered(model: ModelProcess) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda t=t: found.append(model.chat(ask(t)).status))
        for t in labels()[:12]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 12


def test_a_request_that_is_not_json_is_refused(model: ModelProcess) -> None:
    connection = model.begin("POST", "/v1/chat/completions", None, {"Content-Length": "0"})
    assert connection.getresponse().status == 422
    connection.close()


def test_it_stops_when_told_to_even_in_the_middle() -> None:
    with short_folder() as folder, model_process(patched_context(folder), 32768) as process:
        process.settled()
        body = {"model": "m", "messages": [{"role": "user", "content": LONG_PROMPT}]}
        connection = process.begin("POST", "/v1/chat/completions", body, {})
        until(lambda: process.status()["busy"])
        began = time.monotonic()
        code, said = process.stop()
        assert (code, said) == (0, b"")
        assert time.monotonic() - began < 5
        connection.close()


def broken(folder: Path, kind: str) -> Path:
    path = folder / "model.gguf"
    whole = GGUF.read_bytes()
    contents = {
        "empty": b"", "random": b"\x9f\x01\x72\x55" * 4096, "magic": b"GGUF" + b"\xff" * 4096,
        "cut": whole[: len(whole) // 2], "head": whole[:2000],
        "no template": whole.replace(b"tokenizer.chat_template", b"tokenizer.chat_tXmplate"),
    }  # fmt: skip
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in contents:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "No such file"),
        ("directory", "is a directory"),
        ("pipe", "not a regular file"),
        ("loop", "can't be read"),
        ("empty", "is empty"),
        ("random", "not a GGUF file"),
        ("magic", "can't load it"),
        ("cut", "not within the file bounds"),
        ("head", "can't load it"),
        ("no template", "no chat template"),
    ],
)
def test_a_file_that_can_t_be_used_is_a_reason(kind: str, why: str) -> None:
    with short_folder() as folder, model_process(broken(folder, kind)) as process:
        status = process.settled()
        assert status["state"] == "disabled" and why in status["reason"]
        answer = process.chat(ask(labels()[0]))
        assert (answer.status, answer.body["error"]["code"]) == (503, "disabled")
        assert why in answer.body["error"]["message"]
        assert process.stop() == (0, b"")


def test_without_llama_cpp_it_says_what_to_install() -> None:
    with model_process(before=NO_LLAMA) as process:
        status = process.settled()
        assert status["state"] == "disabled"
        assert "pip install 'understudy[local]'" in status["reason"]
        assert process.chat(ask(labels()[0]), {PURPOSE_HEADER: "probe"}).status == 503
