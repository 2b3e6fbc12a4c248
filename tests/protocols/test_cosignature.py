"""Cosignatures: the bytes that are signed, built a second time here, and every field wrong once."""

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import MalformedError, SignatureError
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import (
    CosignerKey,
    cosign,
    make_cosignature_verifier,
    parse_cosigner_vkey,
)
from commonweal_protocols.tlog.merkle import EMPTY_ROOT
from commonweal_protocols.tlog.note import format_vkey, make_verifier, open_note, parse_vkey, sign_note, split_note

LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
LOG = make_verifier("log.example/one", LOG_KEY.public_key())
ED = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
ML = MLDSA44PrivateKey.from_seed_bytes(b"m" * 32)
NAME = "witness.example/é"
AT = 1_679_315_147
CHECKPOINT = Checkpoint("log.example/one", 20_852_163, bytes(range(32)))
NOTE = sign_note(CHECKPOINT.text(), "log.example/one", LOG_KEY)
KEYS: list[CosignerKey] = [ED, ML]
both = pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ml-dsa-44"])

# C2SP tlog-cosignature, the example at the top; the text below prints the time that is signed in it.
SPEC_NOTE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()


def field_of(line: str) -> tuple[bytes, bytes]:
    """Key ID and signature field of a line, by another way than the parser's."""
    data = base64.b64decode(line.rstrip("\n").rsplit(" ", 1)[1])
    return data[:4], data[4:]


def line_of(name: str, key_id: bytes, signature: bytes) -> str:
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n"


def test_a_line_has_the_layout_of_the_specifications_example() -> None:
    _, lines = split_note(SPEC_NOTE)
    example = lines[1]
    assert int.from_bytes(example.signature[:8], "big") == AT
    ours = split_note(NOTE + cosign(CHECKPOINT, NAME, ED, at=AT).encode())[1][1]
    assert len(ours.signature) == len(example.signature) == 8 + 64
    assert ours.signature[:8] == example.signature[:8]


def test_an_ed25519_cosignature_is_over_header_time_and_the_whole_body() -> None:
    key_id, signature = field_of(cosign(CHECKPOINT, NAME, ED, at=AT))
    public = ED.public_key()
    assert key_id == hashlib.sha256(NAME.encode() + b"\n\x04" + public.public_bytes_raw()).digest()[:4]
    root = base64.b64encode(bytes(range(32)))
    message = b"cosignature/v1\ntime 1679315147\nlog.example/one\n20852163\n" + root + b"\n"
    public.verify(signature[8:], message)
    assert signature[:8] == bytes.fromhex("00000000641850cb")


def test_an_ml_dsa_cosignature_is_over_the_subtree_structure() -> None:
    key_id, signature = field_of(cosign(CHECKPOINT, NAME, ML, at=AT))
    public = ML.public_key()
    assert key_id == hashlib.sha256(NAME.encode() + b"\n\x06" + public.public_bytes_raw()).digest()[:4]
    assert len(signature) == 8 + 2420
    name = NAME.encode()
    message = (
        bytes.fromhex("737562747265652f76310a00")  # "subtree/v1\n\0"
        + bytes([len(name)]) + name
        + bytes.fromhex("00000000641850cb")
        + bytes([15]) + b"log.example/one"
        + bytes(8)
        + bytes.fromhex("00000000013e2dc3")
        + bytes(range(32))
    )  # fmt: skip
    assert CHECKPOINT.size == 0x013E2DC3
    public.verify(signature[8:], message)
    public.verify(signature[8:], message, context=b"")


@both
def test_a_vkey_is_written_as_it_was_read(key: CosignerKey) -> None:
    verifier = make_cosignature_verifier(NAME, key.public_key())
    kind = b"\x04" if key is ED else b"\x06"
    encoded = base64.b64encode(kind + key.public_key().public_bytes_raw()).decode()
    assert verifier.vkey == f"{NAME}+{verifier.key_id.hex()}+{encoded}"
    assert parse_cosigner_vkey(verifier.vkey) == verifier


@both
def test_a_checkpoint_opens_with_the_time_of_each_cosignature(key: CosignerKey) -> None:
    verifier = make_cosignature_verifier(NAME, key.public_key())
    line = cosign(CHECKPOINT, NAME, key, at=AT)
    opened = open_note(NOTE + line.encode(), [LOG, verifier])
    assert [(x.signer, x.at) for x in opened.lines] == [(LOG, None), (verifier, AT)]
    assert opened.lines[1].line == line
    assert opened.text == CHECKPOINT.text()


def test_one_witness_may_sign_with_both_types() -> None:
    verifiers = [make_cosignature_verifier(NAME, key.public_key()) for key in KEYS]
    lines = "".join(cosign(CHECKPOINT, NAME, key, at=AT) for key in KEYS)
    assert open_note(NOTE + lines.encode(), [LOG, *verifiers]).signers == (LOG, *verifiers)


@both
@pytest.mark.parametrize(
    ("checkpoint", "name", "at", "why"),
    [
        (replace(CHECKPOINT, origin="log.example/two"), NAME, AT, "another origin"),
        (replace(CHECKPOINT, size=20_852_164), NAME, AT, "another size"),
        (replace(CHECKPOINT, root=bytes(32)), NAME, AT, "another root"),
        (CHECKPOINT, NAME, AT + 1, "another time"),
    ],
)
def test_a_cosignature_of_anything_else_is_refused(
    key: CosignerKey, checkpoint: Checkpoint, name: str, at: int, why: str
) -> None:
    verifier = make_cosignature_verifier(NAME, key.public_key())
    _, signature = field_of(cosign(checkpoint, name, key, at=at))
    forged = line_of(NAME, verifier.key_id, AT.to_bytes(8, "big") + signature[8:])
    with pytest.raises(SignatureError, match="does not hold"):
        open_note(NOTE + forged.encode(), [LOG, verifier])


def test_an_ml_dsa_cosignature_is_bound_to_its_cosigners_name() -> None:
    _, signature = field_of(cosign(CHECKPOINT, "other.example", ML, at=AT))
    verifier = make_cosignature_verifier(NAME, ML.public_key())
    with pytest.raises(SignatureError):
        open_note(NOTE + line_of(NAME, verifier.key_id, signature).encode(), [LOG, verifier])


@both
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s[:8], "no signature behind the time"),
        (lambda s: s[:7], "half a time"),
        (lambda s: s[:-1], "cut short"),
        (lambda s: s + b"\0", "one byte more"),
        (lambda s: s[8:], "no time"),
        (lambda s: s[:-1] + bytes([s[-1] ^ 1]), "one bit of the signature"),
        (lambda s: bytes([s[0] ^ 0x80]) + s[1:], "a time above 2^63 - 1"),
    ],
)
def test_a_damaged_signature_field_is_refused(key: CosignerKey, change: object, why: str) -> None:
    assert callable(change)
    verifier = make_cosignature_verifier(NAME, key.public_key())
    _, signature = field_of(cosign(CHECKPOINT, NAME, key, at=AT))
    with pytest.raises(SignatureError):
        open_note(NOTE + line_of(NAME, verifier.key_id, change(signature)).encode(), [LOG, verifier])


def test_a_cosignature_without_a_time_makes_no_statement_and_is_refused() -> None:
    verifier = make_cosignature_verifier(NAME, ED.public_key())
    signature = bytes(8) + ED.sign(b"cosignature/v1\ntime 0\n" + CHECKPOINT.text().encode())
    with pytest.raises(InvalidSignature):
        verifier.verify(CHECKPOINT.text(), signature)


def test_a_note_signature_of_the_same_key_is_no_cosignature() -> None:
    verifier = make_cosignature_verifier(NAME, ED.public_key())
    with pytest.raises(SignatureError):
        open_note(
            NOTE + line_of(NAME, verifier.key_id, bytes(8) + ED.sign(CHECKPOINT.text().encode())).encode(),
            [LOG, verifier],
        )


def test_a_text_that_is_no_checkpoint_is_not_verified() -> None:
    verifier = make_cosignature_verifier(NAME, ED.public_key())
    text = CHECKPOINT.text() + "extension\n"
    signature = AT.to_bytes(8, "big") + ED.sign(f"cosignature/v1\ntime {AT}\n{text}".encode())
    with pytest.raises(MalformedError):
        verifier.verify(text, signature)


ED64 = base64.b64encode(b"\x04" + ED.public_key().public_bytes_raw()).decode()


@pytest.mark.parametrize(
    ("vkey", "why"),
    [
        (format_vkey(NAME, ED.public_key().public_bytes_raw()), "a log's type"),
        (make_cosignature_verifier(NAME, ED.public_key()).vkey.replace("é", "e"), "the ID binds the name"),
        (f"{NAME}+00000000+{ED64}", "the stated ID is not the key's"),
        (make_cosignature_verifier(NAME, ED.public_key()).vkey[:-4], "31 bytes and another ID"),
        (f"{NAME}+{ED64}", "no ID"),
        (make_cosignature_verifier(NAME, ED.public_key()).vkey + "\n", "a newline behind"),
    ],
)
def test_any_other_encoding_of_a_cosigners_vkey_is_refused(vkey: str, why: str) -> None:
    with pytest.raises(MalformedError):
        parse_cosigner_vkey(vkey)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (b"\x04" + b"k" * 31, "31 bytes"),
        (b"\x04" + b"k" * 1312, "an ML-DSA key under Ed25519's type"),
        (b"\x06" + b"k" * 32, "an Ed25519 key under ML-DSA's type"),
        (b"\x05" + b"k" * 32, "a tree head's type"),
        (b"\x04", "no key"),
    ],
)
def test_a_vkey_of_another_type_or_length_is_refused_though_its_id_is_right(key: bytes, why: str) -> None:
    key_id = hashlib.sha256(NAME.encode() + b"\n" + key).digest()[:4].hex()
    with pytest.raises(MalformedError):
        parse_cosigner_vkey(f"{NAME}+{key_id}+{base64.b64encode(key).decode()}")


@both
def test_a_log_cannot_be_named_by_a_cosigners_vkey(key: CosignerKey) -> None:
    with pytest.raises(MalformedError, match="wanted a log's key"):
        parse_vkey(make_cosignature_verifier(NAME, key.public_key()).vkey)


@both
@pytest.mark.parametrize(
    ("checkpoint", "name", "at", "why"),
    [
        (CHECKPOINT, NAME, 0, "no time"),
        (CHECKPOINT, NAME, -1, "before the epoch"),
        (CHECKPOINT, NAME, 1 << 63, "2^63"),
        (CHECKPOINT, "w" * 256, AT, "a name of 256 bytes"),
        (CHECKPOINT, "w 1", AT, "a space in the name"),
        (replace(CHECKPOINT, origin="o" * 256), NAME, AT, "an origin of 256 bytes"),
        (replace(CHECKPOINT, origin="o\no"), NAME, AT, "a line end in the origin"),
    ],
)
def test_what_has_no_place_in_a_cosignature_is_not_signed(
    key: CosignerKey, checkpoint: Checkpoint, name: str, at: int, why: str
) -> None:
    with pytest.raises(MalformedError):
        cosign(checkpoint, name, key, at=at)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, (1 << 63) - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(1, (1 << 63) - 1),
    st.text(st.characters(min_codepoint=33, exclude_characters="+", exclude_categories=["Z", "C"]), min_size=1),
    st.sampled_from(KEYS),
)
def test_every_cosignature_opens(size: int, root: bytes, at: int, name: str, key: CosignerKey) -> None:
    name = name[:60]
    checkpoint = Checkpoint("log.example/one", size, root)
    verifier = make_cosignature_verifier(name, key.public_key())
    note = f"{checkpoint.text()}\n{cosign(checkpoint, name, key, at=at)}".encode()
    assert open_note(note, [verifier]).lines[0].at == at


def test_the_empty_tree_can_be_cosigned() -> None:
    checkpoint = Checkpoint("log.example/one", 0, EMPTY_ROOT)
    verifier = make_cosignature_verifier(NAME, ED.public_key())
    note = f"{checkpoint.text()}\n{cosign(checkpoint, NAME, ED, at=AT)}".encode()
    assert open_note(note, [verifier]).signers == (verifier,)
