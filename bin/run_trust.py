"""Files of certificates for an app in proxy mode, made from the home's authority."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from bin.surroundings import ADDING, REPLACING, STORE_PASSWORD, Trust
from policies.home import Home

_END: Final = b"-----END CERTIFICATE-----"
_MOST_BYTES: Final = 16 << 20


class TrustError(Exception):
    """There is nothing to trust yet; one line for a person."""


def trust_of(home: Home, environment: Mapping[str, str]) -> Trust:
    """Raises TrustError. What the app trusted by its own variables, it goes on trusting."""
    root, bundle = home.authority / "root.pem", home.authority / "bundle.pem"
    for path in (root, bundle):
        if not path.is_file():
            raise TrustError(
                f"{path}: is not there, so HTTPS_PROXY can't work; the sidecar makes it when it "
                "starts, unless its policy says 'forward: false'; or go with --mode base-url"
            )
    try:
        joined = {
            name: found
            for name in (*REPLACING, *ADDING)
            if (found := _joined(home.authority, root.read_bytes(), _named(name, environment)))
        }
        store = _java_store(home.authority / "truststore.p12", bundle)
        wgetrc = _wgetrc(home.authority / "wgetrc", bundle, environment)
        return Trust(root, bundle, store, joined, wgetrc)
    except OSError as error:
        raise TrustError(f"{error.filename}: {error.strerror}") from None


def _wgetrc(path: Path, bundle: Path, environment: Mapping[str, str]) -> Path:
    """wget has no variable for roots, but one for the file that names them; what it said stays."""
    default = Path(environment.get("HOME", "/nonexistent")) / ".wgetrc"
    own = Path(environment.get("WGETRC") or default)
    said = own.read_text(errors="replace") if own != path and own.is_file() else ""
    found = f"{said.rstrip()}\nca_certificate = {bundle}\n".lstrip()
    if not path.is_file() or path.read_text(errors="replace") != found:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(found)
    return path


def _named(name: str, environment: Mapping[str, str]) -> Path | None:
    """The file that this variable names now, or the one that counts in its place."""
    for counting in (name, *REPLACING.get(name, ())):
        if environment.get(counting):
            return Path(environment[counting])
    return None


def _joined(folder: Path, root: bytes, named: Path | None) -> Path | None:
    """The named certificates and the root, in a file called by its content: made once."""
    if named is None:
        return None
    try:
        if named.stat().st_size > _MOST_BYTES:
            return None
        content = named.read_bytes()
    except OSError:  # a folder, or not there: nothing to keep
        return None
    if root.strip() in content:
        return named.absolute()
    content = content.rstrip() + b"\n" + root
    path = folder / f"joined-{hashlib.blake2b(content, digest_size=8).hexdigest()}.pem"
    if not path.exists():
        _write(path, content)
    return path


def _java_store(path: Path, bundle: Path) -> Path:
    """The bundle as Java reads it; anew when the bundle is."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime_ns >= bundle.stat().st_mtime_ns:
            return path
    certificates = [
        pkcs12.PKCS12Certificate(found, b"understudy-%d" % number)
        for number, found in enumerate(_certificates(bundle.read_bytes()))
    ]
    encryption = BestAvailableEncryption(STORE_PASSWORD.encode())
    _write(path, pkcs12.serialize_java_truststore(certificates, encryption))
    return path


def _certificates(bundle: bytes) -> list[x509.Certificate]:
    """Systems keep some that are not quite valid: those are left out."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for piece in bundle.split(_END)[:-1]:
            with contextlib.suppress(ValueError):
                found.append(x509.load_pem_x509_certificate(piece + _END))
    return found


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: another run may read it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
