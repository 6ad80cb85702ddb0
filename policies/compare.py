"""Does the candidate's answer say what the upstream's said? A verdict, a score, and why.

Text is compared after Unicode NFKC, case folding and removal of outer white space. JSON objects and
arrays are compared as values, and strictly: a program reads them, to which `"id"` is not `"ID"`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final

import orjson

from policies.words import Verdict

# Markers of chat templates. Seen in an answer they mean a broken export: the app would show them.
SPECIAL: Final = re.compile(
    r"<\|[A-Za-z0-9_]{2,32}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
_SHOWN: Final = 40  # characters of an answer that a reason quotes

Judgement = tuple[Verdict, float | None, str]


def compare(control: str, candidate: str) -> Judgement:
    """`control`: the upstream's answer. The score is None when there is nothing to compare with."""
    if not control.strip():
        return "ignored", None, "the upstream's answer holds no text"
    fault = _fault(control, candidate)
    if fault is not None:
        return "mismatched", 0.0, fault
    wanted = container(control)
    if wanted is not None:
        return _compare_json(wanted, candidate)
    if normal(control) == normal(candidate):
        return "matched", 1.0, "same text"
    return "mismatched", 0.0, f"{_quote(control)} against {_quote(candidate)}"


def _fault(control: str, candidate: str) -> str | None:
    if not candidate.strip():
        return "the candidate's answer is empty"
    leaked = SPECIAL.search(candidate)
    if leaked is not None and leaked[0] not in control:
        return f"chat-template token {leaked[0]} in the candidate's answer"
    return None


def _compare_json(wanted: Any, candidate: str) -> Judgement:
    given = container(candidate)
    if given is None:
        return "mismatched", 0.0, f"not JSON, the upstream's is: {_quote(candidate)}"
    place = _difference(wanted, given)
    if place is None:
        return "matched", 1.0, "same JSON value"
    return "mismatched", 0.0, f"JSON differs at {place}"


def normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def container(text: str) -> Any:
    """The JSON object or array that is the whole of `text`; None when it is none."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _difference(wanted: Any, given: Any) -> str | None:
    """Where two JSON values first differ, as a path; None when they are equal."""
    # A list of work to do, not recursion: models do answer with a thousand open brackets.
    pending = [("$", wanted, given)]
    while pending:
        path, a, b = pending.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return f"{path}: key {min(a.keys() ^ b.keys())!r}"
            pending.extend((f"{path}.{key}", a[key], b[key]) for key in a)
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return f"{path}: {len(a)} items against {len(b)}"
            pending.extend((f"{path}[{i}]", a[i], b[i]) for i in range(len(a)))
        elif not _same_leaf(a, b):
            return f"{path}: {_quote(str(a))} against {_quote(str(b))}"
    return None


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b  # True == 1 in Python, not in JSON
    return bool(a == b)


def _quote(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
