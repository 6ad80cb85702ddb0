"""What becomes a row, seen through a recorder that reads one exchange."""

from __future__ import annotations

import gzip
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import orjson
import pytest
import zstandard

from policies.fingerprint import request_hash, task_id
from policies.spool import Kind
from tests.store.making import (
    KEY,
    SSE_HEADERS,
    Exchange,
    Run,
    chat_answer,
    chat_request,
    delta,
    home,
    record_all,
    recorded,
    row,
    rows,
    stream_of,
    zipped,
)


def test_a_plain_pair(tmp_path: Path) -> None:
    one = Exchange(number=7, at=1_700_000_000.1234)
    one.request_headers.append(("X-Stainless-Retry-Count", "2"))
    found = recorded(tmp_path, one)
    bodies = found.pop("bodies")
    body = chat_request()
    assert found == {
        "number": 1,
        "id": one.uuid,
        "started_at": "2023-11-14T22:13:20.123Z",
        "endpoint": "chat.completions",
        "method": "POST",
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "deployment": None,
        "model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06",
        "status": 200,
        "outcome": "ok",
        "stream": 0,
        "complete": 1,
        "truncated": 0,
        "privacy": "full",
        "served_by": "upstream",
        "route": None,
        "task_id": task_id("chat.completions", body),
        "request_hash": request_hash(body),
        "conversation": conversation(*body["messages"]),
        "tenant": "k1",
        "feature": None,
        "user": None,
        "session": None,
        "latency_ms": 500.0,
        "ttft_ms": 250.0,
        "input_tokens": 9,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "output_tokens": 3,
        "reasoning_tokens": None,
        "audio_input_tokens": None,
        "audio_output_tokens": None,
        "usage": orjson.dumps(chat_answer()["usage"]).decode(),
        "usage_note": None,
        "estimated_input_tokens": None,
        "estimated_output_tokens": None,
        "estimate_method": None,
        "service_tier": None,
        "cost_usd": 0.0000525,  # 9 at $2.50, 3 at $10 for a million
        "cost_note": None,
        "finish_reason": "stop",
        "request_bytes": len(one.request),
        "response_bytes": len(one.response),
        "key_hash": "k1",
        "retry_count": 2,
        "idempotency_key": None,
        "response_id": "chatcmpl-1",
        "previous_response_id": None,
        "upstream_request_id": "req_1",
        "run_id": "run-a",
        "seq": 7,
        "error": None,
        "asked": one.request.decode(),
        "answered": one.response.decode(),
        "text_asked": one.request.decode(),
        "text_answered": one.response.decode(),
    }
    assert (bodies["request"], bodies["response"]) == (one.request.decode(), one.response.decode())
    rest = ("request_parts", "response_parts", "events", "request_note", "response_note")
    assert [bodies[name] for name in rest] == [None] * 5
    task = row(home(tmp_path), "SELECT * FROM tasks")
    assert (task["id"], task["model"], task["system_prompt"]) == (
        found["task_id"], "gpt-4o", "Be kind.",
    )  # fmt: skip


def conversation(*messages: dict[str, Any]) -> str:
    """Its name by hand: of the digests of what comes up to the user's first message, each with the
    comma before it."""

    def digest(data: bytes) -> bytes:
        return sha256(KEY + data).digest()[:16]

    pieces = [b"," * (at > 0) + orjson.dumps(message) for at, message in enumerate(messages)]
    return digest(b"".join(digest(piece) for piece in pieces)).hex()[:16]


def test_the_turns_of_a_chat_have_one_name(tmp_path: Path) -> None:
    said = chat_request("a")["messages"]
    longer = [*said, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    asked = [said, longer, [*longer, *longer[2:]], chat_request("x")["messages"], said[:1]]
    requests = [orjson.dumps(chat_request() | {"messages": messages}) for messages in asked]
    recorded(tmp_path, *(Exchange(number=n + 1, request=one) for n, one in enumerate(requests)))
    at = home(tmp_path)
    names = [one["conversation"] for one in rows(at, "SELECT conversation FROM exchanges")]
    assert names == [conversation(*said)] * 3 + [conversation(*asked[3]), None]
    view = rows(at, "SELECT conversation, calls, input_tokens FROM conversations ORDER BY calls")
    assert [(one["conversation"], one["calls"], one["input_tokens"]) for one in view] == [
        (names[3], 1, 9), (names[0], 3, 27),
    ]  # fmt: skip
    pairs = [one["request"] for one in rows(at, "SELECT request FROM pairs ORDER BY number")]
    assert pairs == [request.decode() for request in requests]


def streamed(*chunks: object, done: bool = True, **more: Any) -> Exchange:
    body = stream_of(*chunks, done=done)
    request = orjson.dumps(chat_request(stream=True))
    return Exchange(request=request, response=body, response_headers=SSE_HEADERS, **more)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_stream_is_kept_as_what_it_amounts_to(tmp_path: Path, keeps: bool) -> None:
    """And by policy as it was sent, too."""
    usage = {"id": "c1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    one = streamed(delta(content="Hé"), delta(content="llo", finish="stop"), usage, pieces=40)
    found = recorded(tmp_path, one, record={"stream_events": keeps})
    assert (found["stream"], found["complete"], found["finish_reason"]) == (1, 1, "stop")
    assert (found["input_tokens"], found["output_tokens"]) == (1, 2)
    assert found["bodies"]["events"] == (one.response.decode() if keeps else None)
    assert orjson.loads(found["answered"]) == {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Héllo"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    assert found["bodies"]["response"] == found["answered"]
    assert rows(home(tmp_path), "SELECT count(*) AS n FROM teacher_pairs") == [{"n": 1}]


def test_a_stream_that_broke(tmp_path: Path) -> None:
    one = streamed(delta(content="a"), delta(content="ż"), done=False, outcome="upstream_reset")
    one.response = one.response[: one.response.index("ż".encode()) + 1]
    one.error = "reset"
    found = recorded(tmp_path, one, record={"stream_events": True})
    assert (found["complete"], found["outcome"], found["error"]) == (0, "upstream_reset", "reset")
    assert orjson.loads(found["answered"])["choices"][0]["message"]["content"] == "a"
    assert found["bodies"]["events"] == one.response[:-1].decode()
    assert (found["input_tokens"], found["usage_note"]) == (None, "the answer states no usage")
    assert rows(home(tmp_path), "SELECT * FROM teacher_pairs") == []


def test_a_stream_that_ended_cleanly_too_early(tmp_path: Path) -> None:
    found = recorded(tmp_path, streamed(delta(content="a"), done=False))
    assert (found["outcome"], found["complete"]) == ("ok", 0)


def test_an_error_in_a_stream(tmp_path: Path) -> None:
    found = recorded(tmp_path, streamed(delta(content="a"), {"error": {"message": "busy"}}))
    assert (found["complete"], found["error"]) == (0, "stream: busy")


@pytest.mark.parametrize(
    ("name", "compress"),
    [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstandard.compress)],
)
def test_both_sides_are_decoded(tmp_path: Path, name: str, compress: Any) -> None:
    one = Exchange()
    plain = (one.request.decode(), one.response.decode())
    coding = [("Content-Encoding", name)]
    one.request, one.response = compress(one.request), compress(one.response)
    one.request_headers = one.response_headers = one.request_headers + coding
    found = recorded(tmp_path, one)
    assert (found["asked"], found["answered"]) == plain
    assert found["task_id"] is not None and found["complete"] == 1


@pytest.mark.parametrize(
    ("body", "coding", "note"),
    [
        (b"no gzip", "gzip", "decode_error"),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", "decode_error: ends early"),
        (gzip.compress(bytes(1 << 20)), "gzip", "decode_error: inflates too much"),
        (b"{}", "sdch", "unknown_encoding: sdch"),
    ],
)
def test_a_body_that_is_no_text(tmp_path: Path, body: bytes, coding: str, note: str) -> None:
    one = Exchange(response=body, response_headers=[("content-encoding", coding)])
    found = recorded(tmp_path, one)
    assert found["bodies"]["response"] is None
    assert found["bodies"]["response_note"].startswith(note)
    assert (found["answered"], found["model"], found["input_tokens"]) == (None, "gpt-4o", None)


def test_what_is_no_utf_8_is_kept_and_marked(tmp_path: Path) -> None:
    one = Exchange(request=b'{"model": "\xff"}', response=b"\xff\xfe: caf\xc3\xa9")
    found = recorded(tmp_path, one)
    note = "not UTF-8: other bytes are written as \\x.."
    assert found["bodies"]["request_note"] == found["bodies"]["response_note"] == note
    assert found["text_asked"] == '{"model": "\\xff"}'
    assert found["text_answered"] == "\\xff\\xfe: café"
    assert (found["asked"], found["answered"], found["model"]) == (None, None, None)


def test_a_body_that_was_cut_by_us(tmp_path: Path) -> None:
    one = Exchange(response=b'{"a": "z\xc5', cut={"response": "limit"})
    found = recorded(tmp_path, one)
    assert (found["truncated"], found["bodies"]["response_note"]) == (1, "cut: limit")
    assert (found["bodies"]["response"], found["answered"]) == ('{"a": "z', None)
    assert found["text_answered"] == '{"a": "z'
    assert rows(home(tmp_path), "SELECT * FROM teacher_pairs") == []


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_body_with_a_hole_is_not_whole(tmp_path: Path, side: str) -> None:
    at, one = home(tmp_path), Exchange()
    holed = replace(one, **{side: getattr(one, side)[:-20]})
    run = Run(at)
    run.write(holed.records().removesuffix(holed.closing()), one.closing())
    run.die()
    record_all(at)
    found = row(at, "SELECT * FROM exchanges JOIN bodies USING (number)")
    size = len(getattr(one, side))
    assert (found["outcome"], found["truncated"], found["complete"]) == ("ok", 1, 0)
    assert found[f"{side}_note"] == f"cut: {size - 20} of {size} bytes were captured"
    assert found["error"] == f"lost: a part of the {side}"
    assert rows(at, "SELECT * FROM teacher_pairs") == []


def test_a_zipped_stream_that_broke_keeps_what_came(tmp_path: Path) -> None:
    one = zipped(streamed(*[delta(content=f"{n} ") for n in range(200)], outcome="client_abort"))
    one.response = one.response[:-40]
    found = recorded(tmp_path, one)
    assert orjson.loads(found["answered"])["choices"][0]["message"]["content"].startswith("0 1 2 ")
    assert (found["complete"], found["outcome"]) == (0, "client_abort")


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"", None), (b"[1]", "[1]"), (b"not json", "not json"), (b"\x00", "\x00")],
)
def test_odd_requests(tmp_path: Path, body: bytes, text: str | None) -> None:
    found = recorded(tmp_path, Exchange(request=body))
    assert found["text_asked"] == found["bodies"]["request"] == text
    assert (found["task_id"], found["model"], found["outcome"]) == (None, None, "ok")
    assert rows(home(tmp_path), "SELECT * FROM teacher_pairs") == []


def test_hostile_json(tmp_path: Path) -> None:
    deep = b'{"model": 5, "messages": [{"role": "system", "content": ' + b"[" * 800 + b"]" * 800
    answer = {"usage": {"prompt_tokens": 2**64 - 1, "completion_tokens": -4}, "choices": [5]}
    found = recorded(tmp_path, Exchange(request=deep + b"}]}", response=orjson.dumps(answer)))
    assert (found["input_tokens"], found["output_tokens"]) == (None, None)
    assert (found["model"], found["task_id"]) == (None, None)
    assert str(found["error"]).startswith("fingerprint:")


@pytest.mark.parametrize("name", ["model", "user", "previous_response_id", "session_id"])
def test_a_lone_surrogate_costs_no_row(tmp_path: Path, name: str) -> None:
    one = Exchange()
    one.request = b'{"%b": "\\ud800", "metadata": {"session_id": "\\udfff"}}' % name.encode()
    one.response = b'{"id": "\\ud800", "usage": {"prompt_tokens": 9, "completion_tokens": 3}}'
    found = recorded(tmp_path, one)
    assert (found["asked"], found["answered"]) == (one.request.decode(), one.response.decode())
    assert (found["response_id"], found["input_tokens"], found["session"]) == ("?", 9, "\ufffd")
    assert rows(home(tmp_path), "SELECT * FROM incidents") == []


def test_a_tunnel(tmp_path: Path) -> None:
    tunnel = Exchange(method="CONNECT", target="example.com:443", request=b"", response=b"")
    found = recorded(tmp_path, tunnel)
    assert (found["path"], found["host"], found["outcome"]) == ("example.com:443", None, "ok")
    assert rows(home(tmp_path), "SELECT * FROM incidents") == []


ROUTES = [
    ([], "upstream"),
    ([{"to": "small", "why": "live 50 %"}], "small"),
    ([{"to": "small", "why": "live 50 %"}, {"to": "upstream", "why": "timeout"}], "upstream"),
]


@pytest.mark.parametrize(("routed", "served"), ROUTES)
def test_who_served(tmp_path: Path, routed: list[dict[str, str]], served: str) -> None:
    found = recorded(tmp_path, Exchange(routed=routed))
    assert found["served_by"] == served
    assert found["route"] == (orjson.dumps(routed[-1]).decode() if routed else None)
    usable = rows(home(tmp_path), "SELECT count(*) AS n FROM teacher_pairs")[0]["n"]
    assert usable == int(served == "upstream")


def test_who_served_is_known_from_the_head_when_the_route_is_lost(tmp_path: Path) -> None:
    one = Exchange()
    one.response_headers.append(("X-Understudy-Served-By", "small"))
    assert recorded(tmp_path, one)["served_by"] == "small"
    assert rows(home(tmp_path), "SELECT * FROM teacher_pairs") == []


def test_nobody_answered(tmp_path: Path) -> None:
    one = Exchange(status=None, response=b"", outcome="upstream_unreachable", error="refused")
    found = recorded(tmp_path, one)
    assert (found["status"], found["served_by"], found["error"]) == (None, None, "refused")
    assert (found["ttft_ms"], found["complete"]) == (None, 0)


def test_our_own_error_is_nobodys_answer(tmp_path: Path) -> None:
    one = Exchange(status=504, response_headers=[("x-understudy-error", "upstream_idle_timeout")])
    assert recorded(tmp_path, one)["served_by"] is None


def test_errors_are_recorded_and_are_no_teacher(tmp_path: Path) -> None:
    found = recorded(tmp_path, Exchange(status=429, response=b'{"error": {"message": "slow"}}'))
    assert (found["status"], found["complete"], found["usage"]) == (429, 1, None)
    assert rows(home(tmp_path), "SELECT * FROM teacher_pairs") == []


PLACES = [
    ("GET", "/v1/models?limit=2", "models", "/v1/models?limit=2"),
    ("POST", "/v1/organization/costs?limit=2", "organization", "/v1/organization/costs"),
    ("POST", "/v1/uploads", "uploads", "/v1/uploads"),
    ("POST", "/v1/tomorrow", "other", "/v1/tomorrow"),
]


@pytest.mark.parametrize(("method", "target", "endpoint", "path"), PLACES)
def test_what_is_only_noted_has_no_bodies(
    tmp_path: Path, method: str, target: str, endpoint: str, path: str
) -> None:
    found = recorded(tmp_path, Exchange(method=method, target=target))
    assert (found["endpoint"], found["path"], found["complete"]) == (endpoint, path, 1)
    assert rows(home(tmp_path), "SELECT * FROM bodies") == []
    assert (found["usage"], found["request_bytes"]) == (None, len(Exchange().request))


def test_other_endpoints_have_usage_but_no_task(tmp_path: Path) -> None:
    answer = {"id": "r", "model": "gpt-5-x", "usage": {"input_tokens": 4, "output_tokens": 5}}
    events = [{"type": "response.completed", "response": answer}]
    one = Exchange(
        target="/v1/responses",
        request=b'{"model": "gpt-5", "input": "hi"}',
        response=stream_of(*events, done=False),
        response_headers=SSE_HEADERS,
    )
    found = recorded(tmp_path, one)
    assert (found["model"], found["response_model"], found["task_id"]) == ("gpt-5", "gpt-5-x", None)
    assert (found["input_tokens"], found["output_tokens"], found["complete"]) == (4, 5, 1)
    assert orjson.loads(found["answered"]) == answer


def test_an_ending_or_head_that_can_not_be_read(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    first, second = Exchange(number=1), Exchange(number=2)
    run.write(first.opening(), first.record(Kind.CLOSED, b"{"))
    run.write(second.opening(), second.record(Kind.RESPONSE_HEAD, b"["), second.closing())
    run.die()
    record_all(at)
    found = rows(at, "SELECT outcome, complete, error FROM exchanges ORDER BY seq")
    assert [one["outcome"] for one in found] == ["proxy_died", "ok"]
    assert [one["complete"] for one in found] == [0, 0]
    assert all(one["error"] for one in found)
    assert len(rows(at, "SELECT * FROM incidents")) == 2
