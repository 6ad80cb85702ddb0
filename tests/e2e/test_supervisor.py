"""The supervisor when things go wrong around it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from pathlib import Path

from bin import runtime
from bin.standin import Standin
from tests.e2e.harness import Sidecar, Upstream, fast_rollout, wait_for


def ask(sidecar: Sidecar, text: str = "hello") -> int:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{sidecar.base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": "Bearer sk-test", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
        return int(answer.status)


def test_a_disk_that_takes_nothing_does_not_keep_the_proxy_from_coming_back(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        sidecar = Sidecar(tmp_path / "home", {"upstream": upstream.url}).start()
        data = sidecar.state["data"]
        assert ask(sidecar) == 200
        wait_for("the row", lambda: sidecar.query("SELECT 1 FROM exchanges"))
        # Neither state.json nor a new folder below spool can be written now.
        (sidecar.home / "state.tmp").mkdir()
        shutil.rmtree(sidecar.home / "spool")
        (sidecar.home / "spool").write_text("in the way")
        os.kill(sidecar.pid("proxy"), signal.SIGKILL)
        wait_for("the proxy is back", sidecar.answers, 5.0)
        assert sidecar.state["data"] == data
        assert ask(sidecar) == 200
        wait_for("the loss is counted", lambda: sidecar.health()["capture"]["records_dropped"] > 0)
        (sidecar.home / "spool").unlink()
        assert ask(sidecar, "kept again") == 200
        wait_for(
            "capture goes on when there is room",
            lambda: sidecar.query("SELECT 1 FROM pairs WHERE request LIKE '%kept again%'"),
        )
        assert sidecar.stop() == 0


def test_an_interrupt_to_the_whole_group_lets_open_requests_finish(tmp_path: Path) -> None:
    with Upstream(Standin(latency=1.5)) as upstream:
        sidecar = Sidecar(tmp_path / "home", {"upstream": upstream.url}).start()
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(ask(sidecar)))
        thread.start()
        wait_for("it is on its way", lambda: upstream.counts["requests"] == 1)
        assert sidecar.process is not None
        for pid in (sidecar.pid("proxy"), sidecar.process.pid, sidecar.pid("proxy")):
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
        thread.join()
        assert statuses == [200]
        assert sidecar.process.wait(30) == 0


def test_all_but_the_relay_step_back_for_the_app(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        with Sidecar(tmp_path / "home", fast_rollout(upstream.url)) as sidecar:
            wait_for("the model", lambda: len(sidecar.state["processes"]) == 4)
            pids = sidecar.state["processes"]
            ours = os.getpriority(os.PRIO_PROCESS, 0)
            assert _niceness(pids.pop("proxy")) <= {ours, 0}
            wait_for("the rest", lambda: all(_niceness(pid) == {19} for pid in pids.values()))


def _niceness(pid: int) -> set[int]:
    """Its own, and where the kernel has such groups that of its session's group."""
    found = {os.getpriority(os.PRIO_PROCESS, pid)}
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        found.add(int(group.read_text().split()[-1]))
    return found


def test_what_is_not_recorded_is_not_diverted(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        policy = fast_rollout(upstream.url)
        with Sidecar(tmp_path / "home", policy, "--no-capture") as sidecar:
            assert set(sidecar.state["processes"]) == {"proxy"}
            assert ask(sidecar) == 200
            assert sidecar.health()["capture"] is None


def test_runtime_folders_of_the_dead_are_removed_and_of_the_living_not(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        policy = {"upstream": upstream.url}
        dead = Sidecar(tmp_path / "dead", policy).start()
        left = Path(dead.state["run_dir"])
        assert dead.process is not None
        dead.process.kill()
        dead.process.wait(10)
        assert left.is_dir()
        with Sidecar(tmp_path / "first", policy) as first:
            kept = Path(first.state["run_dir"])
            assert not left.exists()
            with Sidecar(tmp_path / "second", policy):
                assert kept.is_dir() and ask(first) == 200
        assert not kept.exists()


def test_only_folders_that_a_dead_supervisor_owned_are_removed(tmp_path: Path) -> None:
    dead, lock = runtime.make(tmp_path)
    os.close(lock)  # as its death does
    alive, lock = runtime.make(tmp_path)
    assert not dead.exists()
    foreign = tmp_path / "understudy-notes"
    foreign.mkdir(0o700)  # no owner in it
    public = tmp_path / "understudy-public"
    public.mkdir()
    (public / "owner").touch()
    public.chmod(0o755)
    link = tmp_path / "understudy-link"
    link.symlink_to(public)
    runtime.remove_dead(tmp_path)
    assert {alive, foreign, public, link} == set(tmp_path.iterdir())
    assert alive.stat().st_mode & 0o777 == 0o700
    assert int((alive / "owner").read_text()) == os.getpid()
    os.close(lock)
    runtime.remove_dead(tmp_path)
    assert not alive.exists()
