"""Which JSON schemas the grammar of the engine enforces in full.

llama.cpp's translation drops what it does not know without a word, and the answer then breaks a
promise that the upstream keeps. What is not on this list goes upstream.
"""

from __future__ import annotations

from typing import Any, Final

_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES: Final = frozenset(("title", "description", "default", "examples", "$schema"))
_KEYWORDS: Final = _NOTES | {
    "type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
    "enum", "const", "anyOf", "$ref", "$defs", "definitions",
}  # fmt: skip
_CONTAINERS: Final[dict[str, type[dict[str, object]] | type[list[object]]]] = {
    "anyOf": list,
    "properties": dict,
    "$defs": dict,
    "definitions": dict,
}
_DEEPEST: Final = 32


def unsupported(schema: object, depth: int = 0) -> str | None:
    """What in `schema` the grammar can't enforce; None when it enforces all of it."""
    if not isinstance(schema, dict):
        return "a schema must be an object"
    if depth > _DEEPEST:
        return f"nested over {_DEEPEST} deep"
    unknown = next((key for key in schema if key not in _KEYWORDS), None)
    if unknown is not None:
        return f"keyword {unknown!r} is not supported"
    return _own(schema) or _nested(schema, depth)


def _own(schema: dict[str, Any]) -> str | None:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if any(each not in (None, *_TYPES) for each in kinds):
        return f"type {kind!r} is not supported"
    if isinstance(kind, list) and ("object" in kind or "array" in kind):
        return "an object or array among several types is not supported"
    if isinstance(kind, list) and "enum" in schema:
        return "enum with several types is not supported"
    reference = schema.get("$ref")
    if reference is not None and not str(reference).startswith(("#/$defs/", "#/definitions/")):
        return f"$ref {reference!r} is not supported"
    if not isinstance(schema.get("additionalProperties", False), bool):
        return "additionalProperties with a schema is not supported"
    alone = next((key for key in ("anyOf", "$ref") if key in schema), None)
    if alone is not None and not schema.keys() <= {alone, *_NOTES, "$defs", "definitions"}:
        return f"{alone} beside other keywords is not supported"
    return None


def _nested(schema: dict[str, Any], depth: int) -> str | None:
    children: list[object] = []
    for name, kind in _CONTAINERS.items():
        held = schema.get(name, kind())
        if not isinstance(held, kind):
            return f"{name} must be {kind.__name__}"
        children.extend(held.values() if isinstance(held, dict) else held)
    if "items" in schema:
        children.append(schema["items"])
    faults = (unsupported(child, depth + 1) for child in children)
    return next((fault for fault in faults if fault is not None), None)
