"""Keys, tokens, private keys and passwords in URLs, told by their form and what stands around.

The forms are those that the vendors document. Each is looked for by the one character in its
prefix that prose has least of, since that is what a look at every text costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from store.recogniser import Found, Glance

_LABEL: Final = "SECRET"
_BODY: Final = r"[A-Za-z0-9_-]"
# Prefix, what follows it.
_DASHED: Final = {
    "sk-": rf"{_BODY}{{16,}}",
    "sess-": r"[A-Za-z0-9_-]{20,}",
    **{f"xox{kind}-": r"[A-Za-z0-9-]{16,}" for kind in "abeoprs"},
    "xapp-": r"[A-Za-z0-9-]{16,}",
    "xai-": r"[A-Za-z0-9]{40,}",
    "pplx-": r"[A-Za-z0-9]{32,}",
    "glpat-": rf"{_BODY}{{20,}}",
}
_SCORED: Final = {
    "ek_": rf"{_BODY}{{16,}}",
    "whsec_": r"[A-Za-z0-9+/]{16,}={0,2}",
    **{f"gh{kind}_": r"[A-Za-z0-9]{36,}" for kind in "oprsu"},
    "github_pat_": r"[A-Za-z0-9_]{22,}",
    **{f"{kind}k_{stage}_": r"[A-Za-z0-9]{16,}" for kind in "sr" for stage in ("live", "test")},
    "hf_": r"[A-Za-z0-9]{30,}",
    "gsk_": r"[A-Za-z0-9]{40,}",
    "npm_": r"[A-Za-z0-9]{36}",
}
_CAPITAL: Final = {
    "AKIA": r"[A-Z0-9]{16}",
    "ASIA": r"[A-Z0-9]{16}",
    "AIza": rf"{_BODY}{{35}}",
}
_JWT: Final = r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]+){0,3}"  # RFC 7519; five parts: RFC 7516
_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----")
_PEM_LONGEST: Final = 65536
# Of one cut off in the middle: all that could still be of it.
_PEM_REST: Final = re.compile(r"[\w\s+/=:,\\-]*+")
_FAMILIES: Final = {**_DASHED, **_SCORED, **_CAPITAL}
_TOKEN: Final = re.compile(
    rf"(?<![A-Za-z0-9])(?:(?P<jwt>{_JWT})|(?P<token>"
    + "|".join(f"{re.escape(prefix)}{body}" for prefix, body in _FAMILIES.items())
    + ")(?![A-Za-z0-9]))"
)
# In small letters only where a header stands: a bearer is also a person.
_SMALL_BEARER: Final = "uthorization: bearer "
_BEARER: Final = re.compile(rf"(?:\bBearer |{_SMALL_BEARER}) *([A-Za-z0-9._~+/-]{{16,}}={{0,2}})")
# `password=…` in a text: what follows must look random, or code would be taken for secrets.
_NAMED: Final = re.compile(
    r"(?:(?:key|secret|token|password|passwd|pwd)=)[\"'\\]{0,2}([A-Za-z0-9+/_.~-]{16,}={0,2})"
    r"(?![\w(\[])",
    re.IGNORECASE,
)
_USERINFO: Final = re.compile(
    r"\b[A-Za-z][A-Za-z0-9+.-]{1,15}:(?:\\?/){2}[^\s/:@\"'<>]{0,64}:"
    r"([^\s/@\"'<>${}]{1,256})@(?=[A-Za-z0-9\[])"
)
_AWS_ID: Final = re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{16}")
_AWS_SECRET: Final = re.compile(r"(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")
_AWS_NEAR: Final = 240
_HEX: Final = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_WORDY: Final = re.compile(r"(?:(?:[A-Z]?[a-z]{1,14}|[A-Z]{1,10}|v?[0-9]{1,4})(?:[-_./]|\Z))+")


def _at_start(mark: str) -> str:
    """That a mark ends here which begins a word: of a text, or of its raw JSON, where the last
    letter of an escape such as \\n may stand before it."""
    return (
        rf"(?<={mark})(?:(?<![A-Za-z0-9]{mark})|(?<=\\[bfnrt]{mark})"
        rf"|(?<=\\u[0-9A-Fa-f]{{4}}{mark}))"
    )


def _marks(prefixes: Iterable[str], pivot: str) -> str:
    """Finds the prefixes from the last `pivot` in them on."""
    branches: list[str] = []
    lasts: set[str] = set()
    for prefix in prefixes:
        mark = prefix[: prefix.rindex(pivot) + 1]
        lasts.add(mark[-2])
        branches.append(_at_start(mark))
    likely = f"(?<=[{''.join(sorted(lasts))}]{pivot})(?=[A-Za-z0-9_+/\\\\-]{{16}})"
    return f"{pivot}{likely}(?:{'|'.join(branches)})"


_DASH_MARK: Final = re.compile(
    rf"-(?:-(?<=-----)BEGIN [A-Z0-9 ]{{0,32}}PRIVATE|{_marks(_DASHED, '-')[1:]})"
)
_SCORE_MARK: Final = re.compile(_marks(_SCORED, "_"))
_CAPITAL_MARK: Final = re.compile(r"A(?:(?:KI|SI)A[A-Z0-9]{16}|Iza[A-Za-z0-9_-]{35})")
_JWT_MARK: Final = re.compile(rf"J{_at_start('eyJ')}[\w-]{{8,}}\.")
_NAMED_MARK: Final = re.compile(r"=(?<=[yYtTnNdD]=)[\"'\\]{0,2}[A-Za-z0-9+/_.~-]{16}")
_BEARER_MARK: Final = re.compile(r"Bearer +[A-Za-z0-9._~+/\\-]{16}")
# By how often prose has the character that a mark begins with.
_OFTEN: Final = tuple(mark.search for mark in (_DASH_MARK, _SCORE_MARK, _CAPITAL_MARK))
_SELDOM: Final = tuple((mark.pattern[0], mark) for mark in (_JWT_MARK, _NAMED_MARK, _BEARER_MARK))
_FEW: Final = 4


def is_random(body: str) -> bool:
    """Not words and numbers joined by hyphens, such as a package's or a branch's name."""
    return not _WORDY.fullmatch(body)


class Secrets:
    def may(self, glance: Glance) -> bool:
        text = glance.text
        for search in _OFTEN:
            if search(text):
                return True
        for pivot, mark in _SELDOM:
            if _stands(mark, pivot, text):
                return True
        if "uthorization:" in text and _SMALL_BEARER in text:  # its space would be sought long
            return True
        return "@" in text and _has_url(text)

    def find(self, text: str, beside: str) -> Iterator[Found]:
        yield from _pems(text)
        for match in _TOKEN.finditer(text):
            if match["jwt"] or is_random(_body(match["token"])):
                yield _found(match, 0)
        for match in _BEARER.finditer(text):
            if is_random(match[1]):
                yield _found(match, 1)
        if "=" in text:
            for match in _NAMED.finditer(text):
                if is_random(match[1]):
                    yield _found(match, 1)
        if "@" in text:
            for match in _USERINFO.finditer(text):
                if match[1].strip("*xX."):
                    yield _found(match, 1)
        yield from _beside_aws_ids(text)


def _stands(mark: re.Pattern[str], pivot: str, text: str) -> bool:
    """As `search`, but faster where the character that a mark begins with is rare."""
    at = text.find(pivot)
    for _ in range(_FEW):
        if at < 0:
            return False
        if mark.match(text, at):
            return True
        at = text.find(pivot, at + 1)
    return at >= 0 and mark.search(text, at) is not None


def _has_url(text: str) -> bool:
    return "://" in text or ":\\/\\/" in text


def _body(token: str) -> str:
    """What follows the prefix; `sk-proj-` and its like are words that may stay in it."""
    return (
        token[max(token.find("-"), token.find("_")) + 1 :] if token[:4] not in _CAPITAL else "A1a"
    )


def _found(match: re.Match[str], group: int) -> Found:
    return Found(match.start(group), match.end(group), _LABEL, match[group])


def _pems(text: str) -> Iterator[Found]:
    """In one pass, however many begin that never end."""
    end, done = _PEM_END.search(text), 0
    for begin in _PEM.finditer(text):
        if begin.start() < done:
            continue
        while end and end.start() < begin.end():
            end = _PEM_END.search(text, end.end())
        if end and end.end() - begin.start() <= _PEM_LONGEST:
            done = end.end()
        else:
            rest = _PEM_REST.match(text, begin.end())
            done = rest.end() if rest else begin.end()
        yield Found(begin.start(), done, _LABEL, text[begin.start() : done])


def _beside_aws_ids(text: str) -> Iterator[Found]:
    """An AWS secret has no form but its length: it counts only near the id that it belongs to."""
    for key in _AWS_ID.finditer(text):
        start, end = max(0, key.start() - _AWS_NEAR), key.end() + _AWS_NEAR
        for match in _AWS_SECRET.finditer(text, start, end):
            if not _HEX.fullmatch(match[0]):
                yield _found(match, 0)
