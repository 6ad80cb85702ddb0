"""The policy: every setting, parsed once into frozen values and passed whole.

`build` turns the mapping that a YAML file holds into a `Policy`, or raises `PolicyError` with the
field's path, the value and what to do. Each field states its effect and default in its metadata,
from which the reference in the README is printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from policies.identity import Sources
from policies.prices import Price, prices
from policies.privacy import Privacy
from policies.record import Record
from policies.setting import (
    PolicyError,
    a_name,
    a_text,
    choice,
    duration,
    list_of,
    nested,
    number,
    optional,
    section,
    setting,
    truth,
    whole,
)


def _upstream(value: Any, path: str) -> str:
    """An origin, with an optional path prefix: https://api.openai.com."""
    hint = "must be an http:// or https:// URL without query, user or fragment"
    if not isinstance(value, str):
        raise PolicyError(path, value, hint)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise PolicyError(path, value, hint) from None
    labels = (parts.hostname or "").split(".")
    if "" in labels or any(len(label) > 63 for label in labels):
        raise PolicyError(path, value, "must have a host name with no empty or overlong part")
    clean = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not clean or port == 0:
        raise PolicyError(path, value, hint)
    if re.search(r"[\x00-\x20\x7f-\U0010ffff]", value):
        raise PolicyError(path, value, "must be plain ASCII without spaces or control characters")
    return value.rstrip("/")


def _prefix(value: Any, path: str) -> str:
    """Whole segments at the front of a path, compared as they were sent: /openai."""
    hint = "must be a path of whole segments, without query, '.' or '..', e.g. /openai"
    if not isinstance(value, str):
        raise PolicyError(path, value, hint)
    prefix = value.removesuffix("/")
    segments = prefix.split("/")
    if not re.fullmatch(r"(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+", prefix):
        raise PolicyError(path, value, hint)
    if "." in segments or ".." in segments:
        raise PolicyError(path, value, hint)
    if segments[1] == "_understudy":
        raise PolicyError(path, value, "is the sidecar's own; name another")
    return prefix


def _steps(value: Any, path: str) -> tuple[float, ...]:
    hint = "must be a list of rising percentages, each over 0 and at most 100, e.g. [10, 50, 100]"
    if not isinstance(value, list) or not value:
        raise PolicyError(path, value, hint)
    steps = tuple(number(0.001, 100, "percent")(v, f"{path}[{i}]") for i, v in enumerate(value))
    if any(a >= b for a, b in pairwise(steps)):
        raise PolicyError(path, value, hint)
    return steps


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str = setting(a_name, "name in tables, plan and the served-by header")
    gguf: str = setting(a_text, "path of the GGUF file, relative to the policy file")
    context: int = setting(
        whole(256, 1_048_576, "tokens"), "context in tokens, rounded up to a multiple of 256", 4096
    )
    threads: int = setting(whole(1, 256, "threads"), "threads that decode", 1)
    in_flight: int = setting(
        whole(1, 256, "requests"), "most diverted requests at once; more go upstream", 2
    )
    max_tokens: int = setting(
        whole(1, 1_048_576, "tokens"), "longest answer when the request sets no limit", 1024
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    threshold: float = setting(
        number(0.5, 0.999, "a share, e.g. 0.95"), "agreement that must be proven", 0.95
    )
    confidence: float = setting(
        number(0.5, 0.9999, "a share, e.g. 0.95"), "of that proof, under constant looking", 0.95
    )
    minimum_pairs: int = setting(
        whole(1, 1_000_000, "pairs"), "distinct requests compared before any step", 50
    )
    steps: tuple[float, ...] = setting(
        _steps, "shares of a task's traffic to serve, in percent", (10.0, 50.0, 100.0)
    )
    step_time: float = setting(duration, "least time on each step before the next", 3600.0)
    holdback: float = setting(
        number(0.1, 50, "percent"), "share that always goes upstream, the control for life", 3.0
    )
    window: int = setting(whole(10, 100_000, "pairs"), "newest pairs that can demote", 200)
    retry_after: float = setting(
        duration, "wait after a demotion before evidence is gathered anew", 86400.0
    )


@dataclass(frozen=True, slots=True)
class Divert:
    patience: float = setting(duration, "longest wait for the head of a local answer", 2.0)
    deadline: float = setting(duration, "longest wait for a whole answer, not streamed", 30.0)
    confidence_floor: float = setting(
        number(0, 1000, "logits"),
        "smallest top-2 logit margin in an answer; a surer one is served, 0 serves all",
        0.0,
    )
    header: bool = setting(truth, "name the candidate in x-understudy-served-by", True)


@dataclass(frozen=True, slots=True)
class Shadow:
    sample: float = setting(
        number(0, 100, "percent"), "share of eligible exchanges the candidate answers too", 100.0
    )
    deadline: float = setting(duration, "longest shadow run", 60.0)


@dataclass(frozen=True, slots=True)
class Timeouts:
    client_head: float = setting(duration, "a client's head must be whole within", 10.0)
    client_body: float = setting(duration, "longest pause inside a client's body", 60.0)
    client_idle: float = setting(duration, "keep an idle client connection", 75.0)
    upstream_connect: float = setting(duration, "connect, with TLS", 10.0)
    upstream_idle: float = setting(
        duration, "longest silence of the upstream in a call, and of a client's reading", 600.0
    )
    upstream_keepalive: float = setting(duration, "keep an idle upstream connection", 15.0)
    drain: float = setting(duration, "open requests may finish after SIGTERM", 30.0)


@dataclass(frozen=True, slots=True)
class Upstream:
    prefix: str = setting(_prefix, "paths that go there; the longest prefix wins")
    url: str = setting(_upstream, "the API that they are relayed to")
    strip: bool = setting(truth, "leave the prefix out of the path that is sent", False)


@dataclass(frozen=True, slots=True)
class Connections:
    idle_per_upstream: int = setting(
        whole(0, 65_536, "connections"),
        "idle connections kept to each upstream; the oldest go first",
        256,
    )
    idle: int = setting(
        whole(0, 65_536, "connections"), "idle connections kept in all; the oldest go first", 512
    )


@dataclass(frozen=True, slots=True)
class Capture:
    enabled: bool = setting(truth, "record exchanges at all", True)
    body_bytes: int = setting(
        whole(0, 1 << 32, "bytes"), "kept of each body; the row says when it was cut", 8 << 20
    )
    spool_bytes: int = setting(
        whole(1 << 20, 1 << 44, "bytes"), "spool on disk; above it heads are kept, no bodies",
        1 << 30,
    )  # fmt: skip
    least_free: int = setting(
        whole(0, 1 << 44, "bytes"),
        "free disk below which no bodies are kept, and at a quarter of it nothing is",
        200 << 20,
    )
    fsync: str = setting(
        lambda value, path: choice(value, path, ("none", "interval", "always")),
        "none, interval (each second) or always (each batch)",
        "interval",
    )
    inject_usage: bool = setting(
        truth,
        "ask for the usage of streams that apps don't ask for, and keep that from them",
        False,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one worker. At a bound what is new is answered 503; none relays all it can carry."""

    connections: int | None = setting(
        optional(whole(1, 1 << 20, "connections")),
        "open client connections; never more than 0.4 of the files that may be open",
        None,
    )
    in_flight: int | None = setting(
        optional(whole(1, 1 << 20, "requests")), "requests being served at once", None
    )
    memory: int | None = setting(
        optional(whole(1 << 20, 1 << 44, "bytes")),
        "resident bytes above which a worker takes no further request while it serves others",
        None,
    )


def _host_pattern(value: Any, path: str) -> str:
    """A host name, lower-case, or one with its first label as `*`."""
    hint = "must be a host name, or one that begins with '*.', e.g. *.openai.azure.com"
    if not isinstance(value, str) or not re.fullmatch(
        r"(?i)(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?",
        value,
    ):
        raise PolicyError(path, value, hint)
    return value.lower()


def _host_port(value: Any, path: str) -> str:
    hint = "must be HOST:PORT, e.g. 10.1.2.3:8443 or [fd00::5]:443"
    if not isinstance(value, str) or not re.fullmatch(
        r"(\[[0-9A-Fa-f:.]+\]|[^:\s]+):\d{1,5}", value
    ):
        raise PolicyError(path, value, hint)
    host, _, port = value.lower().rpartition(":")
    if not 0 < int(port) < 65536:
        raise PolicyError(path, value, hint)
    return f"{host}:{int(port)}"


def _host_or_network(value: Any, path: str) -> str:
    """What may be denied: names as above, addresses and networks."""
    try:
        return str(ip_network(value, strict=False))
    except (ValueError, TypeError):
        return _host_pattern(value, path)


def _network(value: Any, path: str) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ip_network(value))
    except ValueError:
        raise PolicyError(
            path, value, "must be a network or an address, e.g. 10.0.0.0/8 or fd00::/8"
        ) from None


@dataclass(frozen=True, slots=True)
class Forward:
    """What a client may reach that uses the sidecar as its HTTP proxy."""

    enabled: bool = setting(truth, "serve as a proxy; `forward: false` says the same", True)
    intercept: tuple[str, ...] = setting(
        list_of(_host_pattern, "host names"),
        "hosts whose TLS is taken over and recorded; a new domain needs a new authority",
        ("api.openai.com", "*.api.openai.com", "*.openai.azure.com"),
    )
    deny: tuple[str, ...] = setting(
        list_of(_host_or_network, "host names, addresses or networks"),
        "never reached, besides loopback, link-local and metadata addresses",
        (),
    )
    allow: tuple[str, ...] = setting(
        list_of(_host_port, "HOST:PORT"), "reached in spite of what is denied, and other ports", ()
    )


def _forward(value: Any, path: str) -> Forward:
    if isinstance(value, bool):
        return Forward(enabled=value)
    found: Forward = section(Forward, value, path)
    return found


def _candidates(value: Any, path: str) -> tuple[Candidate, ...]:
    if not isinstance(value, list):
        raise PolicyError(path, value, "must be a list of candidates, each with name and gguf")
    found = tuple(section(Candidate, item, f"{path}[{i}]") for i, item in enumerate(value))
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise PolicyError(path, name, "is the name of two candidates; names must differ")
    return found


def _upstreams(value: Any, path: str) -> tuple[Upstream, ...]:
    if not isinstance(value, list):
        raise PolicyError(path, value, "must be a list of upstreams, each with prefix and url")
    found = tuple(section(Upstream, item, f"{path}[{i}]") for i, item in enumerate(value))
    prefixes = [upstream.prefix for upstream in found]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise PolicyError(path, prefix, "is the prefix of two upstreams; prefixes must differ")
    return found


@dataclass(frozen=True, slots=True)
class Policy:
    upstream: str = setting(_upstream, "the API that is relayed to", "https://api.openai.com")
    upstreams: tuple[Upstream, ...] = setting(
        _upstreams, "further APIs, by the prefix of the path; the rest goes to `upstream`", ()
    )
    candidates: tuple[Candidate, ...] = setting(_candidates, "local models", ())
    rollout: Rollout = setting(nested(Rollout), "gate and steps", Rollout())
    divert: Divert = setting(nested(Divert), "how local answers are served", Divert())
    shadow: Shadow = setting(nested(Shadow), "background runs", Shadow())
    forward: Forward = setting(_forward, "as an HTTP proxy, with interception", Forward())
    clients: tuple[str, ...] = setting(
        list_of(_network, "networks"),
        "networks that may use the data port, besides this machine itself",
        (),
    )
    timeouts: Timeouts = setting(nested(Timeouts), "of the relay", Timeouts())
    connections: Connections = setting(
        nested(Connections), "kept to upstreams and local models", Connections()
    )
    capture: Capture = setting(nested(Capture), "what is recorded", Capture())
    privacy: Privacy = setting(nested(Privacy), "how much of it is kept", Privacy())
    record: Record = setting(nested(Record), "what of bodies, and for how long", Record())
    prices: tuple[Price, ...] = setting(prices, "what models cost, where lists are wrong", ())
    identity: Sources = setting(nested(Sources), "who asks: where that is looked for", Sources())
    workers: int = setting(
        whole(1, 64, "processes"), "proxy processes that accept from the one port", 1
    )
    limits: Limits = setting(nested(Limits), "bounds of each worker", Limits())


def build(raw: object) -> Policy:
    """The policy in `raw`, what a YAML or JSON file held. Raises PolicyError."""
    policy: Policy = section(Policy, raw, "")
    return policy
