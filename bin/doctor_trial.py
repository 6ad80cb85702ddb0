"""Canaries let out: whether one was captured the sidecar says, not the program.

The row of an exchange bears a number that was in the request. Where nothing is recorded, what the
sidecar counts must do.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson

from bin.doctor_canaries import Canary, canaries
from bin.doctor_causes import Arrival, Tried, all_limits, judged
from bin.doctor_observed import Finding, Observed, ask_upstream
from bin.doctor_runtimes import runtime_of, runtimes_here, untried_here, untried_of
from bin.run_report import Counts
from bin.run_trust import TrustError, trust_of
from bin.sidecar_at import METRICS, ask
from bin.surroundings import Mode, Way, bypasses, variables
from proxy.metrics import read_samples
from store.database import DatabaseError, is_ready, reading

_AT_ONCE: Final = 4
_SECONDS: Final = 10.0
_START_SECONDS: Final = 5.0  # a cold JVM on a busy machine; the programs end by themselves before
_COMPILE_SECONDS: Final = 90.0  # a first one compiles Go's library, too
_RECORD_SECONDS: Final = 10.0  # a recorder that has just started takes a few
_POLL_SECONDS: Final = 0.1
_SLOT_SECONDS: Final = 0.3
_MOST_SAID: Final = 4000
_HOST: Final = "https://api.openai.com"
# No key of anybody's is sent, and an organization says who asks.
_WITHHELD: Final = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID",
                    "OPENAI_BASE_URL", "OPENAI_API_BASE", "UNDERSTUDY_PROXY_CREDENTIALS",
                    "UNDERSTUDY_UPSTREAM_PROXY", "NODE_OPTIONS")  # fmt: skip
_NO_KEY: Final = "none"
_TUNNEL: Final = re.compile(r"Proxy tunneling failed")
_LATE: Final = re.compile(r"(?i)timed? ?out|TimeoutError|Client\.Timeout")


def try_runtimes(seen: Observed, command: Sequence[str]) -> Iterator[Finding]:
    """All that are here, or that of the command. Nothing where no sidecar answers."""
    if not seen.seen.serving or seen.running is None:
        yield Finding("runtimes", None, "not tried: there is no sidecar to be captured by")
        return
    if not command:
        found = list(runtimes_here(seen.environment))
    elif one := runtime_of(command, seen.environment):
        found = [one]
    else:
        yield _unknown(command[0], seen.environment)
        return
    chosen = [canary for runtime in found for canary in canaries(runtime)]
    try:
        yield from _Trial(seen, bool(command)).run(chosen)
    except (TrustError, OSError) as error:
        yield Finding("runtimes", False, f"not tried: {error}", "see the chain above")
    if not command and (others := untried_here(seen.environment)):
        yield Finding("others", None, f"{', '.join(others)}: here, but there is no canary for them",
                      "what each needs: understudy doctor --explain " + others[0])  # fmt: skip


def _unknown(word: str, environment: Mapping[str, str]) -> Finding:
    if shutil.which(word, path=environment.get("PATH")) is None:
        return Finding(word, False, "no such command", "say it as you would to a shell")
    cure = "understudy run says at its end what was captured"
    if kind := untried_of(word):
        return Finding(word, None, f"not tried: there is no canary for {kind}",
                       f"what it needs: understudy doctor --explain {kind}; {cure}")  # fmt: skip
    return Finding(word, None, "not tried: it is not known what runs it", cure)


_NOT_RECORDED: Final = Finding(
    "recorder",
    False,
    f"what passes the sidecar is not in the database within {_RECORD_SECONDS:g} s",
    "look at what 'understudy serve' printed of the recorder; the lines below go by counts",
)


@dataclass(slots=True)
class _Trial:
    """`strict`: one runtime was asked for, and if nothing of it is captured that is wrong."""

    seen: Observed
    strict: bool
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    _since: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(seconds=5))

    def run(self, chosen: Sequence[Canary]) -> Iterator[Finding]:
        if not self.seen.forwarding:
            chosen = [canary for canary in chosen if canary.mode == "base-url"]
            yield Finding("runtimes", None, "of HTTPS_PROXY nothing was tried: the forward proxy "
                          "is off", "see 'forward proxy' above")  # fmt: skip
        surroundings = {canary.mode: self._surroundings(canary.mode) for canary in chosen}
        tried = self._recorded(chosen, surroundings) if self._capturing else None
        if tried is None:
            if self._capturing:
                yield _NOT_RECORDED
            tried = self._counted(chosen, surroundings)
        findings = [judged(one) for one in tried]
        yield from findings
        if self.strict and all_limits(findings):
            yield Finding("runtimes", False, "nothing of this runtime was captured",
                          "see the lines above")  # fmt: skip

    @property
    def _capturing(self) -> bool:
        return self.seen.seen.health.get("capture") is not None

    def _surroundings(self, mode: Mode) -> dict[str, str]:
        """As `understudy run` sets them, without a key."""
        base = {k: v for k, v in self.seen.environment.items() if k not in _WITHHELD}
        trust = trust_of(self.seen.home, base) if mode == "proxy" else None
        own = variables(Way(mode), self.seen.address, trust, base)
        return base | {"OPENAI_API_KEY": _NO_KEY} | own

    # -- by the rows of the database

    def _recorded(
        self, chosen: Sequence[Canary], surroundings: Mapping[Mode, Mapping[str, str]]
    ) -> list[Tried] | None:
        """None if nothing is recorded in time."""
        if not self._marked("before"):
            return None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            numbered = list(enumerate(chosen))
            tried = list(pool.map(lambda one: self._one(one[0], one[1], surroundings), numbered))
        if not self._marked("after"):
            return None
        rows = self._rows()
        return [
            replace(one, arrival=self._arrival(one, self._nonce(number), rows))
            for number, one in enumerate(tried)
        ]

    def _arrival(self, tried: Tried, nonce: str, rows: Sequence[str]) -> Arrival:
        if any(nonce in path for path in rows):
            return "captured"
        issuer = self.seen.issuer
        covered = issuer is not None and issuer.signs_for(urlsplit(_HOST).hostname or "")
        answered = tried.mode == "proxy" and tried.status is not None
        return "tunnelled" if answered and not covered else "unseen"

    def _marked(self, when: str) -> bool:
        """A request of our own is recorded by now, and so is what came before it."""
        nonce = f"{self.session}-{when}"
        ask_upstream(self.seen.address, nonce)
        deadline = time.monotonic() + _RECORD_SECONDS
        while time.monotonic() < deadline:
            if any(nonce in path for path in self._rows()):
                if len(read_samples(self._run_dir())) > 1:
                    time.sleep(_SLOT_SECONDS)  # each worker has a spool of its own
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _rows(self) -> list[str]:
        database = self.seen.home.database
        if not is_ready(database):
            return []
        since = self._since.isoformat(timespec="milliseconds")[:23]
        with suppress(DatabaseError), reading(database) as connection:
            found = connection.execute(
                "SELECT path FROM exchanges WHERE started_at >= ? AND instr(path, ?)",
                (since, self.session),
            )
            return [row["path"] for row in found]
        return []  # busy; there is another look

    def _nonce(self, number: int) -> str:
        return f"{self.session}-{number}-"

    # -- by what the sidecar counts

    def _counted(
        self, chosen: Sequence[Canary], surroundings: Mapping[Mode, Mapping[str, str]]
    ) -> list[Tried]:
        """One after the other; what others do meanwhile is counted, too."""
        found = []
        for number, canary in enumerate(chosen):
            before = self._counts()
            tried = self._one(number, canary, surroundings)
            since = self._counts().since(before)
            arrival: Arrival = "came" if came(tried, since) else "unseen"
            found.append(replace(tried, arrival=arrival))
        return found

    def _counts(self) -> Counts:
        with suppress(OSError):
            ask(self.seen.address, METRICS)
        if len(read_samples(self._run_dir())) > 1:
            time.sleep(_SLOT_SECONDS)
        return Counts.of(read_samples(self._run_dir()))

    def _run_dir(self) -> Path:
        assert self.seen.running is not None
        return self.seen.running.run_dir

    # -- one

    def _one(
        self, number: int, canary: Canary, surroundings: Mapping[Mode, Mapping[str, str]]
    ) -> Tried:
        environment = surroundings[canary.mode]
        url = f"{_HOST}/v1/models?after={self._nonce(number)}"
        with tempfile.TemporaryDirectory(prefix="understudy-doctor-") as folder:
            tried = _ran(canary, url, folder, environment)
        return replace(tried, bypassed=bypasses(environment, _HOST))


def came(tried: Tried, since: Counts) -> bool:
    """By what was counted while it was tried, one look at the counts included.

    A call that reaches no upstream is none of `calls`. Its error is the sidecar's own then, if the
    head of a request came there, too.
    """
    if since.calls > 0 or since.refused > 0:
        return True
    return tried.status is not None and tried.status >= 500 and since.heads > 1


def _ran(canary: Canary, url: str, folder: str, environment: Mapping[str, str]) -> Tried:
    for name, text in canary.files.items():
        (Path(folder) / name).write_text(text)

    def filled(command: Sequence[str]) -> list[str]:
        # Not a general format: the programs are full of braces.
        return [word.replace("{url}", url).replace("{folder}", folder) for word in command]

    if canary.prepare:
        made = _output(filled(canary.prepare), environment, _COMPILE_SECONDS)
        if made is None:
            return replace(canary.tried(), error=f"compiling took over {_COMPILE_SECONDS:g} s")
        if made.returncode:
            return replace(canary.tried(), error=f"no compiler: {made.stderr[-_MOST_SAID:]}")
    done = _output(filled(canary.command), environment, _SECONDS + _START_SECONDS)
    if done is None:
        return replace(canary.tried(), timed_out=True, error="no answer in time")
    return outcome(canary.tried(), done.stdout, done.stderr)


def _output(
    command: Sequence[str], environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """None if it takes longer: then all of it is ended, what it started included."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            out, complaints = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return None
    return subprocess.CompletedProcess(command, process.returncode, out, complaints)


def outcome(tried: Tried, out: str, complaints: str) -> Tried:
    """From its last line, or, of a program that is not ours, from what it complained of."""
    told = {}
    with suppress(ValueError, IndexError):
        told = orjson.loads(out.strip().splitlines()[-1])
    if tried.kind == "wget":
        heads = re.findall(r"^ *HTTP/1\.[01] (\d{3})", complaints, re.MULTILINE)
        told = {"status": int(heads[-1])} if heads and not _TUNNEL.search(complaints) else {}
    error = str(told.get("error") or ("" if told.get("status") else complaints))
    return replace(tried, status=told.get("status") or None, error=error[:_MOST_SAID],
                   timed_out=bool(_LATE.search(error)))  # fmt: skip
