"""A throw-away certificate authority, and one certificate of it for 127.0.0.1 and localhost."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_EXTENSIONS: Final = (
    "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:api.openai.com\nbasicConstraints=CA:FALSE\n"
)
_EC: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Authority:
    """Files: its own certificate, which clients trust, and a server's certificate and key."""

    root: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        made = cls(folder / "root.pem", folder / "server.pem", folder / "server.key")
        root_key, asked, extensions = folder / "root.key", folder / "server.csr", folder / "san"
        extensions.write_text(_EXTENSIONS)
        _openssl("req", "-x509", *_EC, "-days", "2", "-subj", "/CN=bench root",
                 "-keyout", root_key, "-out", made.root)  # fmt: skip
        _openssl("req", "-new", *_EC, "-subj", "/CN=localhost",
                 "-keyout", made.key, "-out", asked)  # fmt: skip
        _openssl("x509", "-req", "-in", asked, "-CA", made.root, "-CAkey", root_key,
                 "-CAcreateserial", "-days", "2", "-extfile", extensions,
                 "-out", made.certificate)  # fmt: skip
        return made


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()[-300:]}")
