"""What an app's environment gets, which way it is pointed, and what is said at the end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bin.run_report import Counts, Ran, conclusion
from bin.shells import Shell, ShellError, exports
from bin.surroundings import (
    Asked,
    Mode,
    Trust,
    Way,
    WayError,
    bypasses,
    choose,
    variables,
    wanted_upstream,
)

AT = "127.0.0.1:4141"
OPENAI = "https://api.openai.com"
TRUST = Trust(
    Path("/h/ca/root.pem"),
    Path("/h/ca/bundle.pem"),
    Path("/h/ca/truststore.p12"),
    wgetrc=Path("/h/ca/wgetrc"),
)
LOCAL = "127.0.0.1,localhost,::1"


# -- which way


@pytest.mark.parametrize(
    ("asked", "base_url", "upstream", "mode", "path"),
    [
        ("auto", None, OPENAI, "base-url", "/v1"),
        ("auto", "", OPENAI, "base-url", "/v1"),
        ("auto", "https://api.openai.com/v1", OPENAI, "base-url", "/v1"),
        ("auto", "https://API.openai.com:443/v1/", OPENAI, "base-url", "/v1"),
        ("auto", "http://127.0.0.1:4141/v1", OPENAI, "base-url", "/v1"),
        ("auto", "http://localhost:4141/openai/v1", OPENAI, "base-url", "/openai/v1"),
        ("auto", "https://gw.example/a/v1", "https://gw.example/a", "base-url", "/v1"),
        ("auto", "https://gw.example/a", "https://gw.example/a", "base-url", ""),
        ("auto", "https://gw.example/ab/v1", "https://gw.example/a", "proxy", ""),
        ("auto", "https://gw.example/v1", OPENAI, "proxy", ""),
        ("auto", "http://api.openai.com/v1", OPENAI, "proxy", ""),
        ("auto", "http://127.0.0.1:11434/v1", OPENAI, "proxy", ""),
        ("auto", "nonsense", OPENAI, "proxy", ""),
        ("base-url", "https://gw.example/v1", OPENAI, "base-url", "/v1"),
        ("proxy", None, OPENAI, "proxy", ""),
        ("proxy", "https://api.openai.com/v1", OPENAI, "proxy", ""),
    ],
)
def test_an_app_that_is_pointed_elsewhere_is_not_sent_to_our_upstream_unasked(
    asked: Asked, base_url: str | None, upstream: str, mode: Mode, path: str
) -> None:
    environment = {} if base_url is None else {"OPENAI_BASE_URL": base_url}
    way = choose(asked, environment, AT, upstream)
    assert way.mode == mode
    if mode == "base-url":
        assert way.base_path == path
    expected = asked != mode if asked != "auto" else mode == "proxy"
    replaced = asked == "base-url" and base_url is not None
    assert bool(way.why) == (expected or replaced)


@pytest.mark.parametrize(
    ("asked", "base_url", "why", "said"),
    [
        ("proxy", "", "there is no forward proxy: /h/ca: expired on 2026-01-01; make a new one: "
         "understudy ca renew, and trust it anew", "with its own --home; then start"),
        ("proxy", "", "this is no forward proxy; use OPENAI_BASE_URL", "says 'forward: false'"),
        ("auto", "https://gw.example/v1", "there is none: /h/ca: broken", "would not do either"),
        ("auto", "https://gw.example/v1", "there is none: /h/ca: broken", "/h/ca: broken; then"),
    ],
)  # fmt: skip
def test_a_sidecar_that_is_no_proxy_is_not_taken_for_one(
    asked: Asked, base_url: str, why: str, said: str
) -> None:
    with pytest.raises(WayError) as caught:
        choose(asked, {"OPENAI_BASE_URL": base_url}, AT, OPENAI, why)
    assert said in str(caught.value) and "--mode base-url" in str(caught.value)
    assert choose("base-url", {"OPENAI_BASE_URL": base_url}, AT, OPENAI, why).mode == "base-url"
    assert choose("auto", {}, AT, OPENAI, why) == Way("base-url")


ASKED: tuple[Asked, ...] = ("auto", "base-url")


def test_the_reason_shows_no_password() -> None:
    environment = {"OPENAI_BASE_URL": "https://me:secret@gw.example:8443/v1?key=hidden"}
    for asked in ASKED:
        why = choose(asked, environment, AT, OPENAI).why
        assert "https://gw.example:8443/v1" in why
        assert "secret" not in why and "hidden" not in why


@pytest.mark.parametrize(
    ("base_url", "upstream"),
    [
        ("", None),
        ("https://gw.example/api/v1", "https://gw.example/api"),
        ("https://gw.example/api/v1/", "https://gw.example/api"),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://127.0.0.1:4141/v1", None),
        ("http://localhost:4141/v1", None),
        ("https://me:secret@gw.example/v1", None),
        ("ftp://gw.example/v1", None),
    ],
)
def test_a_sidecar_started_for_an_app_relays_where_the_app_is_pointed(
    base_url: str, upstream: str | None
) -> None:
    environment = {"OPENAI_BASE_URL": base_url}
    assert wanted_upstream("auto", environment, AT) == upstream
    assert wanted_upstream("proxy", environment, AT) is None
    if upstream is not None:
        assert choose("auto", environment, AT, upstream).mode == "base-url"


# -- the variables

PROXY = {
    "HTTPS_PROXY": "http://127.0.0.1:4141",
    "https_proxy": "http://127.0.0.1:4141",
    "NODE_USE_ENV_PROXY": "1",
    "no_proxy": LOCAL,
    "NO_PROXY": LOCAL,
    "SSL_CERT_FILE": "/h/ca/bundle.pem",
    "REQUESTS_CA_BUNDLE": "/h/ca/bundle.pem",
    "CURL_CA_BUNDLE": "/h/ca/bundle.pem",
    "PERL_LWP_SSL_CA_FILE": "/h/ca/bundle.pem",
    "WGETRC": "/h/ca/wgetrc",
    "NODE_EXTRA_CA_CERTS": "/h/ca/root.pem",
    "DENO_CERT": "/h/ca/root.pem",
    "JAVA_TOOL_OPTIONS": "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=4141"
    " -Djavax.net.ssl.trustStore=/h/ca/truststore.p12"
    " -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit",
}


def test_proxy_mode() -> None:
    assert variables(Way("proxy"), AT, TRUST, {}) == PROXY


def test_a_proxy_of_ones_own_for_plain_http_stays() -> None:
    environment = {"HTTP_PROXY": "http://corporate:3128", "ALL_PROXY": "socks5://corporate"}
    found = variables(Way("proxy"), AT, TRUST, environment)
    assert found == PROXY


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"HTTPS_PROXY": "http://corporate:3128"}, {}),
        ({"OPENAI_API_BASE": "https://elsewhere/v1", "OPENAI_BASE_URL": f"{OPENAI}/v1"}, {}),
        (
            {"OPENAI_API_BASE": f"{OPENAI}/v1", "OPENAI_BASE_URL": f"{OPENAI}/v1/"},
            {"OPENAI_API_BASE": "http://127.0.0.1:4141/v1"},
        ),
        ({"HTTP_PROXY": "http://corporate:3128"}, {"no_proxy": LOCAL, "NO_PROXY": LOCAL}),
        (
            {"all_proxy": "http://corporate:3128", "NO_PROXY": "a.example, ::1"},
            {
                "no_proxy": "a.example,::1,127.0.0.1,localhost",
                "NO_PROXY": "a.example,::1,127.0.0.1,localhost",
            },
        ),
    ],
)
def test_base_url_mode(environment: Mapping[str, str], expected: Mapping[str, str]) -> None:
    found = variables(Way("base-url"), AT, None, environment)
    assert found == {"OPENAI_BASE_URL": "http://127.0.0.1:4141/v1", **expected}


def test_no_proxy_is_kept_in_both_spellings() -> None:
    environment = {"no_proxy": "lower.example", "NO_PROXY": "upper.example,localhost"}
    found = variables(Way("proxy"), "sidecar.internal:4141", TRUST, environment)
    assert found["no_proxy"] == f"lower.example,{LOCAL},sidecar.internal"
    assert found["NO_PROXY"] == "upper.example,localhost,127.0.0.1,::1,sidecar.internal"


def test_what_an_app_trusted_already_comes_from_the_joined_file() -> None:
    joined = {"SSL_CERT_FILE": Path("/h/ca/j.pem"), "NODE_EXTRA_CA_CERTS": Path("/h/ca/k.pem")}
    trust = Trust(TRUST.root, TRUST.bundle, TRUST.java, joined)
    found = variables(Way("proxy"), AT, trust, {})
    assert found["SSL_CERT_FILE"] == "/h/ca/j.pem"
    assert found["NODE_EXTRA_CA_CERTS"] == "/h/ca/k.pem"
    assert found["REQUESTS_CA_BUNDLE"] == "/h/ca/bundle.pem"


@pytest.mark.parametrize(
    ("environment", "present", "absent"),
    [
        ({"JAVA_TOOL_OPTIONS": "-Xmx1g"}, r"^-Xmx1g -Dhttps\.proxyHost=", "nonProxyHosts"),
        (
            {"JAVA_TOOL_OPTIONS": "-Djavax.net.ssl.trustStore=/own.jks"},
            "proxyPort=4141$",
            "truststore.p12",
        ),
        (
            {"no_proxy": ".corp.example, x.example:8080 10.0.0.0/8 y.example,localhost"},
            r"-Dhttp\.nonProxyHosts=localhost\|127\.\*\|\[::1\]\|\*\.corp\.example"
            r"\|y\.example\|\*\.y\.example ",
            "10.0.0.0",
        ),
        ({"NO_PROXY": "*"}, r"\[::1\]\|\* ", "zzz"),
    ],
)
def test_java_options(environment: Mapping[str, str], present: str, absent: str) -> None:
    found = variables(Way("proxy"), AT, TRUST, environment)["JAVA_TOOL_OPTIONS"]
    assert re.search(present, found)
    assert absent not in found


def test_a_path_with_a_space_is_quoted_for_java() -> None:
    trust = Trust(TRUST.root, TRUST.bundle, Path("/my home/t.p12"))
    found = variables(Way("proxy"), AT, trust, {})["JAVA_TOOL_OPTIONS"]
    assert '"-Djavax.net.ssl.trustStore=/my home/t.p12"' in found


@pytest.mark.parametrize(
    ("no_proxy", "upstream", "hidden"),
    [
        ("", OPENAI, False),
        ("*", OPENAI, True),
        (".openai.com", OPENAI, True),
        ("api.openai.com", OPENAI, True),
        ("localhost,10.0.0.0/8", OPENAI, False),
        ("*", "http://127.0.0.1:8000", False),
    ],
)
def test_a_no_proxy_that_hides_the_traffic_is_seen(
    no_proxy: str, upstream: str, hidden: bool
) -> None:
    assert bypasses({"NO_PROXY": no_proxy}, upstream) is hidden
    assert bypasses({"no_proxy": no_proxy}, upstream) is hidden


# -- shells: each value must come back as it was

VALUES = {
    "PLAIN": "http://127.0.0.1:4141/v1",
    "SPACES": " a  b ",
    "QUOTES": "it's \"quoted\" \\ and \\' so on",
    "SIGNS": "$HOME `id` $(id) %PATH% !x #y ;z &w |v *",
    "TYPOGRAPHIC": "\u2018a\u2019 \u201ab\u201b",
    "EMPTY": "",
}
LINES = {"LINES": "one\ntwo"}


def _read_sh(text: str) -> dict[str, str]:
    found = {}
    for word in shlex.split(text):
        if word != "export":
            name, _, value = word.partition("=")
            found[name] = value
    return found


def _read_fish(text: str) -> dict[str, str]:
    """fish, "Quotes": within single quotes only \\' and \\\\ are escapes."""
    found = {}
    for name, value in re.findall(r"^set -gx (\w+) '((?:[^'\\]|\\.)*)'$", text, re.M | re.S):
        found[name] = re.sub(r"\\(['\\])", r"\1", value)
    return found


def _read_powershell(text: str) -> dict[str, str]:
    """about_Quoting_Rules; the tokenizer takes four typographic quotes for the plain one."""
    quote = "['\u2018\u2019\u201a\u201b]"
    pattern = rf"^\$env:(\w+) = '((?:(?!{quote}).|{quote}{quote})*)'$"
    found = {}
    for name, value in re.findall(pattern, text, re.M | re.S):
        found[name] = re.sub(f"({quote}){quote}", r"\1", value)
    return found


def _read_docker(text: str) -> dict[str, str]:
    """`docker run --env-file`: the rest of the line, as it is."""
    return dict(line.split("=", 1) for line in text.splitlines())


READERS: Mapping[Shell, Callable[[str], dict[str, str]]] = {
    "sh": _read_sh,
    "fish": _read_fish,
    "powershell": _read_powershell,
    "docker": _read_docker,
}


@pytest.mark.parametrize("shell", READERS)
def test_values_come_back_from_a_shell_as_they_were(shell: Shell) -> None:
    values = VALUES if shell == "docker" else VALUES | LINES
    assert READERS[shell](exports(shell, values)) == values
    assert READERS[shell](exports(shell, PROXY)) == PROXY


@pytest.mark.parametrize("value", ["one\ntwo", "one\r"])
def test_a_line_break_is_refused_where_it_can_not_be_written(value: str) -> None:
    with pytest.raises(ShellError, match="LINES: holds a line break"):
        exports("docker", {"LINES": value})


# -- the last line


@pytest.mark.parametrize(
    ("ran", "counts", "said"),
    [
        (Ran(["app"], "base-url"), Counts(3, 0, 3), "captured 3 exchanges"),
        (Ran(["app"], "base-url"), Counts(1, 0, 1), "captured 1 exchange"),
        (Ran(["app"], "base-url", shared=True), Counts(2, 0, 2), "2 exchanges, of all commands"),
        (Ran(["app"], "base-url", capturing=False), Counts(2), "2 requests came, but capture is"),
        (Ran(["app"], "base-url", capturing=False), Counts(), "no request reached the sidecar"),
        (Ran(["app"], "base-url"), Counts(0, 4, 0), "the sidecar refused 4 requests"),
        (Ran(["app"], "base-url"), Counts(2, 1, 0), "captured nothing of 2 requests"),
        (Ran(["app"], "base-url", sidecar_ended=True), Counts(2, 0, 2), "ended before the command"),
        (Ran(["app"], "base-url", sidecar_ended=True), None, "captured is not known: see"),
        (Ran(["app"], "base-url"), None, "how much was captured is not known"),
        (Ran(["/usr/bin/python3.11", "-c"], "proxy"), Counts(), "trust_env=True"),
        (Ran(["npx", "x"], "proxy"), Counts(), "22.21"),
        (Ran(["npx", "x"], "base-url"), Counts(), "baseURL in its code"),
        (Ran(["docker", "run"], "base-url"), Counts(), "--shell docker"),
        (Ran(["sudo", "x"], "proxy"), Counts(), "run understudy inside"),
        (Ran(["./app"], "proxy"), Counts(), "try --mode base-url"),
        (Ran(["./app"], "base-url"), Counts(), "try --mode proxy"),
        (Ran(["python"], "proxy", bypassed=True), Counts(), "NO_PROXY leads its calls past"),
    ],
)
def test_the_last_line_says_how_much_or_why_nothing(
    ran: Ran, counts: Counts | None, said: str
) -> None:
    assert said in conclusion(ran, counts)
