"""One sidecar for each file: starting one takes a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hazards.harness import Sidecar, Stage, stage
from tests.hazards.peers import Upstream


@pytest.fixture(scope="module")
def on_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as set_up:
        yield set_up


@pytest.fixture
def sidecar(on_stage: Stage) -> Iterator[Sidecar]:
    yield on_stage.sidecar
    on_stage.sidecar.close_clients()


@pytest.fixture
def upstream(on_stage: Stage) -> Upstream:
    on_stage.upstream.forget_calls()
    return on_stage.upstream
