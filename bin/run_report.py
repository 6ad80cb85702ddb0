"""What a `run` says when its command has ended: how much was captured, or why nothing was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Self

from bin.surroundings import Mode
from policies.metrics import Sample, total

_RUNTIMES: Final[Mapping[str, str]] = {
    r"python[\d.]*|pypy[\d.]*|uv|uvx|pipx|poetry|pdm|hatch|pytest|gunicorn|uvicorn": "python",
    r"node|nodejs|npm|npx|pnpm|yarn|tsx|ts-node|next": "node",
    r"ruby|bundle|rails|rake": "ruby",
    r"java|mvn|mvnw|gradle|gradlew|kotlin|scala|sbt": "java",
    r"docker|podman|nerdctl|docker-compose|kubectl": "container",
    r"ssh|sudo|su|doas": "elsewhere",
}
_ANY_BASE_URL: Final = "an address in its code goes before OPENAI_BASE_URL: try --mode proxy"
_ANY_PROXY: Final = "it may not read HTTPS_PROXY: try --mode base-url"
_CONTAINER: Final = "a container takes no variables from here: see understudy env --shell docker"
_ELSEWHERE: Final = "what it starts may not get these variables: run understudy inside"
_HINTS: Final[Mapping[tuple[Mode, str], str]] = {
    ("base-url", "python"): "a base_url in its code, or an Azure client, goes before "
    "OPENAI_BASE_URL: try --mode proxy",
    ("base-url", "node"): "a baseURL in its code, or an Azure client, goes before "
    "OPENAI_BASE_URL: try --mode proxy",
    ("proxy", "python"): "aiohttp reads HTTPS_PROXY only with trust_env=True, and an http_client "
    "of the app's own may not: try --mode base-url",
    ("proxy", "node"): "Node reads HTTPS_PROXY from 22.21 and 24.0 on, and not for a dispatcher or "
    "agent of the app's own: try --mode base-url",
    ("proxy", "ruby"): "Net::HTTP reads http_proxy alone, for https too: set it for this command",
    ("proxy", "java"): "an HTTP client with a proxy setting of its own goes by that one: "
    "try --mode base-url",
}
_ANY_TRUST: Final = "it trusts roots of its own; give it <home>/ca/bundle.pem, or --mode base-url"
_TRUST: Final[Mapping[str, str]] = {
    "php": "set curl.cainfo and openssl.cafile in php.ini to <home>/ca/bundle.pem",
}
_ANYWHERE: Final = {"container": _CONTAINER, "elsewhere": _ELSEWHERE}


@dataclass(frozen=True, slots=True)
class Counts:
    """Of all workers since the sidecar started. `calls`: requests, but for those to its own pages.

    `refused` ones among them may not have got further than the sidecar. `exchanges` are without
    `tunnels` to other hosts. `distrusted`: connections whose client refused our certificate.
    `heads`: of all requests, those to the sidecar's own pages, too, but without CONNECT.
    """

    calls: int = 0
    refused: int = 0
    exchanges: int = 0
    tunnels: int = 0
    distrusted: int = 0
    heads: int = 0

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        passed = ("upstream_opened", "upstream_reused", "diverted")
        refused = total(samples, "refused")
        calls = sum(total(samples, name) for name in passed)
        tunnels = total(samples, "tunnelled")
        exchanges = max(0, total(samples, "exchanges") - tunnels)
        distrusted = total(samples, "tls_refused")
        connects = total(samples, "intercepted") + tunnels + distrusted
        heads = total(samples, "requests") - connects
        return cls(calls, refused, exchanges, tunnels, distrusted, heads)

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.calls - before.calls,
            self.refused - before.refused,
            self.exchanges - before.exchanges,
            self.tunnels - before.tunnels,
            self.distrusted - before.distrusted,
            self.heads - before.heads,
        )


@dataclass(frozen=True, slots=True)
class Ran:
    """A command and what it ran with. `shared`: others used the sidecar, too, or still do."""

    command: Sequence[str]
    mode: Mode
    capturing: bool = True
    shared: bool = False
    sidecar_ended: bool = False
    bypassed: bool = False


def conclusion(ran: Ran, counts: Counts | None) -> str:
    """`counts` None: nothing is known."""
    if counts is None:
        ended = "the sidecar ended before the command; " if ran.sidecar_ended else ""
        return f"{ended}how much was captured is not known: see understudy status"
    if ran.sidecar_ended:
        return f"the sidecar ended before the command; captured until then: {counts.exchanges}"
    if counts.exchanges > 0:
        who = ", of all commands at this sidecar" if ran.shared else ""
        return f"captured {_plural(counts.exchanges, 'exchange')}{who}"
    if counts.calls <= 0 and counts.distrusted > 0:
        return f"captured nothing: {_distrusting(ran)}"
    if counts.calls <= 0 and counts.refused <= 0 and counts.tunnels > 0:
        tunnels = _plural(counts.tunnels, "connection")
        return f"captured nothing: {tunnels} went to hosts that are not intercepted"
    if counts.calls <= 0 and counts.refused <= 0:
        return f"captured nothing: no request reached the sidecar; {hint(ran)}"
    if not ran.capturing:
        calls = _plural(max(counts.calls, counts.refused), "request")
        return f"captured nothing: {calls} came, but capture is off"
    if counts.calls <= 0:
        refused = _plural(counts.refused, "request")
        return f"captured nothing: the sidecar refused {refused}, and the app was told why"
    calls = _plural(counts.calls, "request")
    return f"captured nothing of {calls}: see understudy status"


def hint(ran: Ran) -> str:
    """Why an app may not have come by, from what is known of its runtime."""
    if ran.mode == "proxy" and ran.bypassed:
        return "NO_PROXY leads its calls past any proxy: take the API's host out of it"
    runtime = _runtime(ran.command)
    general = _ANY_PROXY if ran.mode == "proxy" else _ANY_BASE_URL
    return _ANYWHERE.get(runtime) or _HINTS.get((ran.mode, runtime), general)


def _distrusting(ran: Ran) -> str:
    name = PurePath(ran.command[0]).name
    return f"{name} came, and refused our certificate: {_TRUST.get(name, _ANY_TRUST)}"


def _runtime(command: Sequence[str]) -> str:
    name = PurePath(command[0]).name.lower()
    return next((kind for names, kind in _RUNTIMES.items() if re.fullmatch(names, name)), "")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
