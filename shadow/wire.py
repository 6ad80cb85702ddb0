"""OpenAI's chat completion as the model process speaks it: request in, answers and refusals out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from policies import eligibility
from shadow.schema import unsupported

SHA256_HEADER: Final = "x-understudy-sha256"  # of the model that answered a shadow run
MARGIN_HEADER: Final = "x-understudy-margin"  # smallest top-2 logit margin in its answer
# The director's own words; never sent to a diverted request.
PREEMPTED: Final = "preempted"
_STATUS: Final = {"busy": 503, "disabled": 503, PREEMPTED: 503, "unsure": 422, "ineligible": 422}
_ROLES: Final = {"developer": "system"}  # chat templates know the older name only
_NO_TOKENS: Final = {"cached_tokens": 0, "audio_tokens": 0}
_NO_DETAILS: Final = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}


class Refusal(Exception):
    """The candidate does not answer this request; the caller takes it upstream."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        return _STATUS[self.code]

    @property
    def body(self) -> bytes:
        return error(self.message, "understudy_refusal", self.code)


def error(message: str, kind: str, code: str) -> bytes:
    return orjson.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks of the model. `limit`: most tokens, None = as many as are allowed.

    `schema`: JSON text of the schema the answer must follow, "{}" for any JSON object.
    """

    model: str
    messages: tuple[dict[str, str], ...]
    limit: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    schema: str | None = None
    stream: bool = False
    include_usage: bool = False


def parse(data: bytes, context: int, greedy: bool) -> Ask:
    """`greedy`: a shadow run, which must not depend on chance. Raises Refusal."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as fault:
        raise Refusal("ineligible", f"the request is not JSON: {fault}") from None
    if not isinstance(body, dict):
        raise Refusal("ineligible", "the request is not a JSON object")
    obstacle = eligibility.obstacle(body, context)
    if obstacle is not None:
        raise Refusal("ineligible", obstacle)
    return Ask(
        model=str(body.get("model") or ""),
        messages=tuple(_message(message) for message in body["messages"]),
        limit=_limit(body),
        temperature=0.0 if greedy else _number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0),
        seed=_whole(body, "seed"),
        stop=_stop(body.get("stop")),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        schema=_schema(body.get("response_format")),
        stream=body.get("stream") is True,
        include_usage=_include_usage(body.get("stream_options")),
    )


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    role = str(message["role"])
    text = eligibility.text_of(message.get("content"))
    return {"role": _ROLES.get(role, role), "content": text or ""}


def _limit(body: Mapping[str, Any]) -> int | None:
    given = [_whole(body, name) for name in ("max_completion_tokens", "max_tokens")]
    limits = [limit for limit in given if limit is not None]
    if any(limit < 1 for limit in limits):
        raise Refusal("ineligible", "max_tokens must be at least 1")
    return min(limits, default=None)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refusal("ineligible", f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise Refusal("ineligible", f"{name} must be a whole number")
    return value


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refusal("ineligible", "stop must be a text or a list of texts")
    return tuple(texts)


def _schema(wanted: Mapping[str, Any] | None) -> str | None:
    if wanted is None or wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return "{}"
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise Refusal("ineligible", "response_format.json_schema holds no schema")
    fault = unsupported(schema)
    if fault is not None:
        raise Refusal("ineligible", f"response_format: {fault}")
    return orjson.dumps(schema).decode()


def _include_usage(options: object) -> bool:
    return isinstance(options, dict) and options.get("include_usage") is True


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": _NO_TOKENS,
        "completion_tokens_details": _NO_DETAILS,
    }


@dataclass(frozen=True, slots=True)
class Voice:
    """What every part of one answer says of itself."""

    id: str
    created: int
    model: str

    def _base(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": "default",
            "system_fingerprint": None,
        }

    def completion(self, text: str, finish: str, used: dict[str, Any]) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return orjson.dumps({**self._base("chat.completion", [choice]), "usage": used})

    def chunk(self, delta: dict[str, Any], finish: str | None, ask: Ask) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        value = self._base("chat.completion.chunk", [choice])
        # OpenAI names usage in every chunk once it was asked for.
        return _event({**value, "usage": None} if ask.include_usage else value)

    def usage_chunk(self, used: dict[str, Any]) -> bytes:
        return _event({**self._base("chat.completion.chunk", []), "usage": used})


FIRST_DELTA: Final = {"role": "assistant", "content": "", "refusal": None}
DONE: Final = b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
