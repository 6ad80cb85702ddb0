"""`understudy doctor` through the real command line, with the real sidecar behind it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest

from bin.doctor import add_doctor
from tests.e2e.harness import Sidecar, wait_for
from tests.proxy.far_ends import Authority
from tests.runtimes.openai_host import TARGET, OpenaiHost
from tests.runtimes.redirect import Redirector

DOCTOR = """
import sys
from pathlib import Path
import click
from bin.doctor import add_doctor
group = click.Group()
add_doctor(group, click.option("--home", type=click.Path(path_type=Path)))
group()
"""
OTHERS = ("PROXY", "OPENAI_", "SSL_CERT", "_CA_BUNDLE", "NODE_", "JAVA_TOOL", "UNDERSTUDY_")


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not any(other in name.upper() for other in OTHERS)
    }
    return kept | more


@dataclass(frozen=True)
class Report:
    code: int
    out: str
    complaint: str

    @property
    def whole(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def of(self, name: str) -> dict[str, Any]:
        """The first finding whose name begins so."""
        parts = [*self.whole["chain"], *self.whole.get("runtimes", ())]
        return next(one for one in parts if one["name"].startswith(name))

    def wrong(self) -> list[str]:
        parts = [*self.whole["chain"], *self.whole.get("runtimes", ())]
        return [one["name"] for one in parts if one["ok"] is False]


def doctor(home: Path, *words: str, **variables: str) -> Report:
    done = subprocess.run(
        [sys.executable, "-P", "-c", DOCTOR, "doctor", "--home", str(home), *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**variables),
        cwd=home.parent,
    )
    return Report(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What leads a sidecar to the played api.openai.com."""
    authority = Authority.make(tmp_path_factory.mktemp("authority"))
    with OpenaiHost(authority) as host, Redirector({TARGET: host.port}) as redirector:
        yield {"UNDERSTUDY_UPSTREAM_PROXY": redirector.url, "SSL_CERT_FILE": str(host.root)}


@contextmanager
def started(
    folder: Path, way: dict[str, str], policy: dict[str, Any] | None = None, *options: str
) -> Iterator[Sidecar]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if any(other in name.upper() for other in OTHERS):
                patch.delenv(name)
        for name, value in way.items():
            patch.setenv(name, value)
        sidecar = Sidecar(folder / "home", policy or {}, *options)
        sidecar.start()
    with sidecar_of(sidecar):
        yield sidecar


@contextmanager
def sidecar_of(sidecar: Sidecar) -> Iterator[None]:
    try:
        yield
    finally:
        assert sidecar.stop() == 0, sidecar.log.read_text()


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory, way: dict[str, str]) -> Iterator[Sidecar]:
    with started(tmp_path_factory.mktemp("sidecar"), way) as found:
        yield found


def test_the_command_is_added_with_the_home_option_it_is_given() -> None:
    group = click.Group()
    add_doctor(group, click.option("--home"))
    assert "--home" in [option for one in group.commands["doctor"].params for option in one.opts]


# -- the chain


def test_a_whole_chain(sidecar: Sidecar) -> None:
    report = doctor(sidecar.home, "--json", "--", sys.executable)
    assert (report.code, report.complaint) == (0, ""), report.out
    assert report.whole["ok"] is True and report.wrong() == []
    for name in ("sidecar", "authority", "bundle", "forward proxy", "upstream", "clock", "disk"):
        assert report.of(name)["ok"] is True, report.of(name)


def test_a_whole_chain_in_lines(sidecar: Sidecar) -> None:
    report = doctor(sidecar.home, "--", "curl")
    assert report.code == 0, report.out
    assert "   ok  upstream: https://api.openai.com answers (" in report.out
    assert report.out.endswith("\nnothing is wrong\n")


def test_without_a_sidecar_it_says_how_to_start_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    report = doctor(home, "--json")
    assert report.code == 1 and report.whole["ok"] is False
    assert report.of("runtimes")["said"].startswith("not tried")
    assert not home.exists(), "looking leaves nothing behind"


def test_a_port_that_somebody_else_has_taken(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "install.key").write_text("ab" * 32)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        state = {"pid": os.getpid(), "data": f"127.0.0.1:{other.server_port}",
                 "admin": "127.0.0.1:1", "upstream": "https://api.openai.com",
                 "run_dir": str(tmp_path), "processes": {}}  # fmt: skip
        (home / "state.json").write_text(json.dumps(state))
        found = doctor(home, "--json").of("sidecar")
        other.shutdown()
    assert found["ok"] is False and "is not an understudy" in found["said"]
    assert "--listen 127.0.0.1:0" in found["cure"]


def test_an_authority_that_others_can_read(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way) as sidecar:
        key = sidecar.home / "ca" / "intermediate.key"
        key.chmod(0o644)
        report = doctor(sidecar.home, "--json", "--", "curl")
        assert report.code == 1
        found = report.of("authority")
        assert "others may read it" in found["said"] and found["cure"].startswith("run: chmod 600")


def test_a_sidecar_that_started_with_a_broken_authority(
    tmp_path: Path, way: dict[str, str]
) -> None:
    (tmp_path / "home" / "ca").mkdir(parents=True, mode=0o700)
    with started(tmp_path, way) as sidecar:
        report = doctor(sidecar.home, "--json", "--", "curl")
    assert report.code == 1
    assert {"authority", "forward proxy"} <= set(report.wrong()), report.out
    assert "is missing" in report.of("forward proxy")["said"]
    assert report.of("authority")["cure"] == "make a new one: understudy ca renew"


def test_a_sidecar_that_shall_be_no_proxy(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way, {"forward": False}) as sidecar:
        report = doctor(sidecar.home, "--json", "--", "curl")
    assert report.code == 0 and report.of("forward proxy")["ok"] is None, report.out


def test_an_upstream_that_nothing_leads_to(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound, and listening to nobody
        nobody.bind(("127.0.0.1", 0))
        policy = {"upstream": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
        with started(tmp_path, {}, policy) as sidecar:
            report = doctor(sidecar.home, "--json", "--", sys.executable)
    found = report.of("upstream")
    assert report.code == 1 and found["ok"] is False
    assert "upstream_unreachable" in found["said"] and "DNS" in found["cure"]


def test_a_client_that_rejects_us_is_named(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way) as sidecar:
        host, _, port = sidecar.state["data"].rpartition(":")
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(f"CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n\r\n".encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
            with pytest.raises(ssl.SSLError):  # of our root the test's own trust knows nothing
                ssl.create_default_context().wrap_socket(
                    connection, server_hostname="api.openai.com"
                )
        wait_for("it is counted", lambda: sidecar.health()["forward"]["rejecting"])
        found = doctor(sidecar.home, "--json", "--", "curl").of("rejecting")
    assert found["ok"] is None and found["said"].startswith("127.0.0.1 broke off TLS for api.op")


def test_this_shell_contradicts_itself(sidecar: Sidecar) -> None:
    admin = f"http://{sidecar.state['admin']}"
    report = doctor(sidecar.home, "--json", "--", "curl", HTTPS_PROXY=admin)
    assert report.code == 1
    assert report.of("environment")["said"] == "HTTPS_PROXY leads to the admin site"
    assert report.of("environment")["cure"] == f"HTTPS_PROXY={sidecar.url}"


# -- canaries


def canaries(report: Report) -> dict[str, bool | None]:
    return {one["name"]: one["ok"] for one in report.whole["runtimes"]}


def test_python_is_captured_both_ways(sidecar: Sidecar) -> None:
    report = doctor(sidecar.home, "--json", "--", sys.executable, OPENAI_API_KEY="sk-secret")
    found = canaries(report)
    version = ".".join(map(str, sys.version_info[:3]))
    for library in ("openai (base_url)", "openai (HTTPS_PROXY)", "urllib (HTTPS_PROXY)",
                    "aiohttp (HTTPS_PROXY)"):  # fmt: skip
        assert found[f"python {version} {library}"] is True, report.out
    assert found[f"python {version} aiohttp without trust_env (HTTPS_PROXY)"] is None
    assert report.of(f"python {version} aiohttp without")["cure"].startswith("aiohttp.ClientSess")


def test_a_script_is_tried_by_what_runs_it(sidecar: Sidecar, tmp_path: Path) -> None:
    script = tmp_path / "app"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    assert all(name.startswith("python") for name in canaries(
        doctor(sidecar.home, "--json", "--", str(script))))  # fmt: skip


def test_curl_is_captured_and_no_proxy_is_blamed(sidecar: Sidecar) -> None:
    assert list(canaries(doctor(sidecar.home, "--json", "--", "curl")).values()) == [True]
    report = doctor(sidecar.home, "--json", "--", "curl", NO_PROXY=".openai.com")
    assert report.code == 1
    assert report.of("curl")["said"] == "not captured: NO_PROXY covers api.openai.com"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_is_captured_or_too_old(sidecar: Sidecar) -> None:
    found = doctor(sidecar.home, "--json", "--", "node").of("node")
    assert found["ok"] is True or "ignores HTTPS_PROXY" in found["said"]


def test_what_is_not_recorded_is_counted(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way, None, "--no-capture") as sidecar:
        report = doctor(sidecar.home, "--json", "--", "curl")
    assert report.code == 0 and report.of("curl")["said"].startswith("came to the sidecar")
    assert report.of("capture")["ok"] is None


def test_an_air_gapped_machine_captures_all_the_same(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        lost = {"UNDERSTUDY_UPSTREAM_PROXY": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
        with started(tmp_path, lost) as sidecar:
            report = doctor(sidecar.home, "--json", "--", "curl")
    upstream = report.of("upstream")
    assert upstream["ok"] is False and "upstream_proxy" in upstream["said"]
    assert report.of("curl")["said"] == "captured (502)"


def test_without_a_forward_proxy_only_base_url_is_tried(
    tmp_path: Path, way: dict[str, str]
) -> None:
    with started(tmp_path, way, {"forward": False}) as sidecar:
        report = doctor(sidecar.home, "--json", "--", sys.executable)
    names = list(canaries(report))
    assert names[0] == "runtimes" and len(names) == 2 and names[1].endswith("openai (base_url)")


def test_a_recorder_that_hangs_is_found(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way) as sidecar:
        sidecar.signal("recorder", signal.SIGSTOP)
        try:
            report = doctor(sidecar.home, "--json", "--", "curl")
        finally:
            sidecar.signal("recorder", signal.SIGCONT)
    assert report.code == 1 and report.wrong() == ["recorder"]
    assert report.of("curl")["said"].startswith("came to the sidecar")


def test_several_workers(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way, {"workers": 2}) as sidecar:
        report = doctor(sidecar.home, "--json", "--", "curl")
    assert report.code == 0 and report.of("curl")["said"].startswith("captured"), report.out


def test_a_host_that_is_not_intercepted(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way, {"forward": {"intercept": ["api.example.com"]}}) as sidecar:
        found = doctor(sidecar.home, "--json", "--", "curl").of("curl")
    assert found["said"] == "not captured: the sidecar passed it on unseen"
    assert "forward.intercept" in found["cure"]


def test_no_key_is_sent(tmp_path: Path, way: dict[str, str]) -> None:
    with started(tmp_path, way) as sidecar:
        for key in ("sk-secret", "sk-other"):
            doctor(sidecar.home, "--json", "--", sys.executable, OPENAI_API_KEY=key)
        rows = sidecar.query("SELECT DISTINCT key_hash FROM exchanges WHERE key_hash IS NOT NULL")
    assert len(rows) == 1, "the SDK must say something, but it is always the same"


# -- pages


def test_pages_need_no_sidecar(tmp_path: Path) -> None:
    assert "NODE_EXTRA_CA_CERTS" in doctor(tmp_path / "none", "--explain", "node").out
    listed = doctor(tmp_path / "none", "--explain")
    assert listed.code == 0 and "aiohttp" in listed.out
    unknown = doctor(tmp_path / "none", "--explain", "cobol")
    assert unknown.code == 2 and "aiohttp" in unknown.complaint
