"""What the doctor knows: asked of files, sockets and the clock once, for the checks to judge."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shlex
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from bin.home_policy import policy_of
from bin.sidecar_at import Running, Seen, connectable, install_key, look_at, owned, running
from policies.home import Home
from policies.policy import Policy
from proxy import authority
from proxy.authority import ROOT, Authority, AuthorityError
from proxy.bundle import BUNDLE
from proxy.leaves import Issuer

_USUAL: Final = "127.0.0.1:4141"
_ANSWER_SECONDS: Final = 20.0
_MOST_BYTES: Final = 16 << 20
_TURNS: Final = 8
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
Held = Literal["missing", "both", "ours alone", "others"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok` None: nothing that could be judged, or nothing wrong that is good to know."""

    name: str
    ok: bool | None
    said: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the upstream, through the sidecar. `code`: of the sidecar's own error, else empty."""

    status: int | None
    code: str = ""
    message: str = ""
    date: float | None = None  # seconds since the epoch, by the upstream's clock
    at: float = 0.0  # the same moment by ours


@dataclass(frozen=True, slots=True)
class Observed:
    """`policy`: the one named, else the home's, or, beside a sidecar, which knows its own, the
    defaults. `answer`: None if not asked."""

    home: Home
    policy: Policy
    environment: Mapping[str, str]
    now: float
    address: str
    running: Running | None
    seen: Seen
    owned: bool = False  # `running` holds the home's lock: that process is this home's sidecar
    answer: Answer | None = None
    free: int | None = None
    models: Mapping[str, bool] = field(default_factory=dict)  # does it take connections?
    issuer: Issuer | None = None
    authority_error: str = ""
    roots: Held = "missing"
    holds: Callable[[str], Held] = lambda path: "missing"

    @property
    def forward(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.seen.health.get("forward") or {}
        return found

    @property
    def forwarding(self) -> bool:
        return bool(self.forward.get("on"))

    @property
    def upstream(self) -> str:
        return self.running.upstream if self.running else self.policy.upstream

    @property
    def home_option(self) -> str:
        return f"--home {shlex.quote(str(self.home.root))}"


def observe(
    root: Path, policy: Policy | None, environment: Mapping[str, str] = os.environ
) -> Observed:
    """Raises ConfigError."""
    home = Home(root.resolve(), Path("/"))
    named = running(home)
    address = connectable(named.data) if named else _USUAL
    seen = _seen(address, home, named)
    settings = policy or (Policy() if named else policy_of(home.root, None))
    issuer, error = _authority(home, settings, policy is None, seen)
    own = _own_root(home)
    return Observed(
        home=home,
        policy=settings,
        environment=environment,
        now=time.time(),
        address=address,
        running=named,
        seen=seen,
        owned=named is not None and owned(home),
        answer=ask_upstream(address) if seen.serving else None,
        free=_free(home.root),
        models=_models(named),
        issuer=issuer,
        authority_error=error,
        roots=held(home.authority / BUNDLE, own),
        holds=lambda path: held(Path(path), own),
    )


def _seen(address: str, home: Home, named: Running | None) -> Seen:
    """Of several workers each tells of its own clients: asked until each has had its turn."""
    key = install_key(home)
    seen = look_at(address, key)
    workers = sum(name.startswith("proxy") for name in named.processes) if named else 1
    rejecting = {seen.health.get("worker"): _rejecting(seen)}
    for _ in range(_TURNS * workers if seen.serving else 0):
        if len(rejecting) >= workers:
            break
        other = look_at(address, key)
        rejecting[other.health.get("worker")] = _rejecting(other)
    if len(rejecting) < 2:
        return seen
    forward = {**seen.health["forward"], "rejecting": [*chain.from_iterable(rejecting.values())]}
    return replace(seen, health={**seen.health, "forward": forward})


def _rejecting(seen: Seen) -> list[Any]:
    found: list[Any] = (seen.health.get("forward") or {}).get("rejecting", [])
    return found


def _authority(home: Home, policy: Policy, trusting: bool, seen: Seen) -> tuple[Issuer | None, str]:
    """`trusting`: what the running sidecar took for its own is of the right domains."""
    try:
        issuer = authority.read(home.authority)
        taken = (seen.health.get("forward") or {}).get("authority") == issuer.fingerprint
        domains = tuple(issuer.domains) if trusting and taken else policy.forward.intercept
        Authority.load(home.authority, domains)
    except AuthorityError as error:
        return None, str(error)
    return issuer, ""


def ask_upstream(address: str, nonce: str = "", seconds: float = _ANSWER_SECONDS) -> Answer:
    """What any API answers, without a key and for free."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=seconds)
    try:
        connection.request("GET", f"/v1/models?after={nonce or secrets.token_hex(8)}")
        reply = connection.getresponse()
        body = reply.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, "no_answer", str(error) or type(error).__name__, at=time.time())
    finally:
        connection.close()
    code = reply.headers.get("x-understudy-error", "")
    message = _message(body) if code else ""
    return Answer(reply.status, code, message, _moment(reply.headers.get("date")), time.time())


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _moment(date: str | None) -> float | None:
    with contextlib.suppress(ValueError, TypeError):
        return parsedate_to_datetime(date or "").timestamp()
    return None


def _free(root: Path) -> int | None:
    with contextlib.suppress(OSError):
        found = os.statvfs(root if root.exists() else root.parent)
        return found.f_bavail * found.f_frsize
    return None


def _models(named: Running | None) -> dict[str, bool]:
    if named is None:
        return {}
    names = (name.partition(":") for name in sorted(named.processes))
    there = Home(named.run_dir, named.run_dir)
    return {
        candidate: _connects(there.model_socket(candidate))
        for role, _, candidate in names
        if role == "model"
    }


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(OSError):
            probe.connect(str(path))
            return True
    return False


def _own_root(home: Home) -> str:
    with contextlib.suppress(OSError, ValueError):
        text = (home.authority / ROOT).read_text("latin-1")
        return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(text)).strip()
    return ""


def held(path: Path, own: str) -> Held:
    """Whose roots a file of certificates holds."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("latin-1").replace("\r\n", "\n")
    except OSError:
        return "missing"
    if not own or own not in text:
        return "others"
    return "both" if text.count(_BEGIN) > 1 else "ours alone"
