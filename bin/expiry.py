"""An authority that ends soon: apps must have been given another before it does."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Final

from proxy import authority
from proxy.authority import AuthorityError

FEW_DAYS: Final = 30


def days_left(expires: float, now: float) -> int:
    """Whole days; `expires` and `now` in seconds since the epoch."""
    return int((expires - now) // 86400)


def expiring(folder: Path, now: float | None = None) -> str:
    """A line for a person; empty while there is time, or where there is no authority."""
    try:
        issuer = authority.read(folder)
    except AuthorityError:
        return ""
    days = days_left(issuer.expires, time.time() if now is None else now)
    if days >= FEW_DAYS:
        return ""
    left = "has expired" if days < 0 else f"has {days} day{'' if days == 1 else 's'} left"
    cure = f"understudy ca renew --home {shlex.quote(str(folder.parent))}"
    return f"{folder}: the authority {left}: {cure}, and have apps trust it anew"
