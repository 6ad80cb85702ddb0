"""A stolen key of the authority signs for a name that is not intercepted: nobody believes it.

The name is api.openai.com, for the clients ask for that one; the authority is another domain's.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from proxy.authority import make, read
from proxy.leaves import private_pem
from tests.proxy.test_authority import forged
from tests.runtimes.kit import Kit, Runtime
from tests.runtimes.openai_host import NAME, TARGET, OpenaiHost
from tests.runtimes.redirect import Redirector
from tests.runtimes.telling import Way

KIT = Kit.here()
LED = [runtime for runtime in KIT.ready() if runtime.led("chat")]
# Of a failed call none else says why.
WORDS = ("constraint", "subtree", "certificat", "cert_", "unable to get", "pkix", "ssl", "tls")


@dataclass(frozen=True)
class Thief:
    """Plays an `Authority` of the tests; `signs_for`: what its constraints permit."""

    folder: Path
    signs_for: str

    @property
    def root(self) -> Path:
        return self.folder / "root.pem"

    def context(self, *names: str) -> ssl.SSLContext:
        make(self.folder, [self.signs_for])
        issuer = read(self.folder)
        leaf, key = forged(issuer.intermediate, issuer.key, x509.DNSName(NAME))
        held = self.folder.parent / "held.pem"
        held.write_bytes(leaf + (self.folder / "intermediate.pem").read_bytes() + private_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(held)
        return context


def called(runtime: Runtime, thief: Thief) -> tuple[bool, str, int]:
    """Did the call work, what did the client say, and how many requests came?"""
    with OpenaiHost(thief) as host, Redirector({TARGET: host.port}) as way:
        led = Way(way.url, host.root, thief.folder.parent).variables(runtime.told)
        outcome = KIT.run(runtime, "chat", {"OPENAI_API_KEY": "sk-of-the-app", **led})
        assert len(way.asked) >= 1  # it came
        return outcome.ok, outcome.raw, len(host.heard)


@pytest.mark.parametrize("runtime", LED, ids=lambda runtime: runtime.name)
def test_a_foreign_leaf_is_refused_and_the_same_one_in_its_domain_is_not(
    runtime: Runtime, tmp_path: Path
) -> None:
    ok, raw, heard = called(runtime, Thief(tmp_path / "other" / "ca", "example.com"))
    assert not ok, raw
    assert heard == 0
    assert any(word in raw.lower() for word in WORDS), raw
    ok, raw, heard = called(runtime, Thief(tmp_path / "own" / "ca", NAME))
    assert ok, raw
    assert heard == 1
