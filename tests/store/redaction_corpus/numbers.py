"""Card numbers, IBANs and national ids, with what looks like them."""

from __future__ import annotations

import doctest
import itertools
import random
from importlib import import_module
from typing import Any, Final

from stdnum import iban as stdnum_iban
from stdnum import luhn

from tests.store.redaction_corpus.sentences import (
    FIELDS,
    Row,
    beside,
    digits,
    found,
    many,
    missed,
    within,
    word,
)

_CARD: Final = (
    "Charge my card {0} please.",
    "Card: {0}, exp 12/29",
    "Die Kreditkarte {0} ist abgelaufen.",
    '{{"card_number": "{0}"}}',
    "{0} was refused twice",
    "pay with {0}.",
    *FIELDS,
)
_BRANDS: Final = (  # first digits, length, groups; the issuers' published ranges
    ("4", 16, (4, 4, 4, 4)), ("4", 13, ()), ("51", 16, (4, 4, 4, 4)), ("55", 16, (4, 4, 4, 4)),
    ("2221", 16, (4, 4, 4, 4)), ("2720", 16, (4, 4, 4, 4)), ("34", 15, (4, 6, 5)),
    ("37", 15, (4, 6, 5)), ("6011", 16, (4, 4, 4, 4)), ("644", 16, (4, 4, 4, 4)),
    ("65", 16, (4, 4, 4, 4)), ("300", 14, (4, 6, 4)), ("36", 14, (4, 6, 4)),
    ("38", 14, (4, 6, 4)), ("3528", 16, (4, 4, 4, 4)), ("3589", 16, (4, 4, 4, 4)),
    ("62", 16, (4, 4, 4, 4)), ("62", 19, ()), ("6304", 16, (4, 4, 4, 4)),
    ("2200", 16, (4, 4, 4, 4)),
)  # fmt: skip
# The payment networks' published test numbers.
_SHOWN_CARDS: Final = (
    "4242424242424242 4111111111111111 5555555555554444 2223003122003222 378282246310005 "
    "371449635398431 6011111111111117 3056930009020004 36227206271667 3566002020360505 "
    "6200000000000005 4000056655665556 5200828282828210 5105105105105100 4222222222222"
).split()


def _card(draw: random.Random, right: bool) -> str:
    first, length, groups = draw.choice(_BRANDS)
    body = first + digits(draw, length - len(first) - 1)
    check = luhn.calc_check_digit(body)
    if not right:
        check = draw.choice([d for d in "0123456789" if d != check])
    whole, joint = body + check, draw.choice((" ", "-", ""))
    if not groups or not joint:
        return whole
    cuts = [sum(groups[:at]) for at in range(len(groups) + 1)]
    return joint.join(whole[a:b] for a, b in itertools.pairwise(cuts))


def card(draw: random.Random) -> list[Row]:
    rows = within(draw, _SHOWN_CARDS, _CARD)
    rows += within(draw, [_card(draw, True) for _ in range(230)], _CARD)
    for _ in range(15):  # as a bare number in JSON
        number = _card(draw, True).replace(" ", "").replace("-", "")
        rows.append(found(f'{{"pan": {number}, "n": 1}}', number, json=True, bare=True))
    near = [_card(draw, False) for _ in range(150)]
    others = [f"ref 4{word(draw, '0123456789abcdef', 31)}" for _ in range(10)] + [
        f"user_{_card(draw, True).replace(' ', '').replace('-', '')}x" for _ in range(10)
    ]
    for _ in range(12):
        right = digits(draw, 11)
        others += [
            f"order 9{digits(draw, 15)}", f"0.4{digits(draw, 15)}", f"978316{digits(draw, 7)}",
            f"1{digits(draw, 15)} ns", f"4111111111111111{right}",
        ]  # fmt: skip
    return (
        rows + beside(draw, near, _CARD) + beside(draw, others, ("{0}", "it: {0}")) + many(draw, 3)
    )


_IBAN: Final = (
    "Please pay to {0} by Monday.",
    "IBAN: {0}",
    "IBAN {0}\nBIC COBADEFFXXX",
    "Konto {0}, danke",
    '{{"iban": "{0}"}}',
    "({0})",
    "Virement sur {0} SVP",
    *FIELDS,
)
_ACCOUNTS: Final = (  # the registry's BBAN shapes: n digits, a letters, c either
    ("DE", "n18"), ("GB", "a4n14"), ("FR", "n10c11n2"), ("NL", "a4n10"), ("CH", "n5c12"),
    ("AT", "n16"), ("BE", "n12"), ("PL", "n24"), ("SE", "n20"), ("DK", "n14"), ("NO", "n11"),
    ("FI", "n14"), ("IE", "a4n14"), ("PT", "n21"), ("CZ", "n20"), ("LU", "n3c13"), ("SA", "n2c18"),
)  # fmt: skip
_SHOWN_IBANS: Final = (  # the registry's and stdnum's examples
    "GB82 WEST 1234 5698 7654 32|DE89 3704 0044 0532 0130 00|FR14 2004 1010 0505 0001 3M02 606|"
    "NL91 ABNA 0417 1643 00|CH93 0076 2011 6238 5295 7|AT61 1904 3002 3457 3201|"
    "BE68 5390 0754 7034|PL61 1090 1014 0000 0712 1981 2874|SE45 5000 0000 0583 9825 7466|"
    "NO93 8601 1117 947|IE29 AIBK 9311 5212 3456 78|MT84 MALT 0110 0001 2345 MTLC AST0 01S|"
    "GR16 0110 1050 0000 1054 7023 795|GB33 BUKB 2020 1555 5555 55|ES91 2100 0418 4502 0005 1332"
).split("|")


def _bban(draw: random.Random, shape: str) -> str:
    made, sets = "", {"n": "0123456789", "a": "ABCDEFGHKLMNPRSTVWZ", "c": "0123456789ABCDEFG"}
    for part in shape.replace("n", " n").replace("a", " a").replace("c", " c").split():
        made += word(draw, sets[part[0]], int(part[1:]))
    return made


def _iban(draw: random.Random, right: bool) -> str:
    while True:
        country, shape = draw.choice(_ACCOUNTS)
        bban = _bban(draw, shape)
        check = stdnum_iban.calc_check_digits(f"{country}00{bban}")
        if not right:
            check = f"{(int(check) + draw.randint(1, 90)) % 97:02}"
        whole = f"{country}{check}{bban}"
        if stdnum_iban.is_valid(whole) is right:
            break
    return draw.choice((whole, " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))))


def iban(draw: random.Random) -> list[Row]:
    shown = [*_SHOWN_IBANS, *(text.replace(" ", "") for text in _SHOWN_IBANS)]
    rows = within(draw, [*shown, *(_iban(draw, True) for _ in range(240))], _IBAN)
    near = beside(draw, [_iban(draw, False) for _ in range(160)], _IBAN)
    others = []
    for _ in range(12):
        others += [
            f"SKU AB{digits(draw, 2)} {digits(draw, 4)} {digits(draw, 4)} {digits(draw, 4)}",
            f"VAT DE{digits(draw, 9)}", f"flight LH{digits(draw, 4)} at gate B{digits(draw, 2)}",
            f"XX{digits(draw, 20)}", f"key {word(draw, 'ABCDEF0123456789', 24)}",
        ]  # fmt: skip
    return rows + near + beside(draw, others, ("{0}", "see {0}.")) + many(draw, 4)


# Country's module in stdnum, a shape to draw from (# digit, @ letter) and words it stands beside.
# Plain digits whose checksum is weak are only told by such a word.
_IDS: Final[tuple[tuple[str, tuple[str, ...], str], ...]] = (
    ("us.ssn", ("###-##-####", "#########"), "SSN"),
    ("gb.nhs", ("### ### ####", "##########"), "NHS number"),
    ("de.idnr", ("## ### ### ###", "###########"), "Steuer-ID"),
    ("fr.nir", ("# ## ## ## ### ### ##", "###############"), "NIR"),
    ("es.dni", ("########@", "########-@"), "DNI"),
    ("es.nie", ("X#######@", "Y#######@"), "NIE"),
    ("nl.bsn", ("#########",), "BSN"),
    ("be.nn", ("##.##.##-###.##", "###########"), "rijksregisternummer"),
    ("pl.pesel", ("###########",), "PESEL"),
    ("br.cpf", ("###.###.###-##", "###########"), "CPF"),
    ("in_.aadhaar", ("#### #### ####", "############"), "Aadhaar"),
    ("se.personnummer", ("19######-####", "######-####"), "personnummer"),
    ("fi.hetu", ("######-###@",), "henkilötunnus"),
    ("no.fodselsnummer", ("###### #####", "###########"), "fødselsnummer"),
    ("ch.ssn", ("756.####.####.##",), "AHV-Nummer"),
    ("ca.sin", ("###-###-###", "### ### ###"), "SIN"),
)
_SHOWN_IDS: Final = (
    "us.ssn es.dni es.nie it.codicefiscale be.nn br.cpf fi.hetu ch.ssn mx.curp".split()
)
_ALONE: Final = frozenset(  # told by form and checksum alone, without a word beside
    "###-##-#### ########@ ########-@ X#######@ Y#######@ ##.##.##-###.## ###.###.###-## "
    "######-###@ 756.####.####.## 19######-####".split()
)
_BESIDE: Final = ("My {1} is {0}.", "{1}: {0}", "{1} {0}, valid", "the {1} on file ({0})")
_NUMBERED: Final = ("order {0}", "Invoice no. {0} is due.", "row {0}", "ticket {0} closed")


def _drawn(draw: random.Random, module: Any, shape: str, right: bool) -> str:
    """By trial: the checksum is the library's own business."""
    while True:
        made = "".join(
            draw.choice("0123456789") if c == "#"
            else draw.choice("ABCDEFGHJKLMNPQRSTVWXYZ") if c == "@" else c
            for c in shape
        )  # fmt: skip
        if module.is_valid(made) is right:
            return made


def _documented(name: str) -> list[str]:
    """The numbers that the module's own docstring validates, but not those it refuses."""
    shown = []
    for example in doctest.DocTestParser().get_examples(
        import_module(f"stdnum.{name}").__doc__ or ""
    ):
        if example.source.startswith("validate('") and not example.exc_msg:
            shown.append(example.source.split("'")[1])
    return shown


def national_id(draw: random.Random) -> list[Row]:
    rows, near = [], []
    for name in _SHOWN_IDS:
        for value in _documented(name):
            rows += [found(f"the number {value} is hers", value)] if any(
                c in value for c in "-.") or value[-1].isalpha() else []  # fmt: skip
    for name, shapes, label in _IDS:
        module = import_module(f"stdnum.{name}")
        for shape in shapes:
            for _ in range(9):
                value = _drawn(draw, module, shape, True)
                alone = shape in _ALONE and draw.random() < 0.4
                text = draw.choice(FIELDS) if alone else draw.choice(_BESIDE)
                rows.append(found(text.format(value, label), value))
            for _ in range(8):
                wrong = _drawn(draw, module, shape, False)
                near.append(missed(draw.choice(_BESIDE).format(wrong, label)))
            if shape.strip("#") == "":
                right = _drawn(draw, module, shape, True)
                near.append(missed(draw.choice(_NUMBERED).format(right)))
    return rows + near + many(draw, 3)
