"""`python -m tests.bench`: CPU per request and per streamed event, against nginx."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.bench import rigs
from tests.bench.rigs import Rig

_SCRIPT = """
wrk.method = "POST"
wrk.body = '{"model":"gpt-4o-mini","messages":[{"role":"system","content":"'..string.rep("s", 2000)
  ..'"},{"role":"user","content":"'..string.rep("u", 2900)..'"}]}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-bench"
wrk.headers["User-Agent"] = "OpenAI/Python 3.52.0"
for _, name in ipairs({"Lang", "OS", "Arch", "Runtime", "Runtime-Version", "Package-Version",
                       "Async", "Retry-Count", "Read-Timeout"}) do
  wrk.headers["X-Stainless-"..name] = "0"
end
"""
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a" * 2000},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1200, "completion_tokens": 400, "total_tokens": 1600},
    }
)
Measure = Callable[[Rig], float]


class Requests:
    """CPU microseconds of the proxy per request: wrk, 64 connections, 5 KB up, 2 KB down."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self._script = folder / "post.lua"
        self._script.write_text(_SCRIPT)
        self._seconds = seconds

    def __call__(self, rig: Rig) -> float:
        command = ["taskset", "-c", str(rigs.OTHER_CORE), "wrk", "-t1", "-c64"]
        command += [f"-d{self._seconds}", "-s", str(self._script)]
        before = rigs.cpu_seconds(rig.pid)
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{rig.port}/v1/chat/completions"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        used = rigs.cpu_seconds(rig.pid) - before
        if "Non-2xx" in done or "Socket errors" in done:
            raise RuntimeError(f"{rig.name}: {done}")
        found = re.search(r"(\d+) requests in", done)
        assert found is not None, done
        return used * 1e6 / int(found[1])


class Streams:
    """CPU microseconds of the proxy per relayed event: 200 streams, 50 events a second each."""

    def __init__(self, seconds: int, streams: int = 200) -> None:
        self._seconds = seconds
        self._streams = streams

    def __call__(self, rig: Rig) -> float:
        command = ["taskset", "-c", str(rigs.OTHER_CORE), sys.executable, "-m"]
        command += ["tests.bench.streams", "client", str(rig.port)]
        command += [str(self._streams), str(self._seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "go\n"
            before = rigs.cpu_seconds(rig.pid)
            said = json.loads(client.stdout.readline())
            used = rigs.cpu_seconds(rig.pid) - before
        return used * 1e6 / int(said["events"])


def alternate(measure: Measure, tested: list[Rig], rounds: int) -> dict[str, list[float]]:
    """Every rig in turn, round by round: drift of the machine hits all alike."""
    for rig in tested:
        measure(rig)  # caches, pools and the page cache are warm in use; measure that
    figures: dict[str, list[float]] = {rig.name: [] for rig in tested}
    for _ in range(rounds):
        for rig in tested:
            rigs.warm_memory(rig.folder)
            figures[rig.name].append(measure(rig))
    return figures


def rows(what: str, figures: dict[str, list[float]]) -> list[tuple[str, ...]]:
    base = figures["nginx"]
    found: list[tuple[str, ...]] = []
    for name, values in figures.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        found.append(
            (what, name, f"{statistics.median(values):.1f}", f"{min(values):.1f}",
             f"{max(values):.1f}", f"{statistics.median(ratios):.2f} x")
        )  # fmt: skip
    return found


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option(
    "--seconds", default=2, type=click.IntRange(min=1), show_default=True, help="Of each round."
)
def main(rounds: int, seconds: int) -> None:
    """Print CPU per unit of work of the proxy process, and its ratio to nginx."""
    try:
        rigs.needs("nginx", "wrk", "taskset")
    except rigs.Missing as missing:
        raise click.ClickException(str(missing)) from None
    table = Table("what", "system", "median µs", "min", "max", "to nginx")
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as name:
        for row in [
            *_requests(Path(name), rounds, seconds),
            *_streams(Path(name), rounds, seconds),
        ]:
            table.add_row(*row)
    Console(width=120).print(table)


def _rigs(stack: contextlib.ExitStack, folder: Path, upstream: int) -> list[Rig]:
    return [
        stack.enter_context(rigs.nginx_proxy(folder, upstream)),
        stack.enter_context(rigs.understudy(folder, upstream, "--no-capture")),
        stack.enter_context(rigs.understudy(folder, upstream)),
    ]


def _requests(folder: Path, rounds: int, seconds: int) -> list[tuple[str, ...]]:
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(rigs.constant(folder, _ANSWER))
        tested = _rigs(stack, folder, upstream)
        return rows("request", alternate(Requests(folder, seconds), tested, rounds))


def _streams(folder: Path, rounds: int, seconds: int) -> list[tuple[str, ...]]:
    port = rigs.free_port()
    command = [sys.executable, "-m", "tests.bench.streams", "upstream", str(port), "50"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(rigs.process(command, rigs.OTHER_CORE))
        rigs.listening(port)
        tested = _rigs(stack, folder, port)
        return rows("SSE event", alternate(Streams(seconds), tested, rounds))


if __name__ == "__main__":
    main()
