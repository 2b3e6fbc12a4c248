"""The private authority and the server certificate, in real handshakes of Python's own TLS."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from commonweal_coordinator.serving.tls import CA_LIFETIME, RENEWAL, SERVER_LIFETIME, TlsFiles, load_or_create_tls
from commonweal_protocols.base.errors import ConfigError, StorageError

HOSTS = ("coordinator.example", "127.0.0.1")


def handshake(server: TlsFiles, ca: Path, host: str) -> str:
    """Return the TLS version that both sides agree on."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(server.chain, server.key)
    asking = ssl.create_default_context(cafile=str(ca))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()

    def accept() -> None:
        try:
            with accepting.wrap_socket(left, server_side=True) as s:
                s.recv(1)
        except OSError:
            left.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with asking.wrap_socket(right, server_hostname=host) as s:
            s.send(b"!")
            return s.version() or ""
    finally:
        right.close()
        thread.join()


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_authority_reaches_each_named_host(tmp_path: Path, host: str) -> None:
    tls = load_or_create_tls(tmp_path, HOSTS)
    assert handshake(tls, tls.ca, host) == "TLSv1.3"


@pytest.mark.parametrize(
    ("host", "own_ca", "message", "why"),
    [
        ("other.example", True, "Hostname mismatch", "a name that the certificate is not for"),
        ("127.0.0.2", True, "IP address mismatch", "an address that the certificate is not for"),
        ("127.0.0.1", False, "unable to get local issuer|self-signed|signature failure", "another authority"),
    ],
)
def test_any_other_host_or_authority_is_refused(
    tmp_path: Path, host: str, own_ca: bool, message: str, why: str
) -> None:
    tls = load_or_create_tls(tmp_path / "one", HOSTS)
    ca = tls.ca if own_ca else load_or_create_tls(tmp_path / "two", HOSTS).ca
    with pytest.raises(ssl.SSLCertVerificationError, match=message):
        handshake(tls, ca, host)


def test_keys_are_private_from_their_first_byte(tmp_path: Path) -> None:
    load_or_create_tls(tmp_path, HOSTS)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"ca.key.pem": 0o600, "server.key.pem": 0o600, "ca.pem": 0o644, "server.chain.pem": 0o644}


def test_each_certificate_may_do_one_thing_for_its_time(tmp_path: Path) -> None:
    tls = load_or_create_tls(tmp_path, HOSTS)
    leaf, ca = x509.load_pem_x509_certificates(tls.chain.read_bytes())
    assert ca == x509.load_pem_x509_certificate(tls.ca.read_bytes())
    assert ca.not_valid_after_utc - ca.not_valid_before_utc == CA_LIFETIME
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == SERVER_LIFETIME == timedelta(days=825)
    usage = [c.extensions.get_extension_for_class(x509.KeyUsage).value for c in (leaf, ca)]
    assert [(u.digital_signature, u.key_cert_sign) for u in usage] == [(True, False), (False, True)]
    basic = [c.extensions.get_extension_for_class(x509.BasicConstraints).value for c in (leaf, ca)]
    assert [(b.ca, b.path_length) for b in basic] == [(False, None), (True, 0)]
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_loading_again_changes_nothing(tmp_path: Path) -> None:
    load_or_create_tls(tmp_path, HOSTS)
    before = contents(tmp_path)
    load_or_create_tls(tmp_path, tuple(reversed(HOSTS)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("hosts", "later", "why"),
    [
        (("new.example",), timedelta(0), "other hosts"),
        (HOSTS, SERVER_LIFETIME - RENEWAL, "it runs out soon"),
    ],
)
def test_a_new_certificate_leaves_authority_and_invites_as_they_are(
    tmp_path: Path, hosts: tuple[str, ...], later: timedelta, why: str
) -> None:
    home, held = tmp_path / "tls", tmp_path / "held.pem"
    load_or_create_tls(home, HOSTS)
    before = contents(home)
    # Anyone who keeps the authority's key elsewhere has to bring it.
    (home / "ca.key.pem").rename(held)
    with pytest.raises(StorageError, match=r"ca\.key\.pem: wanted for a new server certificate"):
        load_or_create_tls(home, hosts, now=datetime.now(UTC) + later)
    held.rename(home / "ca.key.pem")
    tls = load_or_create_tls(home, hosts, now=datetime.now(UTC) + later)
    assert {n for n, data in contents(home).items() if data != before[n]} == {"server.chain.pem"}
    ends = x509.load_pem_x509_certificate(tls.chain.read_bytes()).not_valid_after_utc
    assert ends > datetime.now(UTC) + later + RENEWAL


def test_the_authoritys_key_is_not_needed_while_the_certificate_is_good(tmp_path: Path) -> None:
    load_or_create_tls(tmp_path, HOSTS)
    (tmp_path / "ca.key.pem").unlink()
    load_or_create_tls(tmp_path, HOSTS)
    assert not (tmp_path / "ca.key.pem").exists()


@pytest.mark.parametrize("lost", ["ca.pem", "server.chain.pem"])
def test_a_crash_between_two_files_is_mended_with_the_keys_that_are_there(tmp_path: Path, lost: str) -> None:
    tls = load_or_create_tls(tmp_path, HOSTS)
    keys = (tmp_path / "ca.key.pem").read_bytes(), tls.key.read_bytes()
    (tmp_path / lost).unlink()
    tls = load_or_create_tls(tmp_path, HOSTS)
    assert ((tmp_path / "ca.key.pem").read_bytes(), tls.key.read_bytes()) == keys
    assert handshake(tls, tls.ca, HOSTS[0]) == "TLSv1.3"


def test_listening_on_every_address_means_reaching_oneself_through_loopback(tmp_path: Path) -> None:
    tls = load_or_create_tls(tmp_path, ("coordinator.example", "0.0.0.0", "::"))
    leaf = x509.load_pem_x509_certificate(tls.chain.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(n.value) for n in names] == ["coordinator.example", "127.0.0.1", "::1"]


@pytest.mark.parametrize("hosts", [(), ("",), ("a b",), ("Upper.example",), ("a..b",), ("x" * 64,), ("*.example",)])
def test_a_host_that_no_certificate_can_be_for_is_refused(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="host: wanted"):
        load_or_create_tls(tmp_path / "tls", hosts)
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize(
    ("name", "spoil", "message", "why"),
    [
        ("server.key.pem", lambda p: p.chmod(0o644), "wanted mode 0600, got 0644", "others can read the key"),
        ("server.key.pem", lambda p: p.write_bytes(b"x"), "not a private key", "not a key"),
        ("server.chain.pem", lambda p: p.write_bytes(b"x"), "not a certificate", "not a certificate"),
        ("ca.pem", lambda p: p.write_bytes(b"x"), "not a certificate", "not an authority"),
    ],
)
def test_a_spoiled_file_is_named_and_not_replaced(
    tmp_path: Path, name: str, spoil: object, message: str, why: str
) -> None:
    load_or_create_tls(tmp_path, HOSTS)
    assert callable(spoil)
    spoil(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(StorageError, match=rf"{name}: {message}"):
        load_or_create_tls(tmp_path, HOSTS)
    assert contents(tmp_path) == before


def test_an_authority_that_runs_out_is_told_with_the_mend(tmp_path: Path) -> None:
    load_or_create_tls(tmp_path, HOSTS)
    with pytest.raises(StorageError, match=r"wanted an authority.*send new invites"):
        load_or_create_tls(tmp_path, HOSTS, now=datetime.now(UTC) + CA_LIFETIME - RENEWAL)


def test_an_authoritys_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    load_or_create_tls(tmp_path / "one", HOSTS)
    load_or_create_tls(tmp_path / "two", HOSTS)
    (tmp_path / "two/ca.key.pem").rename(tmp_path / "one/ca.key.pem")
    with pytest.raises(StorageError, match=r"wanted ca\.key\.pem to be the key of ca\.pem"):
        load_or_create_tls(tmp_path / "one", ("new.example",))
