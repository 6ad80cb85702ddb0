"""Files of other tools, written after their public formats, through the recorder into rows."""

from __future__ import annotations

import gzip
import io
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.policy import build
from store import import_lines
from store.import_helicone import HELICONE
from store.import_langfuse import LANGFUSE
from store.import_lines import Backlog
from store.import_litellm import LITELLM
from store.import_openai import STORED, TRAINING
from store.import_openpipe import OPENPIPE
from store.import_run import Importer, RunWriter, Tally, newest, recorded
from store.imports import Format, Imported, exchange_id, moment
from tests.store.making import KEY, home, record_all, row, rows

FIXTURES = Path(__file__).parent / "fixtures_imports"
FORMATS = (STORED, LITELLM, LANGFUSE, HELICONE, OPENPIPE, TRAINING)
FILES = {
    "openai_chat.jsonl": TRAINING,
    "openai_stored.json": STORED,
    "litellm.jsonl": LITELLM,
    "langfuse_api.jsonl": LANGFUSE,
    "langfuse_blob.jsonl": LANGFUSE,
    "langfuse_trace.json": LANGFUSE,
    "helicone.json": HELICONE,
    "openpipe.jsonl": OPENPIPE,
}


def bring(
    at: Home, path: Path, format_: Format, host: str | None = None, **policy: Any
) -> tuple[Tally, list[str]]:
    """Import a file and record it; what was counted, and why records can't be used."""
    held = build(policy)
    importer = Importer(format_, KEY, held.privacy, held.identity, host)
    writer = RunWriter(at)
    backlog = Backlog(path)
    problems = []
    for number, record in backlog.records():
        assert isinstance(record, dict), record
        found = importer.take(record, backlog.time, writer.write)
        problems += [f"{number}: {problem}" for problem in found]
    backlog.close()
    writer.hand_over(f"import-{newest(at.database)}-{path.name}")
    record_all(at, **policy)
    return importer.tally, problems


def fixture(at: Home, name: str, **more: Any) -> tuple[Tally, list[str]]:
    return bring(at, FIXTURES / name, FILES[name], **more)


def pair(at: Home, **where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The row of the one exchange, its request and its response."""
    ((name, value),) = where.items()
    found = row(at, f"SELECT * FROM exchanges WHERE {name} = ?", value)
    texts = row(at, "SELECT request, response FROM pairs WHERE id = ?", found["id"])
    return found, orjson.loads(texts["request"]), orjson.loads(texts["response"])


def records_of(path: Path) -> list[tuple[int, Any]]:
    with closing(Backlog(path)) as backlog:
        return list(backlog.records())


def read_lines(data: bytes) -> list[tuple[int, Any]]:
    return list(import_lines._records(io.BufferedReader(io.BytesIO(data))))


# -- each format


def test_the_last_message_of_a_training_chat_is_the_answer(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "openai_chat.jsonl")
    assert (tally.taken, tally.timeless, problems) == (3, 3, [])
    said = rows(at, "SELECT request, response FROM pairs ORDER BY number")
    for line, texts in zip(
        (FIXTURES / "openai_chat.jsonl").read_bytes().splitlines(), said, strict=True
    ):
        whole, asked = orjson.loads(line), orjson.loads(texts["request"])
        (choice,) = orjson.loads(texts["response"])["choices"]
        last = {name: value for name, value in whole["messages"][-1].items() if name != "weight"}
        assert [*asked.pop("messages"), choice["message"]] == [*whole.pop("messages")[:-1], last]
        assert asked == whole, "tools and all else stay as they were"
        assert "usage" not in orjson.loads(texts["response"])
    assert row(at, "SELECT count(*) AS n FROM teacher_pairs")["n"] == 3


def test_a_training_chat_carries_its_files_time_and_no_cost(tmp_path: Path) -> None:
    at, copy = home(tmp_path), tmp_path / "copy.jsonl"
    copy.write_bytes((FIXTURES / "openai_chat.jsonl").read_bytes())
    os.utime(copy, (1_700_000_000.0,) * 2)
    bring(at, copy, TRAINING)
    for found in rows(at, "SELECT * FROM exchanges"):
        assert found["started_at"] == "2023-11-14T22:13:20.000Z"
        assert (found["cost_usd"], found["host"], found["input_tokens"]) == (None, None, None)
        assert found["cost_note"] is not None
        assert (found["endpoint"], found["path"]) == ("chat.completions", "/v1/chat/completions")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "before the last: no messages"),
        ({"messages": [{"content": "x"}, {"role": "assistant"}]}, "a message without a role"),
        (
            {"messages": [{"role": "user"}, {"role": "assistant", "weight": 0}]},
            "has weight 0, and is not to be learned from",
        ),
    ],
)
def test_a_training_chat_without_an_answer_is_no_exchange(
    tmp_path: Path, line: dict[str, Any], why: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(orjson.dumps(line))
    tally, (problem,) = bring(home(tmp_path), path, TRAINING)
    assert problem.endswith(why)
    assert (tally.read, tally.taken, tally.unusable) == (1, 0, 1)


def test_a_stored_completion_is_asked_and_answered_as_it_was(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "openai_stored.json")
    assert (tally.read, tally.taken, tally.unpriced) == (3, 2, 0)
    assert problems == ["1: its messages are not in the file: add what .../{id}/messages answers"]
    found, asked, answered = pair(at, response_id="chatcmpl-storedA")
    assert asked == {
        "model": "gpt-4.1-mini-2025-04-14",
        "messages": [
            {"role": "system", "content": "You sort tickets."},
            {"role": "user", "content": "My parcel is late."},
        ],
        "temperature": 0.2, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "seed": 4944116822809979520, "metadata": {"feature": "triage", "session_id": "s-1"},
        "user": "ann",
    }  # fmt: skip
    assert answered["usage"] == {"total_tokens": 24, "completion_tokens": 4, "prompt_tokens": 20}
    assert "messages" not in answered
    assert (found["user"], found["feature"], found["session"]) == ("ann", "triage", "s-1")
    assert found["started_at"] == "2025-02-07T20:36:50.000Z"
    assert found["upstream_request_id"] == "req_AAAAAAAA"
    # gpt-4.1-mini: $0.40 and $1.60 a million.
    assert found["cost_usd"] == pytest.approx(20 * 0.4e-6 + 4 * 1.6e-6)
    _, parts, _ = pair(at, response_id="chatcmpl-storedB")
    assert parts["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Charged twice."}]}
    ]


def test_litellm_in_its_three_shapes(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "litellm.jsonl")
    assert tally.taken == 3
    assert problems == ["7: response: no chat completion"]
    assert tally.others == {
        "out of a cache": 1, "call_type 'aembedding'": 1, "a call that failed": 1,
    }  # fmt: skip
    logged, asked, _ = pair(at, response_id="chatcmpl-l1")
    assert asked["temperature"] == 0 and "extra_body" not in asked
    assert (logged["tenant"], logged["feature"]) == ("acme", "triage")
    assert (logged["user"], logged["session"]) == ("ann", "trace-1")
    assert (logged["host"], logged["started_at"]) == ("api.openai.com", "2024-08-05T14:34:16.250Z")
    spent, asked, _ = pair(at, response_id="chatcmpl-l2")
    assert asked["model"] == "cheap" and asked["tools"][0]["function"]["name"] == "find_order"
    assert (spent["tenant"], spent["feature"]) == ("team-7", "nightly")
    assert (spent["host"], spent["user"]) == ("acme.openai.azure.com", "bob")
    older, asked, _ = pair(at, response_id="chatcmpl-l3")
    assert asked == {
        "model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "This is a test"}],
        "temperature": 0.7, "max_tokens": 10, "user": "cy",
    }  # fmt: skip
    assert (older["host"], older["cost_usd"]) == (None, None)


def test_an_answer_that_litellm_kept_as_text() -> None:
    record = {
        "request_id": "r", "call_type": "completion", "startTime": 1722868456.0,
        "model": "openai/gpt-4o", "custom_llm_provider": "openai",
        "messages": [{"role": "user", "content": "x"}], "response": "y",
        "prompt_tokens": 3, "completion_tokens": 1,
    }  # fmt: skip
    found = LITELLM.read(record)
    assert found.request["model"] == "gpt-4o"
    assert found.response["choices"][0]["message"] == {"role": "assistant", "content": "y"}
    assert found.response["usage"] == {"prompt_tokens": 3, "completion_tokens": 1}
    assert (
        "usage" not in LITELLM.read(record | {"prompt_tokens": 0, "completion_tokens": 0}).response
    )


def test_langfuse_by_its_api(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "langfuse_api.jsonl")
    assert (tally.read, tally.taken, problems) == (2, 1, [])
    assert tally.others == {"of type SPAN": 1}
    found, asked, answered = pair(at, user="ann")
    assert (asked["temperature"], asked["top_p"]) == (0.5, 1)
    assert "max_tokens" not in asked, "infinity is no bound"
    # Langfuse takes what was cached out of the input: the total tells.
    assert (found["input_tokens"], found["cached_tokens"], found["output_tokens"]) == (20, 8, 3)
    assert (found["tenant"], found["feature"], found["session"]) == ("acme", "triage", "s-1")
    assert answered["choices"][0]["message"] == {"role": "assistant", "content": "shipping"}


def test_langfuse_out_of_a_bucket(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "langfuse_blob.jsonl")
    assert (tally.taken, problems) == (1, ["2: input: no messages"])
    assert tally.others == {"a call that failed": 1}
    found, asked, answered = pair(at, user="bob")
    assert found["started_at"] == "2024-05-29T13:46:19.963Z"
    assert asked["tools"][0]["function"]["parameters"]["required"] == ["number"]
    assert answered["choices"][0]["finish_reason"] == "tool_calls"
    assert (found["feature"], found["finish_reason"]) == ("orders", "tool_calls")


def test_langfuse_out_of_a_trace(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, _ = fixture(at, "langfuse_trace.json")
    assert tally.taken == 1
    found, asked, _ = pair(at, user="cy")
    assert (found["session"], found["feature"]) == ("s-3", "digest")
    assert asked["response_format"] == {"type": "text"}


@pytest.mark.parametrize(
    ("details", "usage"),
    [
        ({"input": 5, "output": 4, "total": 9}, (5, 4)),
        ({"input": 20, "input_cached_tokens": 8, "output": 3, "total": 23}, (20, 3)),
        ({"input": 12, "input_cached_tokens": 8, "output": 3, "total": 23}, (20, 3)),
        ({"input": 5, "output": 4, "output_reasoning_tokens": 6, "total": 15}, (5, 10)),
        ({"input": 5, "input_cached_tokens": 8, "output": 3, "total": 99}, None),
        ({"input": 5, "total": 9}, None),
        ({}, None),
    ],
)
def test_what_langfuse_took_apart_is_put_together_or_unknown(
    details: dict[str, int], usage: tuple[int, int] | None
) -> None:
    found = LANGFUSE.read({
        "id": "o", "type": "GENERATION", "startTime": "2024-05-29T13:46:19Z", "output": "hi",
        "input": [{"role": "user", "content": "x"}], "usageDetails": details,
    }).response.get("usage")  # fmt: skip
    told = found and (found["prompt_tokens"], found["completion_tokens"])
    assert told == usage


def test_helicone_with_a_call_that_was_refused(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "helicone.json")
    assert tally.taken == 2
    assert [problem.partition(": ")[2] for problem in problems] == [
        "request_body: not in the file (export with --include-body)"
    ]
    assert tally.others == {
        "no chat completion": 1, "out of a cache": 1, "a call without an answer": 1,
    }  # fmt: skip
    found, _, answered = pair(at, user="ann")
    assert (found["tenant"], found["feature"], found["session"]) == ("acme", "triage", "s-1")
    assert found["host"] == "api.openai.com" and found["cost_usd"] > 0
    assert "streamed_data" not in answered
    refused, _, answered = pair(at, status="429")
    assert answered["error"]["code"] == "rate_limit_exceeded"
    assert row(at, "SELECT count(*) AS n FROM teacher_pairs")["n"] == 1
    assert refused["cost_usd"] is None


def test_openpipe_exports_and_reports(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, problems = fixture(at, "openpipe.jsonl")
    assert (tally.taken, problems) == (3, [])
    assert tally.others == {"a call that failed": 1}
    assert tally.timeless == 1, "a time in the year 2509 is none"
    exported, _, _ = pair(at, user="ann")
    assert (exported["tenant"], exported["feature"]) == ("acme", "triage")
    reported, _, _ = pair(at, feature="billing")
    assert reported["started_at"] == "2024-08-05T14:34:16.250Z"


# -- what holds for all


@pytest.mark.parametrize("name", FILES)
def test_a_second_import_changes_nothing(tmp_path: Path, name: str) -> None:
    at = home(tmp_path)
    first, _ = fixture(at, name)
    everything = "SELECT * FROM exchanges JOIN texts USING (number) ORDER BY number"
    before = rows(at, everything)
    assert len(before) == first.taken > 0
    second, _ = fixture(at, name)
    assert second.taken == first.taken
    assert rows(at, everything) == before
    assert rows(at, "SELECT * FROM incidents") == []
    assert rows(at, "SELECT * FROM runs WHERE highest_seq != 0") == [], "nothing counts as lost"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_made_up(tmp_path: Path, name: str) -> None:
    at = home(tmp_path)
    fixture(at, name)
    measured = ("latency_ms", "ttft_ms", "request_bytes", "response_bytes", "seq", "key_hash")
    for found in rows(at, "SELECT * FROM exchanges"):
        assert [found[each] for each in measured] == [None] * len(measured)
        assert (found["outcome"], found["served_by"], found["complete"]) == ("ok", "upstream", 1)
        assert found["id"][14] == "8", "no UUIDv7: the rest of it is no chance"


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_told_by_its_records(name: str) -> None:
    (_, record), *_ = records_of(FIXTURES / name)
    fitting = [f for f in FORMATS if any(map(f.fits, f.split(record)))]
    assert fitting == [FILES[name]]


def test_an_api_that_no_file_names_may_be_named(tmp_path: Path) -> None:
    at = home(tmp_path)
    fixture(at, "openpipe.jsonl", host="api.openai.com")
    assert pair(at, user="ann")[0]["cost_usd"] > 0
    own = row(at, "SELECT host FROM exchanges WHERE model = 'openpipe:triage-ft'")
    assert own["host"] == "app.openpipe.ai", "what the file says comes first"


def test_personal_data_goes_as_the_policy_says(tmp_path: Path) -> None:
    at, path = home(tmp_path), tmp_path / "one.jsonl"
    messages = [{"role": "user", "content": "I am ann@example.com"}]
    messages.append({"role": "assistant", "content": "Hello ann@example.com"})
    path.write_bytes(orjson.dumps({"messages": messages}))
    bring(at, path, TRAINING, privacy={"mode": "redacted", "recognisers": ["email"]})
    (texts,) = rows(at, "SELECT request, response FROM pairs")
    assert "<EMAIL_1>" in texts["request"] and "<EMAIL_1>" in texts["response"]
    assert "ann@example.com" not in texts["request"] + texts["response"]


def test_of_bodies_that_may_not_be_kept_no_byte_is_spooled(tmp_path: Path) -> None:
    at = home(tmp_path)
    rule = {"tenant": "acme", "mode": "metadata"}
    held = build({"privacy": {"rules": [rule]}})
    importer = Importer(HELICONE, KEY, held.privacy, held.identity, None)
    written: list[bytes] = []
    ((_, record), *_) = records_of(FIXTURES / "helicone.json")
    assert importer.take(record, 0.0, written.append) == []
    assert b"parcel" not in b"".join(written)
    fixture(at, "helicone.json", privacy={"rules": [rule]})
    kept = row(at, "SELECT * FROM exchanges WHERE tenant = 'acme'")
    assert (kept["privacy"], kept["task_id"] is not None) == ("metadata", True)
    assert rows(at, "SELECT 1 FROM bodies WHERE number = ?", kept["number"]) == []


def test_what_is_to_be_kept_out_is_counted(tmp_path: Path) -> None:
    at = home(tmp_path)
    tally, _ = fixture(at, "helicone.json", privacy={"rules": [{"tenant": "acme", "mode": "off"}]})
    assert (tally.taken, tally.kept_out) == (1, 1)
    assert len(rows(at, "SELECT 1 FROM exchanges")) == 1


def test_ids_are_the_same_for_the_same_and_told_apart_by_installation() -> None:
    one = Imported({}, {}, at=1722868456.25, source="chatcmpl-1")
    first = exchange_id(KEY, "litellm", one, b"a", b"b")
    assert first == exchange_id(KEY, "litellm", one, b"", b""), "its own id is enough"
    assert first != exchange_id(KEY, "langfuse", one, b"a", b"b")
    assert first != exchange_id(bytes(32), "litellm", one, b"a", b"b")
    assert int.from_bytes(first[:6], "big") == 1722868456250
    assert (first[6] >> 4, first[8] >> 6) == (8, 2)
    bare = Imported({}, {})
    assert exchange_id(KEY, "x", bare, b"ab", b"c") != exchange_id(KEY, "x", bare, b"a", b"bc")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1722868456, 1722868456.0),
        (1722868456250, 1722868456.25),
        ("2024-08-05T14:34:16.250Z", 1722868456.25),
        ("2024-08-05 14:34:16.250000", 1722868456.25),
        ("2024-08-05T16:34:16.25+02:00", 1722868456.25),
        (17026661857, None),
        ("yesterday", None),
        (True, None),
        (None, None),
        (0, None),
    ],
)
def test_times_in_all_their_shapes(value: object, seconds: float | None) -> None:
    assert moment(value) == seconds


# -- lines


RECORDS = [{"n": n, "text": 'a "\\[]{}\n' * n, "in": [{"b": [1]}]} for n in range(30)]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("option", [0, orjson.OPT_INDENT_2])
def test_arrays_and_pretty_objects_are_cut_into_records(
    monkeypatch: pytest.MonkeyPatch, chunk: int, option: int
) -> None:
    monkeypatch.setattr(import_lines, "_CHUNK", chunk)
    array = orjson.dumps(RECORDS, option=option)
    assert [record for _, record in read_lines(array)] == RECORDS
    apart = b"\n".join(orjson.dumps(record, option=option) for record in RECORDS)
    found = read_lines(apart)
    assert [record for _, record in found] == RECORDS
    assert found[1][0] == 1 + orjson.dumps(RECORDS[0], option=option).count(b"\n") + 1


def test_a_bad_line_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_lines, "MOST_RECORD", 40)
    lines = [b'\xef\xbb\xbf{"a":1}', b'{"b":', b"", b"[1]", b'"' + b"x" * 90 + b'"', b'{"c":2}']
    found = read_lines(b"\n".join(lines))
    assert [number for number, _ in found] == [1, 2, 4, 5, 6]
    assert (found[0][1], found[4][1]) == ({"a": 1}, {"c": 2})
    assert found[1][1].startswith("not JSON")
    assert found[2][1] == "no JSON object"
    assert found[3][1].startswith("longer than")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'[{"a":1},{"b":', "the file ends within it"),
        (b'[{"a":1}]]', "not JSON: a bracket too many"),
        (b'[{"a":1},{"b":x}]', "not JSON: "),
    ],
)
def test_a_damaged_array_says_so(data: bytes, why: str) -> None:
    (_, first), (_, second) = read_lines(data)
    assert first == {"a": 1}
    assert second.startswith(why)


def test_a_record_without_an_end_takes_no_more_than_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_lines, "MOST_RECORD", 100)
    monkeypatch.setattr(import_lines, "_CHUNK", 10)
    ((_, why),) = read_lines(b'[{"a": "' + b"x" * 1000)
    assert why.startswith("longer than")


def test_an_archive_and_one_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "logs.jsonl.gz"
    # What does not compress: or a cut archive holds no whole line.
    whole = gzip.compress(
        b"".join(b'{"a":"%s"}\n' % os.urandom(999).hex().encode() for _ in "ab" * 99)
    )
    path.write_bytes(whole)
    assert len(records_of(path)) == 198
    path.write_bytes(whole[: len(whole) // 2])
    *found, (_, why) = records_of(path)
    assert isinstance(why, str) and why.startswith("damaged gzip")
    assert all(isinstance(record, dict) for _, record in found)


def test_an_empty_file_has_no_records() -> None:
    assert read_lines(b"") == read_lines(b"\n \n") == []


# -- the run


def test_a_run_is_whole_before_the_recorder_sees_it(tmp_path: Path) -> None:
    at = home(tmp_path)
    importer = Importer(TRAINING, KEY, build({}).privacy, build({}).identity, None)
    writer = RunWriter(at)
    for _, record in records_of(FIXTURES / "openai_chat.jsonl"):
        importer.take(record, 0.0, writer.write)
    record_all(at)
    assert rows(at, "SELECT 1 FROM exchanges") == []
    folder = writer.hand_over("import-1")
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]
    record_all(at)
    assert recorded(at.database, 0, "import-") == len(rows(at, "SELECT 1 FROM exchanges")) == 3
    assert not folder.exists()


def test_what_a_crash_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    at = home(tmp_path)
    writing, died = RunWriter(at), RunWriter(at)
    died.write(b"x")
    died._end_segment()
    os.close(died._alive)
    os.utime(died.folder / "alive", (1.0, 1.0))
    RunWriter(at).drop()
    assert writing.folder.exists() and not died.folder.exists()
    writing.drop()


def test_a_body_longer_than_a_record_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.import_run._BODY_BYTES", 100)
    at, path = home(tmp_path), tmp_path / "long.jsonl"
    asked = {"role": "user", "content": "long " * 1000}
    path.write_bytes(orjson.dumps({"messages": [asked, {"role": "assistant", "content": "ok"}]}))
    bring(at, path, TRAINING)
    (texts,) = rows(at, "SELECT request FROM pairs")
    assert orjson.loads(texts["request"]) == {"messages": [asked]}
