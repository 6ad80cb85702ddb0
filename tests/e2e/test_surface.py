"""Every kind of call whose bodies are kept, through the real processes, into the record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.endpoints import classify
from store.media import SCHEME, restored
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import Call, Upstream
from tests.store.surface import FIXTURES, Fixture

ROW = """
    SELECT e.*, t.request, t.response, b.request_note, b.response_note FROM exchanges AS e
    LEFT JOIN bodies AS b ON b.number = e.number LEFT JOIN texts AS t ON t.number = e.number
    WHERE e.upstream_request_id = ?"""
NAMED = re.compile(re.escape(SCHEME) + "[0-9a-f]{32}")


def wire(fixture: Fixture) -> bytes:
    head = (
        f"{fixture.method} {fixture.path} HTTP/1.1\r\nHost: app\r\nAuthorization: Bearer sk-x\r\n"
        f"Content-Type: {fixture.content_type}\r\nContent-Length: {len(fixture.request)}\r\n\r\n"
    )
    return head.encode() + fixture.request


def answering(fixture: Fixture, call: Call) -> None:
    call.read_body()
    lines = [f"{name}: {value}\r\n" for name, value in fixture.response_headers]
    size = f"Content-Length: {len(fixture.response)}\r\n\r\n"
    call.send(
        f"HTTP/1.1 {fixture.status} Said\r\n{''.join(lines)}{size}".encode() + fixture.response
    )


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """Through which every exchange has passed."""
    upstream = Upstream()
    made = Sidecar(tmp_path_factory.mktemp("surface"), upstream.port)
    try:
        made.start()
        for fixture in FIXTURES:
            with upstream.playing(partial(answering, fixture)):
                assert made.exchange(wire(fixture), fixture.method).body == fixture.response
        yield made
        assert made.stop() == 0
    finally:
        made.kill()
        upstream.close()


@pytest.fixture(params=FIXTURES, ids=lambda fixture: fixture.name)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    found: Fixture = request.param
    return found


@pytest.fixture
def row(sidecar: Sidecar, fixture: Fixture) -> dict[str, Any]:
    said = f"req_{fixture.name}"
    found: list[dict[str, Any]] = wait_for(lambda: sidecar.query(ROW, said), 10)
    assert len(found) == 1
    return found[0]


def test_what_is_known_of_it(row: dict[str, Any], fixture: Fixture) -> None:
    assert (row["endpoint"], row["status"]) == (fixture.endpoint, fixture.status)
    assert (row["stream"], row["complete"]) == (fixture.streamed, fixture.finished)
    assert (row["error"] is None) == (fixture.error is None)
    # Costs at a host that nobody has a list of, and counts that are missing, have a reason.
    assert (row["cost_usd"], bool(row["cost_note"])) == (None, True)
    assert row["usage"] is not None or row["usage_note"]


def test_the_request_is_what_was_sent(
    sidecar: Sidecar, row: dict[str, Any], fixture: Fixture
) -> None:
    if fixture.asked is None:
        whole = restored(Path(sidecar.home) / "files", row["request"] or "")
        assert whole == fixture.request.decode()
        return
    said = orjson.loads(NAMED.sub("kept", row["request"]))
    assert said == with_files(fixture.asked)
    for name in NAMED.findall(row["request"]):
        assert restored(sidecar.home / "files", name) != name


def with_files(asked: Any) -> Any:
    """As the form is described where its files are kept."""
    if isinstance(asked, dict):
        described = {key: with_files(value) for key, value in asked.items()}
        return described | ({"file": "kept"} if "filename" in described else {})
    return [with_files(item) for item in asked] if isinstance(asked, list) else asked


def test_the_response_is_what_it_amounts_to(
    sidecar: Sidecar, row: dict[str, Any], fixture: Fixture
) -> None:
    if not classify(fixture.method, fixture.path.partition("?")[0]).keeps_bodies:
        assert row["response"] is None
    elif fixture.expected is not None:
        said = restored(sidecar.home / "files", row["response"])
        assert orjson.loads(said) == fixture.expected
        if not fixture.streamed:
            assert said == fixture.response.decode()
    elif fixture.response and row["response_note"] == "binary":
        described = orjson.loads(row["response"])
        assert described["bytes"] == len(fixture.response)
        name = described["file"].removeprefix(SCHEME)
        assert (sidecar.home / "files" / name[:2] / name[2:]).read_bytes() == fixture.response
    else:
        assert (row["response"] or "") == fixture.response.decode()
