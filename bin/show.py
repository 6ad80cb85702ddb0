"""The show behind `understudy demo`: one app, one sidecar, and a stand-in for the cloud.

Three acts, each with a deadline: the local model learns the part and takes over; it is killed in
mid-show and the app notices nothing; the cloud changes its mind and the traffic is taken back.
Everything but the cloud is real: the command line, the SDK, the model, the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console
from rich.live import Live

import shadow
from bin.show_app import Call
from bin.show_board import Board, Figured, Standing, closing, lately, standing, tally
from bin.show_stage import App, Sidecar
from bin.standin import Standin
from bin.tickets import dataset
from policies.home import Home
from policies.policy import Policy, build

CANDIDATE: Final = "triage"
_MODEL_FILE: Final = Path(shadow.__file__).parent / "models" / "triage.gguf"
_KEY: Final = "sk-demo-0123456789abcdef"
_WORKERS: Final = 8
_RATE: Final = 28.0  # calls a second, in all: two cores are enough for everything
_LATENCY: Final = 0.25
_DISAGREEMENT: Final = 0.02  # of the cloud with itself: no model agrees with it more than that
# The cloud's next version names some labels differently, though the prompt did not change.
_RELABELLED: Final = {
    "billing_refund": "refund_request",
    "shipping_delay": "delivery_problem",
    "account_access": "login_problem",
    "order_cancel": "cancellation",
}
_TICK: Final = 0.25
_LINE_EVERY: Final = 2.0
_CLOSING_SECONDS: Final = 10.0
_ACT_ENDS: Final = (0.5, 0.75, 1.0)  # shares of the time
_STREAMS_END_SECONDS: Final = 1.0
_WATCHED: Final = 150  # local answers at the last step, before the model is killed
_AGAIN: Final = 15  # local answers that prove that the model is back
_AWAY: Final = 40  # calls in a row that prove that everything goes upstream


class ActFailed(Exception):
    """An act did not go as it should; one line for a person."""


def run_demo(seconds: float = 120.0, home: Path | None = None, plain: bool = False) -> int:
    """0 when all three acts went as they should. The home folder is kept, and named at the end."""
    console = Console(highlight=False, soft_wrap=True)
    root = _home(home)
    if (root / "understudy.db").exists():
        console.print(f"--home {root}: holds a database already; the show needs a new folder")
        return 2
    live = console.is_terminal and not plain
    try:
        return asyncio.run(_run(seconds, Home(root, root), console, live))
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print(f"Stopped. What was recorded is in {root}")
        return 130


def _home(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="understudy-demo-"))
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    return wanted.resolve()


async def _run(seconds: float, home: Home, console: Console, live: bool) -> int:
    _end_on_signals()
    seed = random.SystemRandom().getrandbits(32)
    count = int(_RATE * seconds * 1.2)
    answers = {ticket.user: ticket.answer for ticket in dataset(seed, count, 0)}
    async with Standin(answers, _DISAGREEMENT, _LATENCY, keys={_KEY}, keep=0) as upstream:
        raw = _policy(upstream.url)
        (home.root / "policy.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        options = ["--seed", str(seed), "--tickets", str(count)]
        options += ["--workers", str(_WORKERS), "--rate", str(_RATE)]
        show = Show(seconds, home, build(raw), upstream, options, console, live)
        return await show.run()


def _end_on_signals() -> None:
    """Ctrl-C and SIGTERM end the show in order: the sidecar and the app are stopped first."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _policy(upstream: str) -> dict[str, object]:
    """Impatient, so that it fits into two minutes; a real one takes hours and days."""
    model = {"name": CANDIDATE, "gguf": str(_MODEL_FILE), "context": 512, "in_flight": 3}
    return {
        "upstream": upstream,
        "candidates": [model],
        "rollout": {
            "threshold": 0.9,
            "confidence": 0.95,
            "minimum_pairs": 40,
            "steps": [10, 50, 100],
            "step_time": "3s",
            "holdback": 8,
            "window": 64,
        },
    }


@dataclass(slots=True)
class Show:
    seconds: float
    home: Home
    policy: Policy
    upstream: Standin
    options: list[str]
    console: Console
    live: bool
    act: str = "Before the show"
    standing: Standing = field(default_factory=Standing)
    figured: Figured = field(default_factory=Figured)
    _began: float = field(default_factory=time.monotonic)
    _printed: float = 0.0
    _screen: Live | None = None
    _sidecar: Sidecar | None = None
    _app: App | None = None

    @property
    def sidecar(self) -> Sidecar:
        assert self._sidecar is not None
        return self._sidecar

    @property
    def calls(self) -> list[Call]:
        return self._app.calls if self._app else []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> int:
        failure: str | None = None
        try:
            async with self._stage():
                with self._shown():
                    await self._acts()
        except ActFailed as failed:
            failure = f"{self.act}: {failed}"
        failed_calls = tally(self.calls).failed
        if failed_calls and failure is None:
            failure = f"{failed_calls} calls failed; the promise is none"
        self._close(failure)
        return 1 if failure else 0

    # -- both processes, up and down again, whatever happens in between

    @contextlib.asynccontextmanager
    async def _stage(self) -> AsyncIterator[None]:
        try:
            await self._open()
            yield
        finally:
            app = await self._app.stop() if self._app else 0
            sidecar = await self._sidecar.stop() if self._sidecar else 0
        if app or sidecar:
            raise ActFailed(f"at the end: exit code {app} of the app, {sidecar} of the sidecar")

    async def _open(self) -> None:
        root = self.home.root
        self._sidecar = await Sidecar.start(self.home, root / "policy.yaml", root / "sidecar.log")
        await self._until("the sidecar to start", lambda: bool(self._address()), self._end(0))
        base_url = f"http://{self._address()}/v1"
        self._app = await App.start(base_url, _KEY, self.options, root / "app.log")
        self._note(f"sidecar {self._address()} in front of {self.upstream.url}, home {root}")

    def _address(self) -> str:
        return str(self.sidecar.state.get("data", ""))

    # -- the acts

    async def _acts(self) -> None:
        await self._learns(self._end(0))
        await self._is_killed(self._end(1))
        await self._is_taken_back(self._end(2))

    def _end(self, act: int) -> float:
        return self._began + _ACT_ENDS[act] * (self.seconds - _CLOSING_SECONDS)

    async def _learns(self, end: float) -> None:
        self._title("Act 1 of 3: the understudy learns the part, and takes over step by step")
        await self._until("the first step", lambda: self.standing.percent > 0, end)
        self.figured.before = tally(self.calls)
        await self._until("the last step", lambda: self.standing.percent == 100, end)
        at = time.time() + 0.5  # the proxy looks at its plan four times a second
        await self._until("local answers", lambda: self._local_since(at) >= _WATCHED, end)
        self.figured.after = tally(self._since(at))

    async def _is_killed(self, end: float) -> None:
        self._title("Act 2 of 3: the model's process is killed; the app must not notice")
        # What is being streamed could only break. A whole answer can always come from upstream.
        self._say("plain")
        await self._pause(_STREAMS_END_SECONDS)
        failed, at = tally(self.calls).failed, time.time()
        self._note(f"SIGKILL to process {self.sidecar.kill_model(CANDIDATE)}, the model")
        await self._until("the model again", lambda: self._local_since(at) >= _AGAIN, end)
        away = next(call.at for call in self._since(at) if call.served_by) - at
        lost = tally(self.calls).failed - failed
        self._note(f"it answers again, {away:.1f} s later; calls that failed meanwhile: {lost}")
        self._say("mixed")
        await self._pause(_LINE_EVERY)

    async def _is_taken_back(self, end: float) -> None:
        self._title("Act 3 of 3: the cloud changes its answers; the traffic is taken back")
        self.figured.proof = self.standing.figures
        began = self.elapsed
        self.upstream.relabel.update(_RELABELLED)
        await self._until("the demotion", lambda: self.standing.phase == "demoted", end)
        self._note(f"taken back {self.elapsed - began:.1f} s after the change")
        at = time.time() + 0.5
        await self._until("all traffic upstream", lambda: self._all_upstream(at), end)

    def _since(self, at: float) -> list[Call]:
        return [call for call in self.calls if call.at >= at]

    def _local_since(self, at: float) -> int:
        return sum(call.served_by is not None for call in self._since(at))

    def _all_upstream(self, at: float) -> bool:
        newest = self._since(at)[-_AWAY:]
        return len(newest) == _AWAY and not any(call.served_by for call in newest)

    def _say(self, word: str) -> None:
        assert self._app is not None
        self._app.say(word)

    # -- waiting, and what is seen meanwhile

    async def _until(self, what: str, done: Callable[[], bool], end: float) -> None:
        while not done():
            self._check(what, end)
            await self._look()
            await asyncio.sleep(_TICK)

    async def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._look()
            await asyncio.sleep(_TICK)

    def _check(self, what: str, end: float) -> None:
        if self.sidecar.process.returncode is not None:
            raise ActFailed(f"the sidecar has ended while waiting for {what}; see sidecar.log")
        if self._app is not None and self._app.process.returncode is not None:
            raise ActFailed(f"the app has ended while waiting for {what}; see app.log")
        if time.monotonic() > end:
            raise ActFailed(f"waited too long for {what} ({self.standing.phase})")

    async def _look(self) -> None:
        before = self.standing
        self.standing = await asyncio.to_thread(
            standing, self.home.database, CANDIDATE, self.policy.rollout
        )
        if self.standing.why not in ("", before.why):
            self._note(f"{self.standing.phase}: {self.standing.why}")
        self._draw()

    def _draw(self) -> None:
        if self._app is None:
            return
        board = Board(
            self.act, self.elapsed, self.standing, tally(self.calls), tally(lately(self.calls))
        )
        if self._screen is not None:
            self._screen.update(board.table(), refresh=True)
        elif not self.live and self.elapsed - self._printed >= _LINE_EVERY:
            self._printed = self.elapsed
            self.console.print(board.line(), markup=False)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """The table, on a terminal; what is printed meanwhile scrolls by above it."""
        if not self.live:
            yield
            return
        with Live(console=self.console, auto_refresh=False) as self._screen:
            yield
        self._screen = None

    def _title(self, act: str) -> None:
        self.act = act
        self.console.print(f"\n{act}", style="bold")

    def _note(self, text: str) -> None:
        self.console.print(f"[{self.elapsed:5.1f} s] * {text}", markup=False)

    def _close(self, failure: str | None) -> None:
        self.console.print()
        for line in closing(self.home, CANDIDATE, self.calls, self.figured):
            self.console.print(line, markup=False)
        if failure is not None:
            self.console.print(f"\nThe show failed. {failure}", style="red", markup=False)
        else:
            self.console.print(f"\nAll three acts went as they should, in {self.elapsed:.0f} s.")
