"""Ed25519 keys (RFC 8032): key files, and the public key as the one name of its owner.

A private key lies in a PKCS #8 PEM file of mode 0600, under a passphrase if one is given; it is never logged and a
file that others can read is refused. A public key is written as 64 lower-case hex digits. One key has one role.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from commonweal_protocols.base import ed25519
from commonweal_protocols.base.canonical import parse_digest
from commonweal_protocols.base.errors import ConfigError, SignatureError, StorageError
from commonweal_protocols.base.files import read_bounded

_MAX_KEY_FILE_BYTES = 4096


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the public half as 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def write_private(path: Path, data: bytes) -> None:
    """Create ``path`` with mode 0600 from its first byte on, durably; never overwrite.

    Raises:
        StorageError: It exists already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except FileExistsError as e:
        raise StorageError(f"{path}: exists already; a key is never overwritten") from e
    except OSError as e:
        raise StorageError(f"{path}: cannot be written: {e.strerror}") from e


def read_private(path: Path, max_bytes: int, wanted: str) -> bytes:
    """Return the bytes of a file that no other user may read; ``wanted`` says what it is.

    Raises:
        StorageError: There is none, it is larger, or others may read it.
    """
    data = read_bounded(path, max_bytes, wanted)
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        raise StorageError(f"{path}: wanted mode 0600, got {mode:04o}; run: chmod 600 {path}")
    return data


def create_key_file(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make a new key and its file (mode 0600).

    Raises:
        StorageError: The file exists already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    write_private(path, _private_pem(key, passphrase))
    return key


def create_ml_dsa_key_file(path: Path, passphrase: bytes | None = None) -> MLDSA44PrivateKey:
    """Make a new ML-DSA-44 key (FIPS 204) and its file (mode 0600): a witness's second key.

    Raises:
        StorageError: The file exists already, or cannot be written.
    """
    key = MLDSA44PrivateKey.generate()
    write_private(path, _private_pem(key, passphrase))
    return key


def _private_pem(key: Ed25519PrivateKey | MLDSA44PrivateKey, passphrase: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_pem(path: Path, passphrase: bytes | None) -> object:
    data = read_private(path, _MAX_KEY_FILE_BYTES, "a key file")
    try:
        return serialization.load_pem_private_key(data, passphrase or None)
    except TypeError as e:
        raise StorageError(f"{path}: a passphrase is {'wanted' if not passphrase else 'given but not wanted'}") from e
    except ValueError as e:
        raise StorageError(f"{path}: not a key file, or a wrong passphrase") from e


def load_key_file(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Load a key that :func:`create_key_file` made.

    Raises:
        StorageError: No such file, readable by others, a wrong passphrase, or not an Ed25519 key.
    """
    key = _load_pem(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path}: wanted an Ed25519 key, got {type(key).__name__}")
    return key


def load_ml_dsa_key_file(path: Path, passphrase: bytes | None = None) -> MLDSA44PrivateKey:
    """Load a key that :func:`create_ml_dsa_key_file` made.

    Raises:
        StorageError: No such file, readable by others, a wrong passphrase, or not an ML-DSA-44 key.
    """
    key = _load_pem(path, passphrase)
    if not isinstance(key, MLDSA44PrivateKey):
        raise StorageError(f"{path}: wanted an ML-DSA-44 key, got {type(key).__name__}")
    return key


def load_or_create_key_file(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Load a key, or make it: so that a set-up which was cut off can be done again.

    Raises:
        StorageError: See :func:`load_key_file` and :func:`create_key_file`.
    """
    return load_key_file(path, passphrase) if path.exists() else create_key_file(path, passphrase)


def load_passphrase(path: Path | None) -> bytes | None:
    """Read a passphrase file: a command line names the file, never the secret itself.

    Raises:
        ConfigError: It cannot be read, or holds nothing: a key would silently be kept without protection.
    """
    if path is None:
        return None
    passphrase = read_bounded(path, _MAX_KEY_FILE_BYTES, "a passphrase file", error=ConfigError).strip()
    if not passphrase:
        raise ConfigError(f"{path}: wanted a passphrase, got an empty file")
    return passphrase


def verify_signature(public_key: str, signature: bytes, message: bytes) -> None:
    """Check one Ed25519 signature under a public key in hex, by the rule of ``ed25519``.

    Raises:
        MalformedError: ``public_key`` is not 64 hex digits.
        SignatureError: It does not hold.
    """
    if not ed25519.holds(parse_digest(public_key), signature, message):
        raise SignatureError(f"signature: does not hold under key {public_key}")
