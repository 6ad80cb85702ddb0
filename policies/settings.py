"""What the supervisor tells a child process: one JSON line on its standard input.

The rest of standard input is the child's lifeline: end of file means stop. Secrets (the install
key, the admin token) travel here and never in arguments or the environment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from policies.home import Home
from policies.policy import Policy, build


@dataclass(frozen=True, slots=True)
class Settings:
    """`fd`: the listening socket handed down, where the role has one. `candidate`: model only.

    `worker`: which of the proxies this is, from 1. For proxies only: `listening`, where the
    sidecar listens, as host:port; `way_out`, what `policies.way_out.WayOut.of` takes;
    `credentials`, user:password of strangers who use the forward proxy.
    """

    role: str  # proxy | recorder | director | model
    root: str
    run_dir: str
    run_id: str
    policy: dict[str, Any]
    fd: int | None = None
    candidate: str | None = None
    worker: int = 1
    install_key: str = field(default="", repr=False)  # hex
    admin_token: str = field(default="", repr=False)
    listening: list[str] = field(default_factory=list)
    way_out: dict[str, str] = field(default_factory=dict, repr=False)  # may hold a password
    credentials: str = field(default="", repr=False)

    @property
    def home(self) -> Home:
        return Home(Path(self.root), Path(self.run_dir))

    def parsed_policy(self) -> Policy:
        return build(self.policy)


def dump(settings: Settings) -> bytes:
    return orjson.dumps(asdict(settings)) + b"\n"


def load(line: bytes) -> Settings:
    return Settings(**orjson.loads(line))


def plain(policy: Policy) -> dict[str, Any]:
    """The policy as `build` takes it."""
    result: dict[str, Any] = orjson.loads(orjson.dumps(policy))
    return result
