"""Corporate proxies as companies run them, squid and tinyproxy, for api.openai.com alone.

Each hands what it allows to a `Redirector`, which knows the way to the server of the test. They log
to a folder of their own, open to the user that they change to when they are started as root.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.proxy.far_ends import unused
from tests.runtimes.openai_host import NAME
from tests.runtimes.redirect import Credentials, Redirector

_PATIENCE: Final = 20.0  # seconds to begin, and to end
_PLAIN: Final = "!$&()*+,/:;=?@"  # what squid does not percent-encode, of what RFC 1738 knows


@dataclass(frozen=True, slots=True)
class Corporate:
    """A proxy that runs. `log`: of its requests, for whoever wonders."""

    port: int
    credentials: Credentials | None
    log: Path

    @property
    def bare_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """With the credentials that it demands."""
        if self.credentials is None:
            return self.bare_url
        user, password = quote(self.credentials.user, ""), quote(self.credentials.password, "")
        return f"http://{user}:{password}@127.0.0.1:{self.port}"


Start = Callable[[Redirector, Credentials | None], AbstractContextManager[Corporate]]


@contextlib.contextmanager
def squid(way: Redirector, credentials: Credentials | None = None) -> Iterator[Corporate]:
    with _folder() as folder:
        proxy = Corporate(unused()[1][1], credentials, folder / "access.log")
        configuration = folder / "squid.conf"
        configuration.write_text("\n".join(_squid(folder, proxy, way.port)))
        command = ["squid", "-N", "-f", str(configuration)]
        with _running(command, proxy.port, folder / "squid.log"):
            yield proxy


@contextlib.contextmanager
def tinyproxy(way: Redirector, credentials: Credentials | None = None) -> Iterator[Corporate]:
    """Up to 1.11.1 it knows letters, digits, dots and dashes in credentials."""
    with _folder() as folder:
        proxy = Corporate(unused()[1][1], credentials, folder / "access.log")
        configuration = folder / "tinyproxy.conf"
        configuration.write_text("\n".join(_tinyproxy(folder, proxy, way.port)))
        command = ["tinyproxy", "-d", "-c", str(configuration)]
        with _running(command, proxy.port, folder / "tinyproxy.log"):
            yield proxy


STARTS: Final[dict[str, Start]] = {"squid": squid, "tinyproxy": tinyproxy}


def _squid(folder: Path, proxy: Corporate, onward: int) -> Iterator[str]:
    yield f"http_port 127.0.0.1:{proxy.port}"
    yield f"pid_filename {folder}/squid.pid"
    yield f"cache_log {folder}/cache.log"
    yield f"access_log stdio:{proxy.log}"
    yield f"coredump_dir {folder}"
    yield "cache deny all"
    yield "shutdown_lifetime 1 seconds"
    yield f"cache_peer 127.0.0.1 parent {onward} 0 no-query no-digest default"
    yield "never_direct allow all"
    yield f"acl known dstdomain {NAME}"
    yield "acl secure port 443"
    yield "http_access deny !known"
    yield "http_access deny CONNECT !secure"
    if proxy.credentials is not None:
        yield f"auth_param basic program {_checker(folder, proxy.credentials)}"
        yield "auth_param basic children 1"
        yield "auth_param basic realm corporate"
        yield "acl staff proxy_auth REQUIRED"
        yield "http_access deny !staff"
    yield "http_access allow all"
    yield ""


def _checker(folder: Path, credentials: Credentials) -> Path:
    """Squid's helper: a line with user and password, percent-encoded, in; OK or ERR out."""
    expected = folder / "expected"
    user, password = (quote(said, _PLAIN) for said in (credentials.user, credentials.password))
    expected.write_text(f"{user} {password}\n")
    helper = folder / "checker"
    helper.write_text(
        f"#!/bin/sh\nread -r expected <{expected}\n"
        'while read -r given; do [ "$given" = "$expected" ] && echo OK || echo ERR; done\n'
    )
    helper.chmod(0o755)
    return helper


def _tinyproxy(folder: Path, proxy: Corporate, onward: int) -> Iterator[str]:
    yield f"Port {proxy.port}"
    yield "Listen 127.0.0.1"
    yield "Timeout 600"
    yield "MaxClients 100"
    yield f'LogFile "{proxy.log}"'
    yield "LogLevel Connect"
    yield f"Upstream http 127.0.0.1:{onward}"
    yield "ConnectPort 443"
    allowed = folder / "allowed"
    allowed.write_text("^" + NAME.replace(".", r"\.") + "$\n")
    yield f'Filter "{allowed}"'
    yield "FilterDefaultDeny Yes"
    if proxy.credentials is not None:
        yield f"BasicAuth {proxy.credentials.user} {proxy.credentials.password}"
    yield ""


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="understudy-corporate-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _running(command: list[str], port: int, errors: Path) -> Iterator[None]:
    with errors.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(process, port, errors)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, errors: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} does not listen: {errors.read_text()}")
