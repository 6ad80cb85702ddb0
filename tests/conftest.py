"""Tests that run beside others are as patient as the processes that they start."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from bin.child import step_back


def pytest_configure(config: pytest.Config) -> None:
    """Last in line for the processor, in a session of its own: else a recorder, which is, gets none
    for seconds while other tests compute.
    """
    if hasattr(config, "workerinput"):  # of pytest-xdist
        with suppress(OSError):
            os.setsid()
        step_back()
