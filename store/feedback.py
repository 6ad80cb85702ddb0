"""Feedback into its table: whose it is, and in which words it may be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from policies.words import Feedback, UnknownExchange, WriteUnfit
from store.database import Connection, iso

if TYPE_CHECKING:  # the director knows of feedback, and need not load what rows are made with
    from store.recording import Recording

_LEAST_PREFIX: Final = 4
_EXACT: Final = "SELECT number, id FROM exchanges WHERE {column} = ? LIMIT 2"
_PREFIX: Final = "SELECT number, id FROM exchanges WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
# The same line sent twice, because its answer got lost, is one.
_INSERT: Final = """
    INSERT INTO feedback (at, exchange_id, score, label, correction, source)
    SELECT :at, :id, :score, :label, :correction, :source WHERE NOT EXISTS (
        SELECT 1 FROM feedback WHERE exchange_id = :id AND at = :at AND score IS :score
        AND label IS :label AND correction IS :correction AND source IS :source)"""


def find(connection: Connection, given: str) -> tuple[int, str]:
    """Number and id of the exchange. Raises UnknownExchange."""
    tried: list[tuple[str, tuple[str, ...]]] = [(_EXACT.format(column="id"), (given.lower(),))]
    tried += [
        (_EXACT.format(column=column), (given,))
        for column in ("response_id", "upstream_request_id")
    ]
    if len(given) >= _LEAST_PREFIX and all(each in "0123456789abcdef-" for each in given.lower()):
        tried.append((_PREFIX, (given.lower(), given.lower() + "g")))
    for sql, values in tried:
        found: list[Any] = connection.execute(sql, values).fetchall()
        if len(found) > 1:
            raise UnknownExchange(f"several exchanges go by {given!r}: give more of our own id")
        if found:
            return int(found[0][0]), str(found[0][1])
    raise UnknownExchange(
        f"no exchange goes by {given!r}: give our id (at least {_LEAST_PREFIX} characters of it), "
        "the answer's `id`, or its x-request-id"
    )


def add(connection: Connection, recording: Recording, said: Feedback) -> None:
    """In the open transaction. Raises UnknownExchange, WriteUnfit."""
    number, identity = find(connection, said.exchange_id)
    sql = "SELECT privacy FROM exchanges WHERE number = ?"
    (mode,) = connection.execute(sql, (number,)).fetchone()
    if said.correction is not None and mode in ("metadata", "forgotten"):
        raise WriteUnfit(
            f"correction: not kept: no text of this exchange is ({mode}); say a score or a label"
        )
    redaction = recording.redaction(mode)
    marks = redaction.begin()
    texts = {
        name: None if text is None else redaction.plain(text, marks)
        for name, text in (("correction", said.correction), ("source", said.source))
    }
    connection.execute(
        _INSERT,
        {"at": iso(said.at), "id": identity, "score": said.score, "label": said.label} | texts,
    )
