"""Values of options that several commands take, and what is said of those that can't be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from policies.policy import build
from policies.setting import PolicyError

_VERSION: Final = "/v1"


class HostPort(click.ParamType[tuple[str, int]]):
    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r}: must be HOST:PORT, e.g. 127.0.0.1:4141", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


class PolicyFile(click.ParamType[Path]):
    """What is in it is judged elsewhere; that it is there at all, here if `exists`."""

    name = "FILE"

    def __init__(self, *, exists: bool = False) -> None:
        self._exists = exists

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = Path(os.fspath(value)) if isinstance(value, str | os.PathLike) else Path(str(value))
        if path.is_dir():
            self.fail(
                f"{path}: is a folder, not a file; where a container mounts it, the file was not "
                "there when the container was made, and a folder was made instead",
                param,
                ctx,
            )
        if self._exists and not path.exists():
            self.fail(f"{path}: no such file", param, ctx)
        return path


def policy_option(command: Callable[..., None], more: str = "") -> Callable[..., None]:
    """For a command that records, removes or renews apart from `serve`: see `bin.home_policy`."""
    default = "[default: the one that this home's sidecar was last started with]"
    about = f"YAML file{more}.  {default}"
    return click.option("--policy", type=PolicyFile(), help=about)(command)


def upstream_of(value: str) -> str:
    """Of --upstream, as the policy has it. Raises PolicyError."""
    try:
        return build({"upstream": value}).upstream
    except PolicyError as error:
        hint = error.hint
        if "://" not in value:
            hint = f"the scheme is missing, e.g. https://{value or 'api.openai.com'}"
        raise PolicyError("--upstream", value, hint) from None


def doubled(upstream: str, base_path: str = _VERSION) -> str:
    """Of an upstream that ends as the base URL of SDKs does: what would be called. Empty if none.

    No error: an API may be like that.
    """
    path = urlsplit(upstream).path.rstrip("/")
    if not path.endswith(_VERSION) or not base_path.startswith(_VERSION):
        return ""
    right = upstream.rstrip("/").removesuffix(_VERSION)
    return (
        f"upstream {upstream}: apps add /v1 themselves, so {path}/v1/... is what is called; "
        f"most likely you mean {right}"
    )
