"""What several answers state again: the usage of a response made in the background, of a batch.

A response that is being made (`background: true`) states no usage; each answer to whoever reads it
later does, and so does each answer about a batch that is over. The first that is recorded counts.
Only the database knows which that is: `money` fills in tokens and cost, and `Rows.once` says by
which rule they may stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from policies.endpoints import classify
from store.usage import Rule
from store.values import Json

if TYPE_CHECKING:  # those who fill in rows know no database
    from store.database import Connection

# Their usage is that of another call: that which made the answer.
ELSEWHERE: Final = (
    "responses.stored", "responses.cancel", "responses.input_tokens", "responses.input_items",
    "batches", "batches.list", "batches.stored", "batches.cancel",
)  # fmt: skip
NOT_HERE: Final = "not counted here: it belongs to the call that made the answer"
NOT_CHARGED: Final = "what it states was charged with another call, if at all"
TOKENS: Final = (
    "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "audio_input_tokens", "audio_output_tokens",
)  # fmt: skip

_RULES: Final[dict[str, Rule]] = {
    "responses.stored": "response",
    "responses.cancel": "response",
    "batches.stored": "batch",
    "batches.cancel": "batch",
}
_OVER: Final[dict[Rule, tuple[str, ...]]] = {
    "response": ("completed", "incomplete", "failed", "cancelled"),
    "batch": ("completed", "expired", "failed", "cancelled"),
}
# What is charged by nothing but the tokens that a batch states.
_BY_TOKENS: Final = ("chat.completions", "responses", "completions", "embeddings", "moderations")
_CLEARED: Final[Json] = dict.fromkeys((*TOKENS, "cost_usd"))

_COUNTED: Final = f"""
    SELECT 1 FROM exchanges
    WHERE response_id = ? AND coalesce({", ".join(TOKENS)}) IS NOT NULL LIMIT 1"""
_MADE_HERE: Final = """
    SELECT 1 FROM exchanges
    WHERE response_id = ? AND endpoint = 'responses' AND usage IS NULL LIMIT 1"""


def rule_of(endpoint: str, answer: Mapping[str, Any] | None) -> Rule | None:
    """By which rule the usage of `answer`, at one of `ELSEWHERE`, may count; None: it does not."""
    rule = _RULES.get(endpoint)
    if rule is None or answer is None or not isinstance(answer.get("id"), str):
        return None
    return rule if answer.get("status") in _OVER[rule] else None


def is_charged_by_tokens(batch: Mapping[str, Any]) -> bool:
    """Not so with images and videos."""
    path = batch.get("endpoint")
    return isinstance(path, str) and classify("POST", path).name in _BY_TOKENS


def settled(connection: Connection, row: Json, rule: Rule) -> Json:
    """A row of `exchanges` before it is inserted: as it is if it is the first to count, else
    without tokens and cost. In the transaction that inserts it."""
    identity = (row["response_id"],)
    counts = connection.execute(_COUNTED, identity).fetchone() is None
    if counts and rule == "response":  # else it was charged before, or to another app
        counts = connection.execute(_MADE_HERE, identity).fetchone() is not None
    if counts:
        return row
    return row | _CLEARED | {"usage_note": NOT_HERE, "cost_note": NOT_CHARGED}
