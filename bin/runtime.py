"""The runtime folder: sockets and metrics of one running sidecar, below the system's temporary one.

Its owner holds a lock on the file `owner` in it as long as it lives. Who is killed leaves the
folder behind, without the lock: the next one to start removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "understudy-"
_OWNER: Final = "owner"


def make(parent: Path | None = None) -> tuple[Path, int]:
    """A new folder, 0700, and the descriptor of its lock. The dead ones beside it are removed."""
    parent = parent or Path(tempfile.gettempdir())
    remove_dead(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    new = folder / f"{_OWNER}.new"
    lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.write(lock, f"{os.getpid()}\n".encode())
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / _OWNER)  # locked from the moment that it has its name
    return folder, lock


def remove_dead(parent: Path) -> None:
    """Folders of ours whose owner is gone. Never those of another user, nor what only has a name
    like ours."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if _is_ours(folder):
                    _remove_if_dead(folder)


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    return private and found.st_uid == os.getuid()


def _remove_if_dead(folder: Path) -> None:
    """Raises OSError when the owner lives: the lock is taken."""
    lock = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
