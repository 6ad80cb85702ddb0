"""What the doctor says of what it found: decisions alone, each with its line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from bin.doctor import conclusion, rendered
from bin.doctor_canaries import canaries
from bin.doctor_causes import Tried, all_limits, judged, old_node
from bin.doctor_checks import chain
from bin.doctor_observed import Answer, Finding, Held, Observed, held
from bin.doctor_runtimes import Found, runtime_of, runtimes_here, untried_here, untried_of
from bin.doctor_shell import environment
from bin.doctor_trial import came, outcome
from bin.explained import PAGES, page
from bin.run_report import Counts
from bin.sidecar_at import Running, Seen
from policies.home import Home
from policies.metrics import COUNTERS, Sample
from policies.policy import build
from proxy import authority

DATA, ADMIN = "127.0.0.1:4141", "127.0.0.1:4142"
HERE = f"http://{DATA}"
NOW = 1_800_000_000.0
ROOTS: Mapping[str, Held] = {"/roots": "others", "/ours": "both", "/alone": "ours alone"}
HEALTH: Mapping[str, Any] = {
    "status": "ok", "pid": 1, "worker": 1, "breakers": {},
    "forward": {"on": True, "authority": None, "intercepted": 2, "tunnelled": 1, "rejecting": []},
    "capture": {"exchanges": 3, "write_errors": 0, "last_error": None},
}  # fmt: skip


def observed(root: Path = Path("/home/app/data"), **changed: Any) -> Observed:
    home = Home(root, Path("/"))
    run = Running(1, DATA, ADMIN, "https://api.openai.com", root, frozenset({"proxy"}))
    found = Observed(
        home=home,
        policy=build({}),
        environment={},
        now=NOW,
        address=DATA,
        running=run,
        seen=Seen("ours", health=HEALTH),
        answer=Answer(401, date=NOW, at=NOW),
        free=1 << 40,
        roots="both",
        holds=lambda path: ROOTS.get(path, "missing"),
    )
    return replace(found, **changed)


def named(findings: Sequence[Finding], name: str) -> Finding:
    return next(one for one in findings if one.name == name)


def of(name: str, **changed: Any) -> Finding:
    return named(chain(observed(**changed)), name)


def health(**changed: Any) -> Seen:
    return Seen("ours", health={**HEALTH, **changed})


# -- the chain


def test_nobody_there() -> None:
    found = of("sidecar", seen=Seen("nobody"), running=None)
    assert found.ok is False and "nobody listens" in found.said
    assert found.cure == "start it: understudy serve --home /home/app/data"


def test_somebody_else_there() -> None:
    found = of("sidecar", seen=Seen("foreign", "is not an understudy"), running=None)
    assert (found.ok, found.said) == (
        False, "127.0.0.1:4141: what listens there is not an understudy"
    )  # fmt: skip


def test_our_own_that_says_nothing() -> None:
    silent = Seen("foreign", "takes connections, but answers nothing", silent=True)
    found = of("sidecar", seen=silent, owned=True)
    assert found.ok is False and "this home's sidecar (process 1) takes connections" in found.said
    assert found.cure == (
        "kill 1, wait until it has gone, and start it: understudy serve --home /home/app/data"
    )
    assert "what listens there takes" in of("sidecar", seen=silent).said


def test_it_is_killed() -> None:
    said = [one for one in chain(observed(seen=health(killed=True))) if one.name == "sidecar"]
    assert [one.ok for one in said] == [True, None] and "understudy resume" in said[1].cure


@pytest.mark.parametrize(
    ("days", "ok", "cure"), [(365, True, ""), (29.5, None, "29 days left: renew it soon")]
)
def test_days_left(tmp_path: Path, days: float, ok: bool | None, cure: str) -> None:
    folder = tmp_path / "ca"
    authority.make(folder, ["api.openai.com"], lambda: NOW)
    issuer = authority.read(folder)
    found = of("authority", issuer=issuer, now=issuer.expires - days * 86400)
    assert found.ok is ok and found.cure.startswith(cure)
    assert found.said == f"signs for api.openai.com; {int(days)} days left"


def test_a_broken_authority_is_split_into_what_and_how() -> None:
    error = "/x/ca/intermediate.key: others may read it; run: chmod 600 /x/ca/intermediate.key"
    found = of("authority", authority_error=error)
    assert found.said == "/x/ca/intermediate.key: others may read it"
    assert found.ok is False and found.cure == "run: chmod 600 /x/ca/intermediate.key"


@pytest.mark.parametrize(
    ("roots", "ok"), [("both", True), ("missing", False), ("others", False), ("ours alone", False)]
)
def test_whose_roots_the_bundle_holds(tmp_path: Path, roots: Held, ok: bool) -> None:
    folder = tmp_path / "ca"
    authority.make(folder, ["api.openai.com"], lambda: NOW)
    assert of("bundle", issuer=authority.read(folder), roots=roots).ok is ok


def test_a_file_of_certificates(tmp_path: Path) -> None:
    ours = "-----BEGIN CERTIFICATE-----\nMQ==\n-----END CERTIFICATE-----"
    other = ours.replace("MQ", "Mg")
    path = tmp_path / "roots.pem"
    assert held(path, ours) == "missing"
    for text, found in ((other, "others"), (ours, "ours alone"), (f"{other}\n{ours}", "both")):
        path.write_text(text)
        assert held(path, ours) == found
    assert held(path, "") == "others"


def test_the_forward_proxy_is_off() -> None:
    why = "there is no forward proxy: /x/ca: expired on 2026-01-01"
    off = {"on": False, "why_off": why, "authority": None}
    found = of("forward proxy", seen=health(forward=off))
    assert (found.ok, found.said) == (False, why) and "OPENAI_BASE_URL works" in found.cure
    unwanted = of("forward proxy", seen=health(forward=off), policy=build({"forward": False}))
    assert unwanted.ok is None


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        ("upstream_proxy", "UNDERSTUDY_UPSTREAM_PROXY"),
        ("upstream_tls", "SSL_CERT_FILE naming its roots"),
        ("upstream_unreachable", "DNS"),
        ("upstream_reset", "look at the way"),
    ],
)
def test_the_upstream_is_not_reached(code: str, cure: str) -> None:
    found = of("upstream", answer=Answer(502, code, "why"))
    assert found.ok is False and found.said.endswith(f"{code}: why") and cure in found.cure


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_any_answer_of_the_upstream_will_do(status: int) -> None:
    assert of("upstream", answer=Answer(status, at=NOW)).ok is True


@pytest.mark.parametrize(
    ("off", "ok", "said"),
    [
        (2.0, True, "2 s from the upstream's"),
        (-299.0, True, "299 s from the upstream's"),
        (660.0, False, "this machine's clock is 11 minutes ahead of the upstream's"),
        (-7200.0, False, "this machine's clock is 2 hours behind the upstream's"),
    ],
)
def test_the_clock(off: float, ok: bool, said: str) -> None:
    found = of("clock", answer=Answer(401, date=NOW, at=NOW + off))
    assert (found.ok, found.said) == (ok, said)


@pytest.mark.parametrize(
    ("free", "ok", "said"),
    [(1 << 40, True, "GiB free"), (100 << 20, False, "no bodies"), (1 << 20, False, "nothing is")],
)
def test_the_disk(free: int, ok: bool, said: str) -> None:
    found = of("disk", free=free)
    assert found.ok is ok and said in found.said


def test_models() -> None:
    seen = health(breakers={"slow": "open"})
    found = chain(observed(seen=seen, models={"good": True, "slow": True, "gone": False}))
    lines = [(one.said, one.ok) for one in found if one.name == "model"]
    assert lines == [
        ("good: is up", True),
        ("slow: failed, and is left alone for now", False),
        ("gone: takes no connections", False),
    ]


def test_who_rejects_our_certificate() -> None:
    who = {"client": "10.0.0.7", "host": "api.openai.com", "alert": "TLSV1_ALERT_UNKNOWN_CA",
           "times": 4}  # fmt: skip
    found = of("rejecting", seen=health(forward={**HEALTH["forward"], "rejecting": [who]}))
    assert found.ok is None and "10.0.0.7" in found.said and "does not trust our root" in found.said


# -- this shell


@pytest.mark.parametrize(
    ("variables", "ok", "said"),
    [
        ({}, None, "nothing in this shell leads apps to the sidecar"),
        ({"OPENAI_BASE_URL": f"{HERE}/v1"}, True, "apps started in this shell pass the sidecar"),
        ({"OPENAI_BASE_URL": HERE}, False, "OPENAI_BASE_URL lacks the /v1"),
        ({"OPENAI_BASE_URL": f"https://{DATA}/v1"}, False, "port is plain"),
        ({"OPENAI_BASE_URL": f"http://{ADMIN}/v1"}, False, "OPENAI_BASE_URL leads to the admin"),
        ({"OPENAI_BASE_URL": "https://u:secret@x.example/v1"}, None, "leads to https://x.example:"),
        (
            {"OPENAI_BASE_URL": f"{HERE}/v1", "http_proxy": "http://corp:3128"},
            False,
            "http_proxy takes the calls to the sidecar elsewhere",
        ),
        (
            {"OPENAI_BASE_URL": f"{HERE}/v1", "http_proxy": "http://c:1", "no_proxy": "127.0.0.1"},
            True,
            "pass the sidecar",
        ),
        ({"HTTPS_PROXY": HERE, "SSL_CERT_FILE": "/ours"}, True, "pass the sidecar"),
        ({"HTTPS_PROXY": HERE}, None, "SSL_CERT_FILE is not set"),
        ({"HTTPS_PROXY": f"http://{ADMIN}"}, False, "HTTPS_PROXY leads to the admin site"),
        (
            {"HTTPS_PROXY": f"https://{DATA}", "SSL_CERT_FILE": "/ours"},
            False,
            "begins with https://",
        ),
        (
            {"HTTPS_PROXY": HERE, "https_proxy": "http://corp:3128", "SSL_CERT_FILE": "/ours"},
            False,
            "HTTPS_PROXY and https_proxy differ",
        ),
        (
            {"HTTPS_PROXY": HERE, "NO_PROXY": "x,.openai.com", "SSL_CERT_FILE": "/ours"},
            False,
            "NO_PROXY covers api.openai.com",
        ),
        ({"HTTPS_PROXY": HERE, "SSL_CERT_FILE": "/roots"}, False, "/roots, which lacks our root"),
        ({"HTTPS_PROXY": HERE, "REQUESTS_CA_BUNDLE": "/roots"}, False, "REQUESTS_CA_BUNDLE names"),
        ({"SSL_CERT_FILE": "/gone"}, False, "SSL_CERT_FILE names /gone, which can't be read"),
        ({"SSL_CERT_FILE": "/alone"}, False, "our root alone: other hosts are not trusted"),
        ({"SSL_CERT_FILE": "/roots"}, None, "nothing in this shell"),
        ({"NODE_EXTRA_CA_CERTS": "/alone"}, None, "nothing in this shell"),
    ],
)
def test_variables(variables: dict[str, str], ok: bool | None, said: str) -> None:
    found = next(environment(observed(environment=variables)))
    assert said in found.said and found.ok is ok
    assert "secret" not in found.said


# -- canaries

PYTHON = Tried("python", "requests", "proxy", (3, 12, 1))
UNTRUSTED = "SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"


def node(*version: int, **more: Any) -> Tried:
    return Tried("node", "fetch", "proxy", version, **more)


@pytest.mark.parametrize(
    ("tried", "ok", "said", "cure"),
    [
        (replace(PYTHON, arrival="captured", status=401), True, "captured (401: no key", ""),
        (replace(PYTHON, arrival="captured", status=502), True, "captured (502)", ""),
        (replace(PYTHON, arrival="captured", error="x"), True, "to the program the call fail", ""),
        (replace(PYTHON, arrival="came", status=401), True, "came to the sidecar", ""),
        (node(20, 19, 1, status=401), None, "Node 20.19.1 ignores HTTPS_PROXY", "use base_url"),
        (node(22, 21, 0, status=401), False, "it got 401, past the sidecar", "--explain node"),
        (node(22, 21, 0, error="UNABLE_TO_VERIFY_LEAF_SIGNATURE"), False, "does not trust",
         "NODE_EXTRA_CA_CERTS=$(understudy ca path --root)"),
        (Tried("python", "aiohttp", "proxy", trusting=False, error="DNS"), None,
         "unless trust_env=True", "ClientSession(trust_env=True)"),
        (Tried("python", "aiohttp", "proxy", error="[Name or service not known]"), False,
         "went past the sidecar", "--explain aiohttp"),
        (replace(PYTHON, error=UNTRUSTED), False, "does not trust", "REQUESTS_CA_BUNDLE="),
        (Tried("python", "openai", "proxy", error=UNTRUSTED), False, "does not trust",
         "SSL_CERT_FILE="),
        (replace(PYTHON, status=401, bypassed=True), False, "NO_PROXY covers", "take it out"),
        (replace(PYTHON, error="Tunnel connection failed: 407 Proxy Authentication Required"),
         False, "refused it (407)", "UNDERSTUDY_PROXY_CREDENTIALS"),
        (Tried("curl", "curl", "proxy", error="curl: (56) CONNECT tunnel failed, response 403"),
         False, "refused it (403)", "'clients'"),
        (Tried("curl", "curl", "proxy", error="Received HTTP code 405 from proxy after CONNECT"),
         False, "refused it (405)", "forward proxy"),
        (Tried("wget", "wget", "proxy", error="Unable to locally verify the issuer's"), False,
         "does not trust", "--ca-certificate"),
        (Tried("java", "java", "proxy", (17,), error="java.net.ConnectException"), False,
         "Java's HttpClient reads no environment but", "-Dhttps.proxyHost"),
        (Tried("java", "java", "proxy", (17,), error="PKIX path building failed"), False,
         "does not trust", "trustStore"),
        (Tried("go", "go", "proxy", error="no compiler: go: not found"), None, "could not be", ""),
        (Tried("python", "openai", "proxy", error="AttributeError: has no attribute 'OpenAI'"),
         None, "could not be tried", "openai before 1.0"),
        (replace(PYTHON, arrival="tunnelled", status=401), False, "passed it on unseen",
         "forward.intercept"),
        (replace(PYTHON, timed_out=True), False, "no answer in time", "--explain requests"),
        (Tried("python", "openai", "base-url", error="boom"), False, "not captured: boom",
         "see understudy doctor --explain openai"),
    ],
)  # fmt: skip
def test_what_a_canary_met(tried: Tried, ok: bool | None, said: str, cure: str) -> None:
    found = judged(tried)
    assert found.ok is ok
    assert said in found.said and cure in found.cure
    assert bool(found.cure) == bool(cure)


def test_a_password_in_what_a_program_says_is_not_shown() -> None:
    found = judged(replace(PYTHON, error="no way to http://me:secret@proxy:3128"))
    assert "secret" not in found.said and "//(not shown)@proxy:3128" in found.said


@pytest.mark.parametrize(
    ("version", "old"),
    [((18, 0, 0), True), ((20, 20, 2), True), ((22, 20, 9), True), ((22, 21, 0), False),
     ((23, 11, 0), True), ((24, 0, 0), False), ((25, 1, 0), False)],
)  # fmt: skip
def test_which_node_reads_proxy_variables(version: tuple[int, ...], old: bool) -> None:
    assert old_node(version) is old


def test_limits_alone_are_no_success() -> None:
    limit, good = Finding("a", None, ""), Finding("b", True, "")
    assert all_limits([limit, limit]) and not all_limits([limit, good]) and not all_limits([])


WGET = """  HTTP/1.1 200 OK
  HTTP/1.1 401 Unauthorized
"""


@pytest.mark.parametrize(
    ("tried", "out", "complaints", "status", "error"),
    [
        (PYTHON, 'noise\n{"status": 401}\n', "warning", 401, ""),
        (PYTHON, '{"error": "boom"}', "", None, "boom"),
        (PYTHON, "", "Traceback", None, "Traceback"),
        (Tried("curl", "curl", "proxy"), '{"status":000}', "curl: (60) SSL", None, "curl: (60)"),
        (Tried("wget", "wget", "proxy"), "", WGET, 401, ""),
        (Tried("wget", "wget", "proxy"), "", "Proxy tunneling failed: 403", None, "Proxy tunn"),
    ],
)
def test_what_a_program_said(
    tried: Tried, out: str, complaints: str, status: int | None, error: str
) -> None:
    found = outcome(tried, out, complaints)
    assert found.status == status and found.error.startswith(error)
    assert bool(found.error) == bool(error)


def test_which_canaries_a_runtime_has() -> None:
    python = Found("python", ("python",), (3, 12), "", {"openai": "3.0", "aiohttp": "3.9"})
    names = [(one.library, one.mode, one.trusting) for one in canaries(python)]
    assert names == [
        ("openai", "base-url", True),
        ("openai", "proxy", True),
        ("aiohttp", "proxy", True),
        ("aiohttp", "proxy", False),
        ("urllib", "proxy", True),
    ]
    node_alone = canaries(Found("node", ("node",)))
    assert [(one.library, one.mode) for one in node_alone] == [
        ("fetch", "base-url"),
        ("fetch", "proxy"),
    ]
    with_sdk = canaries(Found("node", ("node",), libraries={"openai": "7.55.0"}))
    assert [one.library for one in with_sdk] == ["openai", "openai", "fetch"]


@pytest.mark.parametrize(
    ("status", "since", "arrived"),
    [
        (502, Counts(heads=2), True),  # the canary's, and our look
        (502, Counts(heads=1), False),
        (401, Counts(heads=2), False),
        (None, Counts(heads=2), False),
        (None, Counts(calls=1), True),
        (401, Counts(refused=1), True),
    ],
)
def test_who_came_where_nothing_is_recorded(
    status: int | None, since: Counts, arrived: bool
) -> None:
    assert came(replace(PYTHON, status=status), since) is arrived


def test_heads_are_without_those_that_open_tunnels() -> None:
    values = dict.fromkeys(COUNTERS, 0) | {"requests": 9, "intercepted": 2, "tunnelled": 1}
    found = Counts.of([Sample(1, True, values | {"tls_refused": 1})])
    assert found.since(Counts(heads=2)).heads == 3


# -- runtimes

SAID = orjson.dumps({"version": "3.12.1", "prefix": "/p", "libraries": {"httpx": "1"}}).decode()


def program(path: Path, text: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def answering(texts: Mapping[str, str]) -> Callable[[Sequence[str]], str]:
    return lambda command: texts.get(command[0], "")


@pytest.mark.parametrize(
    "text",
    [
        "#!{python}\nprint()",
        "#!/usr/bin/env python3\n",
        "#!/usr/bin/env -S FLAG=1 python3 -u\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_a_script_leads_to_its_python(tmp_path: Path, text: str) -> None:
    python = program(tmp_path / "bin" / "python3")
    script = program(tmp_path / "bin" / "app", text.replace("{python}", str(python)))
    path = {"PATH": str(tmp_path / "bin")}
    found = runtime_of([str(script)], path, answering({str(python): SAID}))
    assert found == Found("python", (str(python),), (3, 12, 1), "/p", {"httpx": "1"})


def test_a_shim_leads_to_what_it_stands_for(tmp_path: Path) -> None:
    python = program(tmp_path / "real" / "python3")
    tool = program(tmp_path / "real" / "pip", f"#!{python}\n")
    shim = program(tmp_path / "shims" / "pip", '#!/bin/bash\nexec "/opt/pyenv" exec "$program"\n')
    say = answering({"/opt/pyenv": f"{tool}\n", str(python): SAID})
    found = runtime_of([str(shim)], {"PATH": str(tmp_path)}, say)
    assert found is not None and found.command == (str(python),)


def test_a_starter_is_asked_for_its_python(tmp_path: Path) -> None:
    uv = program(tmp_path / "uv")
    found = runtime_of(["uv", "run", "app.py"], {"PATH": str(tmp_path)}, answering({str(uv): SAID}))
    assert found is not None and found.command == (str(uv), "run", "--no-sync", "python")


def test_a_program_of_go_is_known_by_its_mark(tmp_path: Path) -> None:
    app, go = program(tmp_path / "app", "\x7fELF..Go build ID: x"), program(tmp_path / "go")
    say = answering({str(go): "go version go1.22.3 linux/amd64"})
    found = runtime_of([str(app)], {"PATH": str(tmp_path)}, say)
    assert found is not None and (found.kind, found.command) == ("go", (str(go),))
    assert found.version == (1, 22, 3)


def test_a_program_of_unknown_make(tmp_path: Path) -> None:
    app = program(tmp_path / "app")
    assert runtime_of([str(app)], {"PATH": str(tmp_path)}, answering({})) is None
    assert runtime_of(["nowhere"], {"PATH": str(tmp_path)}, answering({})) is None


def test_of_several_pythons_the_one_with_the_sdk(tmp_path: Path) -> None:
    plain, sdk = program(tmp_path / "bin" / "python"), program(tmp_path / "venv/bin/python")
    told = {"version": "3.13.0", "prefix": "/venv", "libraries": {"openai": "3"}}
    say = answering({str(plain): SAID, str(sdk): orjson.dumps(told).decode()})
    path = {"PATH": str(tmp_path / "bin"), "VIRTUAL_ENV": str(tmp_path / "venv")}
    assert [found.command for found in runtimes_here(path, say)] == [(str(sdk),)]


JAVA = 'openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6)\n'


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (JAVA, (17, 0, 15)),
        ("Picked up JAVA_TOOL_OPTIONS: -Dhttps.proxyHost=127.0.0.1\n" + JAVA, (17, 0, 15)),
        ("NOTE: Picked up JDK_JAVA_OPTIONS: -Dx=1.2\n" + JAVA, (17, 0, 15)),
        ('java version "1.8.0_402"\n', (1, 8, 0)),
        ('openjdk version "21" 2023-09-19\n', (21,)),
    ],
)
def test_a_version_is_not_what_java_was_told(
    tmp_path: Path, text: str, version: tuple[int, ...]
) -> None:
    java = program(tmp_path / "java")
    found = runtime_of(["java"], {"PATH": str(tmp_path)}, answering({str(java): text}))
    assert found is not None and found.version == version


def test_runtimes_that_are_only_explained(tmp_path: Path) -> None:
    for name in ("ruby", "perl", "docker", "cobol"):
        program(tmp_path / name)
    assert untried_here({"PATH": str(tmp_path)}) == ["ruby", "perl"]
    words = ("/usr/bin/php8.2", "bundle", "bunx", "podman", "python3", "cobol")
    assert [untried_of(word) for word in words] == ["php", "ruby", "bun", "docker", "", ""]
    assert all(page(kind) for kind in ("ruby", "php", "perl", "bun", "deno", "docker"))


# -- what is shown


def test_lines() -> None:
    assert rendered(Finding("disk", True, "1 GiB free")) == "   ok  disk: 1 GiB free"
    assert rendered(Finding("a", False, "b", "c")) == "WRONG  a: b\n       -> c"
    assert rendered(Finding("a", None, "b")) == "    -  a: b"
    ends = [conclusion(number) for number in range(3)]
    assert ends == ["nothing is wrong", "1 thing is wrong", "2 things are wrong"]


@pytest.mark.parametrize("name", [*PAGES, "python", "Golang"])
def test_each_page_says_what_to_do(name: str) -> None:
    text = page(name)
    assert text is not None and "\nTo work:\n  " in text


def test_each_canary_has_its_page() -> None:
    tried = [Tried("python", one, "proxy") for one in ("openai", "requests", "httpx", "aiohttp")]
    tried += [Tried(kind, kind, "proxy") for kind in ("node", "curl", "wget", "go", "java")]
    tried += [node(24), Tried("python", "urllib", "proxy")]
    assert all(page(one.page) for one in tried)
