"""OpenPipe: its export of request logs, and what its SDKs report.

Export: {"input": <request>, "output": <chat completion>, "tags": {...}}
(docs.openpipe.ai/features/request-logs/exporting-logs). Report: {"reqPayload": ..., "respPayload":
..., "requestedAt": <milliseconds>, "statusCode": ..., "tags": {...}}. Its data sets are OpenAI's
format for fine-tuning.
"""

from __future__ import annotations

from typing import Final

from store.imports import (
    FEATURES,
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
    said,
    status_of,
)
from store.values import Json

_FEATURE: Final = (*FEATURES, "prompt_id")
_USER: Final = ("user_id", "userid")
_OWN_MODEL: Final = "openpipe:"
_OWN_HOST: Final = "app.openpipe.ai"


def _fits(record: Json) -> bool:
    exported = isinstance(record.get("input"), dict) and "output" in record
    return exported or "reqPayload" in record


def _read(record: Json) -> Imported:
    request = object_of(record.get("input", record.get("reqPayload")))
    if not request:
        raise Unusable("input: no request")
    messages_of(request.get("messages"), "input")
    response = completion_of(record.get("output", record.get("respPayload")))
    if response is None:
        raise NoExchange("a call that failed")
    tags = object_of(request.get("metadata")) | object_of(record.get("tags"))
    model = str(request.get("model"))
    return Imported(
        known(request, said(tags, _USER)),
        response,
        source=said(response, ("id",)),
        at=moment(record.get("requestedAt")) or moment(response.get("created")),
        status=status_of(record.get("statusCode")) or 200,
        host=_OWN_HOST if model.startswith(_OWN_MODEL) else None,
        tenant=said(tags, TENANTS),
        feature=said(tags, _FEATURE),
        session=said(tags, SESSIONS),
    )


OPENPIPE: Final = Format("openpipe", "request logs of OpenPipe", _fits, _read)
