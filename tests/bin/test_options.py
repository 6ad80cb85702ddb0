"""Values of options, and lines that several commands say."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from bin.expiry import expiring
from bin.options import HostPort, PolicyFile, doubled, upstream_of
from bin.supervisor import StartError, bind
from policies.setting import PolicyError
from proxy import authority

NOW = 1_800_000_000.0
DAY = 86400.0


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:4141", ("127.0.0.1", 4141)), ("[::1]:1", ("::1", 1)), (":7", ("127.0.0.1", 7))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert HostPort().convert(text, None, None) == address


@pytest.mark.parametrize("text", ["4141", "a:b", "a:65536"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be HOST:PORT"):
        HostPort().convert(text, None, None)


def test_a_policy_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert PolicyFile().convert(str(path), None, None) == path
    with pytest.raises(click.BadParameter, match="no such file"):
        PolicyFile(exists=True).convert(str(path), None, None)
    path.touch()
    assert PolicyFile(exists=True).convert(path, None, None) == path
    with pytest.raises(click.BadParameter, match="is a folder, not a file; where a container"):
        PolicyFile().convert(str(tmp_path), None, None)


@pytest.mark.parametrize(
    ("upstream", "hint"),
    [
        ("foo", "the scheme is missing, e.g. https://foo"),
        ("gw.example/v1", "the scheme is missing, e.g. https://gw.example/v1"),
        ("ftp://foo", "must be an http:// or https:// URL"),
    ],
)
def test_an_upstream_that_is_none(upstream: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        upstream_of(upstream)
    assert str(caught.value).startswith(f"--upstream: {upstream!r}: {hint}")


def test_an_upstream() -> None:
    assert upstream_of("https://gw.example/a/") == "https://gw.example/a"


@pytest.mark.parametrize(
    ("upstream", "base_path", "called"),
    [
        ("http://gw.example/v1", "/v1", "so /v1/v1/... is what"),
        ("http://gw.example/a/v1/", "/v1", "so /a/v1/v1/... is what"),
        ("http://gw.example/a", "/v1", ""),
        ("http://gw.example/v1", "", ""),
        ("http://gw.example/av1", "/v1", ""),
        ("", "/v1", ""),
    ],
)
def test_a_version_said_twice(upstream: str, base_path: str, called: str) -> None:
    found = doubled(upstream, base_path)
    assert called in found and bool(found) == bool(called)


@pytest.mark.parametrize(
    ("days", "said"),
    [(31, ""), (30, ""), (29.5, "has 29 days left"), (0.5, "has 0 days left"), (-1, "has expired")],
)
def test_an_authority_that_ends_soon(tmp_path: Path, days: float, said: str) -> None:
    folder = tmp_path / "ca"
    authority.make(folder, ["api.openai.com"], lambda: NOW)
    found = expiring(folder, authority.read(folder).expires - days * DAY)
    assert said in found and bool(found) == bool(said)
    assert expiring(tmp_path / "none", NOW) == ""


def test_a_port_that_is_taken_is_said_once() -> None:
    with bind(("127.0.0.1", 0), "--listen") as taken:
        address = taken.getsockname()[:2]
        with pytest.raises(StartError) as caught:
            bind(address, "--listen")
    assert str(caught.value).count("127.0.0.1") == 1
    assert "Address already in use; stop what listens there" in str(caught.value)
