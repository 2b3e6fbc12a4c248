"""A private certificate authority and one server certificate, for every TLS port of one host.

::

    ca.pem              the authority, 10 years; goes into the invite, and is all that a node trusts
    ca.key.pem          0600; may be moved off this host, and is needed again only for a new server certificate
    server.chain.pem    the server's certificate, then the authority; 825 days; for exactly the given names
    server.key.pem      0600

All keys are EC P-256. Loading what is there changes nothing, unless the names differ or the certificate runs out soon:
then it is renewed under the same authority, so that no invite goes stale. TLS keeps strangers out of the line between
a node and its coordinator; what the records say is proved by signatures and does not rest on it. Renewal happens when a
daemon starts; there is no revocation: anyone who loses ``ca.key.pem`` makes a new authority and sends new invites.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.keys import read_private, write_private

CA_LIFETIME = timedelta(days=3652)
SERVER_LIFETIME = timedelta(days=825)
RENEWAL = timedelta(days=60)
"""A certificate that runs out within this is renewed."""
_BACKDATED = timedelta(days=1)
"""For nodes whose clock is slow."""
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are."""

    ca: Path
    chain: Path
    key: Path

    def ca_pem(self) -> str:
        """Return the authority's certificate, as it goes into an invite."""
        return _read(self.ca).decode("ascii", "replace")

    def key_and_chain(self) -> tuple[bytes, bytes]:
        """Return what a gRPC server shows: its key, and its certificates."""
        return _read(self.key), _read(self.chain)


def load_or_create_tls(directory: Path, hosts: Sequence[str], *, now: datetime | None = None) -> TlsFiles:
    """Return TLS files that are good for ``hosts``, making what is missing.

    Args:
        directory: Created if need be.
        hosts: Host names and IP addresses by which this host is reached. An address that means "every address"
            (0.0.0.0, ::) stands for the loopback one, by which such a host reaches itself.
        now: Aware; the host's clock if not given.

    Raises:
        ConfigError: No host, or one that is neither a name nor an address.
        StorageError: A file cannot be read or written, is of another form, or does not belong to the others.
    """
    now = now or datetime.now(UTC)
    names = _general_names(hosts)
    files = TlsFiles(directory / "ca.pem", directory / "server.chain.pem", directory / "server.key.pem")
    ca_key_file = directory / "ca.key.pem"
    if not files.ca.exists():
        # A crash may have left the key alone: it is good for another try.
        _create_ca(files.ca, _load_or_create_key(ca_key_file), now)
    ca = _load_certificate(files.ca)
    if now > ca.not_valid_after_utc - RENEWAL:
        raise StorageError(
            f"{files.ca}: wanted an authority that is valid for {RENEWAL.days} days more, got one until"
            f" {ca.not_valid_after_utc:%Y-%m-%d}; move {directory} away, start again, and send new invites"
        )
    key = _load_or_create_key(files.key)
    if not (files.chain.exists() and _is_good(_load_certificate(files.chain), ca, key, names, now)):
        if not ca_key_file.exists():
            raise StorageError(f"{ca_key_file}: wanted for a new server certificate, got no file; bring it back")
        _create_server(files.chain, key, ca, _load_or_create_key(ca_key_file), names, now)
    return files


def own_host(host: str) -> str:
    """Return the address by which a host that listens on ``host`` reaches itself: loopback for "every address"."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here


def _general_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        name: x509.GeneralName
        try:
            address = ipaddress.ip_address(own_host(host))
        except ValueError:
            if not _DNS_NAME.fullmatch(host):
                raise ConfigError(f"host: wanted a name in lower case or an IP address, got {host!r}") from None
            name = x509.DNSName(host)
        else:
            name = x509.IPAddress(address)
        if name not in names:
            names.append(name)
    if not names:
        raise ConfigError("host: wanted at least one name or address, got none")
    return names


def _load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_private(
            path,
            made.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return made
    data = read_private(path, _MAX_FILE_BYTES, "a private key")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as e:
        raise StorageError(f"{path}: not a private key without passphrase") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path}: wanted an EC key, got {type(key).__name__}")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as e:
        raise StorageError(f"{path}: not a certificate; move it away and start again to have it renewed") from e


def _read(path: Path) -> bytes:
    return read_bounded(path, _MAX_FILE_BYTES, "a PEM file")


def _is_good(
    leaf: x509.Certificate,
    ca: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    now: datetime,
) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        set(alternatives) == set(names)
        and leaf.public_key() == key.public_key()
        and leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc - RENEWAL
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    common_name: str, public_key: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _create_ca(path: Path, key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
    name = "Commonweal coordinator CA"
    begins = now - _BACKDATED
    certificate = (
        _builder(name, key.public_key(), begins, begins + CA_LIFETIME)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_atomic(path, certificate.public_bytes(serialization.Encoding.PEM))


def _create_server(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    now: datetime,
) -> None:
    if ca_key.public_key() != ca.public_key():
        raise StorageError(f"{path.parent}: wanted ca.key.pem to be the key of ca.pem, got another; restore both")
    begins = now - _BACKDATED
    ends = min(begins + SERVER_LIFETIME, ca.not_valid_after_utc)
    leaf = (
        _builder("Commonweal coordinator", key.public_key(), begins, ends)
        .issuer_name(ca.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    chain = leaf.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    write_atomic(path, chain)
