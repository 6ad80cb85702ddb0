"""The certificate authority of a home: made once, read by each proxy, replaced as a whole.

Its folder appears by one rename and is never changed file by file: a crash leaves the whole of an
authority or none, and a reader never has the certificate of one with the key of another.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from proxy.leaves import Issuer, Leaf, new_issuer, new_leaf, private_pem, subtrees

ROOT: Final = "root.pem"
INTERMEDIATE: Final = "intermediate.pem"
KEY: Final = "intermediate.key"
_NEW: Final = "make a new one: understudy ca renew"
_MOST_BYTES: Final = 64 * 1024
_MOST_LEAVES: Final = 1024
_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY)
_STALE_SECONDS: Final = 3600.0

Clock = Callable[[], float]
_Mark = tuple[tuple[int, int, int, int] | None, ...]


class AuthorityError(Exception):
    """An authority that can't be used: one line for a person, with what to do."""


class Authority:
    """Contexts to serve intercepted hosts with. For one event loop; nothing here waits.

    `reload` is for the proxy's tick. What it can't read it reports, and goes on with what it has:
    clients trust that, and calls are under way. Connections keep the certificate they began with.
    """

    def __init__(self, folder: Path, domains: Iterable[str], now: Clock = time.time) -> None:
        """Raises AuthorityError; see `load`."""
        self._folder = folder
        self._domains = tuple(domains)
        self._now = now
        self._mark = _mark(folder)
        self._issuer = _usable(folder, self._domains, now())
        # One for all leaves of this process: they lie in the same memory, so keys of their own
        # would protect nothing. It is never written to a disk that memory can stand in for.
        self._key = generate_private_key(SECP256R1())
        self._leaves: dict[str, Leaf] = {}

    @classmethod
    def load(cls, folder: Path, domains: Iterable[str], now: Clock = time.time) -> Authority:
        """What `make` made there for these domains, patterns as in the policy.

        Raises AuthorityError: missing, unreadable, readable by others, not one whole, not valid
        now, or made for other domains.
        """
        return cls(folder, domains, now)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root, 64 hex digits."""
        return self._issuer.fingerprint

    @property
    def expires(self) -> float:
        """Seconds since the epoch. Clients must have been given another by then."""
        return self._issuer.expires

    def context(self, host: str) -> ssl.SSLContext:
        """A server's, certified for `host` for more than a third of a leaf's life to come.

        Raises ValueError for a host outside of its domains, AuthorityError when it has expired.
        """
        host, now = host.lower().removesuffix("."), self._now()
        leaf = self._leaves.get(host)
        # The wall clock tells, and it jumps: with a leaf from the future, too, there is a new one.
        if leaf is None or not leaf.since <= now < leaf.until:
            leaf = self._issue(host, now)
        return leaf.context

    def _issue(self, host: str, now: float) -> Leaf:
        if not self._issuer.signs_for(host):
            raise ValueError(f"{host!r} is not among the intercepted domains")
        _check_time(self._folder, self._issuer, now)
        try:
            leaf = new_leaf(self._issuer, host, self._key, now, self._folder)
        except OSError as error:
            raise AuthorityError(f"{self._folder}: no certificate: {error.strerror}") from None
        self._leaves.pop(host, None)
        if len(self._leaves) >= _MOST_LEAVES:
            del self._leaves[next(iter(self._leaves))]  # the one issued first
        self._leaves[host] = leaf
        return leaf

    def reload(self) -> bool:
        """Take what is on disk if that has changed, and drop all contexts; true if so.

        Three calls of `stat`, so it may be asked often. Raises AuthorityError, once for a change:
        the authority loaded before goes on.
        """
        mark = _mark(self._folder)
        if mark == self._mark:
            return False
        self._mark = mark
        self._issuer = _usable(self._folder, self._domains, self._now())
        self._leaves.clear()
        return True


def make(folder: Path, domains: Iterable[str], now: Clock = time.time) -> bool:
    """An authority where there is none; false if there is one, of whatever worth.

    Several processes may do so at once: all find the same one. Raises AuthorityError.
    """
    if folder.exists():
        return False
    with _prepared(folder, domains, now()) as made:
        try:
            os.rename(made, folder)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        _sync(folder.parent)
    return True


def renew(folder: Path, domains: Iterable[str], now: Clock = time.time) -> None:
    """A new one in the place of whatever is there. Raises AuthorityError."""
    with _prepared(folder, domains, now()) as made:
        while True:
            try:
                os.rename(made, folder)
                break
            except OSError as error:
                if error.errno not in (*_TAKEN, errno.ENOTDIR):
                    raise
            _put_away(folder)
        _sync(folder.parent)


def remove(folder: Path) -> bool:
    """False if there is none. Raises AuthorityError."""
    try:
        return _put_away(folder)
    except OSError as error:
        raise _not_written(folder, error) from None


@contextmanager
def _prepared(folder: Path, domains: Iterable[str], now: float) -> Iterator[Path]:
    """A whole authority beside `folder`; gone at the end unless renamed."""
    made: Path | None = None
    try:
        issuer = new_issuer(subtrees(domains), now)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(folder)
        made = _aside(folder)
        _write(made / ROOT, issuer.root.public_bytes(Encoding.PEM))
        _write(made / INTERMEDIATE, issuer.intermediate.public_bytes(Encoding.PEM))
        _write(made / KEY, private_pem(issuer.key))
        _sync(made)
        yield made
    except ValueError as error:
        raise AuthorityError(f"{folder}: no authority can be made: {error}") from None
    except OSError as error:
        raise _not_written(folder, error) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> AuthorityError:
    return AuthorityError(f"{folder}: {error.strerror}; name a --home that you can write to")


def _aside(folder: Path) -> Path:
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    made.chmod(0o700)
    return made


def _put_away(folder: Path) -> bool:
    """Gone by one rename, deleted afterwards. False if there is none."""
    if not os.path.lexists(folder):
        return False
    aside = _aside(folder)
    try:
        os.rename(folder, aside / "old")
    except FileNotFoundError:
        return False  # another process was faster
    finally:
        shutil.rmtree(aside)  # not silently: a key that stays must be known of
    return True


def _sweep(folder: Path) -> None:
    """What a crash left beside it. Younger ones may be another process's work."""
    for left in folder.parent.glob(f".{folder.name}-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left)


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as f:
        os.fchmod(f.fileno(), 0o600)  # whatever the umask
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read(folder: Path) -> Issuer:
    """The authority there, whatever its domains and its age. Raises AuthorityError."""
    with opened(folder) as directory:
        key = _key(folder, read_file(directory, folder / KEY, secret=True))
        root = _certificate(folder / ROOT, read_file(directory, folder / ROOT))
        below = _certificate(folder / INTERMEDIATE, read_file(directory, folder / INTERMEDIATE))
    if below.public_key() != key.public_key():
        raise AuthorityError(f"{folder / KEY}: is not the key of {INTERMEDIATE}; {_NEW}")
    try:
        below.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise AuthorityError(f"{folder / INTERMEDIATE}: {ROOT} has not signed it; {_NEW}") from None
    issuer = Issuer(root, below, key)
    try:
        if not issuer.domains:
            raise ValueError("signs for no name of a host")
    except ValueError as error:
        raise AuthorityError(f"{folder / INTERMEDIATE}: {error}; {_NEW}") from None
    return issuer


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor to read and write files by: they are of one authority, also if it is replaced.

    Raises AuthorityError.
    """
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise AuthorityError(f"{folder}: there is no certificate authority; {_NEW}") from None
    except OSError as error:
        raise _unreadable(folder, error) from None
    try:
        # Who can write there can put in a key of their own.
        if os.fstat(directory).st_mode & 0o022:
            raise _open_to_others(folder, "write to it", 700)
        yield directory
    finally:
        os.close(directory)


def read_file(directory: int, path: Path, *, secret: bool = False) -> bytes:
    """`path` names a file in what `directory` is open on. Raises AuthorityError.

    `secret`: refused if its group or others may read or write it.
    """
    try:
        at = os.open(path.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
        try:
            if secret and os.fstat(at).st_mode & 0o077:
                raise _open_to_others(path, "read it", 600)
            return os.read(at, _MOST_BYTES)
        finally:
            os.close(at)
    except FileNotFoundError:
        raise AuthorityError(f"{path}: is missing; {_NEW}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> AuthorityError:
    return AuthorityError(f"{path}: can't be read: {error.strerror}; run as its owner, or {_NEW}")


def _open_to_others(path: Path, what: str, mode: int) -> AuthorityError:
    return AuthorityError(f"{path}: others may {what}; run: chmod {mode} {shlex.quote(str(path))}")


def _key(folder: Path, pem: bytes) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise AuthorityError(f"{folder / KEY}: is not a private key of ours; {_NEW}")
    return key


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise AuthorityError(f"{path}: is not a certificate; {_NEW}") from None


def _usable(folder: Path, patterns: tuple[str, ...], now: float) -> Issuer:
    issuer = read(folder)
    _check_time(folder, issuer, now)
    try:
        wanted = subtrees(patterns)
    except ValueError as error:
        raise AuthorityError(f"forward.intercept: {error}") from None
    if wanted != issuer.domains:
        raise AuthorityError(
            f"{folder}: signs for {_listed(issuer.domains)}, but the policy intercepts "
            f"{_listed(wanted)}: a new intercepted domain needs a new authority: "
            "understudy ca renew, and trusting it anew"
        )
    return issuer


def _check_time(folder: Path, issuer: Issuer, now: float) -> None:
    if now >= issuer.expires:
        raise AuthorityError(
            f"{folder}: expired on {_day(issuer.expires)}; {_NEW}, and trust it anew"
        )
    if now < issuer.begins:
        raise AuthorityError(
            f"{folder}: not valid before {_day(issuer.begins)}; set this machine's clock, or {_NEW}"
        )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _listed(domains: Iterable[str]) -> str:
    return ", ".join(sorted(domains))


def _mark(folder: Path) -> _Mark:
    """Changes with the files. Renaming a folder does not touch them, but those are others."""
    return tuple(_stat(folder / name) for name in (ROOT, INTERMEDIATE, KEY))


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
