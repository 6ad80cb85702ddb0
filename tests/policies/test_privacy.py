"""Modes: which rule counts, and what a policy may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.config import load
from policies.policy import build
from policies.privacy import MODES, Mode, Privacy, mode_for, stricter
from policies.setting import PolicyError
from policies.settings import plain


def privacy(**said: Any) -> Privacy:
    return build({"privacy": said}).privacy


def mode(rules: list[dict[str, str]], tenant: str | None = None, path: str = "/v1/x") -> str:
    return mode_for(privacy(rules=rules), tenant, path)


def test_without_a_word_all_is_kept() -> None:
    assert privacy() == Privacy("full", (), "US", ())
    assert mode_for(privacy(), "anybody", "/v1/chat/completions") == "full"
    assert mode_for(privacy(mode="metadata"), None, "/v1/x") == "metadata"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("full", "redacted", "redacted"),
        ("redacted", "metadata", "metadata"),
        ("metadata", "off", "off"),
        ("full", "off", "off"),
    ],
)
def test_the_stricter_of_two(one: Mode, other: Mode, expected: Mode) -> None:
    assert stricter(one, other) == stricter(other, one) == expected
    assert all(stricter(mode, mode) == mode for mode in MODES)


@pytest.mark.parametrize(
    ("path", "asked", "applies"),
    [
        ("/v1/files", "/v1/files", True),
        ("/v1/files", "/v1/files/file-1/content", True),
        ("/v1/files/", "/v1/files", True),
        ("/v1/files", "/v1/filesystem", False),
        ("/v1/files", "/v2/v1/files", False),
        ("/v1/files", "/V1/files", False),
        ("/", "/anything", True),
        ("*/chat/completions", "/v1/chat/completions", True),
        ("*/chat/completions", "/openai/deployments/d/chat/completions", True),
        ("*/chat/completions", "/v1/chat/completions/chatcmpl-1", False),
        ("/v1/*/content", "/v1/files/file-1/content", True),
        ("/v1/*/content", "/v1/content", False),
        ("/v1/*", "/v1/", True),
        ("/v1/*", "/v1", False),
        ("/a*b*b", "/ab", False),
        ("/a*b*b", "/abb", True),
        ("/a*ab*a", "/aba", False),
        ("/[a-z]*", "/b", False),
        ("**", "/x", True),
    ],
)
def test_paths(path: str, asked: str, applies: bool) -> None:
    assert (mode([{"path": path, "mode": "off"}], path=asked) == "off") is applies


@pytest.mark.parametrize(
    ("tenant", "asks", "applies"),
    [
        ("acme", "acme", True),
        ("acme", "acme2", False),
        ("acme", "Acme", False),
        ("acme", None, False),
        ("acme-*", "acme-eu", True),
        ("*", "anybody", True),
        ("*", None, False),
        ("*secret*", "a secret team", True),
    ],
)
def test_tenants(tenant: str, asks: str | None, applies: bool) -> None:
    assert (mode([{"tenant": tenant, "mode": "off"}], asks) == "off") is applies


def test_the_first_rule_that_applies_counts() -> None:
    rules = [
        {"tenant": "acme", "path": "/v1/chat", "mode": "full"},
        {"tenant": "acme", "mode": "off"},
        {"path": "/v1/chat", "mode": "metadata"},
        {"tenant": "*", "mode": "redacted"},
    ]
    assert mode(rules, "acme", "/v1/chat/completions") == "full"
    assert mode(rules, "acme", "/v1/embeddings") == "off"
    assert mode(rules, "other", "/v1/chat/completions") == "metadata"
    assert mode(rules, "other", "/v1/embeddings") == "redacted"
    assert mode(rules, None, "/v1/embeddings") == "full"


def test_a_hostile_text_costs_one_pass() -> None:
    """Each `*` that backtracked would multiply the work: this would never end."""
    rules = [{"path": "/" + "*a" * 50 + "*b", "mode": "off"}]
    assert mode(rules, path="/" + "a" * 16_000) == "full"


def test_what_yaml_makes_of_off_and_norway(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("privacy: {mode: off, region: NO, rules: [{path: /v1/files, mode: off}]}")
    found = load(file).privacy
    assert (found.mode, found.region, found.rules[0].mode) == ("off", "NO", "off")


def test_it_goes_through_to_other_processes_as_it_is() -> None:
    policy = build({
        "privacy": {
            "mode": "redacted", "recognisers": ["email", "ip"], "region": "de",
            "rules": [{"tenant": "a", "mode": "off"}, {"path": "/v1", "mode": "full"}],
        }
    })  # fmt: skip
    assert policy.privacy.region == "DE"
    assert build(plain(policy)) == policy


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"mode": "none"}, "privacy.mode"),
        ({"mode": True}, "privacy.mode"),
        ({"recognisers": ["email", "names"]}, "privacy.recognisers[1]"),
        ({"recognisers": "email"}, "privacy.recognisers"),
        ({"region": "USA"}, "privacy.region"),
        ({"region": 49}, "privacy.region"),
        ({"rules": {"mode": "off"}}, "privacy.rules"),
        ({"rules": [{"mode": "off"}]}, "privacy.rules[0]"),
        ({"rules": [{"tenant": "a"}]}, "privacy.rules[0].mode"),
        ({"rules": [{"tenant": 5, "mode": "off"}]}, "privacy.rules[0].tenant"),
        ({"rules": [{"tenant": "", "mode": "off"}]}, "privacy.rules[0].tenant"),
        ({"rules": [{"path": "v1/files", "mode": "off"}]}, "privacy.rules[0].path"),
        ({"rules": [{"path": "/v1?x=*", "mode": "off"}]}, "privacy.rules[0].path"),
        ({"rules": [{"user": "a", "mode": "off"}]}, "privacy.rules[0].user"),
    ],
)
def test_what_can_not_be_meant_is_refused(said: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as error:
        privacy(**said)
    assert error.value.path == field
