"""Forget, retention and feedback by command and by HTTP, with a sidecar and without."""

from __future__ import annotations

import http.server
import json
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.harness import Sidecar, wait_for

CANARY = "tamsinquorl"
OTHER = "ordinaryfolk"
RECORDED = "SELECT count(*) FROM exchanges"


class Echo(http.server.BaseHTTPRequestHandler):
    """Says what it was told, whole or in events, under an id of the client's choice."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["metadata"]["name"]
        said = f"you said {asked['messages'][-1]['content']}"
        body = self._stream(name, said) if asked.get("stream") else self._whole(name, said)
        self.send_response(200)
        kind = "text/event-stream" if asked.get("stream") else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-request-id", f"req-{name}")
        self.end_headers()
        self.wfile.write(body)

    def _whole(self, name: str, said: str) -> bytes:
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return json.dumps(
            {"id": f"chatcmpl-{name}", "model": "gpt-4o", "choices": [choice], "usage": usage}
        ).encode()

    def _stream(self, name: str, said: str) -> bytes:
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": {"content": each}, "finish_reason": None} for each in said
        ]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        chunks = [
            {"id": f"chatcmpl-{name}", "object": "chat.completion.chunk", "choices": [choice]}
            for choice in choices
        ]
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return (lines + "data: [DONE]\n\n").encode()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def echoing() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def say(sidecar: Sidecar, name: str, word: str, stream: bool = False) -> None:
    body = {
        "model": "gpt-4o",
        "user": f"{word}@example.com",
        "stream": stream,
        "metadata": {"name": name},
        "messages": [
            {"role": "system", "content": f"Be kind to {word}. " * 30},
            {"role": "user", "content": f"I am {word}, mail {word}@example.com ({name})"},
        ],
    }
    request = urllib.request.Request(
        f"{sidecar.base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "x-understudy-tenant": f"team {word}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
        answer.read()


def talk(sidecar: Sidecar, count: int) -> None:
    for number in range(count):
        word = CANARY if number % 3 == 0 else OTHER
        say(sidecar, f"{word}-{number}", word, number % 2 == 0)
    wait_for("all are recorded", lambda: sidecar.query(RECORDED) == [(count,)])


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "bin.cli", arguments[0], "--home", str(home)]
    return subprocess.run(
        [*line, *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def seen_in(home: Path, word: str) -> list[str]:
    return [
        path.relative_to(home).as_posix()
        for path in sorted(home.rglob("*"))
        if path.is_file() and word.encode() in path.read_bytes()
    ]


def receipts(home: Path) -> list[dict[str, Any]]:
    found = sorted((home / "receipts").iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
    assert stat.S_IMODE((home / "receipts").stat().st_mode) == 0o700
    return [json.loads(path.read_text()) for path in found]


def test_forgotten_while_it_runs_and_after_it_has_stopped(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with echoing() as upstream:
        with Sidecar(home, {"upstream": upstream}) as sidecar:
            talk(sidecar, 12)
            assert seen_in(home, CANARY) != []
            unsure = command(home, "forget", "--tenant", f"team {CANARY}")
            assert unsure.returncode == 1 and "4 exchanges of this tenant" in unsure.stdout
            assert seen_in(home, CANARY) != []
            done = command(home, "forget", "--tenant", f"team {CANARY}", "--yes")
            assert (done.returncode, done.stderr) == (0, "")
            assert seen_in(home, CANARY) == []
            say(sidecar, f"{CANARY}-again", CANARY)
            wait_for("it goes on", lambda: sidecar.query(RECORDED) == [(13,)])
        done = command(home, "forget", "--tenant", f"team {CANARY}", "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        assert seen_in(home, CANARY) == []
    first, second = receipts(home)
    assert (first["removed"]["exchanges"], first["removed"]["bodies"]) == (4, 4)
    assert second["removed"]["exchanges"] == 1
    assert first["verified"] is True and first["searched"]["words"] > 0
    assert first["asked"]["by"] == "tenant" and len(first["asked"]["hash"]) == 32
    assert sidecar.query("SELECT count(*) FROM bodies") == [(8,)]
    assert sidecar.query(RECORDED) == [(13,)]
    assert "understudy.db" in seen_in(home, OTHER)


def test_what_is_left_somewhere_else_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with echoing() as upstream, Sidecar(home, {"upstream": upstream}) as sidecar:
        talk(sidecar, 3)
        (home / "understudy.db.corrupt-1").write_text(f"... chatcmpl-{CANARY}-0 ...")
        done = command(home, "forget", "--tenant", f"team {CANARY}", "--yes")
        assert done.returncode == 1
        assert "not all is gone: understudy.db.corrupt-1; delete what was set aside" in done.stderr
        [receipt] = receipts(home)
        assert receipt["verified"] is False
        assert receipt["found_in"] == ["understudy.db.corrupt-1"]


def test_feedback_by_command_and_over_http(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with echoing() as upstream:
        with Sidecar(home, {"upstream": upstream}) as sidecar:
            talk(sidecar, 2)
            post = Poster(sidecar)
            given = {"id": f"chatcmpl-{OTHER}-1", "score": 0.25, "source": "test"}
            wait_for("the admin site", lambda: post(given) == (201, {"ok": True}))
            assert post({**given, "score": 7}) == (
                400, {"error": "score: 7: must be a number from 0 (bad) to 1 (good)"}
            )  # fmt: skip
            assert post({**given, "id": "chatcmpl-none"})[0] == 404
            assert post(given, token="wrong")[0] == 401
            assert post(None)[0] == 400
            noted = command(home, "feedback", f"req-{CANARY}-0", "--label", "good")
            assert (noted.returncode, noted.stdout) == (0, "noted\n"), noted.stderr
            unknown = command(home, "feedback", "req-none", "--score", "1")
            assert unknown.returncode == 1 and "no exchange goes by 'req-none'" in unknown.stderr
        better = tmp_path / "better.txt"
        better.write_text("say less")
        noted = command(home, "feedback", f"req-{CANARY}-0", "--correction", f"@{better}")
        assert noted.returncode == 0, noted.stderr
        [(identity,)] = sidecar.query(
            "SELECT id FROM exchanges WHERE upstream_request_id = ?", f"req-{CANARY}-0"
        )
        shown = json.loads(command(home, "show", identity).stdout)["feedback"]
        assert [(one["label"], one["correction"]) for one in shown] == [
            ("good", None), (None, "say less")
        ]  # fmt: skip
        assert sidecar.query("SELECT score, source FROM feedback WHERE score < 1") == [
            (0.25, "test")
        ]


class Poster:
    """POST /feedback: status and JSON."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._url = f"http://{sidecar.state['admin']}/feedback"
        self._token = (sidecar.home / "admin.token").read_text().strip()

    def __call__(self, body: object, token: str | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token or self._token}"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read()
            return error.code, json.loads(said) if said.startswith(b"{") else None
        except OSError:
            return 0, None


def test_retention_by_command(tmp_path: Path) -> None:
    home, policy = tmp_path / "home", tmp_path / "policy.yaml"
    with echoing() as upstream, Sidecar(home, {"upstream": upstream}) as sidecar:
        talk(sidecar, 3)
        unset = command(home, "retention", "--dry-run")
        assert unset.returncode == 1 and "nothing is set; put keep_bodies" in unset.stderr
    policy.write_text("record: {keep_bodies: 1s}\n")

    def outlook() -> str:
        return command(home, "retention", "--policy", str(policy), "--dry-run").stdout

    wait_for("they are old", lambda: "too old: 3 bodies" in outlook())
    done = command(home, "retention", "--policy", str(policy))
    assert (done.returncode, done.stdout.partition(";")[0]) == (0, "removed: 3 bodies, 0 rows")
    assert sidecar.query("SELECT count(*) FROM exchanges") == [(3,)]


def test_what_can_not_be_asked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    missing = command(home, "forget", "--id", "1", "--yes")
    assert missing.returncode == 1 and "no such folder" in missing.stderr
    home.mkdir()
    empty = command(home, "forget", "--id", "1", "--yes")
    assert empty.returncode == 1 and "nothing captured there yet" in empty.stderr
    both = command(home, "forget", "--id", "1", "--user", "2")
    assert both.returncode == 2 and "name one of --tenant, --user and --id" in both.stderr
    bad = command(home, "feedback", "1234", "--score", "3")
    assert bad.returncode == 1 and "score: 3.0: must be a number from 0" in bad.stderr
