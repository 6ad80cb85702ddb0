"""Which task a request belongs to, and which request it is: two hashes over what was asked.

A *task* is the set of requests that do the same job. For now it is a fingerprint of endpoint,
model, system prompt, tool names and response format. A *distinct request* is one whose messages and
sampling-independent settings differ: evidence counts each once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import orjson

_DIGITS: Final = 32  # of SHA-256, which processors have built in
_SYSTEM_ROLES: Final = ("system", "developer")
# What decides the answer; sampling settings, ids and transport options do not.
_ASKED: Final = ("messages", "tools", "tool_choice", "functions", "function_call",
                 "response_format", "max_tokens", "max_completion_tokens", "stop")  # fmt: skip


def _hash(value: object) -> str:
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def system_prompt(body: dict[str, Any]) -> list[Any]:
    """Contents of the leading system and developer messages, in order."""
    contents = []
    for message in _messages(body):
        if message.get("role") not in _SYSTEM_ROLES:
            break
        contents.append(message.get("content"))
    return contents


def task_id(endpoint: str, body: dict[str, Any]) -> str:
    """The task's fingerprint: 32 hex digits."""
    return _hash(
        (
            endpoint,
            body.get("model"),
            system_prompt(body),
            _tool_names(body),
            body.get("response_format"),
        )
    )


def request_hash(body: dict[str, Any]) -> str:
    """Equal for requests that ask the same: 32 hex digits."""
    return _hash({key: body[key] for key in _ASKED if key in body})


def conversation_root(body: dict[str, Any]) -> str:
    """The same for every turn of a conversation: up to and with its first user message."""
    root = []
    for message in _messages(body):
        root.append((message.get("role"), message.get("content")))
        if message.get("role") == "user":
            break
    return _hash(root)


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    return [message for message in messages if isinstance(message, dict)]


def _tool_names(body: dict[str, Any]) -> list[object]:
    tools = body.get("tools")
    if not isinstance(tools, list):
        return []
    return [_tool_name(tool) for tool in tools if isinstance(tool, dict)]


def _tool_name(tool: dict[str, Any]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("type")
