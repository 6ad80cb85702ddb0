"""The pure parts of the benchmark: figures, the account, and what the loads send and read."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.bench.account import Account, Counted, Recorded, account, number_of, token
from tests.bench.bodies import Tokened, answer, wrk_script
from tests.bench.figures import added, against, percentile, ratio, rows, single
from tests.bench.pairs import Line, Load
from tests.bench.streams import Client, Gathered


class Sink(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


class TestFigures:
    @pytest.mark.parametrize(
        ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)]
    )
    def test_a_percentile_is_one_of_the_values(self, percent: float, expected: float) -> None:
        assert percentile(range(1, 101), percent) == expected

    def test_of_one_value_every_percentile_is_that_value(self) -> None:
        assert [percentile([7.0], percent) for percent in (0, 50, 99, 100)] == [7.0] * 4

    def test_of_no_values_there_is_none(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 50)

    def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians(self) -> None:
        assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 8.0]) == 2.0

    @pytest.mark.parametrize("base", [None, [1.0, 0.0, 1.0]])
    def test_without_a_sound_base_there_is_no_ratio(self, base: list[float] | None) -> None:
        assert ratio([1.0, 2.0, 3.0], base) is None

    def test_a_row_carries_median_and_bounds(self) -> None:
        figures = {"CPU µs": {"nginx": [10.0, 20.0, 12.0], "understudy": [15.0, 40.0, 18.0]}}
        nginx, ours = rows("request", figures)
        assert (ours.what, ours.system, ours.unit) == ("request: CPU", "understudy", "µs")
        assert (ours.low, ours.median, ours.high, ours.ratio) == (15.0, 18.0, 40.0, 1.5)
        assert nginx.ratio == 1.0

    def test_cpu_comes_first(self) -> None:
        figures = {"p50 µs": {"direct": [1.0]}, "CPU µs": {"nginx": [1.0]}}
        assert [row.what for row in rows("r", figures)] == ["r: CPU", "r: p50"]

    def test_what_is_added_is_taken_round_by_round(self) -> None:
        figures = {"p50 µs": {"direct": [10.0, 50.0], "nginx": [30.0, 80.0]}}
        assert added(figures) == {"added p50 µs": {"nginx": [20.0, 30.0]}}

    def test_a_system_against_itself_under_another_load(self) -> None:
        figures = {"p50 µs": {"ours": [10.0, 20.0], "ours + model": [11.0, 21.0]}}
        (row,) = against("shadow", figures, {"ours + model": "ours"})
        assert (row.system, row.unit, row.low, row.high) == ("ours + model / ours", "x", 1.05, 1.1)

    def test_a_single_figure_is_its_own_bounds(self) -> None:
        row = single("pairs", "level after s", "understudy", 3.0, "fine")
        assert (row.what, row.unit, row.low, row.high) == ("pairs: level after", "s", 3.0, 3.0)


def counted(exchanges: int, **others: int) -> Counted:
    """All recorded, where nothing else is said."""
    zero = {"bodies_cut": 0, "records_dropped": 0, "open": 0}
    both = {"highest_seq": exchanges, "recorded": exchanges}
    return Counted(exchanges, **(zero | both | others))


def whole(*numbers: int) -> list[Recorded]:
    return [Recorded(token(number), whole=True, cut=False) for number in numbers]


CUT = Recorded(None, whole=False, cut=True)


class TestTokens:
    @pytest.mark.parametrize("number", [0, 7, 1234567, 999_999_999])
    def test_a_token_gives_its_number_back(self, number: int) -> None:
        assert number_of(token(number)) == number

    def test_a_token_has_no_digits_that_look_like_a_telephone(self) -> None:
        assert not any(character.isdigit() for character in token(1234567890 % 10**9))

    @pytest.mark.parametrize("text", ["", "token-", "token-abc", "hello", "token-abcdefghz"])
    def test_what_is_no_token_has_no_number(self, text: str) -> None:
        assert number_of(text) is None


class TestAccount:
    def test_all_kept(self) -> None:
        found = account(3, whole(2, 0, 1), counted(3))
        assert found.balances
        assert (found.whole, found.cut, found.dropped, found.missing) == (3, 0, 0, 0)

    def test_cut_bodies_that_were_counted_balance(self) -> None:
        found = account(3, [*whole(0), CUT, CUT], counted(3, bodies_cut=3))
        assert found.balances
        assert (found.whole, found.cut) == (1, 2)

    def test_a_cut_that_nobody_counted_does_not_balance(self) -> None:
        found = account(2, [*whole(0), CUT], counted(2))
        assert found.uncounted == 1
        assert not found.balances

    def test_gaps_in_the_numbers_are_dropped_exchanges(self) -> None:
        found = account(5, whole(0, 4), counted(5, recorded=2, records_dropped=12))
        assert found.balances
        assert found.dropped == 3

    def test_the_last_exchanges_leave_no_gap_but_the_proxy_knows_them(self) -> None:
        found = account(5, whole(0, 1), counted(5, highest_seq=2, recorded=2, records_dropped=9))
        assert found.balances
        assert found.dropped == 3

    def test_a_gap_without_a_counter_is_lost_silently(self) -> None:
        found = account(5, whole(0, 4), counted(5, recorded=2))
        assert (found.dropped, found.uncounted) == (3, 3)
        assert not found.balances

    def test_an_exchange_whose_ending_was_dropped_is_open(self) -> None:
        found = account(2, whole(0), counted(2, recorded=1, open=1, records_dropped=1))
        assert found.balances
        assert (found.open, found.dropped) == (1, 0)

    def test_a_request_the_proxy_never_saw_is_missing(self) -> None:
        found = account(3, whole(0, 1), counted(2))
        assert found.missing == 1
        assert not found.balances

    def test_a_row_twice_is_no_second_pair(self) -> None:
        found = account(2, whole(0, 0), counted(2))
        assert (found.whole, found.doubled, found.missing) == (1, 1, 1)
        assert not found.balances

    @pytest.mark.parametrize("said", [None, "token-abc", token(2)])
    def test_a_whole_row_of_nothing_that_was_sent_is_strange(self, said: str | None) -> None:
        found = account(2, [*whole(0), Recorded(said, whole=True, cut=False)], counted(2))
        assert found.strange == 1
        assert not found.balances

    def test_a_row_that_is_not_whole_and_says_not_why_is_silent(self) -> None:
        found = account(2, [*whole(0), Recorded(None, whole=False, cut=False)], counted(2))
        assert (found.silent, found.missing) == (1, 1)
        assert not found.balances

    def test_nothing_sent_is_an_account_too(self) -> None:
        assert account(0, [], counted(0)) == Account(0, 0, 0, 0, 0, 0, 0, 0, 0)


class TestBodies:
    def test_every_request_is_as_long_as_its_head_says(self) -> None:
        request = Tokened()
        for number in (0, 42, 999_999_999):
            head, _, body = request(number).partition(b"\r\n\r\n")
            assert b"Content-Length: %d\r\n" % len(body) in head
            user = json.loads(body)["messages"][1]["content"]
            assert user.startswith(token(number))
            assert 4900 < len(body) < 5200

    def test_an_answer_is_two_kilobytes_of_json(self) -> None:
        assert 2000 < len(answer()) < 2500
        assert json.loads(answer())["usage"]["total_tokens"] == 1600

    def test_nothing_in_a_configuration_or_script_ends_its_quotes(self) -> None:
        assert "'" not in answer()
        assert wrk_script().count("wrk.body = '") == 1


def stream(numbers: list[int]) -> bytes:
    events = [b"data: %-40b\n\n" % (b'{"n":%d,"sent":1.5}' % number) for number in numbers]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


class TestStreamsClient:
    @pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
    def test_events_are_found_however_they_are_cut(self, size: int) -> None:
        gathered = Gathered()
        client = Client(gathered)
        client.connection_made(Sink())
        data = stream([0, 1, 2, 3])
        # The head in one piece: what it says is looked at once.
        client.data_received(data[:60])
        for start in range(60, len(data), size):
            client.data_received(data[start : start + size])
        assert (len(gathered.delays), gathered.lost, gathered.broken) == (4, 0, [])

    def test_a_gap_in_the_numbers_is_a_loss(self) -> None:
        gathered = Gathered()
        Client(gathered).data_received(stream([0, 1, 4]))
        assert gathered.lost == 2

    def test_a_refusal_and_an_end_are_said(self) -> None:
        gathered = Gathered()
        client = Client(gathered)
        client.data_received(b"HTTP/1.1 503 Busy\r\n\r\n")
        client.connection_lost(None)
        assert len(gathered.broken) == 2


def line() -> tuple[Line, Load]:
    load = Load(lambda line: None)
    made = Line(load)
    made.connection_made(Sink())
    load.send(made, 0.0)
    return made, load


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nokay"


class TestPairsClient:
    @pytest.mark.parametrize("cut", range(1, len(OK)))
    def test_an_answer_is_whole_however_it_is_cut(self, cut: int) -> None:
        made, load = line()
        made.data_received(OK[:cut])
        assert not load.latencies
        made.data_received(OK[cut:])
        assert (len(load.latencies), load.sent, load.broken) == (1, 1, [])

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            OK + b"more",
        ],
    )
    def test_any_other_answer_is_said(self, data: bytes) -> None:
        made, load = line()
        made.data_received(data)
        assert load.broken

    def test_a_connection_that_is_lost_before_its_answer_is_said(self) -> None:
        made, load = line()
        load.leaving = True
        made.connection_lost(None)
        assert load.broken
