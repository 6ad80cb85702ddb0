"""No descriptor left: the proxy neither spins nor dies, and works again when there are some.

That its own bound refuses clients long before that is in tests/e2e/test_workers.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.hazards.harness import Baseline, Sidecar, calm, sound, wait_for
from tests.hazards.peers import ANSWER, Call, Upstream, chat, post, sized

FEW = 128


@contextlib.contextmanager
def narrow(root: Path) -> Iterator[tuple[Sidecar, Upstream]]:
    """A proxy that may open few files: it has that from the supervisor, when it starts again."""
    upstream = Upstream()
    sidecar = Sidecar(root, upstream.port)
    try:
        sidecar.start()
        resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        before = sidecar.proxy_pid()
        os.kill(before, 9)
        wait_for(lambda: sidecar.proxy_pid() != before and sidecar.health(), 10)
        yield sidecar, upstream
    finally:
        sidecar.kill()
        sidecar.close_clients()
        upstream.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used_in_a_second(pid: int) -> float:
    before = cpu_seconds(pid)
    time.sleep(1)
    return cpu_seconds(pid) - before


def slowly(call: Call) -> None:
    call.read_body()
    time.sleep(0.5)
    call.send(sized(ANSWER, headers=b"Content-Type: application/json\r\n"))


def test_more_clients_than_descriptors(tmp_path: Path) -> None:
    """T66: 300 come at once. Some are served, the others told; none of the served is lost."""
    with narrow(tmp_path) as (sidecar, upstream):
        before = Baseline.of(sidecar)
        pid = sidecar.proxy_pid()
        with upstream.playing(slowly):
            clients = [sidecar.connect(20) for _ in range(300)]
            for client in clients:
                client.send(post(chat("crowd")))
            replies = [client.reply() for client in clients]
        outcomes = Counter(reply.start for reply in replies)
        served = outcomes[b"HTTP/1.1 200 OK"]
        assert set(outcomes) <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable", b""}
        assert served >= 30
        assert outcomes[b"HTTP/1.1 503 Service Unavailable"] > 0
        assert all(reply.whole and reply.body == ANSWER for reply in replies if reply.status == 200)
        assert used_in_a_second(pid) < 0.5
        calm(sidecar, before)
        rows = wait_for(lambda: len(found := sidecar.rows("crowd")) >= served and found, 10)
        assert sum(row["outcome"] == "ok" for row in rows) == served
        assert sidecar.proxy_pid() == pid
        assert "Too many open files" not in sidecar.errors()
        assert sidecar.stop() == 0
        sound(sidecar)


def test_no_descriptor_at_all(tmp_path: Path) -> None:
    """T66: somebody else's limit, or a leak: accept fails. It waits for better times, quietly."""
    with narrow(tmp_path) as (sidecar, _):
        before = Baseline.of(sidecar)
        pid = sidecar.proxy_pid()
        held = sidecar.connect()
        held.send(post(chat("held")))
        assert held.reply().body == ANSWER
        used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, FEW))
        waiting = [sidecar.connect(20) for _ in range(50)]
        for client in waiting:
            client.send(post("/v1/chat/completions"))
        assert used_in_a_second(pid) < 0.5
        held.send(post(chat("held")))
        assert held.reply().body == ANSWER, "who is served is served"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        calm(sidecar, before)
        assert sidecar.proxy_pid() == pid
        assert sidecar.stop() == 0
        sound(sidecar)
