"""Which upstream a path belongs to, and what it is asked there."""

from __future__ import annotations

from typing import Any

import pytest

from policies.policy import Policy, build
from policies.setting import PolicyError
from policies.settings import plain
from proxy.heads import RequestHeads
from proxy.routes import Routes

AZURE, LOCAL, DEEP = "https://my.openai.azure.com", "http://localhost:8000/api", "https://deep.test"
UPSTREAMS = [
    {"prefix": "/openai", "url": AZURE},
    {"prefix": "/vllm/", "url": LOCAL, "strip": True},
    {"prefix": "/openai/deployments/gpt", "url": DEEP},
]
POLICY = build({"upstream": "https://api.openai.com", "upstreams": UPSTREAMS})


@pytest.mark.parametrize(
    ("path", "host"),
    [
        (b"/openai", b"my.openai.azure.com"),
        (b"/openai/", b"my.openai.azure.com"),
        (b"/openai/x", b"my.openai.azure.com"),
        (b"/openai?x=/openaix", b"my.openai.azure.com"),
        (b"/openai/deployments", b"my.openai.azure.com"),
        (b"/openai/deployments/gpt", b"deep.test"),
        (b"/openai/deployments/gpt/chat", b"deep.test"),
        (b"/openai/deployments/gpt-4/chat", b"my.openai.azure.com"),
        (b"/vllm/v1/models", b"localhost:8000"),
        (b"/openaix", b"api.openai.com"),
        (b"/OpenAI/x", b"api.openai.com"),
        (b"/%6fpenai/x", b"api.openai.com"),
        (b"/v1/openai", b"api.openai.com"),
        (b"//openai", b"api.openai.com"),
        (b"openai", b"api.openai.com"),
        (b"/", b"api.openai.com"),
        (b"", b"api.openai.com"),
        (b"*", b"api.openai.com"),
    ],
)
def test_the_longest_prefix_of_whole_segments_wins(path: bytes, host: bytes) -> None:
    routes = Routes.of(POLICY)
    assert routes.only is None
    assert routes.find(path).origin.host_header == host


@pytest.mark.parametrize(
    ("target", "onward"),
    [
        (b"/openai/x?a=%2F", b"/openai/x?a=%2F"),
        (b"/vllm/v1/models?a", b"/api/v1/models?a"),
        (b"/vllm", b"/api/"),
        (b"/vllm?a=/b", b"/api/?a=/b"),
        (b"/vllm/", b"/api/"),
        (b"/v1/models", b"/v1/models"),
    ],
)
def test_a_target_goes_on_as_it_came_or_without_its_prefix(target: bytes, onward: bytes) -> None:
    assert Routes.of(POLICY).find(target).onward(target) == onward


def test_one_upstream_has_nothing_to_find() -> None:
    routes = Routes.of(Policy())
    assert routes.only is routes.default
    assert routes.find(b"/openai/x") is routes.default
    assert routes.default.origin.host_header == b"api.openai.com"


def test_each_route_writes_its_own_host() -> None:
    heads = RequestHeads(Routes.of(POLICY).find(b"/vllm/x"))
    head = heads.read(b"GET", b"/vllm/x?a", "1.1", (b"Host",), [b"app"])
    assert head.wire(0) == b"GET /api/x?a HTTP/1.1\r\nHost: localhost:8000\r\n\r\n"
    assert head.below == b"/x"


def test_upstreams_survive_the_way_to_a_child_process() -> None:
    assert build(plain(POLICY)) == POLICY


HINT = "whole segments"


@pytest.mark.parametrize(
    ("entry", "field", "hint"),
    [
        ({"prefix": "openai", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a?b=c", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a#b", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a//b", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a/../b", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a b", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a\r\nb", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/a%zz", "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": 5, "url": AZURE}, "upstreams[0].prefix", HINT),
        ({"prefix": "/_understudy/x", "url": AZURE}, "upstreams[0].prefix", "sidecar's own"),
        ({"prefix": "/a", "url": "ftp://x"}, "upstreams[0].url", "http:// or https://"),
        ({"prefix": "/a", "url": AZURE, "strip": "yes"}, "upstreams[0].strip", "true or false"),
        ({"prefix": "/a"}, "upstreams[0].url", "is missing"),
        ({"url": AZURE}, "upstreams[0].prefix", "is missing"),
        ("/a", "upstreams[0]", "mapping"),
    ],
)
def test_wrong_upstreams(entry: Any, field: str, hint: str) -> None:
    with pytest.raises(PolicyError, match=hint) as error:
        build({"upstreams": [entry]})
    assert error.value.path == field


def test_prefixes_differ() -> None:
    twice = [{"prefix": "/a", "url": AZURE}, {"prefix": "/a/", "url": LOCAL}]
    with pytest.raises(PolicyError, match=r"upstreams: '/a': .* must differ"):
        build({"upstreams": twice})
    with pytest.raises(PolicyError, match="list of upstreams"):
        build({"upstreams": {"/a": AZURE}})
