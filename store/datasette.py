"""What Datasette is told of the database: titles, questions, units, and what to leave out.

Its `metadata.json` (docs.datasette.io, "Metadata"), of the versions before 1.0 and after.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any, Final

from store.canned import CANNED

DATABASE: Final = "understudy"  # Datasette names it after the file

_HIDDEN: Final = (
    "staged", "spool_position", "progress", "slices", "prefixes", "texts", "search_texts",
    "_sqlite_migrations",
)  # fmt: skip
_MILLISECONDS: Final = {"latency_ms": "ms", "ttft_ms": "ms"}
_BYTES: Final = {"request_bytes": "B", "response_bytes": "B"}
_USD: Final = "US dollars; empty where it is not known"

_TABLES: Final[dict[str, dict[str, Any]]] = {
    "exchanges": {
        "description": "One row for each request and what came back.",
        "sort_desc": "number",
        "label_column": "id",
        "fts_table": "search",
        "fts_pk": "number",
        "units": {**_MILLISECONDS, **_BYTES},
        "columns": {
            "outcome": "ok, client_abort, upstream_reset, upstream_truncated, "
            "upstream_unreachable, timeout, proxy_died or refused",
            "served_by": "upstream, or a candidate; empty: nobody",
            "complete": "1: the whole answer, known to be whole",
            "truncated": "1: the record, not the answer, was cut",
            "conversation": "equal for the turns of a chat",
            "request_hash": "equal for requests that ask the same",
            "ttft_ms": "until the first byte of a body",
            "usage_note": "why the tokens are not known",
            "cost_usd": _USD,
            "cost_note": "why the cost is not known",
        },
    },
    "pairs": {
        "description": "Both sides as JSON, as they went over the wire, but for what was redacted."
    },
    "teacher_pairs": {
        "description": "What may be learned from: whole answers of the upstream itself."
    },
    "bodies": {"description": "Texts of both sides, or the parts that `pairs` joins to them."},
    "conversations": {
        "description": "Requests that share what comes up to the first user's message."
    },
    "usage": {"description": "Tokens and cost by day, model and endpoint."},
    "errors": {"description": "What did not go well, and why.", "sort_desc": "started_at"},
    "daily": {
        "description": "Sums by day, model, tenant, feature and outcome.",
        "columns": {"cost_usd": _USD, "retries": "calls that an SDK says are such"},
    },
    "reasons": {"description": "Why something of a call is not known, or was not kept."},
    "tasks": {"description": "Requests that do the same job."},
    "task_totals": {"description": "Volume and cost of each task."},
    "feedback": {"description": "What was said of answers afterwards."},
    "rate_limits": {
        "description": "Limits as an answer stated them.",
        "units": {"reset_requests_s": "s", "reset_tokens_s": "s", "retry_after_s": "s"},
    },
    "observations": {
        "description": "What candidates answered in the background.",
        "units": {"latency_ms": "ms"},
    },
    "comparisons": {"description": "The upstream's answers against candidates'."},
    "rollouts": {"description": "Where each task stands with each candidate."},
    "incidents": {"description": "What went wrong with the record itself."},
}


def metadata(may_look: dict[str, str]) -> dict[str, Any]:
    """`may_look`: what an actor of Datasette's must be to see anything."""
    hidden = {name: {"hidden": True} for name in _HIDDEN}
    queries = {
        one.name: {
            "title": one.title,
            "description": one.description,
            "sql": dedent(one.sql).strip(),
            "hide_sql": True,
        }
        for one in CANNED
    }
    database = {
        "title": "The record",
        "description": "Every call that went through the sidecar. Times are UTC, costs in USD.",
        "tables": _TABLES | hidden,
        "queries": queries,
    }
    return {"title": "Understudy", "allow": may_look, "databases": {DATABASE: database}}
