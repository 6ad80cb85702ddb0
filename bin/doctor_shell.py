"""What the variables of this shell do to an app that is started in it, and which contradict."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bin.doctor_observed import Finding, Observed
from bin.sidecar_at import connectable
from bin.surroundings import REPLACING, bypasses
from policies.listeners import Listeners
from proxy.bundle import BUNDLE


def environment(seen: Observed) -> Iterator[Finding]:
    found = list(_contradictions(seen))
    if found:
        yield from found
    elif _by_proxy(seen) or _by_base_url(seen):
        yield Finding("environment", True, "apps started in this shell pass the sidecar")
    else:
        option = seen.home_option
        yield Finding(
            "environment", None, "nothing in this shell leads apps to the sidecar",
            f"understudy run {option} -- COMMAND, or eval \"$(understudy env {option})\"",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _At:
    """Where a URL leads."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _At | None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return None
        if not parts.hostname:
            return None
        return cls(url, parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    def leads_to(self, address: str) -> bool:
        host, _, port = address.rpartition(":")
        if (self.host, str(self.port)) == (host.strip("[]"), port):
            return True
        with contextlib.suppress(ValueError):
            return Listeners.of([address]).named(self.host, self.port)
        return False

    def shown(self) -> str:
        """Without user and password."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def _contradictions(seen: Observed) -> Iterator[Finding]:
    yield from _of_proxy_variables(seen)
    yield from _of_base_url(seen)
    yield from _of_certificates(seen)


def _wrong(said: str, cure: str) -> Finding:
    return Finding("environment", False, said, cure)


def _variable(seen: Observed, name: str) -> _At | None:
    return _At.of(seen.environment.get(name, "").strip())


def _by_proxy(seen: Observed) -> bool:
    at = _variable(seen, "https_proxy") or _variable(seen, "HTTPS_PROXY")
    return at is not None and at.leads_to(seen.address)


def _by_base_url(seen: Observed) -> bool:
    at = _variable(seen, "OPENAI_BASE_URL")
    return at is not None and at.leads_to(seen.address)


def _of_proxy_variables(seen: Observed) -> Iterator[Finding]:
    right = f"http://{seen.address}"
    for name in ("HTTPS_PROXY", "https_proxy"):
        at = _variable(seen, name)
        if at is None:
            continue
        if seen.running is not None and at.leads_to(connectable(seen.running.admin)):
            yield _wrong(f"{name} leads to the admin site", f"{name}={right}")
        elif at.leads_to(seen.address) and at.scheme != "http":
            yield _wrong(f"{name} begins with {at.scheme}://", f"{name}={right}")
    both = [_variable(seen, name) for name in ("HTTPS_PROXY", "https_proxy")]
    if None not in both and len({at.leads_to(seen.address) for at in both if at}) == 2:
        yield _wrong("HTTPS_PROXY and https_proxy differ, and apps read either",
                     f"set both to {right}")  # fmt: skip
    if not _by_proxy(seen):
        return
    for host in ("https://api.openai.com", seen.upstream):
        if bypasses(seen.environment, host):
            covered = urlsplit(host).hostname
            yield _wrong(f"NO_PROXY covers {covered}: its calls pass by the sidecar",
                         f"take {covered} out of NO_PROXY and no_proxy")  # fmt: skip
            break


def _of_base_url(seen: Observed) -> Iterator[Finding]:
    at = _variable(seen, "OPENAI_BASE_URL")
    if at is None:
        return
    right = f"OPENAI_BASE_URL=http://{seen.address}/v1"
    if seen.running is not None and at.leads_to(connectable(seen.running.admin)):
        yield _wrong("OPENAI_BASE_URL leads to the admin site", right)
    elif not at.leads_to(seen.address):
        if not _by_proxy(seen):
            yield Finding("environment", None, f"OPENAI_BASE_URL leads to {at.shown()}, not to the "
                          f"sidecar at {seen.address}", right)  # fmt: skip
    elif at.scheme != "http":
        yield _wrong("OPENAI_BASE_URL begins with https://, but the sidecar's port is plain", right)
    elif not at.path:
        yield _wrong("OPENAI_BASE_URL lacks the /v1 that SDKs expect in it", right)
    elif name := _plain_proxy(seen):
        yield _wrong(f"{name} takes the calls to the sidecar elsewhere",
                     f"add {at.host} to NO_PROXY and no_proxy")  # fmt: skip


def _plain_proxy(seen: Observed) -> str:
    """The variable that leads http:// calls to the sidecar's address past it."""
    local = ("localhost", "127.0.0.1", "::1", "*", seen.address.rpartition(":")[0].strip("[]"))
    for name in ("no_proxy", "NO_PROXY"):
        if set(re.split(r"[,\s]+", seen.environment.get(name, ""))) & set(local):
            return ""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        at = _variable(seen, name)
        if at is not None and not at.leads_to(seen.address):
            return name
    return ""


def _of_certificates(seen: Observed) -> Iterator[Finding]:
    proxied = _by_proxy(seen)
    right = seen.home.authority / BUNDLE
    for name in (*REPLACING, "NODE_EXTRA_CA_CERTS"):
        value = seen.environment.get(name, "")
        if not value:
            continue
        found, cure = seen.holds(value), f"{name}={right}"
        if found == "missing":
            folder = Path(value).is_dir()
            if not folder:
                yield _wrong(f"{name} names {value}, which can't be read", cure)
        elif found == "ours alone" and name in REPLACING:
            yield _wrong(f"{name} names our root alone: other hosts are not trusted", cure)
        elif found == "others" and proxied:
            yield _wrong(f"{name} names {value}, which lacks our root", cure)
    if proxied and not any(seen.environment.get(name) for name in REPLACING):
        option = seen.home_option
        yield Finding(
            "environment", None, "HTTPS_PROXY leads to the sidecar, but SSL_CERT_FILE is not set: "
            "only apps that trust our root by the system's store get through",
            f"eval \"$(understudy env {option} --mode proxy)\"",
        )  # fmt: skip
