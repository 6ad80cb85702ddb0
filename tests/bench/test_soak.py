"""The pure parts of the soak: the line through its samples, the plot, the bodies it sends."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.bench.soak_samples import Sample, drawn, fit, fit_of, write
from tests.bench.soak_wire import noise, weight_of


def sample(seconds: float, size: int) -> Sample:
    return Sample(seconds, size, 20, 2 * size, 18, 0)


def test_a_line_without_noise_is_found_exactly() -> None:
    found = fit([0.0, 5.0, 10.0, 15.0], [3.0, 4.0, 5.0, 6.0])
    assert (found.start, found.growth, found.error) == pytest.approx((3.0, 3.0, 0.0))


def test_noise_shows_as_error_and_not_as_growth() -> None:
    found = fit([float(second) for second in range(100)], [10.0, 12.0] * 50)
    assert abs(found.growth) < found.error < 1


def test_two_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="let it run longer"):
        fit([0.0, 1.0], [1.0, 2.0])


def test_the_first_third_does_not_count() -> None:
    samples = [sample(second, 100 * min(second, 30)) for second in range(90)]
    found = fit_of(samples, "proxy_bytes")
    assert (found.start, found.growth) == pytest.approx((3000, 0))


def test_samples_are_written_with_their_names(tmp_path: Path) -> None:
    write([sample(0.0, 1), sample(5.0, 2)], tmp_path / "soak.csv")
    with (tmp_path / "soak.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["proxy_bytes"] for row in rows] == ["1", "2"]


def test_a_plot_of_characters_rises_with_the_values() -> None:
    lines = drawn([0.0, 5.0, 10.0], height=3).splitlines()
    assert [line.partition("|")[2] for line in lines] == ["  *", " * ", "*  "]
    assert lines[0].split()[0] == "10.0"


def test_a_flat_plot_is_one_line() -> None:
    assert drawn([7.0] * 4).count("*") == 4


def test_a_body_is_the_same_each_time_and_another_for_another_seed() -> None:
    assert weight_of(noise(300_000, 1)) == weight_of(noise(300_000, 1))
    assert weight_of(noise(300_000, 1)).size == 300_000
    assert weight_of(noise(300_000, 1)) != weight_of(noise(300_000, 2))
