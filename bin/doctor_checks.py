"""The chain from an app to the API, link by link: each check says what it found of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from bin.doctor_observed import Finding, Observed
from bin.doctor_shell import environment
from bin.expiry import FEW_DAYS, days_left
from bin.extras import install
from proxy.bundle import BUNDLE
from proxy.forward import Forwarding

_SKEW_SECONDS: Final = 300.0
_START: Final = "start it: understudy serve"
_UPSTREAM_CURES: Final[Mapping[str, str]] = {
    "upstream_proxy": "of the variables that 'understudy serve' was started with, look at "
    "UNDERSTUDY_UPSTREAM_PROXY, HTTPS_PROXY and NO_PROXY, and at the proxy's password",
    "upstream_tls": "if your network breaks TLS open: start 'understudy serve' with SSL_CERT_FILE "
    "naming its roots; else look at the upstream's certificate and at this machine's clock",
    "upstream_unreachable": "look at the upstream's name, DNS and the firewall; where only a proxy "
    "leads out, start 'understudy serve' with UNDERSTUDY_UPSTREAM_PROXY=http://host:port",
    "loop": "name the API itself as upstream, not this sidecar",
    "overloaded": "look at 'limits' in the policy",
}
_UPSTREAM_CURES_OTHERS: Final = "look at the way from this machine to the upstream"
_UNWANTED: Final = Forwarding().off  # by its policy; an error says more
_LACKS_TRUST: Final = "it does not trust our root"
_ALERTS: Final[Mapping[str, str]] = {
    "TLSV1_ALERT_UNKNOWN_CA": _LACKS_TRUST,
    "SSLV3_ALERT_BAD_CERTIFICATE": _LACKS_TRUST,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _LACKS_TRUST,
    "TLSV1_ALERT_DECRYPT_ERROR": "it trusts another authority of the same name",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "to it the certificate has expired: compare the clocks",
    "CONNECTION_ENDED": "it hung up; most often it does not trust our root",
    "TLS_ENDED": "it hung up; most often it does not trust our root",
    "NO_SHARED_CIPHER": "its TLS is too old",
    "UNSUPPORTED_PROTOCOL": "its TLS is too old",
}


def _sidecar(seen: Observed) -> Iterator[Finding]:
    who, detail = seen.seen.who, seen.seen.detail
    if seen.seen.silent and seen.owned and seen.running is not None:
        pid = seen.running.pid
        yield Finding(
            "sidecar",
            False,
            f"{seen.address}: this home's sidecar (process {pid}) takes connections, but answers "
            "nothing: it is stopped, or stuck",
            f"kill {pid}, wait until it has gone, and {_START} {seen.home_option}",
        )
    elif who == "foreign":
        yield Finding(
            "sidecar",
            False,
            f"{seen.address}: what listens there {detail}",
            "stop it, or have the sidecar listen elsewhere: understudy serve "
            f"{seen.home_option} --listen 127.0.0.1:0",
        )
    elif who == "nobody":
        where = "" if seen.running is None else f", though process {seen.running.pid} should"
        what = f"{seen.address}: {detail or 'nobody listens there'}{where}"
        yield Finding("sidecar", False, what, f"{_START} {seen.home_option}")
    else:
        yield _status(seen)
        if seen.seen.health.get("killed"):
            yield Finding(
                "sidecar", None, "everything goes upstream (kill)", "take it back: understudy "
                f"resume {seen.home_option}",
            )  # fmt: skip


def _status(seen: Observed) -> Finding:
    health = seen.seen.health
    if not seen.seen.serving:
        return Finding(
            "sidecar", False, f"{seen.address}: it is stopping", f"{_START} {seen.home_option}"
        )
    return Finding(
        "sidecar", True, f"{seen.address} relays to {seen.upstream} (pid {health['pid']})"
    )


def _of_authority(seen: Observed) -> Iterator[Finding]:
    if seen.issuer is None:
        said, cure = _split(seen.authority_error)
        wanted = seen.policy.forward.enabled
        there = seen.home.authority.exists()
        if not there and seen.seen.who != "ours":
            cure = "the sidecar makes one when it starts"
        yield Finding("authority", False if wanted and (there or seen.forwarding) else None,
                      said, cure)  # fmt: skip
        return
    days = days_left(seen.issuer.expires, seen.now)
    domains = ", ".join(sorted(seen.issuer.domains))
    soon = f"{days} days left: renew it soon, and have apps trust it anew: understudy ca renew"
    yield Finding(
        "authority",
        True if days >= FEW_DAYS else None,
        f"signs for {domains}; {days} days left",
        "" if days >= FEW_DAYS else soon,
    )


def _split(error: str) -> tuple[str, str]:
    """What is wrong, and what to do: as AuthorityError puts them together."""
    said, _, cure = error.rpartition("; ")
    if not said:
        said, _, cure = error.partition(": install ")
        return (said, f"install {cure}") if cure else (error, "understudy ca renew")
    return said, cure


def _bundle(seen: Observed) -> Iterator[Finding]:
    path = seen.home.authority / BUNDLE
    again = f"make it anew: understudy ca path {seen.home_option}"
    if seen.issuer is None:
        return
    if seen.roots == "both":
        yield Finding("bundle", True, f"{path} holds the system's roots and ours")
    elif seen.roots == "missing":
        yield Finding("bundle", False, f"{path}: is not there", again)
    elif seen.roots == "others":
        yield Finding("bundle", False, f"{path}: lacks our root", again)
    else:
        yield Finding("bundle", False, f"{path}: holds no root but ours", again)


def _forward(seen: Observed) -> Iterator[Finding]:
    if seen.seen.who != "ours":
        return
    known = seen.forward.get("authority")
    if not seen.forwarding:
        why = seen.forward.get("why_off") or "it is off"
        wanted = seen.policy.forward.enabled and why != _UNWANTED
        cure = "OPENAI_BASE_URL works without it"
        if wanted:
            cure = f"mend that and start the sidecar again; {cure}"
        yield Finding("forward proxy", False if wanted else None, why, cure)
    elif seen.issuer is not None and known != seen.issuer.fingerprint:
        yield Finding(
            "forward proxy", False, "the sidecar serves another authority than the one on disk",
            "start the sidecar again",
        )  # fmt: skip
    else:
        counts = f"{seen.forward['intercepted']} connections intercepted"
        counts += f", {seen.forward['tunnelled']} passed unseen"
        yield Finding("forward proxy", True, f"on; {counts}")


def _of_upstream(seen: Observed) -> Iterator[Finding]:
    answer = seen.answer
    if answer is None:
        return
    if answer.code:
        cure = _UPSTREAM_CURES.get(answer.code, _UPSTREAM_CURES_OTHERS)
        said = f"{seen.upstream} can't be reached: {answer.code}: {answer.message}"
        yield Finding("upstream", False, said, cure)
    else:
        yield Finding("upstream", True, f"{seen.upstream} answers ({answer.status})")


def _clock(seen: Observed) -> Iterator[Finding]:
    answer = seen.answer
    if answer is None or answer.code or answer.date is None:
        return
    off = answer.at - answer.date
    if abs(off) > _SKEW_SECONDS:
        way = "ahead of" if off > 0 else "behind"
        yield Finding(
            "clock", False, f"this machine's clock is {_span(abs(off))} {way} the upstream's",
            "set it (NTP): certificates are judged by it",
        )  # fmt: skip
        return
    issuer = seen.issuer
    if issuer is not None and not issuer.begins <= answer.date < issuer.expires:
        yield Finding(
            "clock", False, "by the upstream's clock our authority is not valid now",
            "make a new one: understudy ca renew",
        )  # fmt: skip
        return
    yield Finding("clock", True, f"{abs(off):.0f} s from the upstream's")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def _disk(seen: Observed) -> Iterator[Finding]:
    if seen.free is None or not seen.policy.capture.enabled:
        return
    least, free = seen.policy.capture.least_free, f"{_size(seen.free)} free in {seen.home.root}"
    cure = "make room, or set capture.least_free lower"
    if seen.free < least / 4:
        yield Finding("disk", False, f"{free}: nothing is recorded", cure)
    elif seen.free < least:
        yield Finding("disk", False, f"{free}: no bodies are recorded", cure)
    else:
        yield Finding("disk", True, free)


def _capture(seen: Observed) -> Iterator[Finding]:
    if not seen.seen.serving:
        return
    capture = seen.seen.health.get("capture")
    if capture is None:
        yield Finding("capture", None, "is off: calls are relayed, nothing is recorded",
                      "start it without --no-capture, and with capture.enabled")  # fmt: skip
    elif capture["write_errors"]:
        said = f"{capture['write_errors']} write errors, the last: {capture['last_error']}"
        yield Finding("capture", False, said, f"look at the disk below {seen.home.root}")
    else:
        yield Finding("capture", True, f"{capture['exchanges']} exchanges since the start")


def _of_models(seen: Observed) -> Iterator[Finding]:
    breakers = seen.seen.health.get("breakers", {})
    for name, connects in seen.models.items():
        if not connects:
            yield Finding(
                "model", False, f"{name}: takes no connections",
                "look at what 'understudy serve' printed: the file may be missing or broken, or "
                f"llama-cpp-python may be: {install('local')}",
            )  # fmt: skip
        elif breakers.get(name) == "open":
            yield Finding("model", False, f"{name}: failed, and is left alone for now",
                          "look at: understudy status")  # fmt: skip
        else:
            yield Finding("model", True, f"{name}: is up")


def _rejecting(seen: Observed) -> Iterator[Finding]:
    for found in seen.forward.get("rejecting") or ():
        why = _ALERTS.get(found["alert"], "")
        said = f"{found['client']} broke off TLS for {found['host']} ({found['alert']}"
        said += f", {found['times']} times)" + (f": {why}" if why else "")
        cure = "give that client our root: start it by 'understudy run', or with the variables of "
        yield Finding("rejecting", None, said, f"{cure}'understudy env --mode proxy'")


Check = Callable[[Observed], Iterator[Finding]]
CHAIN: Final[tuple[Check, ...]] = (
    _sidecar,
    _of_authority,
    _bundle,
    _forward,
    _of_upstream,
    _clock,
    _disk,
    _capture,
    _of_models,
    _rejecting,
    environment,
)


def chain(seen: Observed) -> list[Finding]:
    return [finding for check in CHAIN for finding in check(seen)]


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
