"""E-mail addresses (RFC 5321, RFC 6531), but not what else has an @: scp, packages, code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from store.recogniser import Found, Glance

_LONGEST_LOCAL: Final = 64  # RFC 5321 section 4.5.3.1.1
# Backwards from the @. RFC 5321 also allows `/=?{|}` and the backtick, which far more often end
# what stands before an address: a field's name, a URL's query, a quote.
_LOCAL: Final = re.compile(r"[\w!#$%&'*+^~-]+(?:\.[\w!#$%&'*+^~-]+)*|\"[^\"\n]{1,62}\"")
_DOMAIN: Final = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?P<top>xn--[a-z0-9-]{2,59}|[^\W\d_]{2,24})(?![^\W_]|-|\.\w)"
)
# What ends the names of files and versions, and no domain.
_NO_TOP: Final = frozenset(
    "png jpg jpeg gif svg webp ico bmp css js ts jsx tsx json yaml yml toml txt md html htm xml py "
    "rb go rs java cs cpp jar war tar gz whl exe dll conf cfg ini log lock csv mean sum shape size "
    "final release snapshot rc alpha beta dev latest local localhost".split()
)
_REMOTE: Final = re.compile(r"\b(?:ssh|scp|sftp|rsync|mosh|sshfs)\b[^\n]*\Z")
_PATH: Final = re.compile(r":[^\s:]*[/~]")
_QUOTES: Final = "'*_~"  # allowed in front, but not if the address is closed by the same


class Emails:
    def may(self, glance: Glance) -> bool:
        return "@" in glance.text

    def find(self, text: str, beside: str) -> Iterator[Found]:
        at, after = text.find("@"), 0
        while at >= 0:
            domain = _DOMAIN.match(text, at + 1)
            lowest = max(after, at - _LONGEST_LOCAL)
            start = _local_start(text, lowest, at, domain.end()) if domain else at
            if domain and start < at and _is_mail(text, start, domain):
                after = domain.end()
                yield Found(start, after, "EMAIL", text[start:after].casefold())
            at = text.find("@", at + 1)


def _local_start(text: str, lowest: int, at: int, end: int) -> int:
    """Where the local part begins; `at` where there is none."""
    local = _LOCAL.match(text[lowest:at][::-1])
    if not local:
        return at
    start, close = at - local.end(), text[end : end + 1]
    return start + 1 if text[start] == close and close in _QUOTES else start


def _is_mail(text: str, start: int, domain: re.Match[str]) -> bool:
    if domain["top"].casefold() in _NO_TOP:
        return False
    following = text[domain.end() : domain.end() + 80]
    if following[:1] in ("(", "[") or _PATH.match(following):
        return False
    if text[max(0, start - 3) : start] == "://" or text[start - 1 : start] == "@":
        return False
    return not _REMOTE.search(text, max(0, start - 60), start)
