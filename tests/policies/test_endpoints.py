"""What a request is, by its method and path."""

from __future__ import annotations

import pytest

from policies.endpoints import CHAT, OTHER, RESPONSES, classify, deployment

ROOTS = ["/v1", "/openai/v1", "/openai", "/openai/deployments/gpt-4o", ""]
KEPT = [
    ("POST", "/chat/completions", "chat.completions", "full"),
    ("POST", "/responses", "responses", "capture"),
    ("GET", "/responses", "responses.websocket", "capture"),
    ("GET", "/responses/resp_1", "responses.stored", "capture"),
    ("GET", "/responses/resp_1/input_items", "responses.input_items", "capture"),
    ("POST", "/responses/resp_1/cancel", "responses.cancel", "capture"),
    ("POST", "/responses/compact", "responses.compact", "capture"),
    ("POST", "/responses/input_tokens", "responses.input_tokens", "capture"),
    ("POST", "/completions", "completions", "capture"),
    ("POST", "/embeddings", "embeddings", "capture"),
    ("POST", "/moderations", "moderations", "capture"),
    ("POST", "/decisions", "decisions", "capture"),
    ("POST", "/audio/speech", "audio.speech", "capture"),
    ("POST", "/audio/transcriptions", "audio.transcriptions", "capture"),
    ("POST", "/audio/translations", "audio.translations", "capture"),
    ("POST", "/images/generations", "images.generations", "capture"),
    ("POST", "/images/edits", "images.edits", "capture"),
    ("POST", "/images/variations", "images.variations", "capture"),
    ("POST", "/batches", "batches", "capture"),
    ("GET", "/batches", "batches.list", "capture"),
    ("GET", "/batches/batch_1", "batches.stored", "capture"),
    ("POST", "/batches/batch_1/cancel", "batches.cancel", "capture"),
    ("POST", "/files", "files", "capture"),
    ("GET", "/files/file-1/content", "files.content", "capture"),
]
NOTED = [
    ("GET", "/chat/completions/chatcmpl-1/messages", "chat.completions.stored"),
    ("DELETE", "/chat/completions/chatcmpl-1", "chat.completions.stored"),
    ("GET", "/files", "files.stored"),
    ("DELETE", "/files/file-1", "files.stored"),
    ("GET", "/realtime", "realtime"),
]
NOTED_BY_FIRST_SEGMENT = [
    ("GET", "/models", "models"),
    ("DELETE", "/models/ft:gpt", "models"),
    ("POST", "/conversations/conv_1/items", "conversations"),
    ("POST", "/vector_stores/vs_1/search", "vector_stores"),
    ("POST", "/threads/t_1/runs", "threads"),
    ("POST", "/uploads/up_1/parts", "uploads"),
    ("POST", "/realtime/calls", "realtime"),
    ("GET", "/audio/voices", "audio"),
    ("POST", "/responses/resp_1/unheard-of", "responses"),
]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(("method", "path", "name", "handling"), KEPT)
def test_bodies_are_kept_below_any_root(
    root: str, method: str, path: str, name: str, handling: str
) -> None:
    found = classify(method, root + path)
    assert (found.name, found.handling) == (name, handling)
    assert found.keeps_bodies


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(("method", "path", "name"), NOTED)
def test_others_are_noted_below_any_root(root: str, method: str, path: str, name: str) -> None:
    found = classify(method, root + path)
    assert (found.name, found.handling, found.keeps_bodies) == (name, "note", False)


@pytest.mark.parametrize(("method", "path", "name"), NOTED_BY_FIRST_SEGMENT)
def test_families_are_noted_by_name(method: str, path: str, name: str) -> None:
    for root in ROOTS[:-1]:
        found = classify(method, root + path)
        assert (found.name, found.handling) == (name, "note")
    # Without a root the first segment may be but the way to some upstream.
    assert not classify(method, path).keeps_bodies


@pytest.mark.parametrize("path", ["/organization/costs", "/projects/p/api_keys", "/vaults",
                                  "/organizations"])  # fmt: skip
def test_what_administrators_do_is_never_looked_at(path: str) -> None:
    for root in ROOTS:
        for method in ("GET", "POST", "DELETE"):
            assert classify(method, root + path).handling == "tunnel"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/vllm/v1/chat/completions"),
        ("POST", "/models/v1/chat/completions"),
        ("POST", "/v2/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat//completions"),
        ("POST", "/v1/never-heard-of"),
        ("POST", "/v1"),
        ("GET", "/"),
        ("OPTIONS", "*"),
        ("GET", ""),
    ],
)
def test_what_is_not_known_is_other(method: str, path: str) -> None:
    assert classify(method, path) is OTHER


def test_the_usual_ones_are_the_same_object_each_time() -> None:
    assert classify("POST", "/v1/chat/completions") is CHAT
    assert classify("POST", "/openai/deployments/a%20b/chat/completions") is CHAT
    assert classify("POST", "/openai/deployments/d/responses") is RESPONSES


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/openai/deployments/gpt-4o-eu/chat/completions", "gpt-4o-eu"),
        ("/openai/deployments/a%20b%2Fc/responses", "a b/c"),
        ("/openai/v1/deployments/d/embeddings", "d"),
        ("/openai/deployments/gpt-4o", None),
        ("/openai/deployments//chat/completions", None),
        ("/openai/v1/chat/completions", None),
        ("/v1/chat/completions", None),
        ("", None),
    ],
)
def test_the_deployment_is_in_azures_dated_path(path: str, name: str | None) -> None:
    assert deployment(path) == name
