"""LiteLLM: rows of its spend logs, what it logs to buckets, and its older bucket logs.

Shapes: `StandardLoggingPayload` (docs.litellm.ai/docs/proxy/logging_spec), the table
`LiteLLM_SpendLogs`, whose JSON columns may come as strings, and {"request_kwargs": ...,
"response_obj": ...}. Bodies are there only if LiteLLM was told to store them.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from store.imports import (
    FEATURES,
    TENANTS,
    Format,
    Imported,
    NoExchange,
    Unusable,
    completion,
    completion_of,
    known,
    messages_of,
    moment,
    object_of,
    parsed,
    said,
)
from store.values import Json, text_of

_CHATS: Final = ("completion", "acompletion")
_FAILED: Final = ("failure", "error")
_TAG_OF_ITS_OWN: Final = ("User-Agent:", "Credential:")
# Parameters that go to LiteLLM and no API, or that may carry a key.
_NOT_SENT: Final = frozenset(
    ("extra_body", "extra_headers", "max_retries", "api_key", "api_base", "model", "messages")
)


def _fits(record: Json) -> bool:
    logged = "call_type" in record and ("startTime" in record or "request_id" in record)
    return logged or ("request_kwargs" in record and "response_obj" in record)


def _read(record: Json) -> Imported:
    if "request_kwargs" in record:
        return _older(record)
    _refuse_others(record)
    metadata = object_of(record.get("metadata"))
    own = metadata | object_of(metadata.get("requester_metadata"))
    response = _response(record)
    return Imported(
        known(_request(record), record.get("end_user")),
        response,
        source=said(record, ("request_id", "id")),
        at=moment(record.get("startTime")),
        host=_host(record.get("api_base")),
        tenant=said(own, (*TENANTS, "user_api_key_team_alias", "user_api_key_team_id"))
        or said(record, ("team_id",)),
        feature=said(own, FEATURES) or _tag(record.get("request_tags")),
        session=said(record, ("session_id", "trace_id")),
    )


def _refuse_others(record: Json) -> None:
    kind = record.get("call_type")
    if kind not in _CHATS:
        raise NoExchange(f"call_type {str(kind)[:40]!r}")
    if record.get("status") in _FAILED:
        raise NoExchange("a call that failed")
    if str(record.get("cache_hit")).lower() == "true":
        raise NoExchange("out of a cache")


def _request(record: Json) -> Json:
    sent = object_of(record.get("proxy_server_request"))
    sent = object_of(sent.get("body")) or sent
    if isinstance(sent.get("messages"), list):
        messages_of(sent["messages"], "proxy_server_request")
        kept = ("model", "messages")
        return {name: sent[name] for name in sent if name in kept or name not in _NOT_SENT}
    found = parsed(record.get("messages"))
    if isinstance(found, dict):
        found = found.get("messages")
    if not found or isinstance(found, str):
        raise Unusable("messages: not stored (store_prompts_in_spend_logs, or message logging)")
    return _asked(record, messages_of(found, "messages"), record.get("model_parameters"))


def _asked(record: Json, messages: list[Json], parameters: object) -> Json:
    """With the model's name as its provider knows it."""
    model = text_of(record.get("model"))
    if model is not None:
        model = model.removeprefix(f"{text_of(record.get('custom_llm_provider'))}/")
    asked = {"model": model, "messages": messages} | {
        name: value for name, value in object_of(parameters).items() if name not in _NOT_SENT
    }
    return {name: value for name, value in asked.items() if value is not None}


def _response(record: Json) -> Json:
    found = parsed(record.get("response"))
    whole = completion_of(found)
    if whole is not None:
        return whole
    if not isinstance(found, str) or not found or found.startswith("redacted-by"):
        raise Unusable("response: no chat completion")
    usage = {name: record.get(name) for name in ("prompt_tokens", "completion_tokens")}
    counted = all(isinstance(value, int) for value in usage.values()) and any(usage.values())
    return completion(
        {"role": "assistant", "content": found},
        text_of(record.get("model")),
        usage if counted else None,
        at=moment(record.get("startTime")),
    )


def _older(record: Json) -> Imported:
    asked: dict[str, Any] = object_of(record["request_kwargs"])
    response = completion_of(record["response_obj"])
    if response is None:
        raise Unusable("response_obj: no chat completion")
    messages = messages_of(asked.get("messages"), "request_kwargs")
    parameters = asked.get("optional_params")
    return Imported(
        _asked(asked, messages, parameters),
        response,
        source=said(response, ("id",)),
        at=moment(record.get("start_time")),
    )


def _host(base: object) -> str | None:
    try:
        return urlsplit(base).hostname if isinstance(base, str) else None
    except ValueError:
        return None


def _tag(tags: object) -> str | None:
    """The first that a client gave; some LiteLLM gives itself."""
    found = parsed(tags)
    for tag in found if isinstance(found, list) else ():
        if isinstance(tag, str) and tag and not tag.startswith(_TAG_OF_ITS_OWN):
            return tag
    return None


LITELLM: Final = Format("litellm", "spend logs and bucket logs of LiteLLM", _fits, _read)
