"""The policy file: YAML in, `Policy` out. The one place that knows YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from policies.policy import Policy, build
from policies.setting import PolicyError

_MOST_BYTES: Final = 256 * 1024


class ConfigError(Exception):
    """A policy file that can't be used, said in one line: file, field, value, hint."""


def read(path: Path) -> Any:
    """What the file holds, as plain values. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Any:
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{name}: {len(data)} bytes; a policy has at most {_MOST_BYTES}")
    if _has_alias(data):
        raise ConfigError(f"{name}: anchors and aliases are not allowed; write the values out")
    try:
        raw = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    return {} if raw is None else raw


def _has_alias(data: bytes) -> bool:
    # A few nested aliases can stand for billions of values.
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data))
    except (yaml.YAMLError, ValueError):
        return False  # safe_load will say where and why


def load(path: Path) -> Policy:
    """The policy in `path`, its GGUF paths made absolute. Raises ConfigError."""
    try:
        policy = build(read(path))
    except PolicyError as error:
        raise ConfigError(f"{path}: {error}") from None
    here = path.resolve().parent
    return replace(
        policy,
        candidates=tuple(replace(c, gguf=str(here / c.gguf)) for c in policy.candidates),
    )
