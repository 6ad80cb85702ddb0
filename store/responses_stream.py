"""A response out of its events.

The last event of a stream holds the whole response, usage and all. Where that did not come, because
someone hung up or something broke, the response is put together from the parts that did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from store.messages import Assembled, Json, Messages, Text, index_of, plain, said

_FINAL: Final = ("response.completed", "response.incomplete", "response.failed")
_HEADS: Final = ("response.created", "response.queued", "response.in_progress")


def response(messages: Messages) -> Assembled:
    final: Json | None = None
    failed: str | None = None
    parts = _Parts()
    for message in messages:
        kind, whole = message.get("type"), message.get("response")
        if kind in _FINAL and isinstance(whole, dict):
            final = whole
            failed = _failure(whole) if kind == "response.failed" else None
        elif isinstance(kind, str) and final is None:
            parts.events.append(message)
    error = messages.error or failed
    if final is not None:
        if final.get("output") is None and parts.events:
            final |= {"output": (parts.body() or {}).get("output", [])}
        return Assembled(final, error is None, error)
    body = parts.body()
    note = None if body is not None else "the stream had no response event"
    return Assembled(body, False, error, note)


def _failure(whole: Json) -> str:
    return f"stream: {said(whole)}" if whole.get("error") else "stream: the response failed"


class _Parts:
    """Events as they came; read only when there is no final one."""

    def __init__(self) -> None:
        self.events: list[Json] = []

    def body(self) -> Json | None:
        head: Json = {}
        items: dict[int, Json] = {}
        known = 0
        for event in self.events:
            kind = event["type"]
            if kind in _HEADS and isinstance(event.get("response"), dict):
                head |= event["response"]
            elif (add := _ADD.get(kind)) is not None:
                add(items, event)
            elif (state := _STATES.get(kind.rpartition(".")[2])) is not None:
                place = items.get(index_of(event, "output_index", -1))
                if place is not None and "status" in place:
                    place["status"] = state
            else:
                continue
            known += 1
        if not known:
            return None
        return head | {"output": [plain(items[at]) for at in sorted(items)]}


# What a call in progress says of itself: response.web_search_call.searching and the like.
_STATES: Final = {
    state: state
    for state in ("in_progress", "searching", "interpreting", "generating", "completed", "failed")
}
Adder = Callable[[dict[int, Json], Json], None]


def _item(items: dict[int, Json], event: Json, kind: str) -> Json:
    """The item that an event belongs to; one whose beginning was missed begins here."""
    at = index_of(event, "output_index")
    item = items.get(at)
    if item is None:
        identity = {"id": event["item_id"]} if isinstance(event.get("item_id"), str) else {}
        item = items[at] = identity | {"type": kind}
        if kind == "message":
            item |= {"role": "assistant", "status": "in_progress", "content": []}
    return item


def _place(target: Json, key: str, at: int, new: Json) -> Json:
    """The object at a place of a list in `target`; made if it is not there."""
    found = target.get(key)
    if not isinstance(found, list):
        found = target[key] = []
    if at >= len(found):
        found.append(dict(new))
        return _dict(found, len(found) - 1)
    return _dict(found, at)


def _dict(found: list[Any], at: int) -> Json:
    if not isinstance(found[at], dict):
        found[at] = {}
    result: Json = found[at]
    return result


def _append(target: Json, key: str, delta: object) -> None:
    if not isinstance(delta, str):
        return
    known = target.get(key)
    if isinstance(known, Text):
        known.pieces.append(delta)
    else:
        target[key] = Text(known, delta) if isinstance(known, str) and known else Text(delta)


def _take_item(items: dict[int, Json], event: Json) -> None:
    if isinstance(event.get("item"), dict):
        items[index_of(event, "output_index")] = event["item"]


def _part_of(key: str, index: str, kind: str) -> Adder:
    """A part of an item begins, or is told whole."""

    def add(items: dict[int, Json], event: Json) -> None:
        if isinstance(event.get("part"), dict):
            part = _place(_item(items, event, kind), key, index_of(event, index), {})
            part.clear()
            part.update(event["part"])

    return add


def _text_of(kind: str, path: tuple[str, str, str] | None, field: str, delta: bool) -> Adder:
    """A text of an item, in pieces (`delta`) or whole.

    `path`: the list in the item that holds the part with this text, the event's field with the
    part's place, and the part's type. None: the text is the item's own.
    """
    source = "delta" if delta else field

    def add(items: dict[int, Json], event: Json) -> None:
        target = _item(items, event, kind)
        if path is not None:
            key, index, part = path
            target = _place(target, key, index_of(event, index), {"type": part})
        if not delta:
            if isinstance(event.get(source), str):
                target[field] = event[source]
            return
        _append(target, field, event.get(source))
        odds = event.get("logprobs")
        if odds and isinstance(odds, list):
            known = target.get("logprobs")
            target["logprobs"] = [*known, *odds] if isinstance(known, list) else odds

    return add


def _annotate(items: dict[int, Json], event: Json) -> None:
    if isinstance(event.get("annotation"), dict):
        item = _item(items, event, "message")
        part = _place(item, "content", index_of(event, "content_index"), {"type": "output_text"})
        note = _place(part, "annotations", index_of(event, "annotation_index"), {})
        note |= event["annotation"]


def _command(items: dict[int, Json], event: Json) -> None:
    """The commands of a shell call are plain texts in a list."""
    action = _item(items, event, "shell_call").setdefault("action", {})
    if not isinstance(action, dict):
        return
    commands = action.setdefault("commands", [])
    if not isinstance(commands, list):
        return
    at = index_of(event, "command_index")
    if at >= len(commands):
        at = len(commands)
        commands.append("")
    whole, delta = event.get("command"), event.get("delta")
    if isinstance(whole, str):
        commands[at] = whole
    elif isinstance(delta, str):
        known = commands[at]
        commands[at] = Text(*(known.pieces if isinstance(known, Text) else [known]), delta)


def _output(items: dict[int, Json], event: Json) -> None:
    """What a shell said, by command: whole outputs, or stdout and stderr in pieces."""
    item = _item(items, event, "shell_call_output")
    whole, delta = event.get("output"), event.get("delta")
    if isinstance(whole, list):
        item["output"] = whole
    elif isinstance(delta, dict):
        said = _place(item, "output", index_of(event, "command_index"), {})
        for key, value in delta.items():
            _append(said, key, value)


_CONTENT: Final = ("content", "content_index", "output_text")
_REFUSAL: Final = ("content", "content_index", "refusal")
_THOUGHT: Final = ("content", "content_index", "reasoning_text")
_SUMMARY: Final = ("summary", "summary_index", "summary_text")
# Each family of text: its events' name, the item's type, where in the item, the field's name.
_TEXTS: Final[tuple[tuple[str, str, tuple[str, str, str] | None, str], ...]] = (
    ("output_text", "message", _CONTENT, "text"),
    ("refusal", "message", _REFUSAL, "refusal"),
    ("reasoning_text", "reasoning", _THOUGHT, "text"),
    ("reasoning_summary_text", "reasoning", _SUMMARY, "text"),
    ("function_call_arguments", "function_call", None, "arguments"),
    ("mcp_call_arguments", "mcp_call", None, "arguments"),
    ("custom_tool_call_input", "custom_tool_call", None, "input"),
    ("code_interpreter_call_code", "code_interpreter_call", None, "code"),
)
_ADD: Final[dict[str, Adder]] = {
    "response.output_item.added": _take_item,
    "response.output_item.done": _take_item,
    "response.content_part.added": _part_of("content", "content_index", "message"),
    "response.content_part.done": _part_of("content", "content_index", "message"),
    "response.reasoning_summary_part.added": _part_of("summary", "summary_index", "reasoning"),
    "response.reasoning_summary_part.done": _part_of("summary", "summary_index", "reasoning"),
    "response.output_text.annotation.added": _annotate,
    "response.shell_call_command.added": _command,
    "response.shell_call_command.delta": _command,
    "response.shell_call_command.done": _command,
    "response.shell_call_output_content.delta": _output,
    "response.shell_call_output_content.done": _output,
} | {
    f"response.{name}.{'delta' if delta else 'done'}": _text_of(kind, path, field, delta)
    for name, kind, path, field in _TEXTS
    for delta in (True, False)
}
