"""Exchanges out of the files of other tools: what the reader of a format gives, and how it says no.

A format knows the ids that its tool gave, so that to import a file twice changes nothing. Nothing
is made up: what a file does not say (times, usage, the API that was called) stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import orjson

from store.values import Json

PATH: Final = "/v1/chat/completions"
OPENAI_HOST: Final = "api.openai.com"

_FIRST_MOMENT: Final = 1e9  # 2001: what is before is no time of a call
_LAST_MOMENT: Final = 4e9
_MILLISECONDS: Final = 1e11  # what is above counts them
_DIGEST_BYTES: Final = 16
_VERSION: Final = 0x8  # RFC 9562, section 5.8
_VARIANT: Final = 0x2


class Unusable(ValueError):
    """A record that should be an exchange, and can't be read as one. The message says why."""


class NoExchange(ValueError):
    """A record of something that is not taken: a span, an embedding, an answer out of a cache."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One chat. `source`: the id that its tool gave it; None: it is known by what it says. `at`:
    seconds since the epoch; None: the format has no times. `host`: of the API, None if unknown."""

    request: Json
    response: Json
    source: str | None = None
    at: float | None = None
    status: int = 200
    host: str | None = None
    tenant: str | None = None
    feature: str | None = None
    session: str | None = None
    request_id: str | None = None  # the upstream's


def pages(record: Json) -> list[Json]:
    """The records in a page of a list, as APIs answer; any other is one itself."""
    found = record.get("data")
    if isinstance(found, list) and "id" not in record:
        return [each for each in found if isinstance(each, dict)]
    return [record]


@dataclass(frozen=True, slots=True)
class Format:
    """`fits`: is that a record of it? `read` raises Unusable and NoExchange. `host`: of the API
    that all of them went to, where the format says so."""

    name: str
    title: str
    fits: Callable[[Json], bool]
    read: Callable[[Json], Imported]
    split: Callable[[Json], list[Json]] = pages
    host: str | None = None


def exchange_id(
    key: bytes, format_: str, found: Imported, request: bytes, response: bytes
) -> bytes:
    """A UUIDv8, the same for the same exchange in this installation.

    It begins with the time, as others do, if its file says one. A file's own time is none: it
    changes when the file is copied.
    """
    said = [format_, found.source] if found.source is not None else [""]
    digest = blake2b("\0".join(said).encode(), key=key, digest_size=_DIGEST_BYTES)
    if found.source is None:
        digest.update(len(request).to_bytes(8, "big") + request + response)
    bits = int.from_bytes(digest.digest(), "big")
    if found.at is not None:
        bits = int(found.at * 1000) << 80 | bits & (1 << 80) - 1
    bits = bits & ~(0xF << 76 | 0x3 << 62) | _VERSION << 76 | _VARIANT << 62
    return bits.to_bytes(16, "big")


# -- for the readers


def moment(value: object) -> float | None:
    """Seconds since the epoch, from seconds, milliseconds or ISO 8601 (without a zone: UTC)."""
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        value = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    seconds = value / 1000 if value >= _MILLISECONDS else float(value)
    return seconds if _FIRST_MOMENT <= seconds < _LAST_MOMENT else None


def parsed(value: object) -> Any:
    """JSON inside a string, as it lies in columns of databases; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except ValueError:
            return value
    return value


def object_of(value: object) -> Json:
    """What is no object, even inside a string, is an empty one."""
    found = parsed(value)
    return found if isinstance(found, dict) else {}


def messages_of(value: object, where: str) -> list[Json]:
    """A chat's messages, at least one. Raises Unusable, which names `where`."""
    if not isinstance(value, list) or not value:
        raise Unusable(f"{where}: no messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Unusable(f"{where}: a message without a role")
    return value


def completion_of(value: object) -> Json | None:
    """A chat completion; None for anything else."""
    found = parsed(value)
    if not isinstance(found, dict):
        return None
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    told = isinstance(first, dict) and isinstance(first.get("message"), dict)
    return found if told else None


def completion(
    message: Json,
    model: str | None = None,
    usage: Json | None = None,
    identity: str | None = None,
    at: float | None = None,
) -> Json:
    """The answer around a message that a format keeps without it."""
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    if message.get("function_call"):
        finish = "function_call"
    around: Json = {"id": identity, "object": "chat.completion"}
    around |= {"created": None if at is None else int(at), "model": model}
    around |= {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    around |= {"usage": usage}
    return {name: value for name, value in around.items() if value is not None}


def said(mapping: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these that is there, as text, in whatever case it is written."""
    lower = {name.lower(): value for name, value in mapping.items()}
    for name in names:
        value = lower.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


TENANTS: Final = ("tenant", "tenant_id", "tenantid")
FEATURES: Final = ("feature", "task")
SESSIONS: Final = ("session_id", "sessionid", "session")


def known(request: Json, user: object) -> Json:
    """With who asked, where the request itself says nothing of it."""
    if isinstance(user, str) and user and not request.get("user"):
        return request | {"user": user}
    return request


def status_of(value: object) -> int | None:
    """An HTTP status that an answer may have."""
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and 200 <= value < 600 else None  # type: ignore[operator,return-value]
