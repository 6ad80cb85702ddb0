"""Coverage-guided: python -m tests.fuzz.fuzz_requests [libFuzzer's options] CORPUS"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if __name__ == "__main__":
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["proxy"]):
        from tests.fuzz.inputs import Requests
    from tests.fuzz.seeds import usual_requests

    atheris.Setup(sys.argv, Requests(usual_requests()).check)
    atheris.Fuzz()
