"""Bounds on requests: what is being served is served, and what is new is told to come back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bin.standin import Standin
from tests.e2e.harness import Sidecar, Upstream, wait_for
from tests.e2e.test_workers import address, ask_once, counters, outcome, send


@contextlib.contextmanager
def one_being_served(sidecar: Sidecar) -> Iterator[None]:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(ask_once(sidecar, "first")))
    thread.start()
    wait_for("it is served", lambda: counters(sidecar)['understudy_in_flight{worker="1"}'] == 1)
    yield
    thread.join()
    assert statuses == [200]


@pytest.mark.parametrize("limits", [{"in_flight": 1}, {"memory": 1 << 20}])
def test_what_is_too_much_is_refused_and_what_is_served_goes_on(
    tmp_path: Path, limits: dict[str, int]
) -> None:
    with Upstream(Standin(latency=2.0)) as upstream:
        policy = {"upstream": upstream.url, "limits": limits}
        with Sidecar(tmp_path / "home", policy) as sidecar:
            with one_being_served(sidecar):
                with socket.create_connection(address(sidecar), 10) as client:
                    send(client)
                    assert outcome(client) == "503"
                assert sidecar.answers(), "what is ours is answered all the same"
            assert ask_once(sidecar, "next") == 200
            said = counters(sidecar)
            assert said["understudy_overloaded_total"] == said["understudy_refused_total"] == 1
            wait_for(
                "the refusal is recorded",
                lambda: sidecar.query("SELECT 1 FROM exchanges WHERE outcome = 'refused'"),
            )


def test_connections_and_clients_that_leave_are_counted(tmp_path: Path) -> None:
    with Upstream(Standin(latency=1.0)) as upstream:
        with Sidecar(tmp_path / "home", {"upstream": upstream.url}) as sidecar:
            assert [ask_once(sidecar, token) for token in ("one", "two")] == [200, 200]
            with socket.create_connection(address(sidecar), 10) as client:
                send(client)
                wait_for("it is upstream", lambda: upstream.counts["requests"] == 3)
            wait_for("it left", lambda: counters(sidecar)["understudy_client_aborts_total"] == 1)
            said = counters(sidecar)
            assert said["understudy_upstream_opened_total"] == 1
            assert said["understudy_upstream_reused_total"] == 2
            assert said['understudy_in_flight{worker="1"}'] == 0
