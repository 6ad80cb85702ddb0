"""The account of a run: every request that was sent is kept whole, or counted as not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_DIGITS = str.maketrans("0123456789", "abcdefghij")
_LETTERS = str.maketrans("abcdefghij", "0123456789")
_PREFIX = "token-"
TOKEN_CHARACTERS = len(_PREFIX) + 9


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row of the record. `whole`: both bodies are there, and nothing says that they were cut.

    `token`: what its request says, None where there is no body to say it.
    """

    token: str | None
    whole: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """What the proxies and the recorder counted. `highest_seq`, `recorded`: sums over runs.

    `open`: exchanges whose ending is not in the record; `records_dropped` counts what is missing.
    """

    exchanges: int
    bodies_cut: int
    records_dropped: int
    highest_seq: int
    recorded: int
    open: int


@dataclass(frozen=True, slots=True)
class Account:
    """`sent` = `whole` + `cut` + `dropped` + `open` + `missing`, where nothing is wrong.

    `missing`: neither kept nor counted; negative: more was counted than sent. `doubled`, `strange`:
    whole rows whose token came before, or was never sent. `silent`: rows that are not whole, and
    nothing says why.
    """

    sent: int
    whole: int
    cut: int
    dropped: int
    open: int
    silent: int
    doubled: int
    strange: int
    uncounted: int

    @property
    def missing(self) -> int:
        return self.sent - self.whole - self.cut - self.dropped - self.open

    @property
    def balances(self) -> bool:
        wrong = (self.missing, self.silent, self.doubled, self.strange, self.uncounted)
        return not any(wrong)


def token(number: int) -> str:
    """In letters: a long number looks like a telephone's, and those may be removed."""
    return _PREFIX + f"{number:09d}".translate(_DIGITS)


def number_of(text: str) -> int | None:
    """The number of a token, None for what is none."""
    digits = text.removeprefix(_PREFIX).translate(_LETTERS)
    sound = text.startswith(_PREFIX) and len(text) == TOKEN_CHARACTERS and digits.isdecimal()
    return int(digits) if sound else None


def account(sent: int, rows: Iterable[Recorded], health: Counted) -> Account:
    """Tokens 0 to `sent` - 1 were sent, and each was answered.

    `dropped`: exchanges of which the record holds nothing, by the gaps in their numbers. What the
    proxies counted must agree: `uncounted` is what was lost without a counter that says so.
    """
    whole: Counter[int] = Counter()
    strange = cut = silent = 0
    for row in rows:
        if not row.whole:
            cut += row.cut
            silent += not row.cut
            continue
        number = number_of(row.token or "")
        if number is None or number >= sent:
            strange += 1
        else:
            whole[number] += 1
    dropped = health.highest_seq - health.recorded - health.open
    # A lost opening and a lost ending are records; a gap of any size needs at least as many.
    lost = dropped + health.open
    # Exchanges after the last one recorded leave no gap: only the proxies' own count knows them.
    late = health.exchanges - health.highest_seq
    return Account(
        sent=sent,
        whole=len(whole),
        cut=cut,
        dropped=dropped + late,
        open=health.open,
        silent=silent,
        doubled=whole.total() - len(whole),
        strange=strange,
        uncounted=max(0, lost + late - health.records_dropped) + max(0, cut - _cuts(health)),
    )


def _cuts(health: Counted) -> int:
    """A row may also be cut because a batch of records was lost."""
    return health.bodies_cut + health.records_dropped
