"""A relay that changes one thing is caught, and the right thing is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bin.cli import main
from bin.wire import Outcome, Report, Verification, Way
from bin.wire_client import Address
from bin.wire_report import as_json, scrubber
from bin.wire_request import Request, dump
from bin.wire_set import CHEAP, SHIPPED
from bin.wire_upstream import Upstream
from tests.bin.middleman import Alter, Middleman, unaltered

NAMED = {request.name: request for request in SHIPPED}
KEY = "sk-secret-key-of-the-user"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def verified(upstream: Upstream, middleman: Middleman, *requests: Request) -> list[Outcome]:
    verification = Verification(Address.of(upstream.url, "upstream"), upstream, patience=1.0)
    return verification.run(requests, [Way("middleman", Address.of(middleman.url, "it"))])


def swap(one: bytes, two: bytes) -> Alter:
    return lambda data: data.replace(one, two)


COOKIES = b"Set-Cookie: a=1; Path=/; HttpOnly\r\nX-Empty: \r\n"
ALTERED: list[tuple[str, Alter, Alter, tuple[str, str]]] = [
    ("odd reply headers", unaltered,
     swap(COOKIES, b"X-Empty: \r\nSet-Cookie: a=1; Path=/; HttpOnly\r\n"),
     ("reply", "header order")),
    ("odd reply headers", unaltered, swap(b"x-REPEAT", b"x-repeat"), ("reply", "header case")),
    ("odd reply headers", unaltered, swap(b"X-Empty: \r\n", b""), ("reply", "header missing")),
    ("odd reply headers", unaltered, swap(b"X-Repeat: 2\r\n", b""), ("reply", "header repeats")),
    ("odd reply headers", unaltered, swap(b"caf\xe9", b"caf?"), ("reply", "header value")),
    ("chat", unaltered, swap(b"1.0e+2", b"1.0e+3"), ("reply", "body")),
    ("chat", unaltered, swap(b"200 OK", b"200 Ok"), ("reply", "reason")),
    ("status 429", unaltered, swap(b"429", b"500"), ("reply", "status")),
    ("gzip", unaltered, swap(b"Content-Encoding: gzip\r\n", b""), ("reply", "header missing")),
    ("status 204", unaltered, swap(b"\r\n\r\n", b"\r\nVia: x\r\n\r\n"),
     ("reply", "header added")),
    ("stream", unaltered, swap(b"0\r\n\r\n", b""), ("reply", "no reply")),
    ("chat", swap(b"X-Stainless-Lang", b"x-stainless-lang"), unaltered,
     ("request", "header case")),
    ("chat", swap(b'"n":1e0', b'"n":1.0'), unaltered, ("request", "body")),
    ("target //a", swap(b"GET //a ", b"GET /a "), unaltered, ("request", "target")),
    ("target /a?", swap(b"GET /a? ", b"GET /a "), unaltered, ("request", "target")),
    ("method PUT", swap(b"PUT ", b"POST "), unaltered, ("request", "method")),
    ("odd request headers", swap(b"X-Empty: \r\n", b""), unaltered,
     ("request", "header missing")),
    ("WebSocket", unaltered, swap(b"session.update", b"session.UPDATE"), ("reply", "body")),
    ("WebSocket", swap(b"Upgrade: websocket\r\n", b""), unaltered, ("request", "Upgrade")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "up", "down", "expected"), ALTERED)
def test_one_change_is_one_finding(
    upstream: Upstream, name: str, up: Alter, down: Alter, expected: tuple[str, str]
) -> None:
    request = NAMED.get(name) or NAMED[f"reply coding: {name}"]
    with Middleman(upstream.port, up, down) as middleman:
        outcomes = verified(upstream, middleman, request)
    found = [(d.side, d.what) for d in outcomes[0].comparison.differences]
    assert expected in found
    assert Report(tuple(outcomes)).exit_code == 1


def test_a_relay_that_holds_events_back_is_caught(upstream: Upstream) -> None:
    with Middleman(upstream.port, holds=0.2) as middleman:
        outcomes = verified(upstream, middleman, NAMED["reply until close"])
    report = Report(tuple(outcomes))
    assert [d.what for _, d in report.differences] == ["reply held back"]
    assert outcomes[0].comparison.added > 0.1


def test_a_relay_that_changes_nothing_passes(upstream: Upstream) -> None:
    names = ("chat", "WebSocket", "WebSocket refused with 426", "upload in steps", "pipelined 1")
    behind = NAMED["pipelined 2"]
    with Middleman(upstream.port) as middleman:
        outcomes = verified(upstream, middleman, *(NAMED[name] for name in names), behind)
    assert Report(tuple(outcomes)).differences == []
    assert len(outcomes) == 6


def test_the_report_as_json_names_all_of_it(upstream: Upstream) -> None:
    with Middleman(upstream.port, down=swap(b"Gr", b"gr")) as middleman:
        outcomes = verified(upstream, middleman, NAMED["chat"])
    found = json.loads(as_json(Report(tuple(outcomes)), scrubber(None)))
    assert (found["ok"], found["requests"], found["runs"]) == (False, 1, ["middleman"])
    assert [(d["request"], d["side"], d["what"]) for d in found["differences"]] == [
        ("chat", "reply", "body")
    ]


# -- the command, against an upstream of the user's


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def command(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["verify-wire", *options])
        return result.exit_code, result.output

    return command


def written(folder: Path, *requests: Request) -> str:
    path = folder / "requests.jsonl"
    path.write_text("".join(dump(request) + "\n" for request in requests))
    return str(path)


def test_a_running_sidecar_is_compared_with_the_users_own_upstream(
    upstream: Upstream, run: Run, tmp_path: Path
) -> None:
    asked = replace(NAMED["chat"], headers=(*CHEAP[0].headers, (b"Content-Length", b"{length}")))
    file = written(tmp_path, asked, CHEAP[0])
    options = ("--upstream", upstream.url, "--requests", file)
    with Middleman(upstream.port) as honest:
        code, said = run(*options, "--through", honest.url)
        assert code == 0, said
        assert "not sent, for they cost money (--spend): chat" in said
        assert "masked: " in said
        assert upstream.take(b"") != []
    with Middleman(upstream.port, down=swap(b"Date: ", b"date: ")) as liar:
        code, said = run(*options, "--through", liar.url, "--spend", "--json")
        assert code == 1
        assert {d["what"] for d in json.loads(said)["differences"]} == {"header case"}
    sent = upstream.take(b"")
    assert all(b"Bearer " + KEY.encode() in record.request.data for record in sent)
    assert all(b"x-wire" not in record.request.data for record in sent)
    assert len(sent) == 4


def test_the_key_is_never_printed(upstream: Upstream, run: Run, tmp_path: Path) -> None:
    leak = swap(b"Date: ", b"X-Leak: %b\r\nDate: " % KEY.encode())
    options = ("--upstream", upstream.url, "--requests", written(tmp_path, CHEAP[0]))
    with Middleman(upstream.port, down=leak) as liar:
        for more in ((), ("--json",)):
            code, said = run(*options, "--through", liar.url, *more)
            assert code == 1
            assert "X-Leak: ***" in said
            assert KEY not in said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--through", "http://127.0.0.1:1"), "needs --upstream"),
        (("--upstream", "ftp://x"), "must be http:// or https://"),
        (("--upstream", "http://127.0.0.1:1"), "refused"),
        (("--spend",), "needs --upstream"),
        (("--requests", "/no/such/file"), "No such file"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_what_cannot_be_tried_is_exit_2(run: Run, options: tuple[str, ...], why: str) -> None:
    code, said = run(*options)
    assert code == 2
    assert why in said
