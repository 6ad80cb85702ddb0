"""Makes the corpus anew: `python -m tests.store.redaction_corpus.make [FOLDER]`.

The committed files were made once, before the recognisers were written, and are frozen by their
checksums in the test: a rule may be changed because of an item, an item never because of a rule.
Later versions of the libraries may show other examples, so a new run may differ from them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.store.redaction_corpus.contacts import email, ip, phone
from tests.store.redaction_corpus.keys import credentials
from tests.store.redaction_corpus.numbers import card, iban, national_id
from tests.store.redaction_corpus.sentences import Row, lines

_SEED: Final = 20250611
MAKERS: Final[dict[str, Callable[[random.Random], list[Row]]]] = {
    "credentials": credentials,
    "email": email,
    "phone": phone,
    "card": card,
    "iban": iban,
    "national_id": national_id,
    "ip": ip,
}


def make(folder: Path) -> None:
    for name, maker in MAKERS.items():
        (folder / f"{name}.jsonl").write_text(lines(maker(random.Random(_SEED))), "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
