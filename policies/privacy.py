"""How much of an exchange is kept: a mode, chosen by who asks and for what.

`full`: all of it. `redacted`: personal data in bodies is replaced by placeholders before anything
reaches the database. `metadata`: no body; head, ending, sizes, and hashes that name its task.
`off`: nothing; it is counted. Credentials are removed in every mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from policies.setting import PolicyError, choice, list_of, optional, section, setting

Mode = Literal["full", "redacted", "metadata", "off"]

MODES: Final = ("full", "redacted", "metadata", "off")  # each keeps less
RECOGNISERS: Final = ("email", "phone", "card", "iban", "national_id", "ip", "person")


def _mode(value: Any, path: str) -> Mode:
    """YAML 1.1 reads a bare `off` as false."""
    return cast(Mode, choice("off" if value is False else value, path, MODES))


def _region(value: Any, path: str) -> str:
    """YAML 1.1 reads Norway as false."""
    if value is False:
        return "NO"
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{2}", value):
        raise PolicyError(path, value, "must be a country's two letters, e.g. US or DE")
    return value.upper()


def _tenant_pattern(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise PolicyError(path, value, "must be a tenant's name as text; '*' stands for anything")
    return value


def _path_pattern(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value.startswith(("/", "*")) or "?" in value:
        raise PolicyError(
            path, value, "must be a path without query, e.g. /v1/files or */chat/completions"
        )
    return value


@dataclass(frozen=True, slots=True)
class Rule:
    mode: Mode = setting(_mode, "mode of what it matches")
    tenant: str | None = setting(
        optional(_tenant_pattern), "of this tenant; `*` stands for any characters", None
    )
    path: str | None = setting(
        optional(_path_pattern),
        "of paths that begin with these segments, or that match as a whole where there is a `*`",
        None,
    )


def _rules(value: Any, path: str) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise PolicyError(path, value, "must be a list of rules, each with mode, tenant or path")
    found = tuple(section(Rule, item, f"{path}[{i}]") for i, item in enumerate(value))
    for index, rule in enumerate(found):
        if rule.tenant is None and rule.path is None:
            raise PolicyError(f"{path}[{index}]", value[index], "needs a tenant, a path or both")
    return found


@dataclass(frozen=True, slots=True)
class Privacy:
    mode: Mode = setting(_mode, "full, redacted, metadata or off; `rules` come first", "full")
    recognisers: tuple[str, ...] = setting(
        list_of(lambda value, path: choice(value, path, RECOGNISERS), "recognisers"),
        "personal data that is replaced in the mode redacted: " + ", ".join(RECOGNISERS),
        (),
    )
    region: str = setting(_region, "country of telephone numbers that name none", "US")
    rules: tuple[Rule, ...] = setting(
        _rules, "other modes by tenant and path, each {mode, tenant, path}; the first counts", ()
    )


def mode_for(privacy: Privacy, tenant: str | None, path: str) -> Mode:
    """`tenant`: None when nobody is named. `path`: as the app asked for it, without query."""
    for rule in privacy.rules:
        if _applies(rule, tenant, path):
            return rule.mode
    return privacy.mode


def stricter(one: Mode, other: Mode) -> Mode:
    """The one that keeps less."""
    return max(one, other, key=MODES.index)


def _applies(rule: Rule, tenant: str | None, path: str) -> bool:
    if rule.tenant is not None and (tenant is None or not _fits(rule.tenant, tenant)):
        return False
    if rule.path is None:
        return True
    return _fits(rule.path, path) if "*" in rule.path else _below(rule.path, path)


def _below(prefix: str, path: str) -> bool:
    """On whole segments: /v1/files owns /v1/files/x, not /v1/filesx."""
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(prefix + "/")


def _fits(pattern: str, text: str) -> bool:
    """All of the text, `*` for any characters. In one pass, whatever an app sends."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    last = rest.pop()
    end = len(text) - len(last)
    at = len(first)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in rest:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
