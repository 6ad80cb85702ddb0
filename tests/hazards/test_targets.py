"""Targets: which bytes of one reach the upstream, and which ask for something else than it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.hazards.cases import REQUEST_WAYS, SEEN, refused, send_in_way, tried
from tests.hazards.harness import Sidecar, Stage, stage
from tests.hazards.peers import ANSWER, Upstream, chat, get, post, sized


@pytest.fixture(scope="module")
def on_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage"), {"forward": False}) as set_up:
        yield set_up


TARGETS = (
    "//a", "//", "/", "///v1//x///", "/a/../b", "/../../etc/passwd", "/./a/.", "/a/..",
    "/%2e%2e/b", "/%2E%2e/", "/a%2Fb", "/a%2fb%5c", "/a[]", "/a[0]?b[]=1&b[]=2", "/a;b;c=d",
    "/;", "/?", "/a?", "/a??b=?", "/?a=b?c", "/a?a&&b=&=c", "/a\\b", "/\\..\\b", "/%00", "/a%00b",
    "/a%0d%0aX-Evil:%201", "/a%0D%0A%0D%0AGET%20/stolen", "/%", "/%zz", "/%e4%ff", "/a|b^c`d",
    "/{a}\"<b>'", "/a=b,c:d@e!$&*()+", "/~a_-.", "/v1/files/a%20b+c", "/a?q=%E2%82%AC",
    "/%5funderstudy/health", "/%5Funderstudy/", "//_understudy/health", "/_Understudy/health",
    "/./_understudy/health", "/v1/../_understudy/health", "/_understudy", "/_understudy%2fhealth",
    "/_understudyx/health", "/v1/_understudy/health", "/?/_understudy/health",
)  # fmt: skip


@tried(TARGETS)
def test_targets_reach_the_upstream_as_they_came(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = get(name, "Connection: close\r\n")
    heard = send_in_way(sidecar, upstream, way, get(name), case)
    assert heard.statuses == [200]
    assert [call.target for call in heard.calls] == [name.encode()]
    assert [call.request.start.count(b"\r") for call in heard.calls] == [0]


RESERVED = {
    "/_understudy/health": 200,
    "/_understudy/health?x=1": 200,
    "/_understudy/metrics": 200,
    "/_understudy/": 404,
    "/_understudy/../v1/models": 404,
    "/_understudy//health": 404,
    "/_understudy/%68ealth": 404,
}


@tried(RESERVED)
def test_the_reserved_prefix_is_ours_by_its_raw_bytes(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = get(name, "Connection: close\r\n")
    heard = send_in_way(sidecar, upstream, way, get("/v1/x"), case)
    assert heard.statuses == [RESERVED[name]]
    assert heard.calls == []


BAD = ("/a#", "/a#top", "/#", "/a?b#c", "/\u00e4", "/\u20ac", "/a\x00b", "/a\x01b", "/a\tb",
       "/a\x0bb", "/a\x0cb", "/a\x1fb", "/a\x7fb", "/a b", "/a\rb", "/a\nb", "a", "v1/models", "?a",
       "", "../a", "\\a", "%2fa")  # fmt: skip


@tried(BAD)
def test_targets_that_are_none_are_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = b"GET " + name.encode() + b" HTTP/1.1\r\nHost: app\r\n\r\n"
    refused(sidecar, upstream, case, 400, way=way)


# -- it is no forward proxy


@pytest.fixture(scope="module")
def trap() -> Iterator[socket.socket]:
    """Whoever dials what a target names, dials this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def dialled(trap: socket.socket) -> bool:
    try:
        trap.accept()[0].close()
    except BlockingIOError:
        return False
    return True


ABSOLUTE = (
    "http://127.0.0.1:{trap}/", "http://localhost:{trap}/v1/x", "http://[::ffff:127.0.0.1]:{trap}/",
    "http://2130706433:{trap}/", "http://0x7f.1:{trap}/", "https://127.0.0.1:{trap}/",
    "http://app/v1/models",
    "http://other.example/", "HTTP://OTHER.EXAMPLE/", "http://169.254.169.254/latest/meta-data",
    "http://[fd00:ec2::254]/", "http://metadata.google.internal/", "ws://127.0.0.1:{trap}/",
)  # fmt: skip
WITH_USER = ("http://me:secret@127.0.0.1:{trap}/", "http://127.0.0.1:{own}@127.0.0.1:{trap}/",
             "http://me@other.example/")  # fmt: skip
CONNECT = ("127.0.0.1:{trap}", "localhost:{trap}", "api.openai.com:443", "169.254.169.254:80",
           "[::1]:{trap}", "127.0.0.1:{own}")  # fmt: skip


def filled_in(target: str, sidecar: Sidecar, trap: socket.socket) -> bytes:
    return target.format(trap=trap.getsockname()[1], own=sidecar.address[1]).encode()


@tried(ABSOLUTE)
def test_absolute_targets_are_refused_and_nothing_is_dialled(
    sidecar: Sidecar, upstream: Upstream, trap: socket.socket, way: str, name: str
) -> None:
    target = filled_in(name, sidecar, trap)
    case = b"GET %b HTTP/1.1\r\nHost: app\r\n\r\n" % target
    heard = refused(sidecar, upstream, case, 405, way=way)
    assert b"\r\nAllow: " in heard.data
    assert not dialled(trap)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_sidecars_own_name_in_front_of_a_target_says_nothing(
    sidecar: Sidecar, upstream: Upstream, host: str
) -> None:
    own = b"http://%b:%d" % (host.encode(), sidecar.address[1])
    case = get("/T").replace(b"/T", own + chat("own").encode(), 1)
    assert sidecar.exchange(case, "GET").status == 200
    assert upstream.next_call().target == chat("own").encode()
    health = get("/T").replace(b"/T", own + b"/_understudy/health", 1)
    assert b'"status":"ok"' in sidecar.exchange(health, "GET").body


@tried(WITH_USER)
def test_a_target_with_a_user_is_refused_and_nothing_is_dialled(
    sidecar: Sidecar, upstream: Upstream, trap: socket.socket, way: str, name: str
) -> None:
    case = b"GET %b HTTP/1.1\r\nHost: app\r\n\r\n" % filled_in(name, sidecar, trap)
    heard = refused(sidecar, upstream, case, 400, 405, way=way)
    assert b"secret" not in heard.data
    assert not dialled(trap)


@tried(CONNECT)
def test_connect_is_refused_and_nothing_is_dialled(
    sidecar: Sidecar, upstream: Upstream, trap: socket.socket, way: str, name: str
) -> None:
    """What is sent into the tunnel too early goes nowhere."""
    target = filled_in(name, sidecar, trap)
    case = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n\x16\x03\x01\x00\x05hello" % (target, target)
    refused(sidecar, upstream, case, 405, way=way)
    assert not dialled(trap)


# -- any Host will do, and none of it goes on

HOSTS = ("app", "localhost:4141", "api.openai.com", "169.254.169.254", "[::1]:80", "a.b-c_d~e.",
         "xn--4ca.example", "APP", "127.0.0.1:1", "evil.example:65535")  # fmt: skip


@pytest.mark.parametrize("way", REQUEST_WAYS)
@pytest.mark.parametrize("host", HOSTS)
def test_any_host_is_relayed_under_the_upstreams_own(
    sidecar: Sidecar, upstream: Upstream, host: str, way: str
) -> None:
    def asked(end: str) -> bytes:
        return get("/v1/x", end).replace(b"Host: app", b"Host: " + host.encode())

    heard = send_in_way(sidecar, upstream, way, asked(""), asked("Connection: close\r\n"))
    assert heard.statuses == [200]
    own = [b"127.0.0.1:%d" % upstream.port]
    assert [call.request.all(b"host") for call in heard.calls] == [own]
    assert host.encode() not in b"".join(v for c in heard.calls for _, v in c.request.headers)


# -- nothing becomes a header that is none

MODELS = ("a\r\nX-Evil: 1", "a\nX-Evil: 1", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "a\x00b\x7f\u2028")


@pytest.mark.parametrize("model", MODELS)
def test_a_models_name_is_never_read_as_a_header(
    sidecar: Sidecar, upstream: Upstream, model: str
) -> None:
    body = orjson.dumps({"model": model, "messages": []})
    tag = f"injected-{MODELS.index(model)}"
    client = sidecar.connect()
    for _ in range(SEEN):
        client.send(post(chat("" if _ else tag), body))
        reply = client.reply()
        assert (reply.body, len(reply.headers)) == (ANSWER, 2)
        request = upstream.next_call().request
        assert (request.body, len(request.headers)) == (body, 5)
    assert sidecar.row(tag)["model"] == model


def test_an_encoded_line_end_stays_encoded_in_a_reply(sidecar: Sidecar, upstream: Upstream) -> None:
    location = b"Location: /v1/a%0d%0aX-Evil:%201\r\n"
    said = sized(b"", b"302 Found", location)
    with upstream.playing(lambda call: call.send(said)):
        client = sidecar.connect()
        for _ in range(SEEN):
            client.send(get("/v1/a%0d%0aX-Evil:%201"))
            assert client.take(len(said)) == said
            assert upstream.next_call().target == b"/v1/a%0d%0aX-Evil:%201"


POLICIES = {
    "upstream": {"upstream": "http://app/\r\nX-Evil: 1"},
    "upstream's host": {"upstream": "http://app\r\nX-Evil: 1/"},
    "prefix": {"upstreams": [{"prefix": "/a\r\nX-Evil: 1", "url": "http://app"}]},
    "candidate": {"candidates": [{"name": "a\r\nX-Evil: 1", "gguf": "a.gguf"}]},
    "candidate, at its end": {"candidates": [{"name": "a\n", "gguf": "a.gguf"}]},
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_would_add_headers_is_refused(tmp_path: Path, name: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(orjson.dumps(POLICIES[name]))
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(tmp_path / "home"),
         "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policy", str(policy)],
        capture_output=True,
        env=dict(os.environ),
        timeout=20,
    )  # fmt: skip
    assert ran.returncode == 2
    assert b"policy.yaml" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert not any(line.startswith(b"X-Evil") for line in ran.stderr.splitlines())
