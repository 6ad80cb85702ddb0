"""`understudy verify-wire` from its options to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bin.wire import Progress, Report, Theirs, verify_ours, verify_theirs
from bin.wire_client import AddressError
from bin.wire_report import as_json, print_report, scrubber
from bin.wire_request import Request, RequestError, dump, load
from bin.wire_set import CHEAP, SHIPPED
from bin.wire_sidecar import SidecarError


@dataclass(frozen=True, slots=True)
class WireOptions:
    """As given on the command line."""

    through: str | None = None
    upstream: str | None = None
    spend: bool = False
    requests: Path | None = None
    record: Path | None = None
    json: bool = False


def run_verify_wire(options: WireOptions) -> int:
    """0: no difference; 1: some; 2: could not be tried, and standard error says why."""
    key = os.environ.get("OPENAI_API_KEY", "").strip().encode() or None
    scrub = scrubber(key)
    try:
        if options.record is not None:
            return _record(options.record, CHEAP if options.upstream else SHIPPED)
        report = _verify(options, key)
    except (AddressError, RequestError, SidecarError, OSError) as error:
        click.echo(scrub(f"understudy: {error}"), err=True)
        return 2
    if options.json:
        click.echo(as_json(report, scrub))
    else:
        print_report(report, scrub)
    return report.exit_code


def _record(path: Path, requests: Sequence[Request]) -> int:
    path.write_text("".join(dump(request) + "\n" for request in requests))
    click.echo(f"{path}: {len(requests)} requests; send them with --requests {path}")
    return 0


def _verify(options: WireOptions, key: bytes | None) -> Report:
    if options.through is not None and options.upstream is None:
        raise RequestError("--through: needs --upstream, the URL that this sidecar relays to")
    if options.spend and options.upstream is None:
        raise RequestError("--spend: needs --upstream; our own upstream costs nothing")
    given = load(options.requests) if options.requests is not None else None
    if options.upstream is None:
        return verify_ours(given or SHIPPED, _progress(options))
    theirs = Theirs(options.upstream, options.through, key, options.spend)
    return verify_theirs(given or CHEAP, theirs, _progress(options))


def _progress(options: WireOptions) -> Progress:
    """Names the request under way, where a person looks on."""
    if options.json or not sys.stderr.isatty():
        return lambda name: None
    return lambda name: click.echo(f"\r\x1b[K{name[:60]}\r", err=True, nl=False)
