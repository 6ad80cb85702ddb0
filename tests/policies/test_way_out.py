"""Which proxy a call goes through, and when none: what other programs make of these variables."""

from __future__ import annotations

import pytest

from policies.listeners import Listeners
from policies.setting import PolicyError
from policies.way_out import UpstreamProxy, WayOut, from_environment

OWN = Listeners.of(["127.0.0.1:4141", "127.0.0.1:4142"])
PROXY = "http://proxy.corp:3128"

DIRECT = [
    # NO_PROXY, host, port, reached without the proxy?
    ("", "api.test", 443, False),
    ("*", "api.test", 443, True),
    ("api.test", "api.test", 443, True),
    ("API.Test", "api.TEST.", 443, True),
    ("api.test", "eu.api.test", 443, True),
    ("api.test", "notapi.test", 443, False),
    ("api.test", "api.test.evil", 443, False),
    (".test", "api.test", 443, True),
    ("*.test", "api.test", 443, True),
    ("test", "api.test", 443, True),
    ("a, api.test ,b", "api.test", 443, True),
    ("a api.test", "api.test", 443, True),
    ("api.test:443", "api.test", 443, True),
    ("api.test:8443", "api.test", 443, False),
    ("*:443", "api.test", 443, True),
    ("10.0.0.0/8", "10.1.2.3", 443, True),
    ("10.0.0.0/8", "11.1.2.3", 443, False),
    ("10.0.0.0/8", "api.test", 443, False),
    ("10.9.9.9/8", "10.1.2.3", 443, True),
    ("10.0.0.0/8:443", "10.1.2.3", 443, True),
    ("10.0.0.0/8:80", "10.1.2.3", 443, False),
    ("10.1.2.3", "10.1.2.3", 443, True),
    ("10.1.2.3:80", "10.1.2.3", 443, False),
    ("10.1.2.3", "110.1.2.3", 443, False),
    ("10.1.2.3", "::ffff:10.1.2.3", 443, True),
    ("2001:db8::/32", "2001:db8::1", 443, True),
    ("2001:db8::1", "2001:db8::1", 443, True),
    ("[2001:db8::1]", "2001:db8::1", 443, True),
    ("[2001:db8::1]:443", "2001:db8::1", 443, True),
    ("[2001:db8::1]:80", "2001:db8::1", 443, False),
    (",, :443 . *.", "api.test", 443, False),
    ("", "localhost", 443, True),
    ("", "app.localhost", 443, True),
    ("", "127.0.0.1", 443, True),
    ("", "127.9.9.9", 443, True),
    ("", "::1", 443, True),
    ("", "::ffff:127.0.0.1", 443, True),
    ("", "localhost.test", 443, False),
]


@pytest.mark.parametrize(("no_proxy", "host", "port", "direct"), DIRECT)
def test_what_is_reached_without_the_proxy(
    no_proxy: str, host: str, port: int, direct: bool
) -> None:
    way_out = WayOut.of(https=PROXY, no_proxy=no_proxy)
    assert (way_out.proxy_for(host, port, tls=True) is None) == direct


CHOSEN = [
    ({}, None, None),
    ({"HTTPS_PROXY": "http://a"}, "a", None),
    ({"https_proxy": "http://a"}, "a", None),
    ({"https_proxy": "http://a", "HTTPS_PROXY": "http://b"}, "a", None),
    ({"https_proxy": "", "HTTPS_PROXY": "http://b"}, "b", None),
    ({"http_proxy": "http://a"}, None, "a"),
    ({"HTTP_PROXY": "http://a"}, None, "a"),
    ({"HTTP_PROXY": "http://a", "HTTPS_PROXY": "http://b"}, "b", "a"),
    ({"ALL_PROXY": "http://a"}, None, None),
    ({"UNDERSTUDY_UPSTREAM_PROXY": "http://u", "HTTPS_PROXY": "http://a"}, "u", "u"),
    ({"UNDERSTUDY_UPSTREAM_PROXY": " ", "HTTPS_PROXY": "http://a"}, "a", None),
    ({"HTTPS_PROXY": "http://127.0.0.1:4141"}, None, None),
    ({"HTTPS_PROXY": "http://localhost:4141", "HTTP_PROXY": "127.0.0.1:4142"}, None, None),
    ({"https_proxy": "http://127.0.0.1:4141", "HTTPS_PROXY": "http://b"}, "b", None),
    ({"HTTPS_PROXY": "http://127.0.0.1:4143"}, "127.0.0.1", None),
]


@pytest.mark.parametrize(("environment", "https", "http"), CHOSEN)
def test_which_variable_counts(
    environment: dict[str, str], https: str | None, http: str | None
) -> None:
    way_out = WayOut.of(**from_environment(environment, OWN))
    found = [way_out.proxy_for("api.test", 443, tls) for tls in (True, False)]
    assert [proxy and proxy.host for proxy in found] == [https, http]


def test_no_proxy_is_read_from_either_name() -> None:
    for environment in ({"no_proxy": "a"}, {"NO_PROXY": "a"}, {"no_proxy": "a", "NO_PROXY": "b"}):
        assert from_environment(environment, OWN)["no_proxy"] == "a"


@pytest.mark.parametrize(
    ("url", "host", "port", "authorization"),
    [
        ("http://proxy.corp:3128", "proxy.corp", 3128, b""),
        ("proxy.corp:3128", "proxy.corp", 3128, b""),
        ("http://proxy.corp/", "proxy.corp", 80, b""),
        ("http://[2001:db8::1]:3128", "2001:db8::1", 3128, b""),
        ("http://a:b@proxy.corp", "proxy.corp", 80, b"Basic YTpi"),
        ("http://a@proxy.corp", "proxy.corp", 80, b"Basic YTo="),
        ("http://a:@proxy.corp", "proxy.corp", 80, b"Basic YTo="),
        ("http://a%3Ab:c%40d%25@proxy.corp", "proxy.corp", 80, b"Basic YTpiOmNAZCU="),
        ("http://a:%0d%0aX@proxy.corp", "proxy.corp", 80, b"Basic YToNClg="),
    ],
)
def test_a_proxys_url(url: str, host: str, port: int, authorization: bytes) -> None:
    assert UpstreamProxy.of(url, "X") == UpstreamProxy(host, port, authorization)


@pytest.mark.parametrize(
    "url",
    [
        "https://a:canary@proxy.corp",
        "socks5://a:canary@proxy.corp",
        "http://a:canary@",
        "http://a:canary/x@proxy.corp:1",
        "http://a:canary@proxy.corp:99999",
        "http://a:canary@proxy.corp:0",
        "http://a:canary@proxy.corp/path",
        "http://a:canary@proxy.corp?x",
        "http://a:canary@pro xy",
        "http://a:canary@[::1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    with pytest.raises(PolicyError, match=r"^HTTPS_PROXY: .*must be http://host:port") as error:
        from_environment({"HTTPS_PROXY": url}, OWN)
    assert "canary" not in str(error.value) + repr(error.value)


def test_a_proxy_of_ours_that_is_ourselves_is_an_error() -> None:
    with pytest.raises(PolicyError, match="this sidecar itself"):
        from_environment({"UNDERSTUDY_UPSTREAM_PROXY": "http://127.0.0.1:4141"}, OWN)


def test_credentials_are_not_shown() -> None:
    assert "Basic" not in repr(WayOut.of(https="http://a:b@c"))


NAMED = [
    ("127.0.0.1:1", "127.0.0.1", True),
    ("127.0.0.1:1", "localhost", True),
    ("127.0.0.1:1", "LOCALHOST.", True),
    ("127.0.0.1:1", "0.0.0.0", True),
    ("127.0.0.1:1", "127.0.0.2", False),
    ("127.0.0.1:1", "::1", False),
    ("0.0.0.0:1", "127.0.0.2", True),
    ("0.0.0.0:1", "localhost", True),
    ("0.0.0.0:1", "192.0.2.9", False),
    ("[::1]:1", "::1", True),
    ("[::1]:1", "[::1]", True),
    ("[::]:1", "localhost", True),
    ("10.0.0.1:1", "localhost", False),
    ("10.0.0.1:1", "10.0.0.1", True),
    ("10.0.0.1:1", "::ffff:10.0.0.1", True),
    ("10.0.0.1:2", "10.0.0.1", False),
]


@pytest.mark.parametrize(("bound", "host", "own"), NAMED)
def test_which_hosts_are_literally_ourselves(bound: str, host: str, own: bool) -> None:
    assert Listeners.of([bound]).named(host, 1) == own


REACHED = [
    # bound, peer, local, ourselves?
    ("127.0.0.1:1", "127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1:1", "::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
    ("127.0.0.1:1", "192.0.2.9", "192.0.2.9", False),
    ("0.0.0.0:1", "192.0.2.9", "192.0.2.9", True),
    ("0.0.0.0:1", "192.0.2.9", "192.0.2.1", False),
    ("0.0.0.0:1", "127.0.0.5", "127.0.0.1", True),
    ("0.0.0.0:1", "::1", "::1", False),
    ("[::]:1", "fe80::1%eth0", "fe80::1%eth0", True),
    ("0.0.0.0:2", "127.0.0.1", "127.0.0.1", False),
]


@pytest.mark.parametrize(("bound", "peer", "local", "own"), REACHED)
def test_which_connections_reached_ourselves(bound: str, peer: str, local: str, own: bool) -> None:
    assert Listeners.of([bound]).reached((peer, 1), local) == own
