"""A policy that can't be used is refused in one line: file, field, value, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.config import ConfigError, load
from policies.policy import Policy
from policies.settings import Settings, dump, plain
from policies.settings import load as load_settings

WRONG = [
    ("upstream: ftp://x", "upstream", "'ftp://x'", "http://"),
    ("upstream: https://me:pw@x", "upstream", "me:pw", "without query, user"),
    ("upstream: 'http://x y'", "upstream", "x y", "spaces"),
    ("upstream: http://x:99999", "upstream", "99999", "URL"),
    ("timeouts: {drain: soon}", "timeouts.drain", "'soon'", "500ms"),
    ("timeouts: {drain: -1}", "timeouts.drain", "-1", "seconds"),
    ("timeouts: {drain: true}", "timeouts.drain", "True", "seconds"),
    ("timeouts: 5", "timeouts", "5", "mapping"),
    ("capture: {body_bytes: 1.5}", "capture.body_bytes", "1.5", "whole number"),
    ("capture: {spool_bytes: 5}", "capture.spool_bytes", "5", "from 1048576"),
    ("capture: {fsync: maybe}", "capture.fsync", "'maybe'", "none, interval, always"),
    ("capture: {enabled: 1}", "capture.enabled", "1", "true or false"),
    ("rollout: {steps: [50, 10]}", "rollout.steps", "[50, 10]", "rising"),
    ("rollout: {steps: [0]}", "rollout.steps[0]", "0", "0.001"),
    ("rollout: {steps: []}", "rollout.steps", "[]", "list"),
    ("rollout: {threshold: 95}", "rollout.threshold", "95", "share"),
    ("rollout: {thresold: 0.9}", "rollout.thresold", "0.9", "threshold"),
    ("candidates: [{gguf: a}]", "candidates[0].name", "None", "missing"),
    ("candidates: [{name: a/b, gguf: a}]", "candidates[0].name", "'a/b'", "letters"),
    ("candidates: [{name: a, gguf: ''}]", "candidates[0].gguf", "''", "not empty"),
    ("candidates: [{name: a, gguf: a}, {name: a, gguf: b}]", "candidates", "'a'", "differ"),
    ("candidates: {}", "candidates", "{}", "list"),
    ("no_such: 1", "no_such", "1", "upstream"),
    ("[1]", "(file)", "[1]", "mapping"),
]


def said(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize(("text", "field", "value", "hint"), WRONG)
def test_wrong_settings(tmp_path: Path, text: str, field: str, value: str, hint: str) -> None:
    message = said(tmp_path, text)
    assert message.startswith(f": {field}: ")
    assert value in message
    assert hint in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "line 1"),
        ("a: b\n c: d", "line 2"),
        ("a: !!python/object:os.system x", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("a: " + "x" * 300_000, "at most"),
    ],
)
def test_files_that_are_no_policy(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert why in said(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file"):
        load(tmp_path / "none.yaml")


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("# nothing yet\n")
    assert load(path) == Policy()


def test_durations_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "timeouts: {drain: 500ms, client_idle: 2m, client_head: 1.5}\n"
        "candidates: [{name: small, gguf: models/small.gguf}]\n"
    )
    policy = load(path)
    assert (policy.timeouts.drain, policy.timeouts.client_idle) == (0.5, 120.0)
    assert policy.timeouts.client_head == 1.5
    assert policy.candidates[0].gguf == str(tmp_path / "models/small.gguf")


def test_settings_reach_a_child_process_whole() -> None:
    policy = Policy()
    settings = Settings("proxy", "/home/x", "/run/x", "run-1", plain(policy), fd=7)
    line = dump(settings)
    assert line.count(b"\n") == 1
    assert load_settings(line) == settings
    assert load_settings(line).parsed_policy() == policy
    assert "secret" not in repr(Settings("proxy", "", "", "", {}, install_key="secret"))
