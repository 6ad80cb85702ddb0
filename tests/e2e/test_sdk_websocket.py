"""The official Python SDK's WebSockets, Realtime and Responses, through the sidecar."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.compat.pair import Pair, pair
from tests.compat.upstream import CLOSING, Heard
from tests.e2e.harness import wait_for

UPDATE: Any = {
    "type": "session.update",
    "session": {"type": "realtime", "instructions": "be brïef"},
}
ENDS = ("session.created", "session.updated", "response.completed")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("websocket") / "home") as sides:
        yield sides


def create(text: str) -> Any:
    return {"type": "response.create", "response": {"instructions": text}}


def client_of(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key="sk-python", max_retries=0)


def answer(connection: Any) -> list[bytes]:
    """Messages as they came, to the one that ends an answer."""
    found = [connection.recv_bytes()]
    while connection.parse_event(found[-1]).type not in ENDS:
        found.append(connection.recv_bytes())
    return found


def talk(base_url: str, *events: Any, compression: Any = None) -> list[bytes]:
    """What is heard on a Realtime session when each event is sent after the answer before it."""
    with (
        client_of(base_url) as client,
        client.realtime.connect(
            model="gpt-realtime", websocket_connection_options={"compression": compression}
        ) as connection,
    ):
        found = answer(connection)
        for event in events:
            connection.send(event)
            found += answer(connection)
    return found


def arrived(sides: Pair, sessions: int = 1) -> tuple[list[Heard], list[Heard]]:
    """What each upstream heard until that many sessions had ended."""
    found: tuple[list[Heard], list[Heard]] = ([], [])

    def ended() -> bool:
        for kept, more in zip(found, sides.heard(), strict=True):
            kept += more
        return all([one.what for one in heard].count("closed") == sessions for heard in found)

    wait_for("the sessions' end on both sides", ended)
    return found


def same_arrived(sides: Pair) -> list[Heard]:
    direct, through = arrived(sides)
    assert through == direct
    return through


def test_a_session_is_the_direct_one_message_by_message(sides: Pair) -> None:
    direct, through = sides.both(lambda url: talk(url, UPDATE, create("hi"), create("again")))
    assert through == direct
    assert len(through) > 10
    heard = same_arrived(sides)
    assert [one.what for one in heard[1:]] == ["message"] * 3 + ["closed"]
    assert heard[-1].body == b"1000"


def test_large_messages(sides: Pair) -> None:
    direct, through = sides.both(lambda url: talk(url, create("big"), create("y" * 3_000_000)))
    assert through == direct
    assert max(map(len, through)) > 1 << 20
    same_arrived(sides)


def test_compressed_messages(sides: Pair) -> None:
    direct, through = sides.both(lambda url: talk(url, create("big"), compression="deflate"))
    assert through == direct
    asked = dict(same_arrived(sides)[0].headers)
    assert "permessage-deflate" in asked["Sec-WebSocket-Extensions"]


def test_responses(sides: Pair) -> None:
    def respond(base_url: str) -> list[bytes]:
        with client_of(base_url) as client, client.responses.connect() as connection:
            connection.send({"type": "response.create", "model": "gpt-4o", "input": "hi"})
            return answer(connection)

    direct, through = sides.both(respond)
    assert through == direct
    assert same_arrived(sides)[0].what == "GET /v1/responses"


def test_the_upstreams_reason_to_close_is_told(sides: Pair) -> None:
    def closed(base_url: str) -> tuple[int, str]:
        with (
            client_of(base_url) as client,
            client.realtime.connect(model=CLOSING) as connection,
            pytest.raises(ConnectionClosed) as caught,
        ):
            connection.recv_bytes()
            connection.recv_bytes()
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    assert sides.both(closed) == ((4001, "session expired"), (4001, "session expired"))
    same_arrived(sides)


def test_a_session_that_the_upstream_refuses(sides: Pair) -> None:
    def refused(base_url: str) -> tuple[int, bytes]:
        with client_of(base_url) as client, pytest.raises(InvalidStatus) as caught:
            client.realtime.connect(model="fail-401").enter()
        response = caught.value.response
        return response.status_code, bytes(response.body or b"")

    direct, through = sides.both(refused)
    assert through == direct
    assert through[0] == 401
    sent, relayed = sides.heard()
    assert relayed == sent


def test_sessions_at_once_do_not_mix(sides: Pair) -> None:
    async def session(client: AsyncOpenAI, number: int) -> list[bytes]:
        event: Any = {**UPDATE, "session": {"type": "realtime", "instructions": f"be {number}"}}
        async with client.realtime.connect(model="gpt-realtime") as connection:
            found = [await connection.recv_bytes()]
            for _ in range(5):
                await connection.send(event)
                found.append(await connection.recv_bytes())
        assert all(f"be {number}".encode() in message for message in found[1:])
        return found

    async def sessions(base_url: str) -> list[list[bytes]]:
        async with AsyncOpenAI(base_url=base_url, api_key="sk-python") as client:
            return list(await asyncio.gather(*(session(client, n) for n in range(20))))

    direct, through = sides.both(lambda base_url: asyncio.run(sessions(base_url)))
    assert through == direct
    sent, relayed = arrived(sides, 20)
    assert Counter(relayed) == Counter(sent)
