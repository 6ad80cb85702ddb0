"""Who asks, and for what: tenant, feature, user and session, from headers, body and key.

Each is taken from the first of its sources that says something. What an app says is data and no
more than that: it is cut to a bounded length, and holds no control characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, NamedTuple

from policies.setting import PolicyError, list_of, setting

PREFIX: Final = "x-understudy-"  # of request headers that are for us: never sent on
TENANT_HEADER: Final = "x-understudy-tenant"
TASK_HEADER: Final = "x-understudy-task"
SESSION_HEADER: Final = "x-understudy-session"
NO_STORE_HEADER: Final = "x-understudy-no-store"

LONGEST: Final = 200  # characters of a value
_HEADER: Final = "header:"
_METADATA: Final = "metadata."
_OWN_HEADERS: Final = ("openai-project", "openai-organization")
_FIELDS: Final = ("user", "safety_identifier", "prompt_cache_key", "conversation")
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
# What may be a credential is never written down as it is, whatever a policy says.
_CREDENTIAL: Final = re.compile(
    r"authorization|api-?key|cookie|token|secret|passw|credential|^proxy-|subscription-key"
    r"|sec-websocket-protocol"
)


def _source(value: Any, path: str) -> str:
    hint = (
        f"must be {_HEADER}<name>, {_METADATA}<name>, key, "
        f"{', '.join(_OWN_HEADERS)}, {', '.join(_FIELDS[:-1])} or {_FIELDS[-1]}"
    )
    if not isinstance(value, str):
        raise PolicyError(path, value, hint)
    if value == "key" or value in _OWN_HEADERS or value in _FIELDS:
        return value
    if value.startswith(_HEADER) and _NAME.fullmatch(name := value.removeprefix(_HEADER)):
        if _CREDENTIAL.search(name.lower()):
            raise PolicyError(path, value, "may carry a credential, which is never kept")
        return value.lower()
    if value.startswith(_METADATA) and value != _METADATA:
        return value
    raise PolicyError(path, value, hint)


_sources: Final = list_of(_source, "sources")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where each is looked for, in this order. Values of headers named here are kept readable."""

    tenant: tuple[str, ...] = setting(
        _sources, "whose traffic it is", (_HEADER + TENANT_HEADER, "openai-project", "key")
    )
    feature: tuple[str, ...] = setting(
        _sources,
        "the app's part that asks",
        (_HEADER + TASK_HEADER, "metadata.feature", "metadata.task"),
    )
    user: tuple[str, ...] = setting(_sources, "for whom it asks", ("safety_identifier", "user"))
    session: tuple[str, ...] = setting(
        _sources,
        "what the call is a part of",
        (_HEADER + SESSION_HEADER, "header:x-session-id", "metadata.session_id", "conversation"),
    )


class Identity(NamedTuple):
    """None: nobody said. `task`: the name that the app gave it by header."""

    tenant: str | None = None
    feature: str | None = None
    user: str | None = None
    session: str | None = None
    task: str | None = None


_NOBODY: Final = Identity()


def identify(
    headers: Mapping[str, str], body: Mapping[str, Any] | None, key: str | None, sources: Sources
) -> Identity:
    """`headers`: by lower-case name, as latin-1. `body`: the request's, parsed. `key`: its hash."""
    names, fields_, of_key = _looked_for(sources)
    if not of_key and names.isdisjoint(headers) and (body is None or fields_.isdisjoint(body)):
        return _NOBODY
    return Identity(
        _first(sources.tenant, headers, body, key),
        _first(sources.feature, headers, body, key),
        _first(sources.user, headers, body, key),
        _first(sources.session, headers, body, key),
        _header(headers[TASK_HEADER]) if TASK_HEADER in headers else None,
    )


@cache
def _looked_for(sources: Sources) -> tuple[frozenset[str], frozenset[str], bool]:
    """Headers, fields of the body, and whether it is the key: most calls have none of them."""
    places = [place for each in fields(sources) for place in _split(getattr(sources, each.name))]
    body = {"metadata" if where == _METADATA else name for where, name in places}
    wheres = {where for where, _ in places}
    return header_names(sources) | {TASK_HEADER}, frozenset(body), "key" in wheres


def tenant_of(headers: Mapping[str, str], key: str | None, sources: Sources) -> str | None:
    """The tenant before there is a body."""
    return _first(sources.tenant, headers, None, key)


def header_names(sources: Sources) -> frozenset[str]:
    """Headers that any of the sources names, in lower case."""
    every = [place for each in fields(sources) for place in _split(getattr(sources, each.name))]
    return frozenset(name for where, name in every if where == _HEADER)


def _first(
    sources: tuple[str, ...],
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None,
    key: str | None,
) -> str | None:
    for where, name in _split(sources):
        if where == _HEADER:
            found = _header(headers[name]) if name in headers else None
        elif where == "key":
            found = key
        elif body is None:
            continue
        elif where == _METADATA:
            metadata = body.get("metadata")
            found = _clean(metadata.get(name)) if isinstance(metadata, Mapping) else None
        else:
            value = body.get(name)
            # A conversation may be an object.
            found = _clean(value.get("id") if isinstance(value, Mapping) else value)
        if found is not None:
            return found
    return None


@cache
def _split(sources: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each as where to look, and for what: it is asked for with every exchange."""
    return tuple(_place(source) for source in sources)


def _place(source: str) -> tuple[str, str]:
    for prefix in (_HEADER, _METADATA):
        if source.startswith(prefix):
            return prefix, source.removeprefix(prefix)
    if source in _OWN_HEADERS:
        return _HEADER, source
    return ("key" if source == "key" else ""), source


def _header(value: str) -> str | None:
    """The same text as in a body: what was sent as UTF-8 is read as UTF-8."""
    if not value.isascii():
        try:
            value = value.encode("latin-1").decode()
        except ValueError:
            pass  # latin-1 it is
    return _clean(value)


def _clean(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    text = value[: 4 * LONGEST].strip()[:LONGEST]
    if not text.isprintable():  # lone surrogates are not, either
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text or None
