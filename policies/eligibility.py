"""May a chat request be answered by a candidate at all? `None`, or the reason why not.

The list is what a local model can't do faithfully: state held at OpenAI, hosted tools, token ids
of another tokenizer, several choices, sound and pictures. What we do not know we do not touch.
"""

from __future__ import annotations

from typing import Any, Final

_KNOWN: Final = frozenset(
    """model messages stream stream_options temperature top_p seed stop max_tokens
    max_completion_tokens frequency_penalty presence_penalty response_format n user
    safety_identifier metadata store service_tier prompt_cache_key prompt_cache_retention
    reasoning_effort verbosity parallel_tool_calls modalities logprobs top_logprobs""".split()
)
_RESPONSE_FORMATS: Final = ("text", "json_object", "json_schema")
# A token of English is about four characters, of code or digits about one and a half. This guard
# only keeps hopeless prompts away; the model process counts tokens exactly, and refuses.
_CHARACTERS_PER_TOKEN: Final = 8


def obstacle(body: dict[str, Any], context: int) -> str | None:
    """Why a candidate with `context` tokens must not answer `body`; None when it may."""
    unknown = next((key for key in body if key not in _KNOWN and body[key] is not None), None)
    if unknown is not None:
        return f"field:{unknown}"
    return _settings(body) or _messages(body.get("messages"), context)


def _settings(body: dict[str, Any]) -> str | None:
    if body.get("n") not in (None, 1):
        return "n>1"
    if body.get("store"):
        return "store"
    if body.get("modalities") not in (None, ["text"]):
        return "modalities"
    if body.get("logprobs") or body.get("top_logprobs"):
        return "logprobs"
    wanted = body.get("response_format")
    if wanted is not None and (
        not isinstance(wanted, dict) or wanted.get("type") not in _RESPONSE_FORMATS
    ):
        return "response_format"
    return None


def _messages(messages: object, context: int) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages"
    size = 0
    for message in messages:
        if not isinstance(message, dict) or message.get("tool_calls"):
            return "tool_calls"
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            return f"role:{message.get('role')}"
        text = text_of(message.get("content"))
        if text is None:
            return "content_parts"
        size += len(text)
    return "too_long" if size > context * _CHARACTERS_PER_TOKEN else None


def text_of(content: object) -> str | None:
    """A message's content as text; None when it holds anything but text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            return None
        if not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "".join(texts)
