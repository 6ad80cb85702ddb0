"""A page for each runtime: what it reads, whom it trusts, how to make it work, what to know of it.

Text alone. `understudy doctor --explain RUNTIME` prints one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    reads: str
    trusts: str
    work: tuple[str, ...]
    pitfalls: tuple[str, ...] = ()


_RUN: Final = "understudy run --mode proxy -- COMMAND"
_BASE_URL: Final = (
    "understudy run -- COMMAND   (sets OPENAI_BASE_URL, which all official SDKs read; there is "
    "nothing to trust then)"
)
PAGES: Final[Mapping[str, Page]] = {
    "openai": Page(
        "the official Python SDK (openai), and what is built on it",
        "OPENAI_BASE_URL, unless the code says base_url=. Through httpx: HTTPS_PROXY, ALL_PROXY "
        "and NO_PROXY, in either case.",
        "1.x and 2.x: the certifi package's roots. 3.x: the system's store. In all of them "
        "SSL_CERT_FILE or SSL_CERT_DIR replace that. REQUESTS_CA_BUNDLE says nothing to it.",
        (_BASE_URL, f"{_RUN}   (for a base_url in the code)"),
        (
            "A http_client= of the app's own goes by its own settings; with trust_env=False it "
            "reads none of these variables.",
            "Before 1.0 it is OPENAI_API_BASE, and the roots are those of requests.",
            "AzureOpenAI reads AZURE_OPENAI_ENDPOINT, not OPENAI_BASE_URL: use proxy mode.",
            "A minimal container may have no system store: 3.x then trusts nobody by itself.",
            "Its WebSockets read HTTPS_PROXY, but not ALL_PROXY.",
        ),
    ),
    "requests": Page(
        "Python's requests",
        "HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case. Not OPENAI_BASE_URL.",
        "The certifi package's roots; REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE replace them. "
        "SSL_CERT_FILE says nothing to it.",
        (_RUN,),
        ("A Session with trust_env=False, or with verify= in the code, reads none of these.",),
    ),
    "httpx": Page(
        "Python's httpx",
        "HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case. Not OPENAI_BASE_URL.",
        "The certifi package's roots; SSL_CERT_FILE or SSL_CERT_DIR replace them.",
        (_RUN,),
        ("A Client with trust_env=False, transport= or verify= may read none of these.",),
    ),
    "aiohttp": Page(
        "Python's aiohttp",
        "Nothing, unless the session says trust_env=True: then HTTPS_PROXY and NO_PROXY.",
        "OpenSSL's default store; SSL_CERT_FILE and SSL_CERT_DIR replace it.",
        (
            f"aiohttp.ClientSession(trust_env=True) in the code, and {_RUN}",
            "or the sidecar's address in place of https://api.openai.com in the code",
        ),
        ("Nothing is said when the variables are ignored: the calls simply pass by the sidecar.",),
    ),
    "urllib": Page(
        "Python's own urllib.request",
        "https_proxy and no_proxy, in either case. Not OPENAI_BASE_URL.",
        "OpenSSL's default store; SSL_CERT_FILE and SSL_CERT_DIR replace it.",
        (_RUN,),
        ("http.client, below it, reads no proxy variables at all.",),
    ),
    "node": Page(
        "Node.js: fetch, and the official SDK (openai), which uses it",
        "The SDK: OPENAI_BASE_URL, unless the code says baseURL. fetch: HTTPS_PROXY and NO_PROXY "
        "from Node 22.21 and 24.0 on, and only with NODE_USE_ENV_PROXY=1; http and https from "
        "22.21 and 24.5 on.",
        "The roots that it brings; NODE_EXTRA_CA_CERTS adds to them.",
        (
            _BASE_URL,
            f"{_RUN}   (Node 22.21 or 24.0 and later)",
            "on an older Node, in the code: fetchOptions with a dispatcher of undici, "
            "new EnvHttpProxyAgent()",
        ),
        (
            "NODE_EXTRA_CA_CERTS is read when the process starts, and not from process.env.",
            "A file that NODE_EXTRA_CA_CERTS names and that can't be read is only warned of.",
            "A dispatcher or agent of the app's own goes before all of this.",
            "WebSockets of the SDK over the package ws read no proxy variables: base_url mode.",
        ),
    ),
    "bun": Page(
        "Bun",
        "HTTPS_PROXY and NO_PROXY, in either case. The SDK: OPENAI_BASE_URL.",
        "The roots that it brings; NODE_EXTRA_CA_CERTS adds to them.",
        (_BASE_URL, _RUN),
        ("WebSockets of the SDK read no proxy variables: base_url mode.",),
    ),
    "deno": Page(
        "Deno",
        "HTTPS_PROXY and NO_PROXY, in either case. The SDK: OPENAI_BASE_URL.",
        "The roots that it brings; DENO_CERT adds to them.",
        (_BASE_URL, _RUN),
        ("It reads variables only with --allow-env, and calls hosts only with --allow-net.",),
    ),
    "curl": Page(
        "curl",
        "https_proxy or HTTPS_PROXY, ALL_PROXY, NO_PROXY; http_proxy in lower case only.",
        "The system's store; CURL_CA_BUNDLE, else SSL_CERT_FILE, replaces it.",
        (_RUN,),
        ("A proxy or cacert line in ~/.curlrc goes before the variables.",),
    ),
    "wget": Page(
        "GNU Wget",
        "https_proxy and no_proxy, in lower case only.",
        "The system's store. Built with GnuTLS, as on Debian, it reads no variable for that but "
        "WGETRC, the name of its settings; with OpenSSL, SSL_CERT_FILE, too.",
        (f"{_RUN}   (sets WGETRC, to a file that names our roots and holds what yours did)",),
        ("An option --no-proxy or --ca-certificate goes before that.",),
    ),
    "go": Page(
        "Go: net/http, and the official SDK (openai-go), which uses it",
        "The SDK: OPENAI_BASE_URL. net/http: HTTPS_PROXY and NO_PROXY, in either case, once, when "
        "the first request is made.",
        "On Linux the system's store; SSL_CERT_FILE and SSL_CERT_DIR replace it. On macOS and "
        "Windows the system's alone.",
        (_BASE_URL, _RUN),
        (
            "A Transport of the app's own has no proxy unless it says http.ProxyFromEnvironment.",
            "Images FROM scratch have no store: SSL_CERT_FILE must name one.",
        ),
    ),
    "java": Page(
        "Java: HttpClient, OkHttp, and the official SDK (openai-java)",
        "No environment, but for JAVA_TOOL_OPTIONS: -Dhttps.proxyHost, -Dhttps.proxyPort and "
        "-Dhttp.nonProxyHosts. The SDK: OPENAI_BASE_URL, with OpenAIOkHttpClient.fromEnv().",
        "The cacerts of the installation; -Djavax.net.ssl.trustStore replaces it.",
        (_BASE_URL, f"{_RUN}   (sets JAVA_TOOL_OPTIONS, with a store of its own)"),
        (
            "A client with proxy(...) or sslSocketFactory(...) in the code goes by those.",
            "Each start says 'Picked up JAVA_TOOL_OPTIONS' on standard error.",
        ),
    ),
    "ruby": Page(
        "Ruby's Net::HTTP",
        "http_proxy and no_proxy, for https:// calls, too; not HTTPS_PROXY.",
        "OpenSSL's default store; SSL_CERT_FILE and SSL_CERT_DIR replace it.",
        (_BASE_URL, f"HTTP_PROXY set to the sidecar, and {_RUN}"),
    ),
    "php": Page(
        "PHP's curl extension",
        "HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case.",
        "curl.cainfo in php.ini, else the system's store; no variable.",
        (f"curl.cainfo = (what 'understudy ca path' prints) in php.ini, and {_RUN}",),
        ("Streams (file_get_contents) read no proxy variables.",),
    ),
    "perl": Page(
        "Perl's LWP",
        "HTTPS_PROXY and NO_PROXY, in either case, with env_proxy => 1 in the code.",
        "The Mozilla::CA package's or the system's roots; PERL_LWP_SSL_CA_FILE replaces them.",
        (_RUN,),
    ),
    "docker": Page(
        "containers",
        "What the runtime inside reads. A container takes no variables from the shell.",
        "What the runtime inside trusts; our files must be mounted.",
        (
            "understudy env --shell docker --address host.docker.internal:4141 > sidecar.env; "
            "docker run --env-file sidecar.env ...",
        ),
        (
            "127.0.0.1 inside a container is the container: the sidecar must listen on an address "
            "that it reaches, with its network under 'clients' in the policy.",
            "The certificate files are readable by their owner alone: a container that runs as "
            "another user needs a copy.",
        ),
    ),
}
_OTHER_NAMES: Final = {
    "python": "openai",
    "httpx2": "httpx",
    "nodejs": "node",
    "javascript": "node",
    "fetch": "node",
    "golang": "go",
    "okhttp": "java",
    "container": "docker",
    "podman": "docker",
}


def page(name: str) -> str | None:
    name = name.lower()
    found = PAGES.get(_OTHER_NAMES.get(name, name))
    return None if found is None else _text(found)


def _text(found: Page) -> str:
    parts = [found.title, "", f"Reads: {found.reads}", f"Trusts: {found.trusts}", "", "To work:"]
    parts += [f"  {line}" for line in found.work]
    if found.pitfalls:
        parts += ["", "To know:", *(f"  - {line}" for line in found.pitfalls)]
    return "\n".join(parts)
