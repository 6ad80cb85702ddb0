"""The certificates of an authority: a root, an intermediate that may sign for few names, leaves.

The constraints are on the intermediate because Java up to 17 ignores those of a trusted root. The
root's key signs the intermediate and is forgotten: what is left to steal signs for the intercepted
domains alone.
"""

from __future__ import annotations

import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clients' clocks are off, too: what is valid from today on would not be valid for them.
BACKDATED: Final = timedelta(days=2)
LEAF_LIFE: Final = timedelta(days=7)  # from the backdated begin on
AUTHORITY_LIFE: Final = timedelta(days=365)
_RENEWED_WITH_LEFT: Final = 1 / 3  # of a leaf's life
# Constraints on names of hosts say nothing of addresses (RFC 5280 section 4.2.1.10).
_NO_ADDRESSES: Final = (
    x509.IPAddress(ip_network("0.0.0.0/0")),
    x509.IPAddress(ip_network("::/0")),
)
_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs leaves. The root's key is not here: nobody has it."""

    root: x509.Certificate
    intermediate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def domains(self) -> frozenset[str]:
        """Each stands for itself and all that is below it."""
        return signed_for(self.intermediate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root, 64 hex digits."""
        return self.root.fingerprint(SHA256()).hex()

    @property
    def begins(self) -> float:
        """Seconds since the epoch, as is `expires`."""
        return max(c.not_valid_before_utc.timestamp() for c in (self.root, self.intermediate))

    @property
    def expires(self) -> float:
        return min(c.not_valid_after_utc.timestamp() for c in (self.root, self.intermediate))

    def signs_for(self, host: str) -> bool:
        """`host` in lower case, without a dot at its end."""
        if len(host) > 253 or not _HOST.fullmatch(host):
            return False
        return any(host == domain or host.endswith(f".{domain}") for domain in self.domains)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A host's certificate, in a context to serve it with, and when it is to be replaced."""

    context: ssl.SSLContext
    since: float  # seconds since the epoch: before, the clock has been put back
    until: float


def signed_for(intermediate: x509.Certificate) -> frozenset[str]:
    """Raises ValueError if the certificate has no such constraints."""
    try:
        limits = intermediate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        raise ValueError("signs for any name") from None
    permitted = limits.permitted_subtrees or ()
    return frozenset(name.value for name in permitted if isinstance(name, x509.DNSName))


def subtrees(patterns: Iterable[str]) -> frozenset[str]:
    """The constraints that permit these: `x.y` and `*.x.y` both give `x.y`.

    RFC 5280 has no way to permit less: a name permits itself and whatever is below it. Raises
    ValueError, its text for a person: without any name nothing would be constrained.
    """
    names = {pattern.lower().removeprefix("*.") for pattern in patterns}
    if not names:
        raise ValueError("no domain is intercepted")
    for name in names:
        if _is_address(name) or not _HOST.fullmatch(name):
            raise ValueError(f"{name} is not the name of a host")
    return frozenset(
        name for name in names if not any(name.endswith(f".{other}") for other in names)
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def new_issuer(domains: frozenset[str], now: float) -> Issuer:
    """`domains` as `subtrees` gives them, `now` in seconds since the epoch."""
    root_key, key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    # Names of their own: a store that holds two of ours never takes one for the other.
    tag = secrets.token_hex(4)
    root_name, name = _name(f"Understudy root {tag}"), _name(f"Understudy intermediate {tag}")
    begin = _moment(now) - BACKDATED
    end = begin + AUTHORITY_LIFE
    root = _ca(_builder(root_name, root_name, root_key.public_key(), begin, end), 1)
    root = root.add_extension(_key_id(root_key.public_key()), critical=False)
    below = _ca(_builder(name, root_name, key.public_key(), begin, end), 0)
    below = _identified(below, key.public_key(), root_key.public_key())
    below = below.add_extension(_SERVERS_ONLY, critical=False)
    below = below.add_extension(
        x509.NameConstraints([x509.DNSName(domain) for domain in sorted(domains)], _NO_ADDRESSES),
        critical=True,
    )
    return Issuer(root.sign(root_key, SHA256()), below.sign(root_key, SHA256()), key)


def new_leaf(
    issuer: Issuer, host: str, key: EllipticCurvePrivateKey, now: float, folder: Path
) -> Leaf:
    """For `host`, signed and ready. `folder`: see `_holding`. Raises OSError.

    A leaf that ends with its issuer is kept to the end: another would end no later.
    """
    begin = max(_moment(now) - BACKDATED, issuer.intermediate.not_valid_before_utc)
    end = min(begin + LEAF_LIFE, _moment(issuer.expires))
    certificate = _signed(issuer, host, key.public_key(), begin, end)
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in (certificate, issuer.intermediate))
    with _holding(private_pem(key) + chain, folder) as file:
        context = _server_context(file)
    until = end.timestamp()
    if until < issuer.expires:
        until -= (end - begin).total_seconds() * _RENEWED_WITH_LEFT
    return Leaf(context, now - BACKDATED.total_seconds() / 2, until)


def _signed(
    issuer: Issuer, host: str, public: EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.Certificate:
    builder = _builder(_name(None), issuer.intermediate.subject, public, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = _identified(builder, public, issuer.key.public_key())
    builder = builder.add_extension(_SERVERS_ONLY, critical=False)
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    return builder.add_extension(names, critical=False).sign(issuer.key, SHA256())


def _server_context(file: str) -> ssl.SSLContext:
    """Asks clients for no certificate: who may come here was decided before the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A client that shakes hands again and again on one connection makes work for us alone.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # A ticket is sent beside a client's first request. One that writes and reads its socket in two
    # threads, as the Python SDK's WebSocket does, then loses that request in a case of a hundred.
    # And clients keep their connections: they would hardly use it.
    context.num_tickets = 0
    context.load_cert_chain(file)
    return context


@contextmanager
def _holding(pem: bytes, folder: Path) -> Iterator[str]:
    """A file name for OpenSSL, which reads keys from nothing else, as long as it needs one.

    In memory where the kernel can; else a file in the authority's folder, which is as private as
    the key that is there already. Never in /tmp.
    """
    try:
        held = os.memfd_create("leaf", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        held, path = tempfile.mkstemp(prefix=".leaf-", dir=folder)
    else:
        path = f"/proc/self/fd/{held}"
        if not os.path.exists(path):
            os.close(held)
            held, path = tempfile.mkstemp(prefix=".leaf-", dir=folder)
    try:
        with open(held, "wb") as file:
            file.write(pem)
            file.flush()
            yield path
    finally:
        if not path.startswith("/proc/"):
            os.unlink(path)


def private_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: EllipticCurvePublicKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=begin,
        not_valid_after=end,
    )


def _ca(builder: x509.CertificateBuilder, below: int) -> x509.CertificateBuilder:
    """`below`: how many authorities may follow in a chain."""
    builder = builder.add_extension(x509.BasicConstraints(True, below), critical=True)
    return builder.add_extension(_usage(key_cert_sign=True), critical=True)


def _identified(
    builder: x509.CertificateBuilder, own: EllipticCurvePublicKey, above: EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    builder = builder.add_extension(_key_id(own), critical=False)
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False
    )


def _key_id(public: EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(public)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str | None) -> x509.Name:
    """A leaf has no common name: some clients would take that for a host."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Understudy")]
    if common is not None:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common))
    return x509.Name(parts)


def _moment(seconds: float) -> datetime:
    """Certificates know whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC)


_SERVERS_ONLY: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
