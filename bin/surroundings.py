"""What an app's environment must hold so that its calls pass the sidecar. Decisions alone, no I/O.

Two ways in. *base-url*: the official SDKs read OPENAI_BASE_URL; nothing to trust, nothing else
changes. *proxy*: for apps that have the API's address in their code; HTTPS_PROXY, and each
runtime's own variable for the certificates that it shall trust.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from policies.listeners import Listeners
from policies.policy import build
from policies.setting import PolicyError
from policies.way_out import WayOut
from proxy.forward import Forwarding

Mode = Literal["base-url", "proxy"]
Asked = Literal["auto", "base-url", "proxy"]

STORE_PASSWORD: Final = "changeit"  # Java's own; what lies in the store is public
_BASE_URL: Final = "OPENAI_BASE_URL"
_OLD_BASE_URL: Final = "OPENAI_API_BASE"  # openai-python before 1.0, LangChain
# A proxy for http:// would have the calls to the sidecar, too.
_PLAIN_PROXIES: Final = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_JAVA: Final = "JAVA_TOOL_OPTIONS"
# Java reaches these without a proxy as long as nobody names others.
_JAVA_LOCAL: Final = ("localhost", "127.*", "[::1]")
# Those that replace what a runtime trusts, and whose value it goes by where they are not set.
REPLACING: Final[Mapping[str, tuple[str, ...]]] = {
    "SSL_CERT_FILE": (),  # OpenSSL, httpx, Go, Ruby
    "REQUESTS_CA_BUNDLE": ("CURL_CA_BUNDLE",),
    "CURL_CA_BUNDLE": ("SSL_CERT_FILE",),
    "PERL_LWP_SSL_CA_FILE": (),
}
ADDING: Final = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")  # Bun reads the former, too


@dataclass(frozen=True, slots=True)
class Way:
    """`base_path`: of OPENAI_BASE_URL. `why`: a line for a person who may not expect this way."""

    mode: Mode
    base_path: str = "/v1"
    why: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """Files of certificates. `root`: the authority's alone. `bundle`: the system's and that one.

    `joined`: for a variable that had a value of its own, a file with what it named and the root.
    """

    root: Path
    bundle: Path
    java: Path | None = None
    joined: Mapping[str, Path] = field(default_factory=dict)
    wgetrc: Path | None = None

    def file_for(self, name: str) -> Path:
        return self.joined.get(name, self.root if name in ADDING else self.bundle)


class _Place(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


def _place(url: str) -> _Place | None:
    try:
        parts = urlsplit(url.strip())
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    host = (parts.hostname or "").rstrip(".")
    return _Place(parts.scheme, host, port, parts.path.rstrip("/")) if host else None


# -- which way


class WayError(Exception):
    """There is no way that would do what was asked for; one line for a person."""


def choose(
    asked: Asked, environment: Mapping[str, str], address: str, upstream: str, no_proxy: str = ""
) -> Way:
    """How an app gets to the sidecar at `address`, which relays to `upstream`.

    An app that is pointed at another API has a key for that one: unasked, neither its calls nor its
    key are sent elsewhere. `no_proxy`: why the sidecar is no forward proxy, each call of an app
    that takes it for one would fail. Raises WayError.
    """
    if asked == "proxy" and no_proxy:
        raise WayError(f"--mode proxy: {_mended(no_proxy)}, or go with --mode base-url")
    if asked == "proxy":
        return Way("proxy")
    url = environment.get(_BASE_URL, "").strip()
    path = _path_at_sidecar(url, address, upstream)
    upstream = upstream or "an API that is not known yet"
    if path is not None:
        return Way("base-url", path)
    if asked == "base-url":
        why = f"{_BASE_URL} was {_shown(url)}; it is replaced, and the calls go to {upstream}"
        return Way("base-url", why=why)
    if no_proxy:
        raise WayError(
            f"{_BASE_URL} is {_shown(url)}, but this sidecar relays to {upstream}, and HTTPS_PROXY "
            f"would not do either: {_mended(no_proxy)}, or name another --home and --upstream, or "
            "have the calls go to this sidecar's API with --mode base-url"
        )
    why = (
        f"{_BASE_URL} is {_shown(url)}, but this sidecar relays to {upstream}; HTTPS_PROXY is set"
        " instead, and calls to other hosts than those in forward.intercept pass unseen"
    )
    return Way("proxy", why=why)


def _mended(no_proxy: str) -> str:
    """Why there is no forward proxy, and how to have one: what is broken says that itself."""
    if no_proxy == Forwarding().off:
        return (
            "its policy says 'forward: false', so HTTPS_PROXY can't work; take that out and start "
            "the sidecar again"
        )
    renewed = " with its own --home" if "ca renew" in no_proxy else ""
    return f"{no_proxy}{renewed}; then start the sidecar again"


def wanted_upstream(asked: Asked, environment: Mapping[str, str], address: str) -> str | None:
    """The API that the app is pointed at already: a sidecar started for it alone relays there."""
    url = environment.get(_BASE_URL, "").strip()
    place = _place(url)
    if asked == "proxy" or place is None or _is_at(place, address):
        return None
    upstream = url.rstrip("/").removesuffix("/v1")
    try:
        return build({"upstream": upstream}).upstream
    except PolicyError:
        return None


def same_api(one: str, other: str) -> bool:
    return _place(one) == _place(other)


def _path_at_sidecar(url: str, address: str, upstream: str) -> str | None:
    """The path of the base URL; None where it leads to neither the sidecar nor its upstream."""
    if not url:
        return "/v1"
    place, behind = _place(url), _place(upstream)
    if place is None:
        return None
    if _is_at(place, address):
        return place.path
    if behind is None or place[:3] != behind[:3]:
        return None
    rest = place.path.removeprefix(behind.path)
    below = place.path.startswith(behind.path) and (not rest or rest.startswith("/"))
    return rest if below else None


def _is_at(place: _Place, address: str) -> bool:
    host, _, port = address.rpartition(":")
    if (place.host, str(place.port)) == (host.strip("[]"), port):
        return True
    try:
        return Listeners.of([address]).named(place.host, place.port)
    except ValueError:  # the address is a name
        return False


def _shown(url: str) -> str:
    """Without user, password and query."""
    place = _place(url)
    if place is None:
        return "no URL"
    default = place.port == (443 if place.scheme == "https" else 80)
    return f"{place.scheme}://{place.host}{'' if default else f':{place.port}'}{place.path}"


# -- the variables


def variables(
    way: Way, address: str, trust: Trust | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """What is to be set, and nothing that is to stay as it is. Proxy mode needs `trust`."""
    if way.mode == "base-url":
        return _for_base_url(way, address, environment)
    assert trust is not None
    return _for_proxy(address, trust, environment)


def _for_base_url(way: Way, address: str, environment: Mapping[str, str]) -> dict[str, str]:
    base_url = f"http://{address}{way.base_path}"
    found = {_BASE_URL: base_url}
    old = environment.get(_OLD_BASE_URL)
    if old and old.rstrip("/") == environment.get(_BASE_URL, old).rstrip("/"):
        found[_OLD_BASE_URL] = base_url
    if any(environment.get(name) for name in _PLAIN_PROXIES):
        found |= _no_proxy(address, environment)
    return found


def _for_proxy(address: str, trust: Trust, environment: Mapping[str, str]) -> dict[str, str]:
    url = f"http://{address}"
    # HTTP_PROXY stays: what the sidecar can record is never called by http://.
    found = {"HTTPS_PROXY": url, "https_proxy": url, "NODE_USE_ENV_PROXY": "1"}
    found |= _no_proxy(address, environment)
    found |= {name: str(trust.file_for(name)) for name in (*REPLACING, *ADDING)}
    if trust.wgetrc is not None:
        found["WGETRC"] = str(trust.wgetrc)
    found[_JAVA] = _java_options(address, trust.java, environment)
    return found


def _no_proxy(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Both spellings, each with what it said, and where only one is set with what that one says."""
    lower, upper = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    host = address.rpartition(":")[0].strip("[]")
    return {
        "no_proxy": _extended(lower or upper, (*_LOCAL, host)),
        "NO_PROXY": _extended(upper or lower, (*_LOCAL, host)),
    }


def _extended(value: str, hosts: Iterable[str]) -> str:
    entries = [entry for entry in re.split(r"[,\s]+", value) if entry]
    return ",".join(dict.fromkeys((*entries, *hosts)))


def bypasses(environment: Mapping[str, str], upstream: str) -> bool:
    """Does NO_PROXY lead calls to the upstream past any proxy?"""
    place = _place(upstream)
    if place is None or place.scheme != "https":
        return False
    for name in ("no_proxy", "NO_PROXY"):
        way = WayOut.of(https="http://sidecar:1", no_proxy=environment.get(name, ""))
        if way.proxy_for(place.host, place.port, tls=True) is None:
            return True
    return False


def _java_options(address: str, store: Path | None, environment: Mapping[str, str]) -> str:
    """Java reads no environment but this one; of two -D the later counts, so ours come last."""
    before = environment.get(_JAVA, "")
    host, _, port = address.rpartition(":")
    options = [f"-Dhttps.proxyHost={host.strip('[]')}", f"-Dhttps.proxyPort={port}"]
    direct = _java_direct(environment.get("no_proxy") or environment.get("NO_PROXY", ""))
    if direct and "-Dhttp.nonProxyHosts" not in before:
        options.append(f"-Dhttp.nonProxyHosts={'|'.join((*_JAVA_LOCAL, *direct))}")
    if store is not None and "-Djavax.net.ssl.trustStore" not in before:
        options.append(_java_quoted(f"-Djavax.net.ssl.trustStore={store}"))
        options.append("-Djavax.net.ssl.trustStoreType=PKCS12")
        options.append(f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}")
    return " ".join((before, *options)).strip()


def _java_direct(no_proxy: str) -> list[str]:
    """Entries of NO_PROXY as Java writes them; ranges and ports it can't."""
    found = []
    for entry in re.split(r"[,\s]+", no_proxy):
        name = entry.lstrip("*").lstrip(".")
        if entry == "*":
            found.append("*")
        elif re.fullmatch(r"[A-Za-z0-9._-]+", name) and name not in _LOCAL:
            found += [f"*.{name}"] if entry.startswith((".", "*")) else [name, f"*.{name}"]
    return found


def _java_quoted(option: str) -> str:
    """The variable is cut at white space, but for what stands in quotes of either kind."""
    if not re.search(r"[\s'\"]", option):
        return option
    return f'"{option}"' if '"' not in option else f"'{option}'"
