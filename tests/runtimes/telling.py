"""How an app is told of a proxy and of a root it may trust, without a change to its code."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_STORE_PASSWORD: Final = "changeit"  # Java wants one; it protects nothing


@dataclass(frozen=True, slots=True)
class Way:
    """`bundle`: roots, as PEM. `folder`: for what is made of it for those who read no PEM."""

    proxy: str
    bundle: Path
    folder: Path

    def variables(self, names: Iterable[str]) -> dict[str, str]:
        """These variables of an environment, with the values that lead this way."""
        return {name: _VALUES[name](self) for name in names}


def _proxy(way: Way) -> str:
    return way.proxy


def _bundle(way: Way) -> str:
    return str(way.bundle)


def _yes(way: Way) -> str:
    return "1"


def _wgetrc(way: Way) -> str:
    found = way.folder / "wgetrc"
    found.write_text(f"ca_certificate = {way.bundle}\n")
    return str(found)


def _php_ini(way: Way) -> str:
    """A folder that is read after the system's, which a leading colon keeps."""
    found = way.folder / "php"
    found.mkdir(exist_ok=True)
    (found / "roots.ini").write_text(f'curl.cainfo = "{way.bundle}"\n')
    return f":{found}"


def _java(way: Way) -> str:
    there = urlsplit(way.proxy)
    options = {
        "https.proxyHost": there.hostname,
        "https.proxyPort": there.port,
        "javax.net.ssl.trustStore": _store(way),
        "javax.net.ssl.trustStorePassword": _STORE_PASSWORD,
    }
    return " ".join(f"-D{name}={value}" for name, value in options.items())


def _store(way: Way) -> Path:
    """A keystore with each of the roots."""
    found = way.folder / "roots.p12"
    found.unlink(missing_ok=True)
    keytool = shutil.which("keytool")
    assert keytool is not None, "no keytool: it comes with Java"
    for number, root in enumerate(_roots(way.bundle)):
        command = [keytool, "-importcert", "-noprompt", "-alias", f"root{number}"]
        command += ["-keystore", str(found), "-storepass", _STORE_PASSWORD]
        subprocess.run(command, input=root, check=True, capture_output=True)
    return found


def _roots(bundle: Path) -> list[bytes]:
    end = b"-----END CERTIFICATE-----\n"
    return [root + end for root in bundle.read_bytes().split(end)[:-1]]


_VALUES: Final[dict[str, Callable[[Way], str]]] = {
    "HTTPS_PROXY": _proxy,
    "https_proxy": _proxy,
    "http_proxy": _proxy,
    "ALL_PROXY": _proxy,
    "SSL_CERT_FILE": _bundle,
    "REQUESTS_CA_BUNDLE": _bundle,
    "CURL_CA_BUNDLE": _bundle,
    "NODE_EXTRA_CA_CERTS": _bundle,
    "DENO_CERT": _bundle,
    "PERL_LWP_SSL_CA_FILE": _bundle,
    "NODE_USE_ENV_PROXY": _yes,
    "NODE_USE_SYSTEM_CA": _yes,
    "JAVA_TOOL_OPTIONS": _java,
    "WGETRC": _wgetrc,
    "PHP_INI_SCAN_DIR": _php_ini,
}
KNOWN: Final = tuple(_VALUES)
