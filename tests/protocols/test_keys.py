"""Key files and signatures."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.errors import MalformedError, SignatureError, StorageError
from commonweal_protocols.base.keys import (
    create_key_file,
    create_ml_dsa_key_file,
    load_key_file,
    load_ml_dsa_key_file,
    load_or_create_key_file,
    public_hex,
    verify_signature,
)


def test_a_key_file_is_0600_and_gives_the_same_key_back(tmp_path: Path) -> None:
    path = tmp_path / "keys/k.pem"
    key = create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_hex(load_key_file(path)) == public_hex(key)


def test_a_key_that_others_can_read_is_refused_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"wanted mode 0600, got 0640; run: chmod 600"):
        load_key_file(path)


def test_an_ml_dsa_key_file_is_like_it_and_neither_is_taken_for_the_other(tmp_path: Path) -> None:
    path, other = tmp_path / "ml.pem", tmp_path / "ed.pem"
    key = create_ml_dsa_key_file(path, b"secret")
    create_key_file(other)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_ml_dsa_key_file(path, b"secret").private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(StorageError, match="wrong passphrase"):
        load_ml_dsa_key_file(path, b"other")
    with pytest.raises(StorageError, match="wanted an Ed25519 key"):
        load_key_file(path, b"secret")
    with pytest.raises(StorageError, match="wanted an ML-DSA-44 key"):
        load_ml_dsa_key_file(other)
    with pytest.raises(StorageError, match="exists already"):
        create_ml_dsa_key_file(path)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    create_key_file(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        create_key_file(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("made_with", "loaded_with", "message"),
    [(b"one", None, "wanted"), (None, b"one", "given but not wanted"), (b"one", b"two", "wrong passphrase")],
)
def test_a_passphrase_is_needed_exactly_where_it_was_set(
    tmp_path: Path, made_with: bytes | None, loaded_with: bytes | None, message: str
) -> None:
    path = tmp_path / "k.pem"
    key = create_key_file(path, made_with)
    assert public_hex(load_key_file(path, made_with)) == public_hex(key)
    with pytest.raises(StorageError, match=message):
        load_key_file(path, loaded_with)


def test_rfc8032_section_7_1_test_2() -> None:
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    verify_signature(public, signature, b"\x72")
    with pytest.raises(SignatureError, match=public):
        verify_signature(public, signature, b"\x73")


def test_a_public_key_has_one_encoding() -> None:
    key = Ed25519PrivateKey.generate()
    with pytest.raises(MalformedError):
        verify_signature(public_hex(key).upper(), key.sign(b"x"), b"x")


def test_a_set_up_that_is_done_again_finds_the_same_key(tmp_path: Path) -> None:
    first = load_or_create_key_file(tmp_path / "k.pem", b"secret")
    assert public_hex(load_or_create_key_file(tmp_path / "k.pem", b"secret")) == public_hex(first)
    with pytest.raises(StorageError, match="wrong passphrase"):
        load_or_create_key_file(tmp_path / "k.pem", b"other")
