"""The roots an app shall trust behind the sidecar: the system's and ours, in one file.

SSL_CERT_FILE and REQUESTS_CA_BUNDLE replace what a client would trust; a file with our root alone
would cut the app off from all else.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxy.authority import ROOT, AuthorityError, opened, read_file

BUNDLE: Final = "bundle.pem"
_MOST_BYTES: Final = 16 << 20
_BLOCK: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)


def bundle(folder: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The file in the authority's folder, written anew if what it should hold has changed.

    Ours comes first: readers that take one certificate take that, and nothing odd behind it can
    hide it. A container that runs as another user is given a copy: all files here are 0600.
    Raises AuthorityError.
    """
    path = folder / BUNDLE
    try:
        with opened(folder) as directory:
            ours = read_file(directory, folder / ROOT)
            data = _joined([ours, *_system(path, environ)])
            if _present(directory) != data:
                _replace(directory, data)
    except OSError as error:
        raise AuthorityError(
            f"{path}: {error.strerror}; name a --home that you can write to"
        ) from None
    return path


def _system(own: Path, environ: Mapping[str, str]) -> list[bytes]:
    """What holds the system's roots: the environment's if that has any, OpenSSL's, certifi's."""
    built_in = ssl.get_default_verify_paths()
    file, folders = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file and _same(file, own):
        file = None  # the sidecar was started in the app's environment
    sources = (
        [*_file(file), *_folders(folders)],
        _file(built_in.openssl_cafile),
        _folders(built_in.openssl_capath),
        _file(_certifi()),
    )
    for found in sources:
        if any(b"-----BEGIN CERTIFICATE-----" in data for data in found):
            return list(found)
    raise AuthorityError(
        f"{own}: this system has no root certificates: install ca-certificates, or name a file "
        "of them in SSL_CERT_FILE"
    )


def _same(file: str, own: Path) -> bool:
    with suppress(OSError):
        return own.samefile(file)
    return Path(file).absolute() == own.absolute()


def _file(path: str | None) -> list[bytes]:
    if not path:
        return []
    with suppress(OSError), open(path, "rb") as file:
        return [file.read(_MOST_BYTES)]
    return []


def _folders(paths: str | None) -> list[bytes]:
    """All files in them. OpenSSL looks them up by hash, so most are there under several names."""
    entries: set[str] = set()
    for folder in (paths or "").split(os.pathsep):
        with suppress(OSError), os.scandir(folder or os.devnull) as found:
            entries |= {os.path.realpath(entry) for entry in found if entry.is_file()}
    return [data for path in sorted(entries) for data in _file(path)]


def _certifi() -> str | None:
    found = importlib.util.find_spec("certifi")
    if found is None or found.origin is None:
        return None
    return str(Path(found.origin).with_name("cacert.pem"))


def _joined(files: Iterable[bytes]) -> bytes:
    """Each certificate once, in order, and nothing else: one bad line can spoil a whole file."""
    return "".join(dict.fromkeys(_certificates(files))).encode()


def _certificates(files: Iterable[bytes]) -> Iterator[str]:
    for data in files:
        for block in _BLOCK.findall(data.decode("latin-1")):
            with suppress(ValueError):
                yield ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(block))


def _present(directory: int) -> bytes | None:
    try:
        with open(os.open(BUNDLE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
            return file.read(2 * _MOST_BYTES)
    except OSError:
        return None


def _replace(directory: int, data: bytes) -> None:
    made = f".{BUNDLE}-{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(made, flags, 0o600, dir_fd=directory), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, BUNDLE, src_dir_fd=directory, dst_dir_fd=directory)
