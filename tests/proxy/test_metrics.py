"""The counters of workers: whole whatever is killed, summed, and in Prometheus' own grammar."""

from __future__ import annotations

import re
from pathlib import Path

from policies.metrics import (
    COPY_BYTES,
    COUNTERS,
    PREFIX,
    TABLE,
    Copy,
    Sample,
    newest,
    pack,
    render,
    samples,
)
from proxy.metrics import Slot, read_samples

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABELS = r'\{[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"(?:,[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*")*\}'
HELP = re.compile(rf"# HELP ({NAME}) ([^\n]+)")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge)")
VALUE = re.compile(rf"({NAME})({LABELS})? (-?\d+)")


def parse(text: bytes) -> dict[str, int]:
    """Strictly: each family has its help, its type and then its samples, and comes once.

    By name, with the labels as they stand there.
    """
    values: dict[str, int] = {}
    families: set[str] = set()
    helped = typed = ""
    assert text.endswith(b"\n")
    for line in text.decode().splitlines():
        if found := HELP.fullmatch(line):
            helped = found[1]
            assert helped not in families
            families.add(helped)
        elif found := TYPE.fullmatch(line):
            typed = found[1]
            assert typed == helped
            assert typed.endswith("_total") == (found[2] == "counter")
        else:
            found = VALUE.fullmatch(line)
            assert found is not None and found[1] == typed, line
            assert found[0] not in values
            values[found[1] + (found[2] or "")] = int(found[3])
    return values


def filled(value: int) -> dict[str, int]:
    return {metric.name: value for metric in TABLE}


def test_the_names_are_good_ones_and_each_is_there_once() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    assert all(re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name) for metric in TABLE)
    assert all("\n" not in metric.help and "\\" not in metric.help for metric in TABLE)


def test_counters_are_summed_and_gauges_are_of_those_that_run() -> None:
    found = [Sample(1, True, filled(5)), Sample(2, False, filled(7))]
    said = parse(render(found))
    assert said["understudy_requests_total"] == 12
    assert said["understudy_worker_up" + '{worker="1"}'] == 1
    assert said["understudy_worker_up" + '{worker="2"}'] == 0
    assert said["understudy_clients" + '{worker="1"}'] == 5
    assert "understudy_clients" + '{worker="2"}' not in said
    assert said["understudy_spool_bytes"] == 5
    assert said["understudy_inject_failed_total"] == 12
    assert len([name for name in said if name.endswith("_total")]) == len(COUNTERS)


def test_before_the_first_worker_the_text_is_whole_too() -> None:
    assert parse(render([]))["understudy_requests_total"] == 0


def test_a_write_that_was_cut_leaves_the_copy_before_it() -> None:
    older, newer = Copy(6, 1.0, filled(1)), Copy(7, 2.0, filled(0x0101010101010101))
    assert newest(pack(older) + pack(newer)) == newer
    for cut in range(COPY_BYTES):
        torn = pack(newer)[:cut] + bytes(COPY_BYTES - cut)
        found = newest(pack(older) + torn)
        assert found == older
    assert newest(b"") is None
    assert newest(bytes(2 * COPY_BYTES)) is None


def test_a_worker_is_up_while_it_writes() -> None:
    slot = pack(Copy(0, 100.0, filled(3)))
    assert [s.up for s in samples({f"{PREFIX}1": slot}, 101.0)] == [True]
    assert [s.up for s in samples({f"{PREFIX}1": slot}, 103.0)] == [False]
    stopped = pack(Copy(0, 0.0, filled(3)))
    assert [s.up for s in samples({f"{PREFIX}1": stopped}, 100.0)] == [False]


def test_workers_come_in_their_order_and_other_files_are_none() -> None:
    slot = pack(Copy(0, 0.0, filled(3)))
    found = samples({"metrics-10": slot, "metrics-2": slot, "metrics-x": slot, "metrics-3": b""}, 0)
    assert [sample.worker for sample in found] == [2, 10]


def test_a_worker_that_starts_again_counts_on(tmp_path: Path) -> None:
    first = Slot(tmp_path, 1)
    for requests in (1, 2, 3):
        first.write({"requests": requests, "clients": 9}, at=5.0)
    assert read_samples(tmp_path)[0].values["requests"] == 3
    second = Slot(tmp_path, 1)
    second.write({"requests": 0, "clients": 0}, at=6.0)
    assert read_samples(tmp_path)[0].values["requests"] == 3
    second.write({"requests": 4, "clients": 1}, at=7.0)
    found = read_samples(tmp_path)[0].values
    assert (found["requests"], found["clients"]) == (7, 1)
    assert (tmp_path / f"{PREFIX}1").stat().st_mode & 0o777 == 0o600


def test_without_a_slot_nothing_fails(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "gone", 1)
    slot.write({"requests": 1}, at=1.0)
    assert read_samples(tmp_path / "gone") == []
