"""Divert, kill, breaker and keys, on the real processes and the real model."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from openai import OpenAI

from bin.cli import main
from bin.standin import Standin
from bin.tickets import SYSTEM_TRIAGE, Ticket, dataset
from tests.e2e.harness import Sidecar, Upstream, fast_rollout, wait_for

TICKETS = dataset(903, 1500, 0)
ANSWERS = {ticket.user: ticket.answer for ticket in TICKETS}
GOOD, REVOKED = "sk-good", "sk-revoked"
SERVED_BY = "x-understudy-served-by"


@dataclass
class Stage:
    upstream: Standin
    sidecar: Sidecar
    tickets: Iterator[Ticket]

    def ask(self, key: str = GOOD, **more: Any) -> str:
        """Who served a fresh ticket."""
        return self.answer(key, **more)[0]

    def answer(self, key: str = GOOD, **more: Any) -> tuple[str, Any]:
        text = next(self.tickets).user
        with OpenAI(base_url=self.sidecar.base_url, api_key=key, max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(
                model="gpt-4o-mini",
                messages=[
                    {"role": "system", "content": SYSTEM_TRIAGE},
                    {"role": "user", "content": text},
                ],
                **more,
            )
            parsed = raw.parse()
            found: Any = list(parsed) if more.get("stream") else parsed
        return raw.headers.get(SERVED_BY, "upstream"), found

    def learn(self) -> None:
        """Ask until the candidate is live."""

        def live() -> bool:
            self.ask()
            return self.sidecar.phases() == ["live"]

        wait_for("the candidate is live", live, 60.0)
        wait_for("it serves", lambda: self.ask() == "triage")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("divert") / "home"
    with (
        Upstream(Standin(ANSWERS, keys={GOOD, REVOKED})) as upstream,
        Sidecar(home, fast_rollout(upstream.url) | {"divert": {"patience": "1s"}}) as sidecar,
    ):
        stage = Stage(upstream, sidecar, iter(TICKETS))
        stage.learn()
        yield stage


def test_a_diverted_answer_has_the_callers_shape(stage: Stage) -> None:
    served_by, answer = stage.answer()
    assert served_by == "triage"
    assert answer.model == "gpt-4o-mini"
    assert answer.choices[0].message.content in set(ANSWERS.values())
    assert answer.usage.completion_tokens > 0
    served_by, chunks = stage.answer(stream=True, stream_options={"include_usage": True})
    assert served_by == "triage"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) in set(
        ANSWERS.values()
    )
    assert chunks[-1].usage.completion_tokens > 0


def test_a_diverted_answer_is_no_training_data(stage: Stage, tmp_path: Path) -> None:
    wait_for(
        "a diverted answer in the store",
        lambda: stage.sidecar.query("SELECT id FROM exchanges WHERE served_by = 'triage'"),
    )
    out = tmp_path / "pairs.jsonl"
    done = CliRunner().invoke(
        main, ["export", "--home", str(stage.sidecar.home), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    upstream = stage.sidecar.query(
        "SELECT count(*) FROM exchanges WHERE served_by = 'upstream' AND status = 200 AND complete"
    )[0][0]
    assert 0 < len(out.read_text().splitlines()) <= upstream


def test_an_unknown_or_revoked_key_never_gets_a_local_answer(stage: Stage) -> None:
    for _ in range(5):
        with pytest.raises(openai.AuthenticationError):
            stage.ask(key="sk-stranger")
    assert stage.ask(key=REVOKED) == "upstream"  # its first call proves it
    assert stage.ask(key=REVOKED) == "triage"
    stage.upstream.keys = {GOOD}
    try:
        with pytest.raises(openai.AuthenticationError):
            with OpenAI(base_url=stage.sidecar.base_url, api_key=REVOKED, max_retries=0) as c:
                c.models.list()  # any refusal by the upstream takes the proof away
        for _ in range(5):
            with pytest.raises(openai.AuthenticationError):
                stage.ask(key=REVOKED)
    finally:
        stage.upstream.keys = {GOOD, REVOKED}


def test_a_retry_of_the_sdk_goes_upstream(stage: Stage) -> None:
    headers = {"x-stainless-retry-count": "1"}
    assert stage.ask(extra_headers=headers) == "upstream"


def test_what_must_not_be_recorded_is_diverted_all_the_same(stage: Stage) -> None:
    before = stage.sidecar.health()["capture"]["not_recorded"]
    headers = {"x-understudy-no-store": "1"}
    wait_for("it serves", lambda: stage.ask(extra_headers=headers) == "triage")
    assert stage.sidecar.health()["capture"]["not_recorded"] > before


def test_kill_and_resume_work_within_a_second_with_the_director_stopped(stage: Stage) -> None:
    home = ["--home", str(stage.sidecar.home)]
    stage.sidecar.signal("director", signal.SIGSTOP)
    try:
        assert stage.ask() == "triage"
        assert CliRunner().invoke(main, ["kill", *home]).exit_code == 0
        time.sleep(1)
        assert {stage.ask() for _ in range(10)} == {"upstream"}
        assert CliRunner().invoke(main, ["resume", *home]).exit_code == 0
        time.sleep(1)
        assert "triage" in {stage.ask() for _ in range(10)}
    finally:
        stage.sidecar.signal("director", signal.SIGCONT)


def test_a_stopped_model_costs_three_waits_and_then_nothing(stage: Stage) -> None:
    wait_for("it serves", lambda: stage.ask() == "triage")
    stage.sidecar.signal("director", signal.SIGSTOP)  # it would plan without a silent model
    stage.sidecar.signal("model:triage", signal.SIGSTOP)
    before = stage.sidecar.health()["fallbacks"]
    try:
        for _ in range(30):
            assert stage.ask() == "upstream"
        assert stage.sidecar.health()["fallbacks"] - before == 3  # each after the patience
        assert stage.sidecar.health()["breakers"] == {"triage": "open"}
    finally:
        stage.sidecar.signal("model:triage", signal.SIGCONT)
        stage.sidecar.signal("director", signal.SIGCONT)
    wait_for(
        "a shadow probe closes the breaker",
        lambda: stage.sidecar.health()["breakers"] == {"triage": "closed"},
        30.0,
    )
    wait_for("it serves again", lambda: stage.ask() == "triage")


def test_when_the_upstream_changes_its_mind_the_candidate_is_demoted(stage: Stage) -> None:
    labels = sorted(set(ANSWERS.values()))
    stage.upstream.relabel = {
        old: new for old, new in zip(labels, labels[1:] + labels[:1], strict=True)
    }

    def demoted() -> bool:
        # The holdback is 0.1 %: retries of the SDK go upstream too and are evidence as good.
        stage.ask(extra_headers={"x-stainless-retry-count": "1"})
        return stage.sidecar.phases() == ["demoted"]

    wait_for("the candidate is demoted", demoted, 60.0)
    wait_for("all goes upstream", lambda: {stage.ask() for _ in range(10)} == {"upstream"})
    why = stage.sidecar.query("SELECT why FROM rollout_log ORDER BY rowid DESC LIMIT 1")
    assert why
