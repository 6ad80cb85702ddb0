"""The authority: who believes its certificates, and what a stolen key or leaf is good for."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from bin.authority_command import add_authority
from policies.policy import Policy
from proxy.authority import Authority, AuthorityError, make, read, remove, renew
from proxy.bundle import bundle
from proxy.leaves import Issuer, private_pem, subtrees

DOMAINS = Policy().forward.intercept
HOST = "api.openai.com"
DAY = 86400.0
NOW = 1_900_000_000.0  # of every authority here that is given a clock
PEM = "-----BEGIN CERTIFICATE-----"


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "home" / "ca"
    assert make(made, DOMAINS)
    return made


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> Iterator[ssl.SSLSocket]:
    """The client's side of a connection through real sockets. Raises what the client raises."""
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)

    def serve() -> None:
        with far, suppress(OSError), server.wrap_socket(far, server_side=True) as tls:
            tls.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with near, client.wrap_socket(near, server_hostname=host) as tls:
            yield tls
    finally:
        thread.join()


def believed(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str | None:
    """The version of TLS. Raises ssl.SSLCertVerificationError."""
    with handshake(server, client, host) as tls:
        return tls.version()


def client(folder: Path) -> ssl.SSLContext:
    """Trusts our root and nothing else."""
    return ssl.create_default_context(cafile=folder / "root.pem")


def leaf(context: ssl.SSLContext, folder: Path, host: str) -> x509.Certificate:
    """What a client is shown that does not look."""
    blind = client(folder)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    with handshake(context, blind, host) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def forged(
    issuer: x509.Certificate, key: EllipticCurvePrivateKey, name: x509.GeneralName
) -> tuple[bytes, EllipticCurvePrivateKey]:
    """A certificate that is right in all but who signs it for which name; and its key."""
    own = generate_private_key(SECP256R1())
    made = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_before_utc + timedelta(days=7))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, SHA256())
    )
    return made.public_bytes(Encoding.PEM), own


def serving(chain: bytes, key: EllipticCurvePrivateKey, file: Path) -> ssl.SSLContext:
    file.write_bytes(private_pem(key) + chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def openssl_verify(
    folder: Path, certificate: bytes, *options: object, above: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """`above`: further certificates that the server would send."""
    shown, sent = folder.parent / "shown.pem", folder.parent / "sent.pem"
    shown.write_bytes(certificate)
    sent.write_bytes(above + (folder / "intermediate.pem").read_bytes())
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath",
               "-CAfile", folder / "root.pem", "-untrusted", sent, *options, shown]  # fmt: skip
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


# Whom clients believe


@pytest.mark.parametrize(
    "host", [HOST, "eu.api.openai.com", "x.openai.azure.com", "API.openai.com."]
)
def test_a_client_that_trusts_the_root_believes_an_intercepted_host(
    folder: Path, host: str
) -> None:
    context = Authority.load(folder, DOMAINS).context(host)
    name = host.lower().rstrip(".")
    assert believed(context, client(folder), name) == "TLSv1.3"
    shown = leaf(context, folder, name).public_bytes(Encoding.PEM)
    done = openssl_verify(folder, shown, "-verify_hostname", name)
    assert done.returncode == 0, done.stderr


def test_a_leaf_says_what_it_should(folder: Path) -> None:
    begun = time.time()
    found = leaf(Authority.load(folder, DOMAINS).context(HOST), folder, HOST)
    life = found.not_valid_after_utc - found.not_valid_before_utc
    assert timedelta(days=6) < life <= timedelta(days=7)
    assert abs(begun - 2 * DAY - found.not_valid_before_utc.timestamp()) < 60
    extensions = found.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(HOST)]
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.serial_number.bit_length() > 100
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_http_1_1_is_agreed_on_and_tls_1_1_is_not(folder: Path) -> None:
    context = Authority.load(folder, DOMAINS).context(HOST)
    asks = client(folder)
    asks.set_alpn_protocols(["h2", "http/1.1"])
    with handshake(context, asks, HOST) as tls:
        assert tls.selected_alpn_protocol() == "http/1.1"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE


def test_the_root_has_signed_one_intermediate_and_its_key_is_nowhere(folder: Path) -> None:
    issuer = read(folder)
    root = issuer.root.public_key()
    for file in folder.parent.rglob("*"):
        if file.is_file() and b"PRIVATE KEY" in file.read_bytes():
            key = load_pem_private_key(file.read_bytes(), None)
            assert key.public_key() != root
            assert file.name == "intermediate.key"
    limits = issuer.intermediate.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert issuer.domains == {HOST, "openai.azure.com"}
    for certificate, below in ((issuer.root, 1), (issuer.intermediate, 0)):
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert found.critical
        assert (found.value.ca, found.value.path_length) == (True, below)


# What a thief gets


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (x509.DNSName("example.com"), "example.com"),
        (x509.DNSName("openai.com"), "openai.com"),
        (x509.DNSName("xapi.openai.com"), "xapi.openai.com"),
        (x509.DNSName("*.example.com"), "a.example.com"),
        (x509.IPAddress(ip_address("127.0.0.1")), "127.0.0.1"),
        (x509.IPAddress(ip_address("::1")), "::1"),
    ],
    ids=str,
)
def test_a_stolen_key_signs_for_no_other_name(
    folder: Path, name: x509.GeneralName, host: str
) -> None:
    issuer = read(folder)
    made, key = forged(issuer.intermediate, issuer.key, name)
    done = openssl_verify(folder, made)
    assert done.returncode != 0
    assert "subtree violation" in done.stdout + done.stderr
    chain = made + (folder / "intermediate.pem").read_bytes()
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
        believed(serving(chain, key, folder.parent / "forged"), client(folder), host)


def test_the_forgery_fails_for_its_name_alone(folder: Path) -> None:
    issuer = read(folder)
    made, key = forged(issuer.intermediate, issuer.key, x509.DNSName(HOST))
    assert openssl_verify(folder, made).returncode == 0
    chain = made + (folder / "intermediate.pem").read_bytes()
    assert believed(serving(chain, key, folder.parent / "forged"), client(folder), HOST)


def test_a_leaf_signs_nothing(folder: Path) -> None:
    issuer = read(folder)
    pem, key = forged(issuer.intermediate, issuer.key, x509.DNSName(HOST))
    made, own = forged(x509.load_pem_x509_certificate(pem), key, x509.DNSName("eu." + HOST))
    assert openssl_verify(folder, made, above=pem).returncode != 0
    chain = made + pem + (folder / "intermediate.pem").read_bytes()
    with pytest.raises(ssl.SSLCertVerificationError):
        believed(serving(chain, own, folder.parent / "forged"), client(folder), "eu." + HOST)


@pytest.mark.parametrize("host", ["example.com", "openai.com", "xapi.openai.com", "a\0." + HOST,
                                  "*.openai.azure.com", "." + HOST, "", "127.0.0.1",
                                  "x" * 64 + "." + HOST])  # fmt: skip
def test_no_other_host_is_certified(folder: Path, host: str) -> None:
    with pytest.raises(ValueError, match="not among"):
        Authority.load(folder, DOMAINS).context(host)


# Files


@pytest.mark.parametrize("mask", [0, 0o777])
def test_permissions_are_right_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with umask(mask):
        make(home / "ca", DOMAINS)
        bundle(home / "ca")
        Authority.load(home / "ca", DOMAINS).context(HOST)
    assert mode(home / "ca") == 0o700
    assert {file.name: mode(file) for file in (home / "ca").iterdir()} == {
        "root.pem": 0o600,
        "intermediate.pem": 0o600,
        "intermediate.key": 0o600,
        "bundle.pem": 0o600,
    }
    assert list(home.iterdir()) == [home / "ca"]


def test_where_there_is_one_none_is_made(folder: Path) -> None:
    before = Authority.load(folder, DOMAINS).fingerprint
    assert not make(folder, DOMAINS)
    assert Authority.load(folder, DOMAINS).fingerprint == before


MAKER = """
import sys, time
from pathlib import Path
from proxy.authority import Authority, make, renew
folder, domains, at = Path(sys.argv[1]), sys.argv[3:], float(sys.argv[2])
time.sleep(max(0, at - time.time()))
made = {call}(folder, domains)
print(made, Authority.load(folder, domains).fingerprint)
"""


def at_once(call: str, folder: Path) -> list[list[str]]:
    """What each of several processes says: whether it made one, and whose it found."""
    start = str(time.time() + 1.5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER.replace("{call}", call), folder, start, *DOMAINS],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    return [words for words in outputs if words]


def test_processes_that_make_one_at_once_find_the_same(tmp_path: Path) -> None:
    said = at_once("make", tmp_path / "ca")
    assert len(said) == 4
    assert sorted(made for made, _ in said) == ["False", "False", "False", "True"]
    assert len({fingerprint for _, fingerprint in said}) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "ca"]


def test_processes_that_renew_at_once_leave_one_whole(folder: Path) -> None:
    at_once("renew", folder)
    assert Authority.load(folder, DOMAINS)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_crash_before_the_rename_leaves_nothing_in_its_place(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from proxy import authority\n"
        "os.rename = lambda *_: os._exit(9)\n"
        "authority.make(Path(sys.argv[1]), ['api.openai.com'])"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "ca"])
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".ca-")
    os.utime(left, (time.time() - 7200,) * 2)
    assert make(tmp_path / "ca", DOMAINS)
    assert list(tmp_path.iterdir()) == [tmp_path / "ca"]


def test_what_is_removed_is_gone(folder: Path) -> None:
    assert remove(folder)
    assert not remove(folder)
    assert list(folder.parent.iterdir()) == []


# What can't be used


def swap(folder: Path, name: str) -> None:
    """`name` of another authority."""
    other = folder.parent / "other"
    make(other, DOMAINS)
    shutil.copy(other / name, folder / name)


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.parametrize(
    ("harm", "says", "remedy"),
    [
        (shutil.rmtree, "there is no certificate authority", "understudy ca renew"),
        (lambda at: (at / "root.pem").unlink(), "root.pem: is missing", "ca renew"),
        (lambda at: (at / "intermediate.key").unlink(), "key: is missing", "ca renew"),
        (lambda at: as_directory(at / "intermediate.key"), "can't be read", "ca renew"),
        (lambda at: (at / "intermediate.key").chmod(0o640), "others may read it", "chmod 600 '"),
        (lambda at: (at / "intermediate.key").chmod(0o604), "others may read it", "chmod 600 '"),
        (lambda at: at.chmod(0o777), "others may write to it", "chmod 700 '"),
        (lambda at: (at / "intermediate.key").write_bytes(b"x"), "not a private key", "ca renew"),
        (lambda at: (at / "intermediate.pem").write_bytes(b""), "not a certificate", "ca renew"),
        (lambda at: swap(at, "intermediate.key"), "is not the key of", "ca renew"),
        (lambda at: swap(at, "root.pem"), "root.pem has not signed it", "ca renew"),
        (lambda at: shutil.copy(at / "root.pem", at / "intermediate.pem"), "not the key", "renew"),
    ],
)  # fmt: skip
def test_an_authority_that_cannot_be_used_says_why_and_what_to_do(
    tmp_path: Path, harm: Callable[[Path], object], says: str, remedy: str
) -> None:
    folder = tmp_path / "a home" / "ca"
    make(folder, DOMAINS)
    harm(folder)
    with pytest.raises(AuthorityError) as raised:
        Authority.load(folder, DOMAINS)
    assert says in str(raised.value)
    assert remedy in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_users_authority_is_unreadable(folder: Path) -> None:
    was = os.geteuid()
    folder.chmod(0o000)
    if was == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(AuthorityError, match="can't be read: Permission denied; run as its"):
            Authority.load(folder, DOMAINS)
    finally:
        os.seteuid(was)
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("days", "says"), [(364, "expired on 20"), (-2.1, "not valid before"), (0, None), (362, None)]
)
def test_an_authority_is_valid_for_a_year(tmp_path: Path, days: float, says: str | None) -> None:
    make(tmp_path / "ca", DOMAINS, Clock())
    late = Clock(NOW + days * DAY)
    if says is None:
        assert Authority.load(tmp_path / "ca", DOMAINS, late).expires > late()
        return
    with pytest.raises(AuthorityError, match=says):
        Authority.load(tmp_path / "ca", DOMAINS, late)


@pytest.mark.parametrize(
    "domains",
    [
        (*DOMAINS, "example.com"),
        (HOST,),
        ("openai.com", "*.openai.azure.com"),
    ],
)
def test_other_domains_need_another_authority(folder: Path, domains: tuple[str, ...]) -> None:
    with pytest.raises(AuthorityError, match="needs a new authority: understudy ca renew, and tru"):
        Authority.load(folder, domains)
    renew(folder, domains)
    assert Authority.load(folder, domains)


def test_what_is_spelled_otherwise_is_the_same_domain(folder: Path) -> None:
    assert Authority.load(folder, ("*.API.openai.com", "openai.azure.com", "eu.api.openai.com"))
    assert subtrees(["*.x.y", "a.x.y", "ax.y"]) == {"x.y", "ax.y"}


@pytest.mark.parametrize("domains", [(), ("10.0.0.1",), ("*",), ("a..b",)])
def test_an_authority_without_limits_is_never_made(
    tmp_path: Path, domains: tuple[str, ...]
) -> None:
    with pytest.raises(AuthorityError, match="no authority can be made"):
        make(tmp_path / "ca", domains)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuthorityError, match="name a --home that you can write to"):
        make(tmp_path / "file" / "ca", DOMAINS)


# Time, and change


@pytest.fixture
def timed(tmp_path: Path) -> tuple[Authority, Clock]:
    clock = Clock()
    make(tmp_path / "ca", DOMAINS, clock)
    clock.now += 30 * DAY
    return Authority.load(tmp_path / "ca", DOMAINS, clock), clock


@pytest.mark.parametrize(
    ("days", "kept"),
    [(2.6, True), (2.7, False), (40, False), (-0.9, True), (-1.1, False), (-29, False)],
)
def test_a_leaf_is_renewed_with_a_third_left_and_when_the_clock_jumps(
    timed: tuple[Authority, Clock], days: float, kept: bool, tmp_path: Path
) -> None:
    authority, clock = timed
    first = authority.context(HOST)
    clock.now += days * DAY
    second = authority.context(HOST)
    assert (second is first) == kept
    assert authority.context(HOST) is second
    shown = leaf(second, tmp_path / "ca", HOST)
    assert shown.not_valid_before_utc.timestamp() <= clock.now - DAY
    assert shown.not_valid_after_utc.timestamp() >= clock.now + 2.3 * DAY


def test_no_leaf_outlives_its_authority(timed: tuple[Authority, Clock], tmp_path: Path) -> None:
    authority, clock = timed
    clock.now = authority.expires - DAY
    last = authority.context(HOST)
    assert leaf(last, tmp_path / "ca", HOST).not_valid_after_utc.timestamp() == authority.expires
    clock.now = authority.expires - 1
    assert authority.context(HOST) is last
    clock.now += 1
    with pytest.raises(AuthorityError, match="expired"):
        authority.context(HOST)


def test_contexts_are_kept_but_not_without_end(folder: Path) -> None:
    authority = Authority.load(folder, DOMAINS)
    first = authority.context(HOST)
    assert authority.context(HOST.upper() + ".") is first
    for number in range(1023):
        authority.context(f"h{number}.{HOST}")
    assert authority.context(HOST) is first
    authority.context(f"one-more.{HOST}")
    assert authority.context(HOST) is not first


def test_a_new_authority_is_taken_over_and_old_contexts_are_dropped(folder: Path) -> None:
    authority = Authority.load(folder, DOMAINS)
    before, first = authority.fingerprint, authority.context(HOST)
    assert not authority.reload()
    bundle(folder)
    assert not authority.reload()
    renew(folder, DOMAINS)
    assert authority.reload()
    assert not authority.reload()
    assert authority.fingerprint == Authority.load(folder, DOMAINS).fingerprint != before
    assert authority.context(HOST) is not first
    assert believed(authority.context(HOST), client(folder), HOST)


@pytest.mark.parametrize(
    "harm",
    [
        remove,
        lambda at: renew(at, ["example.com"]),
        lambda at: (at / "intermediate.key").chmod(0o644),
    ],
)
def test_what_cannot_be_taken_over_is_reported_once_and_the_old_goes_on(
    folder: Path, harm: Callable[[Path], object]
) -> None:
    authority = Authority.load(folder, DOMAINS)
    first = authority.context(HOST)
    harm(folder)
    with pytest.raises(AuthorityError):
        authority.reload()
    assert not authority.reload()
    assert authority.context(HOST) is first
    assert authority.context("eu." + HOST)
    renew(folder, DOMAINS)
    assert authority.reload()


def test_keys_of_leaves_stay_in_memory_or_in_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def noted(self: ssl.SSLContext, certfile: str) -> None:
        seen.append(certfile)
        assert mode(Path(certfile)) & 0o077 == 0 or certfile.startswith("/proc/self/fd/")
        load(self, certfile)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noted)
    authority = Authority.load(folder, DOMAINS)
    authority.context(HOST)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    authority.context("eu." + HOST)
    assert Path(seen[-1]).parent == folder
    assert seen[0].startswith("/proc/self/fd/") or Path(seen[0]).parent == folder
    assert {file.name for file in folder.iterdir()} == {
        "root.pem",
        "intermediate.pem",
        "intermediate.key",
    }


# The bundle


def some_root(path: Path) -> str:
    """A file with the root of another authority, as distributions write them. Its text."""
    made = path.parent / f"{path.name}-made"
    make(made, ["example.com"])
    text = (made / "root.pem").read_text()
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# A comment\nSubject: x\n{text}")
    return text


def test_the_bundle_is_ours_and_the_systems(folder: Path, tmp_path: Path) -> None:
    one = some_root(tmp_path / "system.pem")
    other = some_root(tmp_path / "dir" / "other.pem")
    shutil.copy(tmp_path / "dir" / "other.pem", tmp_path / "dir" / "12345678.0")
    environ = {
        "SSL_CERT_FILE": str(tmp_path / "system.pem"),
        "SSL_CERT_DIR": f"/nowhere:{tmp_path / 'dir'}",
    }
    found = bundle(folder, environ).read_text()
    assert found == (folder / "root.pem").read_text() + one + other
    context = Authority.load(folder, DOMAINS).context(HOST)
    trusting = ssl.create_default_context(cafile=folder / "bundle.pem")
    assert len(trusting.get_ca_certs()) == 3
    assert believed(context, trusting, HOST)


def test_the_bundle_is_written_again_only_when_a_root_has_changed(
    folder: Path, tmp_path: Path
) -> None:
    system = tmp_path / "system.pem"
    some_root(system)
    environ = {"SSL_CERT_FILE": str(system)}
    first = bundle(folder, environ).stat()
    assert bundle(folder, environ).stat() == first
    text = some_root(tmp_path / "system-2.pem")
    system.write_text(text)
    assert text in bundle(folder, environ).read_text()
    renew(folder, DOMAINS)
    assert bundle(folder, environ).read_text() == (folder / "root.pem").read_text() + text


def test_the_systems_own_roots_are_found_without_a_word_in_the_environment(folder: Path) -> None:
    if not ssl.create_default_context().get_ca_certs():
        pytest.skip("this system has no root certificates")
    assert bundle(folder, {}).read_text().count(PEM) > 10


def test_the_bundle_is_not_made_of_itself(folder: Path, tmp_path: Path) -> None:
    some_root(tmp_path / "system.pem")
    path = bundle(folder, {"SSL_CERT_FILE": str(tmp_path / "system.pem")})
    stale = (folder / "root.pem").read_text()
    renew(folder, DOMAINS)
    path.write_text(stale)
    try:
        found = bundle(folder, {"SSL_CERT_FILE": str(path)}).read_text()
    except AuthorityError:  # where the system has none
        return
    assert stale not in found


def test_a_bundle_without_the_systems_roots_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = ssl.DefaultVerifyPaths(None, None, "", "/nowhere", "", "/nowhere")  # type: ignore[arg-type]
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: none)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(AuthorityError, match="no root certificates: install ca-certificates"):
        bundle(folder, {"SSL_CERT_FILE": "/nowhere/file"})
    assert not (folder / "bundle.pem").exists()


# The command


def ca(home: Path, *arguments: str) -> Result:
    group = click.Group()
    add_authority(group, click.option("--home", type=click.Path(path_type=Path)))
    return CliRunner().invoke(group, ["ca", *arguments, "--home", str(home)])


def test_the_command_makes_shows_and_removes(tmp_path: Path) -> None:
    home = tmp_path / "new home"
    missing = ca(home, "show")
    assert missing.exit_code == 1
    assert "understudy ca renew" in missing.output
    policy = tmp_path / "policy.yaml"
    policy.write_text("forward: {intercept: [llm.example.com]}")
    made = ca(home, "renew", "--policy", str(policy))
    assert made.exit_code == 0, made.output
    assert "must now trust this one" in made.output
    assert f"NODE_EXTRA_CA_CERTS='{home}/ca/root.pem'" in made.output
    shown = ca(home, "show").output
    issuer: Issuer = read(home / "ca")
    assert issuer.domains == {"llm.example.com"}
    assert "signs for    llm.example.com, and what is below" in shown
    assert issuer.fingerprint in shown.replace(":", "").lower()
    assert ca(home, "path").output == f"{home}/ca/bundle.pem\n"
    assert ca(home, "path", "--bundle").output == f"{home}/ca/bundle.pem\n"
    assert ca(home, "path", "--root").output == f"{home}/ca/root.pem\n"
    assert ca(home, "remove").output.startswith("removed")
    assert ca(home, "remove").output.startswith("nothing to remove")


def test_the_command_explains_a_broken_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("forward: {intercept: ['a b']}")
    done = ca(tmp_path, "renew", "--policy", str(policy))
    assert done.exit_code == 1
    assert "forward.intercept" in done.output
    assert not (tmp_path / "ca").exists()
