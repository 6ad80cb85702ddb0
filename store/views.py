"""Views that join the record back into what a person, or an export, wants to read.

They run on SQLite 3.40 too, which is what Debian's `sqlite3` and Datasette use: no ordered
aggregates. What comes out of a subquery in order, `group_concat` takes in that order; SQLite keeps
an ORDER BY there as long as the outer query aggregates by anything but count, min and max.
"""

from __future__ import annotations

from typing import Final


def _chain(prefix: str) -> str:
    """The pieces of a chain, joined from its first to `prefix`, its last."""
    return f"""(
        WITH RECURSIVE up (slice, parent, depth) AS (
            SELECT slice, parent, 0 FROM prefixes WHERE id = {prefix}
            UNION ALL
            SELECT before.slice, before.parent, depth + 1
            FROM up JOIN prefixes AS before ON before.id = up.parent)
        SELECT group_concat(text, '') FROM (
            SELECT s.text AS text FROM up JOIN slices AS s ON s.id = up.slice
            ORDER BY depth DESC))"""


def _joined(side: str) -> str:
    """No json_each: the search index reads this view, and no virtual table may stand below it."""
    parts = f"b.{side}_parts"
    part = f"json_extract({parts}, '$[' || at || ']')"
    return f"""coalesce(b.{side}, (
        WITH RECURSIVE places (at) AS (
            SELECT 0 WHERE {parts} IS NOT NULL
            UNION ALL SELECT at + 1 FROM places WHERE at + 1 < json_array_length({parts}))
        SELECT group_concat(CASE typeof(part) WHEN 'integer' THEN {_chain("part")} ELSE part END,
                            '')
        FROM (SELECT {part} AS part FROM places)))"""


VIEWS: Final = (
    f"""
    CREATE VIEW texts AS  -- both sides whole; NULL where they are not kept (see bodies)
    SELECT b.number, {_joined("request")} AS request, {_joined("response")} AS response
    FROM bodies AS b""",
    """
    CREATE VIEW pairs AS  -- both sides as JSON; NULL where they are not
    SELECT e.id, e.number, e.started_at, e.endpoint, e.task_id, e.served_by,
           CASE WHEN json_valid(t.request) THEN t.request END AS request,
           CASE WHEN json_valid(t.response) THEN t.response END AS response
    FROM exchanges AS e JOIN texts AS t ON t.number = e.number""",
    # A LEFT JOIN: SQLite leaves it out where no body is asked for, and scans stay cheap.
    """
    CREATE VIEW teacher_pairs AS  -- what may be learned from: whole answers of the upstream itself
    SELECT e.number, e.id, e.started_at, e.task_id, e.request_hash, e.model,
           e.response_model, e.finish_reason, e.input_tokens, e.output_tokens,
           t.request AS request, t.response AS response
    FROM exchanges AS e LEFT JOIN texts AS t ON t.number = e.number
    WHERE e.endpoint = 'chat.completions' AND e.status BETWEEN 200 AND 299
      AND e.outcome = 'ok' AND e.complete = 1 AND e.truncated = 0
      AND e.served_by = 'upstream' AND e.task_id IS NOT NULL
      AND e.finish_reason IN ('stop', 'tool_calls', 'function_call')""",
    """
    CREATE VIEW conversations AS  -- requests that share what comes up to the first user's message
    SELECT conversation, count(*) AS calls, min(started_at) AS first_at, max(started_at) AS last_at,
           count(DISTINCT session) AS sessions, min(tenant) AS tenant, min(feature) AS feature,
           sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
           sum(cost_usd) AS cost_usd, sum(cost_usd IS NULL) AS calls_without_cost
    FROM exchanges WHERE conversation IS NOT NULL GROUP BY conversation""",
    """
    CREATE VIEW usage AS  -- by day and model; costs that are not known are counted, never 0
    SELECT day, nullif(model, '') AS model, endpoint, sum(calls) AS calls,
           sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
           sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens,
           sum(reasoning_tokens) AS reasoning_tokens,
           sum(audio_input_tokens) AS audio_input_tokens,
           sum(audio_output_tokens) AS audio_output_tokens,
           sum(cost_usd) AS cost_usd, sum(calls_without_cost) AS calls_without_cost
    FROM daily GROUP BY day, model, endpoint""",
    """
    CREATE VIEW rate_limit_history AS
    SELECT e.started_at, e.key_hash, coalesce(e.response_model, e.model) AS model, e.status, l.*
    FROM rate_limits AS l JOIN exchanges AS e ON e.number = l.number""",
    """
    CREATE VIEW errors AS  -- what did not go well, and why
    SELECT number, id, started_at, endpoint, model, status, outcome, error, served_by, tenant,
           retry_count, upstream_request_id
    FROM exchanges
    WHERE outcome != 'ok' OR status >= 400 OR error IS NOT NULL""",
)
