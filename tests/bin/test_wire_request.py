"""Requests in a file, and on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bin.cli import main
from bin.wire_request import (
    Filling,
    Options,
    Request,
    RequestError,
    body_pieces,
    conversations,
    dump,
    head_bytes,
    load,
    parse,
)
from bin.wire_set import CHEAP, SHIPPED, WEBSOCKETS


@pytest.mark.parametrize("request_", [*SHIPPED, *CHEAP], ids=lambda request: request.name)
def test_a_shipped_request_survives_its_file(request_: Request) -> None:
    assert parse(dump(request_)) == request_


def test_the_shipped_set_is_recorded_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    result = CliRunner().invoke(main, ["verify-wire", "--record", str(path)])
    assert (result.exit_code, load(path)) == (0, list(SHIPPED))
    names = [request.name for request in SHIPPED]
    assert len(set(names)) == len(names)
    assert set(WEBSOCKETS) < set(SHIPPED)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ('{"name": "a", "verb": "GET"}', "must be an object with only"),
        ('{"name": "a", "method": "G T", "target": "/"}', "method 'G T'"),
        ('{"name": "a", "method": "GET", "target": "/a b"}', "target '/a b'"),
        ('{"name": "a", "method": "GET", "target": "/", "headers": ["a"]}', "headers ['a']"),
        ('{"name": "a", "method": "GET", "target": "/", "headers": [["a", "b\\r\\nc: d"]]}',
         "headers 'b"),
        ('{"name": "a", "method": "GET", "target": "/", "body": 1}', "body 1"),
        ('{"name": "a", "method": "GET", "target": "/", "body_base64": "?"}', "must be base64"),
        ('{"name": "a", "method": "GET", "target": "/", "options": {"x": 1}}', "options"),
        ('{"name": "a", "method": "GET", "target": "/", "options": {"piece": true}}',
         "options.piece True"),
        ('{"name": "a", "method": "GET", "target": "/", "options": {"connection": "old"}}',
         "must be new, kept or pipelined"),
        ('{"name": "a", "method": "GET", "target": "/", "options": {"frames": [1]}}',
         "options.frames 1"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_says_why(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(dump(CHEAP[0]) + "\n" + line + "\n")
    with pytest.raises(RequestError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert why in str(raised.value)


def test_a_reply_that_our_upstream_does_not_know_is_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "unknown.jsonl"
    raw = json.loads(dump(CHEAP[0])) | {"options": {"reply": "nonsense"}}
    path.write_text(json.dumps(raw))
    result = CliRunner().invoke(main, ["verify-wire", "--requests", str(path)])
    assert result.exit_code == 2
    assert "options.reply 'nonsense' of 'models': must be one of" in result.output


def test_placeholders_are_filled_in_where_they_stand() -> None:
    headers = ((b"hOST", b"{host}"), (b"Authorization", b"Bearer {key}"), (b"X", b"\xff"))
    request = Request("a", b"PUT", b"/x", (*headers, (b"Content-Length", b"{length}")), b"abc")
    assert head_bytes(request, Filling(b"h:1", b"/v1", b"k"), ((b"y", b"z"),)) == (
        b"PUT /v1/x HTTP/1.1\r\nhOST: h:1\r\nAuthorization: Bearer k\r\nX: \xff\r\n"
        b"Content-Length: 3\r\ny: z\r\n\r\n"
    )
    assert b"Authorization" not in head_bytes(request, Filling(b"h:1"))


def test_a_body_goes_in_pieces_and_a_chunked_one_in_chunks() -> None:
    plain = Request("a", text=b"abcde", options=Options(piece=2))
    assert list(body_pieces(plain)) == [b"ab", b"cd", b"e"]
    options = Options(piece=3, chunk_extension=";x", trailers=((b"A", b"b"),))
    chunked = Request("a", headers=((b"transfer-encoding", b"chunked"),), text=b"abcde",
                      options=options)  # fmt: skip
    wire = b"3;x\r\nabc\r\n2;x\r\nde\r\n0;x\r\nA: b\r\n\r\n"
    assert b"".join(body_pieces(chunked)) == wire


def test_requests_are_grouped_by_connection() -> None:
    kinds = ("new", "kept", "new", "pipelined", "pipelined")
    lines = [{"name": kind, "method": "GET", "target": "/", "options": {"connection": kind}}
             for kind in kinds]  # fmt: skip
    grouped = conversations([parse(json.dumps(line)) for line in lines])
    assert [len(conversation) for conversation in grouped] == [2, 3]
