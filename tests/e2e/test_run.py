"""`understudy run` and `understudy env` through the real command line."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bin.sidecar_at import look_at, running
from bin.standin import Standin
from policies.home import Home
from tests.e2e.harness import Sidecar, Upstream, wait_for

CLI = (sys.executable, "-P", "-m", "bin.cli")
OTHERS = ("PROXY", "OPENAI_", "SSL_CERT", "_CA_BUNDLE", "NODE_", "JAVA_TOOL", "UNDERSTUDY_")
APP = """
import openai, sys
client = openai.OpenAI(max_retries=0, timeout=20)
for number in range(int(sys.argv[1])):
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": f"run {number}"}]
    )
    assert answer.choices[0].message.content
print("done")
"""
# Says which signals it got; ends at the first SIGTERM.
LISTENER = """
import signal, sys, time
def got(number, _):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(9)
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), got)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not any(other in name.upper() for other in OTHERS)
    }
    return kept | {"OPENAI_API_KEY": "sk-test"} | more


class Run:
    """A `run` that goes on while the test looks; what it and its command print is in files."""

    def __init__(self, home: Path, *words: str, upstream: str = "", **more: str) -> None:
        options = ["--listen", "127.0.0.1:0"] if "--listen" not in words else []
        options += ["--upstream", upstream] if upstream else []
        self.home = Home(home, home)
        self._number = len(list(home.parent.glob("*.out")))
        self.out = home.parent / f"{self._number}.out"
        self.err = home.parent / f"{self._number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*CLI, "run", "--home", str(home), *options, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(**more),
                start_new_session=True,
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """A test that fails leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def said(self, text: str) -> bool:
        return text in self.out.read_text() or text in self.err.read_text()

    def wait_until_said(self, text: str) -> None:
        wait_for(f"it says {text!r}", lambda: self.said(text))

    def end(self, seconds: float = 40.0) -> int:
        return self.process.wait(seconds)

    @property
    def complaint(self) -> str:
        return self.err.read_text()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Standin]:
    with Upstream(Standin(latency=0.0)) as standin:
        yield standin


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def sidecar_of(home: Path) -> str | None:
    """The address of the one that runs there, with proof."""
    found = running(Home(home, home))
    key = bytes.fromhex((home / "install.key").read_text()) if found else None
    return found.data if found and look_at(found.data, key).serving else None


def app(calls: int) -> tuple[str, ...]:
    return "--", sys.executable, "-c", APP, str(calls)


# -- one command


def test_an_app_is_captured_without_a_change_to_it(home: Path, upstream: Standin) -> None:
    with Run(home, *app(3), upstream=upstream.url) as run:
        assert run.end() == 0, run.complaint
    assert run.out.read_text() == "done\n"
    assert run.complaint == "understudy: captured 3 exchanges\n"
    sidecar = Sidecar(home, {})
    rows = sidecar.query("SELECT request FROM pairs")
    assert len(rows) == 3 and all('"run ' in row[0] for row in rows)
    assert sidecar_of(home) is None and not (home / "state.json").exists()
    assert (home / "serve.log").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700


def test_only_what_the_app_needs_is_set(home: Path, upstream: Standin) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    with Run(home, "--", sys.executable, "-c", show, upstream=upstream.url) as run:
        assert run.end() == 0, run.complaint
    found = json.loads(run.out.read_text())
    base_url = found.pop("OPENAI_BASE_URL")
    assert base_url.startswith("http://127.0.0.1:") and base_url.endswith("/v1")
    found.pop("LC_CTYPE", None)  # Python's own
    assert found == {name: value for name, value in environment().items() if name != "LC_CTYPE"}
    assert "captured nothing: no request reached the sidecar; a base_url in its" in run.complaint


def test_an_app_that_is_pointed_at_another_api_gets_there(home: Path, upstream: Standin) -> None:
    with Run(home, *app(1), OPENAI_BASE_URL=upstream.base_url) as run:
        assert run.end() == 0, run.complaint
    assert f"relaying to {upstream.url}" in run.complaint
    assert "captured 1 exchange\n" in run.complaint


def test_without_capture_it_says_so(home: Path, upstream: Standin, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"upstream: {upstream.url}\ncapture: {{enabled: false}}\n")
    with Run(home, "--policy", str(policy), *app(2)) as run:
        assert run.end() == 0, run.complaint
    assert "captured nothing: 2 requests came, but capture is off" in run.complaint


def test_several_workers_are_counted_together(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"upstream: {upstream.url}\nworkers: 2\n")
    one = " ".join(("import subprocess, sys", "for n in range(4):\n subprocess.check_call("))
    script = one.replace(" for", "\nfor") + f"[sys.executable, '-c', {APP!r}, '1'])"
    with Run(home, "--policy", str(policy), "--", sys.executable, "-c", script) as run:
        assert run.end() == 0, run.complaint
    assert "captured 4 exchanges" in run.complaint


# -- how it ends


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 7", 7), ("exit 0", 0), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_the_exit_code_is_passed_on(home: Path, upstream: Standin, script: str, code: int) -> None:
    with Run(home, "--", "sh", "-c", script, upstream=upstream.url) as run:
        assert run.end() == code
    assert sidecar_of(home) is None


def test_a_command_that_can_not_be_run_starts_nothing(home: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for command, code, why in (
        ("no-such-command-here", 127, "no such command"),
        (str(plain), 126, "is not executable"),
    ):
        with Run(home, "--", command) as run:
            assert run.end() == code
        assert run.complaint == f"understudy: {command}: {why}\n"
    assert not home.exists()


def test_signals_reach_the_command_once(home: Path, upstream: Standin) -> None:
    names = ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM")
    with Run(home, "--", sys.executable, "-c", LISTENER, *names, upstream=upstream.url) as run:
        run.wait_until_said("ready")
        for name in names:
            run.process.send_signal(getattr(signal, name))
            run.wait_until_said(name)
        assert run.end() == 9
    assert run.out.read_text().split() == ["ready", *names]
    assert sidecar_of(home) is None


def test_control_c_of_a_terminal_reaches_the_command_once(home: Path, upstream: Standin) -> None:
    command = [*CLI, "run", "--home", str(home), "--listen", "127.0.0.1:0"]
    command += ["--upstream", upstream.url, "--", sys.executable, "-c", LISTENER]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], [*command, "SIGINT", "SIGTERM"], environment())
    shown = _Shown(terminal)
    try:
        wait_for("it is ready", lambda: "ready" in shown.text)
        for number in (1, 2):
            os.write(terminal, b"\x03")
            wait_for("it has it", lambda number=number: shown.text.count("SIGINT") >= number)  # type: ignore[misc]
            time.sleep(0.3)
            assert shown.text.count("SIGINT") == number
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    finally:
        os.close(terminal)
    assert "captured nothing" in shown.text
    assert sidecar_of(home) is None


class _Shown:
    """What a terminal shows, read as it comes."""

    def __init__(self, terminal: int) -> None:
        self.text = ""
        self._terminal = terminal
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._terminal, 4096):
                self.text += piece.decode()
        except OSError:  # its other end is closed
            return


# -- several, and other people's sidecars

WAITER = """
import openai, pathlib, sys, time
print("started", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
client = openai.OpenAI(max_retries=0, timeout=20)
client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
print("called", flush=True)
"""


def waiter(go: Path) -> tuple[str, ...]:
    return "--", sys.executable, "-c", WAITER, str(go)


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_a_sidecar_stays_for_the_others_when_its_starter_goes(
    home: Path, upstream: Standin, tmp_path: Path, killed: bool
) -> None:
    first_go, second_go = tmp_path / "first", tmp_path / "second"
    with Run(home, *waiter(first_go), upstream=upstream.url) as first, ExitStack() as stack:
        first.wait_until_said("started")
        second = stack.enter_context(Run(home, *waiter(second_go), upstream=upstream.url))
        second.wait_until_said("started")
        address = sidecar_of(home)
        first_go.touch()
        if killed:
            first.process.kill()
            first.end()
        else:
            assert first.end() == 0, first.complaint
            assert "captured 1 exchange, of all commands" in first.complaint
        time.sleep(0.3)
        assert sidecar_of(home) == address is not None
        second_go.touch()
        assert second.end() == 0, second.complaint
    assert "called" in second.out.read_text()
    assert "of all commands at this sidecar" in second.complaint
    wait_for("the last one has gone, and the sidecar with it", lambda: not sidecar_of(home))
    wait_for("its state, too", lambda: not (home / "state.json").exists())


def test_runs_that_begin_together_share_one_sidecar(home: Path, upstream: Standin) -> None:
    runs = [Run(home, *app(2), upstream=upstream.url) for _ in range(4)]
    for run in runs:
        with run:
            assert run.end() == 0, run.complaint
    started = (home / "serve.log").read_text().count("relaying")
    assert 1 <= started <= 4
    wait_for("it is gone", lambda: not (home / "state.json").exists())
    sidecar = Sidecar(home, {})
    assert len(sidecar.query("SELECT 1 FROM exchanges")) == 8


def test_a_sidecar_that_somebody_started_is_used_and_left_alone(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    with Sidecar(home, {"upstream": upstream.url}) as sidecar:
        with Run(home, *app(1), upstream=upstream.url) as run:
            assert run.end() == 0, run.complaint
        assert "captured 1 exchange" in run.complaint
        assert sidecar.answers()
        with Run(home, *app(1), upstream="https://api.openai.com") as run:
            assert run.end() == 2
        assert f"the sidecar of this home relays to {upstream.url}" in run.complaint
        with Run(home, "--listen", "127.0.0.1:9", *app(1)) as run:
            assert run.end() == 2
        assert f"listens at {sidecar.state['data']}" in run.complaint


class _Foreign(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok", "pid": 1, "worker": 1, "proof": "0"}')

    def log_message(self, *_: Any) -> None:
        return


def refused(home: Path, address: str, tmp_path: Path) -> str:
    """What `run` says of an address; the command must not have run."""
    ran = tmp_path / "ran"
    with Run(home, "--listen", address, "--", "touch", str(ran)) as run:
        assert run.end() == 2
    assert not ran.exists()
    assert not (home / "serve.log").exists()
    return run.complaint


def test_a_port_of_somebody_else_is_not_used(home: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"127.0.0.1:{server.server_port}"
        said = refused(home, address, tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert f"--listen {address}: what listens there is an understudy of another home" in said
    assert "stop it, or name another address" in said


def test_a_port_where_nothing_answers_is_not_used(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        said = refused(home, f"127.0.0.1:{mute.getsockname()[1]}", tmp_path)
    assert "takes connections, but answers nothing" in said


def test_a_sidecar_of_another_home_is_not_used(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    with Sidecar(tmp_path / "theirs", {"upstream": upstream.url}) as theirs:
        said = refused(home, theirs.state["data"], tmp_path)
    assert "is an understudy of another home" in said


def test_a_sidecar_that_can_not_start_says_why(home: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("workers: none\n")
    ran = tmp_path / "ran"
    with Run(home, "--policy", str(policy), "--", "touch", str(ran)) as run:
        assert run.end() == 2
    assert f"the sidecar did not start: {policy}: workers: 'none': must be" in run.complaint
    assert not ran.exists()


def test_a_sidecar_that_dies_is_told_of_at_once(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with Run(home, *waiter(go), upstream=upstream.url) as run:
        run.wait_until_said("started")
        found = running(Home(home, home))
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        wait_for("it is told", lambda: "has ended" in run.complaint, 2.0)
        wait_for("nobody listens", lambda: look_at(found.data, None).who == "nobody", 5.0)
        assert run.process.poll() is None
        go.touch()
        assert run.end(10) == 1
    assert "APIConnectionError" in run.complaint
    assert f"To go on without it: {sys.executable} -c" in run.complaint
    assert "the sidecar ended before the command; captured until then: 0" in run.complaint


# -- env


def env(home: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*CLI, "env", "--home", str(home), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(**more), timeout=30
    )


def test_a_shell_gets_the_variables(home: Path, upstream: Standin) -> None:
    with Sidecar(home, {"upstream": upstream.url}) as sidecar:
        script = f'eval "$({" ".join(CLI)} env --home "{home}")"; printf %s "$OPENAI_BASE_URL"'
        found = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, env=environment(), timeout=30
        )
        assert (found.stdout, found.stderr) == (sidecar.base_url, "")
        for shell, line in (
            ("fish", f"set -gx OPENAI_BASE_URL '{sidecar.base_url}'\n"),
            ("powershell", f"$env:OPENAI_BASE_URL = '{sidecar.base_url}'\n"),
            ("docker", f"OPENAI_BASE_URL={sidecar.base_url}\n"),
        ):
            assert env(home, "--shell", shell).stdout == line
        told = env(home, "--shell", "docker", "--address", "host.docker.internal:4141")
        assert told.stdout == "OPENAI_BASE_URL=http://host.docker.internal:4141/v1\n"


def test_no_shell_is_pointed_at_nobody(home: Path) -> None:
    found = env(home)
    assert (found.returncode, found.stdout) == (2, "")
    assert "no sidecar runs there" in found.stderr


# -- proxy mode: the files that it names


def test_proxy_mode_names_files_that_hold_what_they_should(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    own = tmp_path / "own.pem"
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    with Sidecar(home, {"upstream": upstream.url}):
        root = (home / "ca" / "root.pem").read_bytes()
        own.write_bytes(root.replace(b"M", b"N", 1))  # any other text will do
        words = ("--mode", "proxy", "--", sys.executable, "-c", show)
        with Run(home, *words, SSL_CERT_FILE=str(own)) as run:
            assert run.end() == 0, run.complaint
    found: Mapping[str, str] = json.loads(run.out.read_text())
    assert Path(found["NODE_EXTRA_CA_CERTS"]).read_bytes() == root
    assert found["REQUESTS_CA_BUNDLE"] == str(home / "ca" / "bundle.pem")
    assert found["CURL_CA_BUNDLE"] == found["SSL_CERT_FILE"]
    joined = Path(found["SSL_CERT_FILE"]).read_bytes()
    assert own.read_bytes() in joined and root in joined
    assert found["HTTPS_PROXY"] == found["https_proxy"]
    assert "OPENAI_BASE_URL" not in found
    assert "aiohttp reads HTTPS_PROXY only with trust_env=True" in run.complaint


def test_proxy_mode_without_an_authority_says_so(
    home: Path, upstream: Standin, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"upstream: {upstream.url}\nforward: false\n")
    ran = tmp_path / "ran"
    words = ("--policy", str(policy), "--mode", "proxy", "--", "touch", str(ran))
    with Run(home, *words) as run:
        assert run.end() == 2
    assert "'forward: false', so HTTPS_PROXY can't work" in run.complaint
    assert not ran.exists() and sidecar_of(home) is None
