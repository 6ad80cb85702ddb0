"""Who lives is told by the lock that it holds on a file, and that the kernel takes back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_held(file: Path) -> bool:
    """Does somebody hold the exclusive lock of this file? A lock that can't be asked for counts as
    held. Looking shares it for a moment where nobody does. Raises OSError if it can't be opened.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
