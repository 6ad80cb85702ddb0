"""Guesses at tokens: by characters, by a vocabulary, and never by fetching one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load

from store import estimates
from store.estimates import CHARACTERS, Count, Estimate, by_characters, estimate


def _none(model: str) -> tuple[str, Count] | None:
    return None


def _guess(endpoint: str, request: dict[str, Any], answer: str | None = None) -> Estimate:
    return estimate(endpoint, request, answer, "gpt-4o", _none)


TEXTS = [
    ("", 0),
    ("a", 1),
    ("abcd", 1),
    ("abcde", 2),
    ("привет", 3),  # 12 bytes
    ("你好", 2),  # 6 bytes
    ("\ud800", 1),  # a lone surrogate: 3
]


@pytest.mark.parametrize(("text", "tokens"), TEXTS)
def test_a_token_is_four_bytes(text: str, tokens: int) -> None:
    assert by_characters(text) == tokens


INPUTS = [
    # 3 before the answer, 3 around each message
    ("chat.completions", {"messages": [{"role": "user", "content": "x" * 40}]}, 3 + 3 + 10),
    (
        "chat.completions",
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "x" * 8}]},
                {"role": "user", "name": "anna", "content": "x" * 4},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}],
                },
            ]
        },
        3 + (3 + 2) + (3 + 1 + 1 + 1) + (3 + 1 + 1),
    ),
    (
        "chat.completions",
        {"messages": [], "tools": [{"type": "function"}]},  # [{"type":"function"}] is 21 bytes
        3 + 6,
    ),
    ("responses", {"input": "x" * 8, "instructions": "x" * 4}, 3 + (3 + 1) + (3 + 2)),
    (
        "responses",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 8}]}]},
        3 + 3 + 2,
    ),
    ("responses", {"input": [{"type": "function_call_output", "output": "x" * 8}]}, 3 + 3 + 2),
    ("responses.websocket", {"type": "response.create", "input": "x" * 8}, 3 + 3 + 2),
    ("completions", {"prompt": "x" * 8, "suffix": "x" * 4}, 3),
    ("completions", {"prompt": ["x" * 8, "x" * 4]}, 3),
    ("embeddings", {"input": [1, 2, 3]}, 3),
    ("embeddings", {"input": [[1, 2, 3], [4]]}, 4),
]


@pytest.mark.parametrize(("endpoint", "request_", "tokens"), INPUTS)
def test_what_a_request_weighs(endpoint: str, request_: dict[str, Any], tokens: int) -> None:
    assert _guess(endpoint, request_) == Estimate(tokens, None, CHARACTERS)


IMAGE = [{"type": "image_url", "image_url": {"url": "data:"}}]
UNCOUNTABLE = [
    ("chat.completions", {}),
    ("chat.completions", {"messages": "hello"}),
    ("chat.completions", {"messages": ["hello"]}),
    ("chat.completions", {"messages": [{"role": "user", "content": IMAGE}]}),
    ("chat.completions", {"messages": [{"role": "user", "content": 5}]}),
    ("chat.completions", {"messages": [], "tools": [2**70]}),
    ("responses", {"input": "x", "previous_response_id": "resp_1"}),
    ("responses", {"input": [{"type": "item_reference", "id": "i"}]}),
    ("responses", {}),
    ("completions", {"prompt": None}),
    ("embeddings", {"input": [None]}),
    ("images.generations", {"prompt": "a cat"}),
]


@pytest.mark.parametrize(("endpoint", "request_"), UNCOUNTABLE)
def test_what_can_t_be_weighed_is_none(endpoint: str, request_: dict[str, Any]) -> None:
    assert _guess(endpoint, request_, "abcd") == Estimate(
        None, None if endpoint == "embeddings" else 1, CHARACTERS
    )


def test_an_answer_is_counted_as_far_as_it_came() -> None:
    assert _guess("chat.completions", {}, "x" * 41).output_tokens == 11
    assert _guess("chat.completions", {}, "").output_tokens == 0
    assert _guess("chat.completions", {}, None).output_tokens is None


def test_a_vocabulary_counts_exactly_and_is_named() -> None:
    letters = tiktoken.Encoding(
        "letters",
        pat_str=r"(?s).",
        mergeable_ranks={bytes([n]): n for n in range(256)},
        special_tokens={},
    )

    def known(model: str) -> tuple[str, Count] | None:
        return "tiktoken:letters", lambda text: len(letters.encode_ordinary(text))

    request = {"messages": [{"role": "user", "content": "hello"}]}
    found = estimate("chat.completions", request, "hey", "gpt-4o", known)
    assert found == Estimate(3 + 3 + 5, 3, "tiktoken:letters")


@pytest.fixture
def vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """tiktoken's cache, empty, with nothing remembered of another one."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    estimates.on_disk.cache_clear()
    estimates._by_vocabulary.cache_clear()
    yield tmp_path
    estimates.on_disk.cache_clear()
    estimates._by_vocabulary.cache_clear()


def test_a_vocabulary_that_is_not_on_disk_is_never_fetched(
    vocabularies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(blobpath: str) -> bytes:
        fetched.append(blobpath)
        return b""

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    found = estimate("embeddings", {"input": "abcdefgh"}, None, "text-embedding-3-small")
    assert found == Estimate(2, None, CHARACTERS)
    assert fetched == []
    assert tiktoken.load.read_file is fetch
    assert list(vocabularies.iterdir()) == []


def test_a_spoilt_vocabulary_is_as_good_as_none(
    vocabularies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(blobpath: str) -> bytes:
        asked.append(blobpath)
        raise FileNotFoundError

    monkeypatch.setattr(estimates, "_refuse", note)
    assert estimates.on_disk("gpt-4o") is None
    spoilt = vocabularies / hashlib.sha1(asked[0].encode()).hexdigest()
    spoilt.write_bytes(b"IQ== 0\n")
    estimates.on_disk.cache_clear()
    estimates._by_vocabulary.cache_clear()
    assert estimates.on_disk("gpt-4o") is None
    assert len(asked) == 2


def test_a_model_that_tiktoken_does_not_know_is_counted_by_characters() -> None:
    assert estimate("embeddings", {"input": "abcd"}, None, "acme-1") == Estimate(
        1, None, CHARACTERS
    )
    assert estimate("embeddings", {"input": "abcd"}, None, None) == Estimate(1, None, CHARACTERS)
