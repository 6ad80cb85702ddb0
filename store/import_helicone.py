"""Helicone: what its export tool writes (--include-body), and pages of its request API.

A record is a `HeliconeRequest`: `request_id`, `request_created_at`, `request_body`,
`response_body`, `response_status`, `request_properties`, `request_user_id`, `provider`.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from store.imports import (
    FEATURES,
    OPENAI_HOST,
    SESSIONS,
    TENANTS,
    Format,
    Imported,
    NoExchange,
    Unusable,
    completion_of,
    known,
    messages_of,
    moment,
    object_of,
    parsed,
    said,
    status_of,
)
from store.values import Json

_NO_CACHE: Final = (None, "", "00000000-0000-0000-0000-000000000000")
_SESSION: Final = ("helicone-session-id", *SESSIONS)
_FEATURE: Final = (*FEATURES, "helicone-prompt-id", "helicone-session-name")
_BAD: Final = 400


def _fits(record: Json) -> bool:
    return "request_body" in record and ("request_id" in record or "response_id" in record)


def _read(record: Json) -> Imported:
    _refuse_others(record)
    status = status_of(record.get("response_status"))
    if status is None:
        raise NoExchange("a call without an answer")
    request = object_of(record.get("request_body"))
    messages_of(request.get("messages"), "request_body")
    properties = object_of(record.get("request_properties"))
    return Imported(
        known(request, record.get("request_user_id")),
        _response(record, status),
        source=said(record, ("request_id", "response_id")),
        at=moment(record.get("request_created_at")),
        status=status,
        host=_host(record),
        tenant=said(properties, TENANTS),
        feature=said(properties, _FEATURE),
        session=said(properties, _SESSION),
    )


def _refuse_others(record: Json) -> None:
    if record.get("cache_reference_id") not in _NO_CACHE:
        raise NoExchange("out of a cache")
    path = urlsplit(str(record.get("request_path") or "")).path
    asked = object_of(record.get("request_body"))
    if not asked or "helicone_message" in asked:
        raise Unusable("request_body: not in the file (export with --include-body)")
    if (path and not path.endswith("/chat/completions")) or "messages" not in asked:
        raise NoExchange("no chat completion")


def _response(record: Json, status: int) -> Json:
    """Of a call that the API refused, the error."""
    found = parsed(record.get("response_body"))
    whole = completion_of(found)
    if whole is not None:
        return {name: value for name, value in whole.items() if name != "streamed_data"}
    if status >= _BAD and isinstance(found, dict) and "error" in found:
        return found
    raise Unusable("response_body: no chat completion")


def _host(record: Json) -> str | None:
    try:
        host = urlsplit(str(record.get("request_path") or "")).hostname
    except ValueError:
        host = None
    return host or (OPENAI_HOST if record.get("provider") == "OPENAI" else None)


HELICONE: Final = Format("helicone", "exports of Helicone", _fits, _read)
