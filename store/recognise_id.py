"""National numbers of persons, with the checksums of python-stdnum.

What tells one is its shape, its checksum and, where the shape is plain digits that a tenth of all
numbers pass as, a word beside it that names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any, Final, NamedTuple

from store.recogniser import Found, Glance, Words


class _Id(NamedTuple):
    """Shapes: `0` a digit, `A` a letter, else itself. `told` needs a word beside it."""

    module: str
    words: str
    sure: str
    told: str


# Within a shape, spaces are written as underscores here.
_IDS: Final = (
    _Id("us.ssn", r"ssn|social security", "000-00-0000", "000000000 000_00_0000"),
    _Id("gb.nhs", r"nhs", "", "000_000_0000 0000000000 000-000-0000"),
    _Id("de.idnr", r"steuer\W?\w*|idnr|tax id|tin", "", "00_000_000_000 00000000000"),
    _Id("fr.nir", r"nir|insee|s[eé]curit[eé] sociale|num[eé]ro de s[eé]cu|ssn",
        "0_00_00_00_000_000_00 0_00_00_0A_000_000_00", "000000000000000 0000000000000_00"),
    _Id("es.dni", "", "00000000A 00000000-A", ""),
    _Id("es.nie", "", "A0000000A A-0000000-A A0000000-A", ""),
    _Id("it.codicefiscale", "", "AAAAAA00A00A000A", ""),
    _Id("nl.bsn", r"bsn|burgerservicenummer|sofi\w*|citizen service number", "",
        "000000000 0000.00.000 000.000.000"),
    _Id("be.nn", r"rijksregister\w*|national number|num[eé]ro national|nn|niss|insz",
        "00.00.00-000.00", "00000000000 00_00_00_000_00"),
    _Id("pl.pesel", r"pesel", "", "00000000000"),
    _Id("br.cpf", r"cpf", "000.000.000-00", "00000000000"),
    _Id("in_.aadhaar", r"aadhaa?r|uidai", "", "0000_0000_0000 000000000000 0000-0000-0000"),
    _Id("in_.pan", r"pan", "", "AAAAA0000A"),
    _Id("se.personnummer", r"person\W?n\w*", "00000000-0000", "000000-0000 000000000000"),
    _Id("fi.hetu", r"hetu|henkil\w*|personbeteckning", "000000-000A 000000A000A", "000000-0000"),
    _Id("dk.cpr", r"cpr\w*|personnummer", "", "000000-0000 0000000000"),
    _Id("no.fodselsnummer", r"f[oø]dsels\w*|personnummer", "", "000000_00000 00000000000"),
    _Id("ch.ssn", r"ahv\w*|avs|sozialversicherung\w*", "000.0000.0000.00", "0000000000000"),
    _Id("ca.sin", r"sin|nas|social insurance", "", "000-000-000 000_000_000 000000000"),
    _Id("au.tfn", r"tfn|tax file", "", "000_000_000 000000000"),
    _Id("at.vnr", r"sv\W?n\w*|vsnr|versicherungsnummer", "", "0000_000000 0000000000"),
    _Id("ie.pps", r"ppsn?", "", "0000000A 0000000AA"),
    _Id("pt.cc", "", "00000000_0_AA0", ""),
    _Id("mx.curp", "", "AAAA000000AAAAAA00 AAAA000000AAAAAAA0", ""),
    _Id("cn.ric", r"身份证\w*|resident identity|id card|ric", "00000000000000000A",
        "000000000000000000"),
    _Id("kr.rrn", r"rrn|주민등록번호|resident registration", "", "000000-0000000"),
    _Id("tr.tckimlik", r"kimlik|tckn|t\.?c\.?", "", "00000000000"),
    _Id("za.idnr", r"id (?:number|no)|identity number", "", "0000000000000"),
    _Id("cz.rc", r"r[cč]|rodn[eé] [cč][ií]slo", "", "000000/0000"),
    _Id("ro.cnp", r"cnp", "", "0000000000000"),
    _Id("hr.oib", r"oib", "", "00000000000"),
    _Id("gr.amka", r"amka|αμκα", "", "00000000000"),
    _Id("cl.rut", r"rut", "00.000.000-0 00.000.000-A", "00000000-0"),
)  # fmt: skip
COUNTRIES: Final = frozenset(entry.module[:2] for entry in _IDS)
_DIGITS: Final = b"0" * 7  # the fewest that a shape has, together
_RUN: Final = re.compile(r"[0-9](?<![0-9].)[0-9]*")
_LETTERED: Final = "AAAA"  # how those shapes begin that a run of digits doesn't lead to
_LETTERS: Final = (b"AAAAAA00", b"AAAA0000", b"AAAAA0000A")
_TO_SHAPE: Final = str.maketrans(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0" * 10 + "A" * 52
)


class _Kind(NamedTuple):
    module: Any
    words: Words | None  # None: the shape is enough


class NationalIds:
    def __init__(self, countries: Collection[str] | None) -> None:
        """`countries`: two letters each; None is all that are known.

        Raises ValueError for one whose numbers are not known.
        """
        wanted = COUNTRIES if countries is None else {country.lower() for country in countries}
        if unknown := sorted(wanted - COUNTRIES):
            known = ", ".join(sorted(COUNTRIES))
            raise ValueError(f"no national number is known of {unknown[0]!r}; of: {known}")
        self._kinds: dict[str, list[_Kind]] = {}
        for entry in _IDS:
            if entry.module[:2] in wanted:
                self._add(entry)
        shapes = set(self._kinds)
        lettered = {shape for shape in shapes if shape.startswith(_LETTERED)}
        self._lettered = _one_of(lettered) if lettered else None
        self._patterns = {
            length: _one_of(group) for length, group in _by_first_run(shapes - lettered).items()
        }
        self._words = Words("|".join(entry.words for entry in _IDS if entry.words))

    def may(self, glance: Glance) -> bool:
        shape = glance.shape
        return _DIGITS in shape or any(letters in shape for letters in _LETTERS)

    def find(self, text: str, beside: str) -> Iterator[Found]:
        for match in self._matches(text):
            told: bool | None = None
            for kind in self._kinds.get(match[0].translate(_TO_SHAPE), ()):
                if kind.words:
                    told = self._words.near(text, match.start(), beside) if told is None else told
                    if not (told and kind.words.near(text, match.start(), beside)):
                        continue
                if kind.module.is_valid(match[0]):
                    same = "".join(filter(str.isalnum, match[0])).upper()
                    yield Found(match.start(), match.end(), "ID", same)
                    break

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        """By the length of each run of digits, which leaves a few of the shapes to try."""
        if self._lettered and any(letters in Glance(text).shape for letters in _LETTERS):
            yield from self._lettered.finditer(text)
        end = 0
        for run in _RUN.finditer(text):
            start = run.start()
            pattern = self._patterns.get(run.end() - start)
            if pattern and start >= end:
                match = pattern.match(text, _led(text, start))
                if match:
                    end = match.end()
                    yield match

    def _add(self, entry: _Id) -> None:
        module = import_module(f"stdnum.{entry.module}")
        words = Words(entry.words) if entry.words else None
        for shape in entry.sure.split():
            self._kinds.setdefault(shape.replace("_", " "), []).append(_Kind(module, None))
        for shape in entry.told.split():
            self._kinds.setdefault(shape.replace("_", " "), []).append(_Kind(module, words))


def _led(text: str, start: int) -> int:
    """Where a number begins: its digits may be led by a letter, with a hyphen or without."""
    if text[start - 1 : start] == "-" and text[start - 2 : start - 1].isalpha():
        return start - 2
    return start - 1 if text[start - 1 : start].isalpha() else start


def _by_first_run(shapes: Collection[str]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for shape in shapes:
        digits = shape.lstrip("A-")
        grouped.setdefault(len(digits) - len(digits.lstrip("0")), []).append(shape)
    return grouped


def _one_of(shapes: Collection[str]) -> re.Pattern[str]:
    """Longer shapes first; what stands around must not make it a part of a longer number."""
    branches = (
        re.sub(r"0+|A+", _counted, re.escape(shape).replace(r"\ ", " "))
        for shape in sorted(shapes, key=lambda shape: (-len(shape), shape))
    )
    return re.compile(
        rf"(?<![\w+/$€£-])(?<!\d[.,])(?:{'|'.join(branches)})"
        r"(?![\w/]|[.,:+]\d|-\w| \d{3}(?!\d))"
    )


def _counted(match: re.Match[str]) -> str:
    kind = "[0-9]" if match[0][0] == "0" else "[A-Z]"
    return f"{kind}{{{len(match[0])}}}"
