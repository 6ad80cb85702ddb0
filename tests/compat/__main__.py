"""Are the official SDKs' results the same directly and through the sidecar?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.compat import node, suite


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/compat", description=__doc__)
    parser.add_argument("--only", choices=("python", "node"), help="one of the two parts")
    parser.add_argument("--sdk", metavar="VERSION", help="of the Python SDK; else the newest")
    parser.add_argument("--spec", metavar="FILE", help="OpenAI's OpenAPI document, a file or a URL")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work there, and leave it there")
    parser.add_argument("tests", nargs="*", help="which of the Python SDK's tests; else all")
    return parser.parse_args()


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="compat-") as made:
            yield Path(made)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()


def main() -> int:
    asked = _arguments()
    found = []
    with _folder(asked.keep) as folder:
        if asked.only != "node":
            found.append(suite.compare(folder, asked.sdk, asked.spec, asked.tests))
            print(found[-1], flush=True)
        if asked.only != "python":
            found.append(node.compare(folder))
            print(found[-1], flush=True)
    return any(part.differences for part in found)


if __name__ == "__main__":
    sys.exit(main())
