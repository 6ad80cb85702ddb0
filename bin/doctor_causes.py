"""What a canary met, and what to say of it. Decisions alone, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bin.doctor_observed import Finding
from bin.surroundings import Mode

Arrival = Literal["captured", "came", "tunnelled", "unseen"]
Version = tuple[int, ...]

_UNTRUSTED: Final = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|unable to verify the first certificate"
    r"|UNABLE_TO_(VERIFY|GET)|SELF_SIGNED_CERT|self.signed certificate|SSL certificate problem"
    r"|signed by unknown authority|PKIX path|unable to find valid certification path"
    r"|Unable to locally verify|certificate .*is not trusted|unable to get local issuer"
)
_NO_NAME: Final = re.compile(
    r"Name or service not known|ENOTFOUND|EAI_AGAIN|Could not resolve|no such host"
    r"|name resolution|UnresolvedAddress|unable to resolve|getaddrinfo"
)
_BROKEN: Final = re.compile(
    r"ModuleNotFoundError|ImportError|SyntaxError|AttributeError|Cannot find module|ERR_REQUIRE"
    r"|no compiler|jdk\.compiler|compiling took"
)
_REFUSED: Final = re.compile(
    r"(?:CONNECT|Tunnel|tunnel|[Pp]roxy)\D{0,60}\b(40[357])\b|\b(40[357])\b from proxy"
)
_USER: Final = re.compile(r"//[^/@\s]+@")  # a proxy's URL may hold a password
_REFUSALS: Final[Mapping[str, str]] = {
    "403": "its policy denies this client or this host: look at 'clients' and 'forward'",
    "405": "its forward proxy is off: see 'forward proxy' above",
    "407": "it asks for UNDERSTUDY_PROXY_CREDENTIALS: put user:password@ into HTTPS_PROXY",
}
_TRUST_CURES: Final[Mapping[str, str]] = {
    "openai": "SSL_CERT_FILE=$(understudy ca path)",
    "httpx": "SSL_CERT_FILE=$(understudy ca path)",
    "aiohttp": "SSL_CERT_FILE=$(understudy ca path)",
    "urllib": "SSL_CERT_FILE=$(understudy ca path)",
    "requests": "REQUESTS_CA_BUNDLE=$(understudy ca path); SSL_CERT_FILE says nothing to it",
    "node": "NODE_EXTRA_CA_CERTS=$(understudy ca path --root), set before the process starts",
    "curl": "CURL_CA_BUNDLE=$(understudy ca path), and no cacert in ~/.curlrc",
    "wget": "WGETRC naming a file with ca_certificate = (what 'understudy ca path' prints), or "
    '--ca-certificate="$(understudy ca path)"',
    "go": "SSL_CERT_FILE=$(understudy ca path)",
    "java": "-Djavax.net.ssl.trustStore in JAVA_TOOL_OPTIONS: see understudy env --mode proxy",
}
_ANY_TRUST_CURE: Final = "see understudy doctor --explain"
_BY_PROXY: Final = "see understudy doctor --explain {page}, or use base_url mode: understudy run"


@dataclass(frozen=True, slots=True)
class Tried:
    """A canary and how it fared. `library`: of a language's, else the program's own name.

    `arrival`: *captured* is recorded; *came* is counted while nothing is recorded.
    """

    kind: str
    library: str
    mode: Mode
    version: Version = ()
    arrival: Arrival = "unseen"
    status: int | None = None
    error: str = ""
    timed_out: bool = False
    bypassed: bool = False  # NO_PROXY covers the host
    trusting: bool = True  # aiohttp: trust_env=True

    @property
    def name(self) -> str:
        version = ".".join(map(str, self.version))
        parts = [f"{self.kind} {version}".strip()]
        if self.library != self.kind:
            parts.append(self.library)
        if not self.trusting:
            parts.append("without trust_env")
        return f"{' '.join(parts)} ({'HTTPS_PROXY' if self.mode == 'proxy' else 'base_url'})"

    @property
    def page(self) -> str:
        return self.library if self.kind == "python" and self.library != "urllib" else self.kind


def old_node(version: Version) -> bool:
    """Before fetch read HTTPS_PROXY: 22.21.0 and 24.0.0 are the first that do."""
    return version < (22, 21) or (23,) <= version < (24,)


def judged(tried: Tried) -> Finding:
    """`ok` None: a limit that is known, or nothing that could be tried."""
    if tried.arrival in ("captured", "came"):
        return Finding(tried.name, True, _arrived(tried))
    for cause in _CAUSES:
        found = cause(tried)
        if found is not None:
            return found
    return _unexplained(tried)


def _arrived(tried: Tried) -> str:
    said = "captured" if tried.arrival == "captured" else "came to the sidecar"
    if tried.status is None:
        return f"{said}; but to the program the call failed: {_short(tried.error)}"
    if tried.status == 401:
        return f"{said} (401: no key was sent)"
    return f"{said} ({tried.status})"


def _not(tried: Tried, why: str, cure: str, ok: bool | None = False) -> Finding:
    return Finding(tried.name, ok, f"not captured: {why}", cure)


def _broken(tried: Tried) -> Finding | None:
    if not _BROKEN.search(tried.error):
        return None
    said = f"could not be tried: {_short(tried.error)}"
    cure = ""
    if tried.library == "openai" and "has no attribute 'OpenAI'" in tried.error:
        cure = "openai before 1.0 reads OPENAI_API_BASE; or a file of the app is called openai.py"
    return Finding(tried.name, None, said, cure)


def _covered(tried: Tried) -> Finding | None:
    if tried.mode != "proxy" or not tried.bypassed:
        return None
    return _not(tried, "NO_PROXY covers api.openai.com", "take it out of NO_PROXY and no_proxy")


def _ignoring(tried: Tried) -> Finding | None:
    """Those who never read HTTPS_PROXY."""
    if tried.mode != "proxy":
        return None
    if tried.kind == "node" and old_node(tried.version):
        what = ".".join(map(str, tried.version))
        return _not(
            tried, f"Node {what} ignores HTTPS_PROXY",
            "use base_url, or Node >= 22.21 with NODE_USE_ENV_PROXY=1", None,
        )  # fmt: skip
    if tried.library == "aiohttp" and not tried.trusting:
        return _not(
            tried, "aiohttp ignores HTTPS_PROXY unless trust_env=True",
            "aiohttp.ClientSession(trust_env=True), or the sidecar's address as base URL", None,
        )  # fmt: skip
    return None


def _refused(tried: Tried) -> Finding | None:
    match = _REFUSED.search(tried.error) if tried.mode == "proxy" else None
    if match is None:
        return None
    status = match[1] or match[2]
    return _not(tried, f"the sidecar refused it ({status})", _REFUSALS[status])


def _untrusting(tried: Tried) -> Finding | None:
    if not _UNTRUSTED.search(tried.error):
        return None
    key = tried.library if tried.kind == "python" else tried.kind
    cure = _TRUST_CURES.get(key, _ANY_TRUST_CURE)
    return _not(tried, "it does not trust the sidecar's certificate", cure)


def _tunnelled(tried: Tried) -> Finding | None:
    if tried.arrival != "tunnelled":
        return None
    return _not(tried, "the sidecar passed it on unseen", "list the host in forward.intercept, "
                "and renew the authority: understudy ca renew")  # fmt: skip


def _java(tried: Tried) -> Finding | None:
    if tried.kind != "java" or tried.mode != "proxy":
        return None
    return _not(
        tried, "Java's HttpClient reads no environment but JAVA_TOOL_OPTIONS, and a setting "
        "somewhere goes before that", "look at -Dhttps.proxyHost and -Djava.net.useSystemProxies "
        "in JDK_JAVA_OPTIONS and net.properties; or use base_url",
    )  # fmt: skip


_CAUSES: Final[tuple[Callable[[Tried], Finding | None], ...]] = (
    _broken,
    _tunnelled,
    _covered,
    _ignoring,
    _refused,
    _untrusting,
    _java,
)


def _unexplained(tried: Tried) -> Finding:
    cure = _BY_PROXY.format(page=tried.page)
    if tried.mode == "base-url":
        cure = f"see understudy doctor --explain {tried.page}"
    if tried.status is not None:
        return _not(tried, f"it got {tried.status}, past the sidecar", cure)
    if tried.timed_out:
        return _not(tried, "no answer in time", cure)
    if _NO_NAME.search(tried.error):
        return _not(tried, "it went past the sidecar, and no further", cure)
    return _not(tried, _short(tried.error) or "it said nothing", cure)


def all_limits(findings: list[Finding]) -> bool:
    """Not one was captured, though none is wrong by itself."""
    return bool(findings) and all(finding.ok is None for finding in findings)


def _short(text: str) -> str:
    text = _USER.sub("//(not shown)@", " ".join(text.split()))
    return text if len(text) <= 160 else f"{text[:157]}..."
