"""The policy of a home: the file that its sidecar was last started with.

`serve` writes down which that was. Commands that record, remove or renew apart from it go by the
same file, where they are given no other: what the sidecar redacts must not come in beside it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from policies.config import ConfigError, load
from policies.policy import Policy

# Of its own, since state.json goes when the sidecar stops.
_NAME: Final = "serve.json"
_CURE: Final = "name the one to go by with --policy FILE"


def remember(root: Path, policy: Path | None) -> None:
    """That the sidecar of this home goes by this file; None: by the defaults. Raises OSError.

    Written in place: what is cut short is refused later, where an older one would be believed.
    """
    # JSON of escapes: a path may hold bytes that are no UTF-8. A link is not followed, for where
    # settings are mounted it leads elsewhere after each change.
    said = json.dumps({"policy": None if policy is None else str(policy.absolute())}).encode()
    path = root / _NAME
    with suppress(OSError):
        if path.read_bytes() == said:  # a full disk is no matter then
            return
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(said)


def policy_file(root: Path) -> Path | None:
    """What is remembered; None: the defaults. Raises ConfigError."""
    path = root / _NAME
    try:
        found = json.loads(path.read_bytes())["policy"]
        return None if found is None else Path(found)
    except (FileNotFoundError, NotADirectoryError):  # no sidecar has run there
        return None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}; {_CURE}") from None
    except (ValueError, KeyError, TypeError):
        why = "does not say which policy the sidecar was started with"
        raise ConfigError(f"{path}: {why}; {_CURE}") from None


def left_behind(root: Path) -> Path | None:
    """What a sidecar that is started without a policy goes by no more."""
    try:
        return policy_file(root)
    except ConfigError:  # nobody can tell
        return None


def policy_of(root: Path, given: Path | None) -> Policy:
    """What a command has to go by. Raises ConfigError: a file that is gone or wrong by now is no
    reason to go by the defaults, which keep more."""
    if given is not None:
        return load(given)
    path = policy_file(root)
    if path is None:
        return Policy()
    try:
        return load(path)
    except ConfigError as error:
        why = f"the sidecar of {root} was last started with this file"
        raise ConfigError(f"{error}; {why}: mend it, or {_CURE}") from None
