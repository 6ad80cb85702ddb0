"""The section of interception: CONNECT, TLS with a leaf of our own, and TLS to the upstream."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench import bodies, rigs
from tests.bench.authority import Authority
from tests.bench.figures import Row, pick, rows
from tests.bench.loads import LoadError, Measured, alternate
from tests.bench.machine import LOAD, PROXY_CORE, RELAY, cpu_seconds, free_port, needs
from tests.bench.rigs import Rig
from tests.bench.sections import Bench

HOST: Final = "api.openai.com"
_FRESH_CONNECTIONS: Final = 8
# nginx 1.22 would leave version 1.3 out, on both sides.
_VERSIONS: Final = "TLSv1.2 TLSv1.3"
_PROXY: Final = """upstream behind {{ server {upstream}; keepalive 512;
  keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} ssl; {served}; location / {{ proxy_pass https://behind;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  proxy_request_buffering off; client_max_body_size 0;
  proxy_ssl_protocols {versions}; proxy_ssl_session_reuse on; proxy_ssl_server_name on;
  proxy_ssl_name {host}; proxy_ssl_verify on; proxy_ssl_trusted_certificate {root}; }} }}"""


def served(authority: Authority) -> str:
    """Directives of a server that speaks TLS."""
    pair = f"ssl_certificate {authority.certificate}; ssl_certificate_key {authority.key}"
    return f"{pair}; ssl_protocols {_VERSIONS}"


@contextlib.contextmanager
def redirected(folder: Path, target: str) -> Iterator[str]:
    """A proxy that leads every tunnel, and every other connection, to the target: host and port."""
    port = free_port()
    log = folder / f"redirector-{port}.log"
    command = [sys.executable, "-m", "tests.bench.redirector", str(port)]
    with rigs.process([*command, target.rpartition(":")[2]], LOAD, log) as started:
        rigs.listening(port, started, log)
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, authority: Authority) -> Iterator[Rig]:
    """Speaks TLS on both sides, without CONNECT."""
    port = free_port()
    blocks = _PROXY.format(
        port=port, upstream=upstream, served=served(authority), versions=_VERSIONS,
        host=HOST, root=authority.root,
    )  # fmt: skip
    with rigs.nginx(folder, f"proxy-{port}", blocks, port, [PROXY_CORE], RELAY) as pids:
        yield Rig("nginx", port, pids)


@contextlib.contextmanager
def prototype(
    folder: Path, upstream: str, authority: Authority, kind: str = "bio", name: str = "prototype"
) -> Iterator[Rig]:
    """`kind`: of `bare_interception`."""
    port = free_port()
    log = folder / f"bare-{port}.log"
    command = [sys.executable, "-m", "tests.bench.bare_interception", kind, str(port), upstream]
    command += [HOST, str(authority.root), str(authority.certificate), str(authority.key)]
    with rigs.process(command, RELAY, log) as started:
        rigs.listening(port, started, log)
        yield Rig(name, port, (started.pid,))


def understudy(
    folder: Path, proxy: str, authority: Authority, *options: str, name: str = rigs.OURS
) -> contextlib.AbstractContextManager[Rig]:
    """`proxy`: its way out, to whatever host."""
    environment = {
        "SSL_CERT_FILE": str(authority.root),
        "UNDERSTUDY_UPSTREAM_PROXY": f"http://{proxy}",
        "NO_PROXY": "",
        "no_proxy": "",
    }
    upstream = f"https://{HOST}"
    return rigs.understudy(folder, upstream, *options, name=name, environment=environment)


@dataclass(frozen=True, slots=True)
class Way:
    """How clients come to a system: whom they trust, and whether they ask for a tunnel first."""

    root: Path
    tunnel: bool = True


class Intercepted:
    """CPU of each request on kept connections; with `fresh`, each has a connection of its own."""

    def __init__(
        self,
        ways: Mapping[str, Way],
        seconds: float,
        connections: int = 64,
        fresh: bool = False,
    ) -> None:
        """`ways`: by the rig's name."""
        self._ways, self._seconds = ways, seconds
        self._connections, self._fresh = connections, fresh

    def __call__(self, rig: Rig) -> Measured:
        way = self._ways[rig.name]
        command = [*LOAD, sys.executable, "-m", "tests.bench.tls_load", str(rig.port), HOST]
        command += [str(way.root), str(self._connections), str(self._seconds)]
        command += ["connect"] * way.tunnel + ["fresh"] * self._fresh
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            try:
                return _measured(rig, client)
            finally:
                client.terminate()


def _measured(rig: Rig, client: subprocess.Popen[str]) -> Measured:
    assert client.stdin is not None
    if _line(rig, client) != "open":
        raise LoadError(f"{rig.name}: the connections did not open")
    before = cpu_seconds(rig.pids)
    client.stdin.write("\n")
    client.stdin.flush()
    said: dict[str, Any] = json.loads(_line(rig, client))
    used = cpu_seconds(rig.pids) - before
    return {
        "CPU µs": used * 1e6 / said["requests"],
        "p50 µs": said["p50"] * 1e6,
        "p99 µs": said["p99"] * 1e6,
        "rate requests/s": said["requests"] / said["seconds"],
    }


def _line(rig: Rig, client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise LoadError(f"{rig.name}: the client over TLS failed")
    return line.strip()


def interception(bench: Bench) -> list[Row]:
    """All go through one redirector to one upstream, and speak TLS 1.3 on both sides."""
    needs("nginx", "openssl", "taskset")
    folder = bench.folder
    authority = Authority.make(folder)
    with ExitStack() as stack:
        target = stack.enter_context(
            rigs.constant(folder, bodies.answer(), tls=served(authority))
        )  # fmt: skip
        upstream = stack.enter_context(redirected(folder, target))
        terminating = stack.enter_context(nginx(folder, upstream, authority))
        bare = stack.enter_context(prototype(folder, upstream, authority))
        ours = [
            stack.enter_context(understudy(folder, upstream, authority, *options, name=name))
            for name, options in ((rigs.BARE, ("--no-capture",)), (rigs.OURS, ()))
        ]
        ways = {
            terminating.name: Way(authority.root, tunnel=False),
            bare.name: Way(authority.root),
            **{rig.name: Way(folder / f"home-{rig.port}" / "ca" / "root.pem") for rig in ours},
        }
        return _rounds(bench, ways, [terminating, bare, *ours])


def _rounds(bench: Bench, ways: Mapping[str, Way], tested: list[Rig]) -> list[Row]:
    kept = Intercepted(ways, bench.seconds)
    found = rows("interception", alternate(kept, tested, bench.rounds, bench.progress))
    new = Intercepted(ways, bench.seconds, _FRESH_CONNECTIONS, fresh=True)
    figures = alternate(new, tested, bench.rounds, bench.progress)
    # nginx is asked for no tunnel: its connections are one answer shorter.
    return found + rows("new connection", pick(figures, "CPU µs", "p50 µs", "rate requests/s"))
