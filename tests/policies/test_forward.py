"""Whom a client of the forward proxy may reach: names, addresses, ports, lists."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from policies.access import Access
from policies.forward import Rules, Target, TargetError, target_of
from policies.listeners import Listeners
from policies.policy import build
from policies.setting import PolicyError

HERE = Listeners.of(["127.0.0.1:4141", "127.0.0.1:4142"])
EVERYWHERE = Listeners.of(["0.0.0.0:4141"])


def rules(listeners: Listeners = HERE, **forward: object) -> Rules:
    return Rules.of(build({"forward": forward}).forward, listeners)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (b"api.openai.com:443", ("api.openai.com", 443)),
        (b"API.OpenAI.com.:443", ("api.openai.com", 443)),
        (b"[2001:DB8::1]:8443", ("2001:db8::1", 8443)),
        (b"[::ffff:127.0.0.1]:443", ("127.0.0.1", 443)),
        (b"a_b-c.x:1", ("a_b-c.x", 1)),
        (b"h:00443", ("h", 443)),
    ],
)
def test_a_target(text: bytes, target: tuple[str, int]) -> None:
    assert target_of(text) == target


@pytest.mark.parametrize(
    "text",
    [
        b"api.openai.com", b"api.openai.com:", b"h:99999", b"h:0", b"h:+5443", b"h:-1", b"h: 443",
        b"h:443 ", b"user@h:443", b"user:pw@h:443", b":443", b"", b"[::1:443", b"::1:443",
        b"[127.0.0.1]:443", b"[fe80::1%eth0]:443", b"h..x:443", b".h:443", b"h/x:443", b"h:4_4",
        b"h\xff:443", b"-h:443", b"a" * 300 + b":443", b"h:443:443", "h:٤٤٣".encode(),
    ],
)  # fmt: skip
def test_what_is_no_target(text: bytes) -> None:
    with pytest.raises(TargetError):
        target_of(text)


def test_a_default_port_is_for_absolute_form_only() -> None:
    assert target_of(b"h", 80) == ("h", 80)
    assert target_of(b"h:", 80) == ("h", 80)
    assert target_of(b"[::1]", 80) == ("::1", 80)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("api.openai.com", "intercept"),
        ("eu.api.openai.com", "intercept"),
        ("my.openai.azure.com", "intercept"),
        ("openai.azure.com", "tunnel"),
        ("mtls-eu.api.openai.com", "tunnel"),
        ("openai.com", "tunnel"),
        ("xapi.openai.com", "tunnel"),
        ("api.openai.com.evil.example", "tunnel"),
        ("example.com", "tunnel"),
        ("10.0.0.1", "tunnel"),
    ],
)
def test_what_is_intercepted(host: str, kind: str) -> None:
    assert rules().verdict(Target(host, 443)).kind == kind


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1", b"127.1", b"127.0.1", b"2130706433", b"0x7f000001", b"017700000001",
        b"0x7f.1", b"127.0.0.0x1", b"0", b"0.0.0.0", b"localhost", b"LOCALHOST.", b"x.localhost",
        b"[::1]", b"[::]", b"[::ffff:127.0.0.1]", b"[::ffff:7f00:1]", b"[::127.0.0.1]",
        b"[2002:7f00:1::]", b"[64:ff9b:1::7f00:1]", b"[::ffff:0:127.0.0.1]",
        b"[2001:4860::5efe:a9fe:a9fe]", b"localhost6", b"metadata.goog", b"[64:ff9b::7f00:1]",
        b"169.254.169.254", b"169.254.0.1", b"[fe80::1]",
        b"[fd00:ec2::254]", b"100.100.100.200", b"metadata.google.internal", b"224.0.0.1",
        b"255.255.255.255", b"0.1.2.3", b"127.0.0.1.", b"192.168.0.0x1",
    ],
)  # fmt: skip
def test_this_machine_and_metadata_are_denied_in_every_spelling(host: bytes) -> None:
    assert rules().verdict(target_of(host + b":443")).kind == "deny"


@pytest.mark.parametrize("port", [22, 80, 4141, 8443])
def test_other_ports_must_be_listed(port: int) -> None:
    assert rules().verdict(Target("example.com", port)).kind == "deny"
    assert (
        rules(allow=[f"example.com:{port}"]).verdict(Target("example.com", port)).kind == "tunnel"
    )
    assert rules(allow=[f"Example.com:{port}"]).verdict(Target("example.org", port)).kind == "deny"


def test_plain_http_has_a_port_of_its_own() -> None:
    assert rules().verdict(Target("example.com", 80), usual_port=80).kind == "tunnel"
    assert rules().verdict(Target("example.com", 443), usual_port=80).kind == "deny"


def test_a_listing_lifts_all_but_our_own_listeners() -> None:
    found = rules(allow=["127.0.0.1:443", "127.0.0.1:4141", "localhost:4142"])
    assert found.verdict(Target("127.0.0.1", 443)).kind == "tunnel"
    assert found.verdict(Target("127.0.0.1", 4141)).kind == "deny"
    assert found.verdict(Target("localhost", 4142)).kind == "deny"
    assert found.why_not(ip_address("127.0.0.1"), Target("x.example", 4141))


def test_names_and_networks_can_be_denied() -> None:
    found = rules(deny=["*.example.com", "bad.example", "203.0.113.0/24", "2001:db8::/32"])
    assert found.verdict(Target("a.example.com", 443)).kind == "deny"
    assert found.verdict(Target("example.com", 443)).kind == "tunnel"
    assert found.verdict(Target("bad.example", 443)).kind == "deny"
    assert found.verdict(Target("203.0.113.9", 443)).kind == "deny"
    assert found.why_not(ip_address("2001:db8::5"), Target("good.example", 443))
    assert not found.why_not(ip_address("198.51.100.1"), Target("good.example", 443))


def test_what_a_name_resolves_to_is_checked_as_well() -> None:
    for address in ("127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"):
        assert rules().why_not(ip_address(address), Target("rebinding.example", 443))


def test_private_addresses_are_for_this_machine_alone() -> None:
    for address in ("10.1.2.3", "192.168.1.1", "fd12::1", "100.64.0.1"):
        target = Target("internal.example", 443)
        assert not rules().why_not(ip_address(address), target)
        assert rules(EVERYWHERE).why_not(ip_address(address), target)
        listed = rules(EVERYWHERE, allow=["internal.example:443"])
        assert not listed.why_not(ip_address(address), target)


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (("127.0.0.1", 5), True), (("127.9.9.9", 5), True), (("::1", 5, 0, 0), True), ("", True),
        (("10.1.2.3", 5), True), (("::ffff:10.1.2.3", 5, 0, 0), True), (("11.1.2.3", 5), False),
        (("fd00::1", 5, 0, 0), False), (None, False),
    ],
)  # fmt: skip
def test_who_is_trusted_by_address(peer: object, trusted: bool) -> None:
    assert Access.of(["10.0.0.0/8"], "").trusts(peer) is trusted


def test_who_is_admitted_by_credentials() -> None:
    assert Access.of([], "u:p").admits(b"Basic dTpw")
    assert not Access.of([], "u:p").admits(b"Basic dTpx")
    assert not Access.of([], "").admits(b"")
    assert "dTpw" not in repr(Access.of([], "u:p"))


@pytest.mark.parametrize(
    ("forward", "path"),
    [
        ({"intercept": ["*"]}, "forward.intercept[0]"),
        ({"intercept": ["a b"]}, "forward.intercept[0]"),
        ({"allow": ["h"]}, "forward.allow[0]"),
        ({"allow": ["h:70000"]}, "forward.allow[0]"),
        ({"deny": ["10.0.0.0/99"]}, "forward.deny[0]"),
        ({"intercept": "api.openai.com"}, "forward.intercept"),
        (3, "forward"),
    ],
)
def test_bad_settings_name_their_field(forward: object, path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        build({"forward": forward})
    assert caught.value.path == path


def test_forward_false_says_off() -> None:
    assert not build({"forward": False}).forward.enabled
    assert build({}).forward.enabled


def test_a_network_with_host_bits_is_refused() -> None:
    with pytest.raises(PolicyError, match="clients"):
        build({"clients": ["10.0.0.1/8"]})


def test_a_hostile_name_is_judged_at_once() -> None:
    """Not in exponential time: it is read in the loop."""
    for text in (b"a" * 250 + b"!:443", b"a." * 120 + b"!:443", b"a-" * 120 + b":443"):
        with pytest.raises(TargetError):
            target_of(text)
