"""How a setting is declared, read and refused: what all parts of the policy are built with.

A section is a frozen dataclass whose fields are made by `setting`. Each field states its effect and
default in its metadata, from which the reference in the README is printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Final


class PolicyError(ValueError):
    """A setting that can't be used: its path in the file, its value, and how to mend it."""

    def __init__(self, path: str, value: object, hint: str) -> None:
        super().__init__(f"{path}: {value!r}: {hint}" if path else hint)
        self.path, self.value, self.hint = path, value, hint


Parse = Callable[[Any, str], Any]


def setting(parse: Parse, doc: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc})


def number(low: float, high: float, unit: str) -> Parse:
    def parse(value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PolicyError(path, value, f"must be a number ({unit})")
        if not low <= value <= high:
            raise PolicyError(path, value, f"must be from {low:g} to {high:g} ({unit})")
        return float(value)

    return parse


def whole(low: int, high: int, unit: str) -> Parse:
    def parse(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise PolicyError(path, value, f"must be a whole number ({unit})")
        if not low <= value <= high:
            raise PolicyError(path, value, f"must be from {low} to {high} ({unit})")
        return value

    return parse


def optional(parse: Parse) -> Parse:
    return lambda value, path: None if value is None else parse(value, path)


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(value: Any, path: str) -> float:
    """Seconds: a number, or a text such as `500ms`, `2s`, `10m`, `1h`, `7d`."""
    hint = "must be seconds or a duration such as 500ms, 2s, 10m, 1h, 7d"
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())
        if match is None:
            raise PolicyError(path, value, hint)
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise PolicyError(path, value, hint)
    return float(value)


def truth(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(path, value, "must be true or false")
    return value


def a_text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise PolicyError(path, value, "must be a text that is not empty")
    return value


def a_name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise PolicyError(path, value, "must be a name of letters, digits, '.', '_' or '-'")
    return value


def list_of(parse: Parse, what: str) -> Parse:
    def parse_all(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise PolicyError(path, value, f"must be a list of {what}")
        return tuple(parse(item, f"{path}[{i}]") for i, item in enumerate(value))

    return parse_all


def choice(value: Any, path: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise PolicyError(path, value, f"must be one of {', '.join(allowed)}")
    return str(value)


def nested(cls: type) -> Parse:
    return lambda value, path: section(cls, value, path)


def section(cls: type, raw: object, path: str) -> Any:
    if not isinstance(raw, Mapping):
        raise PolicyError(path or "(file)", raw, "must be a mapping of settings")
    known = {f.name: f for f in fields(cls)}
    for key in raw:
        if key not in known:
            allowed = ", ".join(known)
            raise PolicyError(_join(path, str(key)), raw[key], f"unknown setting; use {allowed}")
    given = {key: known[key].metadata["parse"](raw[key], _join(path, key)) for key in raw}
    for name, spec in known.items():
        if name not in given and _required(spec):
            raise PolicyError(_join(path, name), None, f"is missing: {spec.metadata['doc']}")
    return cls(**given)


def _required(spec: Field[Any]) -> bool:
    return spec.default is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
