"""What two answers of a real upstream may differ in, though nobody touched them."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from bin.wire_read import Message
from store.decode import decode

MASKED: Final = (
    "values of date, age, set-cookie, x-request-id, openai-processing-ms, "
    "x-envoy-upstream-service-time, x-ratelimit-*, cf-ray, cf-cache-status, report-to: by presence",
    "in JSON: ids, times, fingerprints by type; the order of listed objects not at all; "
    "Content-Length of JSON not at all",
    "answers that a model wrote (--spend): the shape of the JSON or of the events, not the words",
    "when events came: not judged, for the upstream paces each answer anew",
    "the request as the upstream gets it: not seen; run without --upstream for that",
)
_NAMES: Final = frozenset(
    b"""date age set-cookie x-request-id openai-processing-ms x-envoy-upstream-service-time cf-ray
    cf-cache-status report-to content-length""".split()
)
_KEYS: Final = re.compile(
    r"(.*_)?id|created|.*_at|system_fingerprint|obfuscation|.*_time|timings|.*_ms"
)
_IDS: Final = re.compile(r"\b(req|resp|msg|run|chatcmpl)[-_][A-Za-z0-9]+\b")


def masked_names(masked: bool, generated: bool) -> frozenset[bytes]:
    """Headers, in lower case, whose values are not compared."""
    return _NAMES if masked or generated else frozenset()


def masked_body(message: Message, generated: bool) -> bytes:
    """What of a reply's body is the same each time, if nobody touched it."""
    encoding = b",".join(message.all(b"content-encoding")).decode("latin-1")
    body = decode(message.body, encoding).data
    if body is None:
        return message.body
    kind = b",".join(message.all(b"content-type")).lower()
    if b"event-stream" in kind:
        lines = [line for line in body.split(b"\n") if line.strip()]
        shapes = [_line(line, generated) for line in lines]
        return b"\n".join(dict.fromkeys(shapes) if generated else shapes)
    return _json(body, generated)


def _line(line: bytes, generated: bool) -> bytes:
    name, colon, value = line.partition(b":")
    return name + colon + _json(value, generated)


def _json(data: bytes, generated: bool) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return data
    return json.dumps(_mask(value, generated)).encode()


def _mask(value: Any, generated: bool) -> Any:
    if isinstance(value, dict):
        found = {key: _member(key, item, generated) for key, item in value.items()}
        if value.get("object") == "list" and isinstance(found.get("data"), list):
            found["data"].sort(key=json.dumps)
        return found
    if isinstance(value, list):
        items = [_mask(item, generated) for item in value]
        return [] if generated and not any(isinstance(i, dict | list) for i in items) else items
    if isinstance(value, str):
        return "str" if generated else _IDS.sub(r"\1-", value)
    return type(value).__name__ if generated else value


def _member(key: str, value: Any, generated: bool) -> Any:
    simple = not isinstance(value, dict | list)
    return type(value).__name__ if simple and _KEYS.fullmatch(key) else _mask(value, generated)
