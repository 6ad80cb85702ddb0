"""The policy: every setting, parsed once into frozen values and passed whole.

`build` turns the mapping that a YAML file holds into a `Policy`, or raises `PolicyError` with the
field's path, the value and what to do. Each field states its effect and default in its metadata,
from which the reference in the README is printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import ip_network
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit


class PolicyError(ValueError):
    """A setting that can't be used: its path in the file, its value, and how to mend it."""

    def __init__(self, path: str, value: object, hint: str) -> None:
        super().__init__(f"{path}: {value!r}: {hint}" if path else hint)
        self.path, self.value, self.hint = path, value, hint


Parse = Callable[[Any, str], Any]


def _setting(parse: Parse, doc: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc})


def _number(low: float, high: float, unit: str) -> Parse:
    def parse(value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PolicyError(path, value, f"must be a number ({unit})")
        if not low <= value <= high:
            raise PolicyError(path, value, f"must be from {low:g} to {high:g} ({unit})")
        return float(value)

    return parse


def _whole(low: int, high: int, unit: str) -> Parse:
    def parse(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise PolicyError(path, value, f"must be a whole number ({unit})")
        if not low <= value <= high:
            raise PolicyError(path, value, f"must be from {low} to {high} ({unit})")
        return value

    return parse


def _optional(parse: Parse) -> Parse:
    return lambda value, path: None if value is None else parse(value, path)


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any, path: str) -> float:
    """Seconds: a number, or a text such as `500ms`, `2s`, `10m`, `1h`, `7d`."""
    hint = "must be seconds or a duration such as 500ms, 2s, 10m, 1h, 7d"
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())
        if match is None:
            raise PolicyError(path, value, hint)
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise PolicyError(path, value, hint)
    return float(value)


def _truth(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(path, value, "must be true or false")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise PolicyError(path, value, "must be a text that is not empty")
    return value


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise PolicyError(path, value, "must be a name of letters, digits, '.', '_' or '-'")
    return value


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
    steps = tuple(_number(0.001, 100, "percent")(v, f"{path}[{i}]") for i, v in enumerate(value))
    if any(a >= b for a, b in pairwise(steps)):
        raise PolicyError(path, value, hint)
    return steps


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str = _setting(_name, "name in tables, plan and the served-by header")
    gguf: str = _setting(_text, "path of the GGUF file, relative to the policy file")
    context: int = _setting(
        _whole(256, 1_048_576, "tokens"), "context in tokens, rounded up to a multiple of 256", 4096
    )
    threads: int = _setting(_whole(1, 256, "threads"), "threads that decode", 1)
    in_flight: int = _setting(
        _whole(1, 256, "requests"), "most diverted requests at once; more go upstream", 2
    )
    max_tokens: int = _setting(
        _whole(1, 1_048_576, "tokens"), "longest answer when the request sets no limit", 1024
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    threshold: float = _setting(
        _number(0.5, 0.999, "a share, e.g. 0.95"), "agreement that must be proven", 0.95
    )
    confidence: float = _setting(
        _number(0.5, 0.9999, "a share, e.g. 0.95"), "of that proof, under constant looking", 0.95
    )
    minimum_pairs: int = _setting(
        _whole(1, 1_000_000, "pairs"), "distinct requests compared before any step", 50
    )
    steps: tuple[float, ...] = _setting(
        _steps, "shares of a task's traffic to serve, in percent", (10.0, 50.0, 100.0)
    )
    step_time: float = _setting(_duration, "least time on each step before the next", 3600.0)
    holdback: float = _setting(
        _number(0.1, 50, "percent"), "share that always goes upstream, the control for life", 3.0
    )
    window: int = _setting(_whole(10, 100_000, "pairs"), "newest pairs that can demote", 200)
    retry_after: float = _setting(
        _duration, "wait after a demotion before evidence is gathered anew", 86400.0
    )


@dataclass(frozen=True, slots=True)
class Divert:
    patience: float = _setting(_duration, "longest wait for the head of a local answer", 2.0)
    deadline: float = _setting(_duration, "longest wait for a whole answer, not streamed", 30.0)
    confidence_floor: float = _setting(
        _number(0, 1000, "logits"),
        "smallest top-2 logit margin in an answer; a surer one is served, 0 serves all",
        0.0,
    )
    header: bool = _setting(_truth, "name the candidate in x-understudy-served-by", True)


@dataclass(frozen=True, slots=True)
class Shadow:
    sample: float = _setting(
        _number(0, 100, "percent"), "share of eligible exchanges the candidate answers too", 100.0
    )
    deadline: float = _setting(_duration, "longest shadow run", 60.0)


@dataclass(frozen=True, slots=True)
class Timeouts:
    client_head: float = _setting(_duration, "a client's head must be whole within", 10.0)
    client_body: float = _setting(_duration, "longest pause inside a client's body", 60.0)
    client_idle: float = _setting(_duration, "keep an idle client connection", 75.0)
    upstream_connect: float = _setting(_duration, "connect, with TLS", 10.0)
    upstream_idle: float = _setting(
        _duration, "longest silence of the upstream in a call, and of a client's reading", 600.0
    )
    upstream_keepalive: float = _setting(_duration, "keep an idle upstream connection", 15.0)
    drain: float = _setting(_duration, "open requests may finish after SIGTERM", 30.0)


@dataclass(frozen=True, slots=True)
class Upstream:
    prefix: str = _setting(_prefix, "paths that go there; the longest prefix wins")
    url: str = _setting(_upstream, "the API that they are relayed to")
    strip: bool = _setting(_truth, "leave the prefix out of the path that is sent", False)


@dataclass(frozen=True, slots=True)
class Connections:
    idle_per_upstream: int = _setting(
        _whole(0, 65_536, "connections"),
        "idle connections kept to each upstream; the oldest go first",
        256,
    )
    idle: int = _setting(
        _whole(0, 65_536, "connections"), "idle connections kept in all; the oldest go first", 512
    )


@dataclass(frozen=True, slots=True)
class Capture:
    enabled: bool = _setting(_truth, "record exchanges at all", True)
    body_bytes: int = _setting(
        _whole(0, 1 << 32, "bytes"), "kept of each body; the row says when it was cut", 8 << 20
    )
    spool_bytes: int = _setting(
        _whole(1 << 20, 1 << 44, "bytes"), "spool on disk; above it heads are kept, no bodies",
        1 << 30,
    )  # fmt: skip
    least_free: int = _setting(
        _whole(0, 1 << 44, "bytes"),
        "free disk below which no bodies are kept, and at a quarter of it nothing is",
        200 << 20,
    )
    fsync: str = _setting(
        lambda value, path: _choice(value, path, ("none", "interval", "always")),
        "none, interval (each second) or always (each batch)",
        "interval",
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one worker. At a bound what is new is answered 503; none relays all it can carry."""

    connections: int | None = _setting(
        _optional(_whole(1, 1 << 20, "connections")),
        "open client connections; never more than 0.4 of the files that may be open",
        None,
    )
    in_flight: int | None = _setting(
        _optional(_whole(1, 1 << 20, "requests")), "requests being served at once", None
    )
    memory: int | None = _setting(
        _optional(_whole(1 << 20, 1 << 44, "bytes")),
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


def _list(parse: Parse, what: str) -> Parse:
    def parse_all(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise PolicyError(path, value, f"must be a list of {what}")
        return tuple(parse(item, f"{path}[{i}]") for i, item in enumerate(value))

    return parse_all


@dataclass(frozen=True, slots=True)
class Forward:
    """What a client may reach that uses the sidecar as its HTTP proxy."""

    enabled: bool = _setting(_truth, "serve as a proxy; `forward: false` says the same", True)
    intercept: tuple[str, ...] = _setting(
        _list(_host_pattern, "host names"),
        "hosts whose TLS is taken over and recorded; a new domain needs a new authority",
        ("api.openai.com", "*.api.openai.com", "*.openai.azure.com"),
    )
    deny: tuple[str, ...] = _setting(
        _list(_host_or_network, "host names, addresses or networks"),
        "never reached, besides loopback, link-local and metadata addresses",
        (),
    )
    allow: tuple[str, ...] = _setting(
        _list(_host_port, "HOST:PORT"), "reached in spite of what is denied, and other ports", ()
    )


def _forward(value: Any, path: str) -> Forward:
    if isinstance(value, bool):
        return Forward(enabled=value)
    found: Forward = _section(Forward, value, path)
    return found


def _choice(value: Any, path: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise PolicyError(path, value, f"must be one of {', '.join(allowed)}")
    return str(value)


def _candidates(value: Any, path: str) -> tuple[Candidate, ...]:
    if not isinstance(value, list):
        raise PolicyError(path, value, "must be a list of candidates, each with name and gguf")
    found = tuple(_section(Candidate, item, f"{path}[{i}]") for i, item in enumerate(value))
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise PolicyError(path, name, "is the name of two candidates; names must differ")
    return found


def _upstreams(value: Any, path: str) -> tuple[Upstream, ...]:
    if not isinstance(value, list):
        raise PolicyError(path, value, "must be a list of upstreams, each with prefix and url")
    found = tuple(_section(Upstream, item, f"{path}[{i}]") for i, item in enumerate(value))
    prefixes = [upstream.prefix for upstream in found]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise PolicyError(path, prefix, "is the prefix of two upstreams; prefixes must differ")
    return found


def _nested(cls: type) -> Parse:
    return lambda value, path: _section(cls, value, path)


@dataclass(frozen=True, slots=True)
class Policy:
    upstream: str = _setting(_upstream, "the API that is relayed to", "https://api.openai.com")
    upstreams: tuple[Upstream, ...] = _setting(
        _upstreams, "further APIs, by the prefix of the path; the rest goes to `upstream`", ()
    )
    candidates: tuple[Candidate, ...] = _setting(_candidates, "local models", ())
    rollout: Rollout = _setting(_nested(Rollout), "gate and steps", Rollout())
    divert: Divert = _setting(_nested(Divert), "how local answers are served", Divert())
    shadow: Shadow = _setting(_nested(Shadow), "background runs", Shadow())
    forward: Forward = _setting(_forward, "as an HTTP proxy, with interception", Forward())
    clients: tuple[str, ...] = _setting(
        _list(_network, "networks"),
        "networks that may use the data port, besides this machine itself",
        (),
    )
    timeouts: Timeouts = _setting(_nested(Timeouts), "of the relay", Timeouts())
    connections: Connections = _setting(
        _nested(Connections), "kept to upstreams and local models", Connections()
    )
    capture: Capture = _setting(_nested(Capture), "what is recorded", Capture())
    workers: int = _setting(
        _whole(1, 64, "processes"), "proxy processes that accept from the one port", 1
    )
    limits: Limits = _setting(_nested(Limits), "bounds of each worker", Limits())


def build(raw: object) -> Policy:
    """The policy in `raw`, what a YAML or JSON file held. Raises PolicyError."""
    policy: Policy = _section(Policy, raw, "")
    return policy


def _section(cls: type, raw: object, path: str) -> Any:
    if not isinstance(raw, Mapping):
        raise PolicyError(path or "(file)", raw, "must be a mapping of settings")
    known = {f.name: f for f in fields(cls)}
    for key in raw:
        if key not in known:
            allowed = ", ".join(known)
            raise PolicyError(_join(path, str(key)), raw[key], f"unknown setting; use {allowed}")
    given = {key: known[key].metadata["parse"](raw[key], _join(path, key)) for key in raw}
    for name, spec in known.items():
        if name not in given and _required(spec):
            raise PolicyError(_join(path, name), None, f"is missing: {spec.metadata['doc']}")
    return cls(**given)


def _required(spec: Field[Any]) -> bool:
    return spec.default is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
