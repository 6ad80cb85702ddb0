"""Several proxy workers on one port, and what a worker does when all its places are taken."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bin.standin import Standin
from tests.e2e.harness import Sidecar, Upstream, wait_for
from tests.proxy.test_metrics import parse

HEADERS = {"Authorization": "Bearer sk-test", "Content-Type": "application/json"}
METRICS = "/_understudy/metrics"
ALL = {"recorder", "proxy:1", "proxy:2", "director"}


def body(token: str) -> str:
    asked: dict[str, Any] = {"model": "gpt-4o-mini", "user": token}
    return json.dumps(asked | {"messages": [{"role": "user", "content": "hello"}]})


@dataclass
class Caller:
    """A keep-alive connection of its own, and which worker is at its other end."""

    address: tuple[str, int]
    finished: dict[str, float] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    worker: int = 0
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        self.connection = http.client.HTTPConnection(*self.address, timeout=30)
        self.connection.request("GET", "/_understudy/health")
        self.worker = json.loads(self.connection.getresponse().read())["worker"]

    def close(self) -> None:
        self.connection.close()

    def ask(self, token: str) -> int:
        self.connection.request("POST", "/v1/chat/completions", body(token), HEADERS)
        answer = self.connection.getresponse()
        answer.read()
        self.finished[token] = time.monotonic()
        return answer.status

    def work(self, name: str, stop: threading.Event) -> None:
        """One request after the other; on a broken connection once more on a new one."""
        count = 0
        while not stop.wait(0.02):
            count += 1
            try:
                assert self.ask(f"{name}-{count}") == 200
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(error)
                self.close()
                self.connect()  # never refused: the port is the supervisor's


def address(sidecar: Sidecar) -> tuple[str, int]:
    host, _, port = str(sidecar.state["data"]).rpartition(":")
    return host, int(port)


def callers(sidecar: Sidecar, of_each: int) -> list[Caller]:
    """Connections until each of two workers has some."""
    kept: dict[int, list[Caller]] = {1: [], 2: []}

    def enough() -> bool:
        caller = Caller(address(sidecar))
        if len(kept[caller.worker]) < of_each:
            kept[caller.worker].append(caller)
        else:
            caller.close()
        return min(map(len, kept.values())) == of_each

    try:
        wait_for("both workers take connections", enough, 20.0)  # one may just be starting
    except BaseException:
        for caller in kept[1] + kept[2]:
            caller.close()
        raise
    return kept[1] + kept[2]


@contextlib.contextmanager
def working(found: list[Caller]) -> Iterator[None]:
    stop = threading.Event()
    threads = [
        threading.Thread(target=caller.work, args=(f"caller{number}", stop))
        for number, caller in enumerate(found)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for caller in found:
            caller.close()


def ask_once(sidecar: Sidecar, token: str) -> int:
    with contextlib.closing(Caller(address(sidecar))) as caller:
        return caller.ask(token)


def counters(sidecar: Sidecar) -> dict[str, int]:
    with urllib.request.urlopen(f"{sidecar.url}{METRICS}", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return parse(answer.read())


def recorded(sidecar: Sidecar) -> Counter[str]:
    rows = sidecar.query("SELECT request FROM pairs WHERE request IS NOT NULL")
    return Counter(json.loads(row[0])["user"] for row in rows)


@dataclass
class Watcher:
    """Asks for the metrics again and again: what fell, and what went wrong."""

    sidecar: Sidecar
    looks: int = 0
    fell: list[str] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(OSError, http.client.HTTPException):  # asked one that died
                now = counters(self.sidecar)
                self.fell += [
                    f"{name}: {value} to {now[name]}"
                    for name, value in self.last.items()
                    if name.endswith("_total") and now[name] < value
                ]
                self.last, self.looks = now, self.looks + 1


@contextlib.contextmanager
def watching(sidecar: Sidecar) -> Iterator[Watcher]:
    watcher, stop = Watcher(sidecar), threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    try:
        yield watcher
    finally:
        stop.set()
        thread.join()


def test_a_worker_dies_under_load(tmp_path: Path) -> None:
    with Upstream(Standin(latency=0.01)) as upstream:
        policy = {"upstream": upstream.url, "workers": 2}
        with Sidecar(tmp_path / "home", policy) as sidecar:
            wait_for("all run", lambda: set(sidecar.state["processes"]) == ALL)
            started = dict(sidecar.state["processes"])
            found = callers(sidecar, of_each=3)
            others = [caller for caller in found if caller.worker == 2]
            with watching(sidecar) as watcher, working(found):
                wait_for("load", lambda: all(len(caller.finished) >= 20 for caller in found))
                os.kill(started["proxy:1"], signal.SIGKILL)
                died = time.monotonic()
                wait_for("it is replaced", lambda: sidecar.pid("proxy:1") != started["proxy:1"], 5)
                before = {id(caller): len(caller.finished) for caller in found}
                wait_for(
                    "all go on",
                    lambda: all(
                        len(caller.finished) >= before[id(caller)] + 20 for caller in found
                    ),
                )
                looked = watcher.looks
                wait_for("metrics go on", lambda: watcher.looks > looked + 3)
            assert [caller.errors for caller in others] == [[], [], []]
            assert sum(len(caller.errors) for caller in found) <= 3
            assert not any(isinstance(e, ConnectionRefusedError) for c in found for e in c.errors)
            assert watcher.fell == []
            assert sidecar.pid("proxy:2") == started["proxy:2"]
            wait_for("both are up", lambda: up(sidecar) == [1, 1])
            assert_status(sidecar)
            for caller in callers(sidecar, of_each=1):
                assert caller.ask(f"again-{caller.worker}") == 200
                caller.close()
            assert sidecar.stop() == 0
            assert_recorded(sidecar, found, others, died)
            assert "Traceback" not in sidecar.log.read_text()


def up(sidecar: Sidecar) -> list[int]:
    said = counters(sidecar)
    return [said[f'understudy_worker_up{{worker="{worker}"}}'] for worker in (1, 2)]


def assert_status(sidecar: Sidecar) -> None:
    command = [sys.executable, "-P", "-m", "bin.cli", "status", "--home", str(sidecar.home)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests = counters(sidecar)["understudy_requests_total"]
    for said in ("worker 1: ", "worker 2: ", "proxy:1 ", "proxy:2 ", "this run: "):
        assert said in shown
    counted = int(shown.split("this run: ")[1].split(" requests")[0])
    assert 0 < counted <= requests


def assert_recorded(
    sidecar: Sidecar, found: list[Caller], others: list[Caller], died: float
) -> None:
    """Once each; only the killed worker's last moment may be missing."""
    kept = recorded(sidecar)
    assert max(kept.values()) == 1
    safe = {
        token
        for caller in found
        for token, at in caller.finished.items()
        if caller in others or not died - 0.1 < at < died + 0.1
    }
    assert safe - set(kept) == set()
    runs = sidecar.query("SELECT count(DISTINCT run_id) FROM exchanges")
    assert runs == [(3,)], "each start of a worker is a run of its own"


def test_all_workers_drain(tmp_path: Path) -> None:
    with Upstream(Standin(latency=1.5)) as upstream:
        policy = {"upstream": upstream.url}
        with Sidecar(tmp_path / "home", policy, "--workers", "2") as sidecar:
            found = callers(sidecar, of_each=2)
            statuses: list[int] = []
            threads = [
                threading.Thread(target=lambda c=caller, n=number: statuses.append(c.ask(f"t{n}")))
                for number, caller in enumerate(found)
            ]
            for thread in threads:
                thread.start()
            wait_for("all are on their way", lambda: upstream.counts["requests"] == 4)
            assert sidecar.stop() == 0
            for thread in threads:
                thread.join()
            for caller in found:
                caller.close()
            assert statuses == [200] * 4
            assert recorded(sidecar) == Counter(f"t{number}" for number in range(4))


def test_the_admin_port_has_the_metrics_behind_its_token(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        with Sidecar(tmp_path / "home", {"upstream": upstream.url, "workers": 2}) as sidecar:
            assert ask_once(sidecar, "one") == 200
            url = f"http://{sidecar.state['admin']}/metrics"
            token = (sidecar.home / "admin.token").read_text().strip()

            def said(headers: dict[str, str]) -> bytes | int:
                try:
                    request = urllib.request.Request(url, headers=headers)
                    with urllib.request.urlopen(request, timeout=5) as answer:
                        return bytes(answer.read())
                except urllib.error.HTTPError as error:
                    return error.code
                except OSError:
                    return 0  # the director is not there yet

            assert wait_for("the admin site", lambda: said({})) == 401

            def requests() -> int:
                text = said({"Authorization": f"Bearer {token}"})
                assert isinstance(text, bytes)
                return parse(text)["understudy_requests_total"]

            wait_for("the request is counted", lambda: requests() >= 1)


# -- bounds


def outcome(client: socket.socket) -> str:
    """The status of the one answer that a client gets, and its code if that is ours."""
    answer = http.client.HTTPResponse(client, method="POST")
    try:
        answer.begin()
        said = answer.read()
    except ConnectionError:
        return "reset"
    if answer.status == 503:
        assert answer.headers["Retry-After"] == "1"
        assert json.loads(said)["error"]["code"] == "overloaded"
    return str(answer.status)


def send(client: socket.socket) -> None:
    said = body("burst").encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-x\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n"
    with contextlib.suppress(ConnectionError):
        client.sendall(head.encode() + said)


def test_above_its_connections_a_worker_says_so_and_health_still_answers(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        policy = {"upstream": upstream.url, "limits": {"connections": 2}}
        with Sidecar(tmp_path / "home", policy) as sidecar:
            wait_for("no client", lambda: sidecar.health()["clients"] <= 1)
            held = [Caller(address(sidecar)) for _ in range(2)]
            with socket.create_connection(address(sidecar), 10) as client:
                send(client)
                assert outcome(client) == "503"
                assert client.recv(1) == b"", "and the connection ends"
            assert sidecar.health()["clients"] == 2
            assert counters(sidecar)["understudy_overloaded_total"] == 1
            assert [caller.ask("held") for caller in held] == [200, 200]
            held[0].close()
            wait_for("a place", lambda: ask_once(sidecar, "next") == 200)
            held[1].close()
