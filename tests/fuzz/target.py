"""Coverage-guided: python -m tests.fuzz.target requests|replies [libFuzzer's options] CORPUS"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if __name__ == "__main__":
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["proxy"]):
        from tests.fuzz.inputs import Replies, Requests
    from tests.fuzz.seeds import usual_replies, usual_requests

    program, target, *options = sys.argv
    check = (Requests(usual_requests()) if target == "requests" else Replies(usual_replies())).check
    atheris.Setup([program, *options], check)
    atheris.Fuzz()
