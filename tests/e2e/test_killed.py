"""Kill any process at any time: the app does not notice, and nothing captured is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bin.standin import Standin
from bin.tickets import SYSTEM_TRIAGE, dataset
from tests.e2e.harness import Sidecar, Upstream, fast_rollout, wait_for

TICKETS = dataset(902, 1800, 0)
ANSWERS = {ticket.user: ticket.answer for ticket in TICKETS}
RATE = 50  # requests a second
SECONDS = 30


@dataclass
class Load:
    """Requests at a steady rate from a few threads; each carries a token of its own.

    Every third is streamed. `broken`: streams of the candidate that ended in mid-answer, visibly.
    """

    base: str
    sent: list[str] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def start(self, workers: int = 5) -> None:
        for number in range(workers):
            thread = threading.Thread(target=self._work, args=(number, workers), daemon=True)
            thread.start()
            self.threads.append(thread)

    def join(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _work(self, number: int, workers: int) -> None:
        parts = urlsplit(self.base)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        due = time.monotonic() + number / RATE
        count = number
        while not self.stop.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due += workers / RATE
            token = f"token-{count:06d}"
            self.sent.append(token)
            try:
                self._ask(connection, token, TICKETS[count % len(TICKETS)].user, count % 3 == 0)
                self.finished[token] = time.monotonic()
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.errors.append(f"{token}: {error!r}")
                connection.close()
            count += workers
        connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, token: str, text: str, stream: bool
    ) -> None:
        body = json.dumps(
            {
                "model": "gpt-4o-mini",
                "messages": [
                    {"role": "system", "content": SYSTEM_TRIAGE},
                    {"role": "user", "content": text},
                ],
                "user": token,
                "stream": stream,
            }
        )
        headers = {"Authorization": "Bearer sk-load", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        if stream:
            self._listen(connection, answer, token)
            return
        said = json.loads(answer.read())
        assert answer.status == 200, said
        assert said["choices"][0]["message"]["content"], said

    def _listen(
        self,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        token: str,
    ) -> None:
        """A clean end must have [DONE]; only a stream of the candidate's own may end otherwise."""
        try:
            said = answer.read()
        except (http.client.IncompleteRead, ConnectionError):
            if answer.headers.get("x-understudy-served-by") is None:
                raise
            self.broken.append(token)
            connection.close()
            return
        assert answer.status == 200 and said.endswith(b"data: [DONE]\n\n"), said


def tokens(sidecar: Sidecar) -> Counter[str]:
    # A request that was open when its proxy died may have left its head alone.
    rows = sidecar.query("SELECT request FROM pairs WHERE request IS NOT NULL")
    return Counter(json.loads(row[0])["user"] for row in rows)


def test_recorder_director_and_model_die_in_turn(tmp_path: Path) -> None:
    with Upstream(Standin(ANSWERS, latency=0.01)) as upstream:
        sidecar = Sidecar(tmp_path / "home", fast_rollout(upstream.url)).start()
        load = Load(sidecar.url)
        load.start()
        started = time.monotonic()
        victims = ["recorder", "director", "model:triage"]
        kills = 0
        while time.monotonic() - started < SECONDS:
            time.sleep(2)
            sidecar.signal(victims[kills % len(victims)], signal.SIGKILL)
            kills += 1
        load.join()
        assert load.errors == []
        assert len(load.broken) <= kills
        assert len(load.finished) > 0.5 * RATE * SECONDS
        local = sidecar.health()["diverted"]
        sent = Counter(load.sent)
        # A stop waits for the recorder some seconds: what is left then, the next start records.
        wait_for("all of it is recorded", lambda: tokens(sidecar).keys() >= sent.keys(), 60.0)
        assert sidecar.stop() == 0
        assert tokens(sidecar) == sent
        assert kills >= 12
        assert local > 0, "some of it must have been served locally for this to mean anything"


def test_the_proxy_dies(tmp_path: Path) -> None:
    with Upstream(Standin(ANSWERS, latency=0.01)) as upstream:
        sidecar = Sidecar(tmp_path / "home", {"upstream": upstream.url}).start()
        load = Load(sidecar.url)
        load.start()
        time.sleep(2)
        last_words: set[str] = set()  # what finished as the proxy died may be lost
        for _ in range(3):
            killed = sidecar.pid("proxy")
            os.kill(killed, signal.SIGKILL)
            died = time.monotonic()
            wait_for("the proxy is back", sidecar.answers, 5.0)
            assert time.monotonic() - died < 3
            assert sidecar.pid("proxy") != killed
            last_words |= {t for t, at in load.finished.items() if died - 0.05 <= at <= died + 0.05}
            safe = {t for t, at in load.finished.items() if at < died} - last_words
            wait_for("what had finished", lambda safe=safe: safe <= set(tokens(sidecar)), 5.0)  # type: ignore[misc]
            time.sleep(1)
        load.join()
        assert len(load.errors) <= 3 * 5, "only what was open on the dead proxy may fail"
        assert sidecar.stop() == 0
        kept = tokens(sidecar)
        assert max(kept.values()) == 1
        assert set(load.finished) - set(kept) <= last_words


def test_no_process_outlives_the_supervisor(tmp_path: Path) -> None:
    with Upstream(Standin(ANSWERS)) as upstream:
        sidecar = Sidecar(tmp_path / "home", fast_rollout(upstream.url)).start()
        wait_for("all run", lambda: len(sidecar.state["processes"]) == 4)
        pids = [int(pid) for pid in sidecar.state["processes"].values()]
        assert sidecar.process is not None
        sidecar.process.kill()
        sidecar.process.wait(10)
        wait_for("all are gone", lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"
