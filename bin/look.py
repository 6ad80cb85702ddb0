"""Commands that look: status, exchanges, show, rollout, export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def add_commands(group: click.Group, home: Callable[[Any], Any]) -> None:
    pass
