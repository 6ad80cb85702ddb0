"""Who asks: the first source that says something, and nothing but bounded, printable text."""

from __future__ import annotations

from typing import Any

import pytest

from policies.identity import Identity, Sources, header_names, identify, tenant_of
from policies.policy import build
from policies.setting import PolicyError
from policies.settings import plain

DEFAULT = Sources()


def sources(**said: Any) -> Sources:
    return build({"identity": said}).identity


def test_nobody_said_anything() -> None:
    assert identify({}, None, None, DEFAULT) == Identity()
    assert identify({}, {"metadata": None, "user": None}, None, DEFAULT) == Identity()


@pytest.mark.parametrize(
    ("headers", "body", "found"),
    [
        ({"x-understudy-tenant": "a", "openai-project": "p"}, {}, Identity(tenant="a")),
        ({"openai-project": "p"}, {}, Identity(tenant="p")),
        ({}, {}, Identity(tenant="k")),
        (
            {"x-understudy-task": "triage"},
            {"metadata": {"feature": "inbox"}},
            Identity("k", "triage", task="triage"),
        ),
        ({}, {"metadata": {"task": "t", "feature": "inbox"}}, Identity("k", "inbox")),
        ({}, {"metadata": {"task": "t"}}, Identity("k", "t")),
        ({}, {"user": "u", "safety_identifier": "s"}, Identity("k", user="s")),
        ({}, {"user": "u"}, Identity("k", user="u")),
        (
            {"x-session-id": "s2", "x-understudy-session": "s1"},
            {"metadata": {"session_id": "s3"}},
            Identity("k", session="s1"),
        ),
        ({"x-session-id": "s2"}, {}, Identity("k", session="s2")),
        ({}, {"metadata": {"session_id": "s3"}, "conversation": "c"}, Identity("k", session="s3")),
        ({}, {"conversation": {"id": "conv_1"}}, Identity("k", session="conv_1")),
        ({}, {"conversation": "conv_2"}, Identity("k", session="conv_2")),
    ],
)
def test_the_usual_sources_in_their_order(
    headers: dict[str, str], body: dict[str, Any], found: Identity
) -> None:
    assert identify(headers, body, "k", DEFAULT) == found


def test_sources_of_ones_own() -> None:
    own = sources(
        tenant=["metadata.team", "header:X-Team", "openai-organization"],
        user=["prompt_cache_key"],
        feature=[],
    )
    headers = {"x-team": "h", "openai-organization": "org", "x-understudy-task": "t"}
    body = {"metadata": {"team": "b"}, "prompt_cache_key": "pc"}
    assert identify(headers, body, "k", own) == Identity("b", None, "pc", None, "t")
    assert tenant_of(headers, "k", own) == "h"
    assert tenant_of({"openai-organization": "org"}, "k", own) == "org"
    assert tenant_of({}, "k", own) is None
    assert build(plain(build({"identity": {"tenant": ["key"]}}))).identity.tenant == ("key",)


def test_which_headers_must_stay_readable() -> None:
    usual = {
        "x-understudy-tenant", "openai-project", "x-understudy-task", "x-understudy-session",
        "x-session-id",
    }  # fmt: skip
    assert header_names(DEFAULT) == usual
    own = sources(tenant=["openai-organization"], feature=[], user=["header:X-User"], session=[])
    assert header_names(own) == {"openai-organization", "x-user"}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("  acme ", "acme"),
        ("", None),
        (" \t ", None),
        ("x" * 5000, "x" * 200),
        (" " * 5000 + "x", None),
        ("a\nb\x00c\x7f", "a\ufffdb\ufffdc\ufffd"),
        ("a\ud800b", "a\ufffdb"),
        ("'; DROP TABLE exchanges; --", "'; DROP TABLE exchanges; --"),
        ("M\u00fcller \u65e5\u672c", "M\u00fcller \u65e5\u672c"),
        (5, None),
        (True, None),
        (["a"], None),
        ({"id": "a"}, "a"),
        ({"id": {"id": "a"}}, None),
    ],
)
def test_values_are_data(value: object, read: str | None) -> None:
    found = identify({}, {"user": value}, None, DEFAULT).user
    assert found == read
    if found is not None:
        assert found.encode()


def test_a_source_that_says_nothing_leaves_the_word_to_the_next() -> None:
    assert identify({"x-understudy-tenant": "  "}, None, "k", DEFAULT).tenant == "k"
    assert identify({}, {"safety_identifier": 7, "user": "u"}, None, DEFAULT).user == "u"
    assert identify({}, {"metadata": [1]}, None, DEFAULT).feature is None


def test_a_header_in_utf8_is_the_same_as_in_a_body() -> None:
    sent = "M\u00fcller".encode().decode("latin-1")
    assert identify({"x-understudy-tenant": sent}, None, None, DEFAULT).tenant == "M\u00fcller"
    assert identify({"x-understudy-tenant": "M\xfcller"}, None, None, DEFAULT).tenant == "M\xfcller"


@pytest.mark.parametrize(
    "source",
    [
        "header:Authorization", "header:api-key", "header:X-Api-Key", "header:Cookie",
        "header:proxy-authorization", "header:x-auth-token", "header:Sec-WebSocket-Protocol",
        "header:", "header:a b", "header:a\r\nb", "x-team", "metadata.", "messages", "Key", "", 5,
    ],
)  # fmt: skip
def test_what_can_not_be_meant_or_must_not_be_kept_is_refused(source: object) -> None:
    with pytest.raises(PolicyError) as error:
        sources(tenant=["key", source])
    assert error.value.path == "identity.tenant[1]"
