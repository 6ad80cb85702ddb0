"""The played api.openai.com, one for each file, and a way there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.proxy.far_ends import Authority
from tests.runtimes.openai_host import TARGET, OpenaiHost
from tests.runtimes.redirect import Redirector


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenaiHost]:
    with OpenaiHost(Authority.make(tmp_path_factory.mktemp("authority"))) as made:
        yield made


@pytest.fixture
def way(host: OpenaiHost) -> Iterator[Redirector]:
    with Redirector({TARGET: host.port}) as made:
        yield made
