"""Langfuse: observations of type GENERATION.

They come with camelCase names from its API and its tables' exports, with snake_case ones and JSON
in strings from its blob storage export (langfuse.com/docs/api-and-data-platform/features/
blob-storage-export-fields), and inside a trace that was downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from store.imports import (
    FEATURES,
    SESSIONS,
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
    pages,
    parsed,
    said,
)
from store.values import Json, text_of

_NUMBERS: Final = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip
_OF_TRACES: Final = {"userId": "userId", "sessionId": "sessionId", "name": "traceName"}


def _fits(record: Json) -> bool:
    if isinstance(record.get("observations"), list):
        return True
    traced = "traceId" in record or "trace_id" in record
    return traced and "type" in record and ("startTime" in record or "start_time" in record)


def _split(record: Json) -> list[Json]:
    """Observations know of their trace what it was that asked."""
    observations = record.get("observations")
    if not isinstance(observations, list):
        return pages(record)
    trace = record["trace"] if isinstance(record.get("trace"), dict) else record
    told = {to: trace[name] for name, to in _OF_TRACES.items() if trace.get(name)}
    return [told | each for each in observations if isinstance(each, dict)]


def _read(record: Json) -> Imported:
    if record.get("type") != "GENERATION":
        raise NoExchange(f"of type {str(record.get('type'))[:40]}")
    if record.get("level") == "ERROR":
        raise NoExchange("a call that failed")
    metadata = object_of(record.get("metadata"))
    request = _request(record)
    at = moment(record.get("startTime") or record.get("start_time"))
    return Imported(
        known(request, said(record, ("userid", "user_id"))),
        _response(record, text_of(request.get("model")), at),
        source=said(record, ("id",)),
        at=at,
        tenant=said(metadata, TENANTS),
        feature=said(metadata, FEATURES) or said(record, ("tracename", "trace_name", "name")),
        session=said(record, SESSIONS) or said(metadata, SESSIONS),
    )


def _request(record: Json) -> Json:
    asked = parsed(record.get("input"))
    whole = asked if isinstance(asked, dict) else {"messages": asked}
    messages_of(whole.get("messages"), "input")
    model = said(record, ("providedmodelname", "provided_model_name", "model"))
    parameters = object_of(record.get("modelParameters") or record.get("model_parameters"))
    named = {} if model is None else {"model": model}
    return named | _numbers(parameters) | _tools(record, whole) | whole


def _numbers(parameters: Mapping[str, Any]) -> Json:
    """Those that decide an answer; an SDK writes numbers as text, and "inf" for no bound."""
    found = {}
    for name in _NUMBERS:
        value = _number(parameters.get(name))
        if value is not None:
            found[name] = value
    return found


def _number(value: object) -> int | float | None:
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) < 1e15 else None  # type: ignore[arg-type,return-value]


def _tools(record: Json, asked: Json) -> Json:
    """Its newer exports keep the tools apart: {name: definition as JSON}."""
    defined = object_of(record.get("toolDefinitions") or record.get("tool_definitions"))
    if "tools" in asked or not defined:
        return {}
    tools = [
        {"type": "function", "function": {"name": name} | object_of(definition)}
        for name, definition in defined.items()
    ]
    return {"tools": tools}


def _response(record: Json, model: str | None, at: float | None) -> Json:
    output = parsed(record.get("output"))
    whole = completion_of(output)
    if whole is not None:
        return whole
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    if isinstance(output, str) and output:
        output = {"role": "assistant", "content": output}
    if not isinstance(output, dict) or output.get("role", "assistant") != "assistant":
        raise Unusable("output: no message of an assistant")
    if not (output.keys() & {"content", "tool_calls", "function_call"}):
        raise Unusable("output: no message of an assistant")
    return completion({"role": "assistant"} | output, model, _usage(record), at=at)


def _usage(record: Json) -> Json | None:
    """As the API states it. Langfuse takes cached and reasoning tokens out of their wholes, and
    older versions don't: the total tells."""
    found = object_of(record.get("usageDetails") or record.get("usage_details"))
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    given, made, total = (counts.get(name) for name in ("input", "output", "total"))
    if given is None or made is None:
        return None
    into = {name: value for name, value in counts.items() if name.startswith("input_")}
    out = {name: value for name, value in counts.items() if name.startswith("output_")}
    apart = sum(into.values()) + sum(out.values())
    if apart and total == given + made + apart:
        given, made = given + sum(into.values()), made + sum(out.values())
    elif apart and total != given + made:
        return None
    usage: Json = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    if into:
        usage["prompt_tokens_details"] = _named(into, "input_")
    if out:
        usage["completion_tokens_details"] = _named(out, "output_")
    return usage


def _named(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """By the API's names: `input_cached_tokens` are `cached_tokens` there."""
    return {name.removeprefix(prefix): value for name, value in counts.items()}


LANGFUSE: Final = Format("langfuse", "exports of Langfuse", _fits, _read, _split)
