"""Receipts (tlog-proof@v1): one valid one, and one wrong thing at a time."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import LogError, MalformedError, PeerError, SignatureError
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import make_verifier, sign_note
from commonweal_protocols.tlog.proof import TlogProof, format_proof, open_proof, parse_proof

KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
LOG = make_verifier("log.example/one", KEY.public_key())
ENTRIES = [f"entry {i}".encode() for i in range(11)]
TREE = Tree()
for _entry in ENTRIES:
    TREE.append(leaf_hash(_entry))
CHECKPOINT = Checkpoint(LOG.name, 11, TREE.root(11))
NOTE = sign_note(CHECKPOINT.text(), LOG.name, KEY)


def receipt(index: int) -> bytes:
    return format_proof(index, TREE.inclusion_path(index, 11), NOTE)


GOOD = receipt(5)
HASH = base64.b64encode(b"h" * 32)


def test_a_receipt_proves_its_entry() -> None:
    for i, entry in enumerate(ENTRIES):
        assert open_proof(receipt(i), entry, LOG) == (i, CHECKPOINT)


def test_the_form_is_the_specifications() -> None:
    head, _, note = GOOD.partition(b"\n\n")
    path = [base64.b64encode(h) for h in TREE.inclusion_path(5, 11)]
    assert head == b"\n".join([b"c2sp.org/tlog-proof@v1", b"index 5", *path])
    assert note == NOTE
    assert parse_proof(GOOD) == TlogProof(5, tuple(TREE.inclusion_path(5, 11)), NOTE)


def test_an_extra_line_is_allowed_and_proves_nothing() -> None:
    data = GOOD.replace(b"@v1\n", b"@v1\nextra ZXh0cmE=\n")
    assert parse_proof(data) == parse_proof(GOOD)
    assert open_proof(data, ENTRIES[5], LOG) == (5, CHECKPOINT)


def test_the_only_entry_of_a_log_has_an_empty_path() -> None:
    checkpoint = Checkpoint(LOG.name, 1, leaf_hash(b"first"))
    data = format_proof(0, [], sign_note(checkpoint.text(), LOG.name, KEY))
    assert data.startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n\nlog.example/one\n1\n")
    assert open_proof(data, b"first", LOG) == (0, checkpoint)


@pytest.mark.parametrize(
    ("data", "entry", "error", "why"),
    [
        (GOOD, ENTRIES[4], LogError, "another entry"),
        (GOOD, b"never logged", LogError, "an entry that is not in the log"),
        (GOOD.replace(b"index 5", b"index 4"), ENTRIES[5], LogError, "another index"),
        (GOOD.replace(b"index 5", b"index 11"), ENTRIES[5], LogError, "an index behind the end"),
        (format_proof(5, TREE.inclusion_path(5, 11)[:-1], NOTE), ENTRIES[5], LogError, "one hash too few"),
        (format_proof(5, [*TREE.inclusion_path(5, 11), b"h" * 32], NOTE), ENTRIES[5], LogError, "one hash too many"),
        (
            format_proof(
                5,
                TREE.inclusion_path(5, 11),
                sign_note(CHECKPOINT.text(), LOG.name, Ed25519PrivateKey.from_private_bytes(b"x" * 32)),
            ),
            ENTRIES[5],
            SignatureError,
            "another key's checkpoint",
        ),
        (GOOD.replace(b"\n11\n", b"\n12\n"), ENTRIES[5], SignatureError, "a size that nobody signed"),
    ],
)
def test_a_proof_of_something_else_is_refused(data: bytes, entry: bytes, error: type[PeerError], why: str) -> None:
    with pytest.raises(error):
        open_proof(data, entry, LOG)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing"),
        (GOOD.replace(b"@v1", b"@v2"), "another version"),
        (GOOD.replace(b"index 5\n", b""), "no index"),
        (GOOD.replace(b"index 5", b"index 05"), "a zero in front"),
        (GOOD.replace(b"index 5", b"index -5"), "a sign"),
        (GOOD.replace(b"index 5", b"Index 5"), "another word"),
        (GOOD.replace(b"index 5\n", b"index 5\nextra ZXh0cmE=\n"), "extra in the wrong place"),
        (GOOD.replace(b"index 5\n", b"extra ZXh0cmF=\nindex 5\n"), "extra is not canonical base64"),
        (GOOD.replace(b"index 5\n", b"index 5\nAAAA\n"), "a hash of 3 bytes"),
        (GOOD.replace(b"index 5\n", b"index 5\r\n"), "a carriage return"),
        (GOOD.replace(b"\n\nlog", b"\nlog"), "no empty line before the checkpoint"),
        (GOOD.replace(b"index 5\n", "index 5\u2028\n".encode()), "not ASCII"),
        (format_proof(5, [b"h" * 32] * 64, NOTE), "64 hashes"),
        (GOOD + b"x" * 1_200_000, "over the size bound"),
    ],
)
def test_any_other_encoding_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError):
        parse_proof(data)


@settings(max_examples=40)
@given(
    st.integers(0, (1 << 63) - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.binary(max_size=200),
)
def test_every_proof_comes_back(index: int, path: list[bytes], note: bytes) -> None:
    assert parse_proof(format_proof(index, path, note)) == TlogProof(index, tuple(path), note)


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(at: int, change: int) -> None:
    data = bytearray(GOOD)
    data[at] ^= change
    with pytest.raises(PeerError):
        open_proof(bytes(data), ENTRIES[5], LOG)
