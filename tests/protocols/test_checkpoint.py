"""Checkpoints: three lines in one encoding, under the log's own key."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import MalformedError, SignatureError
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from commonweal_protocols.tlog.merkle import EMPTY_ROOT
from commonweal_protocols.tlog.note import make_verifier, sign_note

KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
LOG = make_verifier("log.example/one", KEY.public_key())
ROOT = bytes(range(32))
ROOT64 = base64.b64encode(ROOT).decode()
GOOD = f"log.example/one\n7\n{ROOT64}\n"


def test_a_checkpoint_is_three_lines() -> None:
    assert parse_checkpoint(GOOD) == Checkpoint("log.example/one", 7, ROOT)
    assert Checkpoint("log.example/one", 7, ROOT).text() == GOOD


def test_the_empty_tree_has_the_root_that_the_specification_prints() -> None:
    text = "log.example/one\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    assert parse_checkpoint(text) == Checkpoint("log.example/one", 0, EMPTY_ROOT)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing"),
        (GOOD[:-1], "no newline at the end"),
        (GOOD + "extension\n", "an extension line"),
        (GOOD + "\n", "an empty line behind"),
        (GOOD.replace("\n7\n", "\n07\n"), "a zero in front"),
        (GOOD.replace("\n7\n", "\n+7\n"), "a sign"),
        (GOOD.replace("\n7\n", "\n 7\n"), "a space"),
        (GOOD.replace("\n7\n", "\n\uff17\n"), "a full-width digit"),
        (GOOD.replace("\n7\n", "\n-7\n"), "below zero"),
        (GOOD.replace("\n7\n", f"\n{1 << 63}\n"), "2^63"),
        (GOOD.replace("\n7\n", "\n0\n"), "the empty tree with another root"),
        (GOOD.replace(ROOT64, ROOT64[:-2] + "9="), "base64 that is not canonical"),
        (GOOD.replace(ROOT64, "AAAA"), "a root of 3 bytes"),
        (GOOD.replace("log.example/one", ""), "no origin"),
        (GOOD.replace("log.example/one", "log example"), "a space in the origin"),
        (GOOD.replace("log.example/one", "log+example"), "a plus in the origin"),
        (GOOD.replace("log.example/one", "é" * 128), "an origin of 256 bytes"),
        (GOOD.replace("\n", "\r\n"), "DOS line ends"),
        (GOOD.replace("\n", "\u2028"), "Unicode line ends"),
    ],
)
def test_any_other_encoding_is_refused(text: str, why: str) -> None:
    with pytest.raises(MalformedError):
        parse_checkpoint(text)


@settings(max_examples=50)
@given(st.integers(1, (1 << 63) - 1), st.binary(min_size=32, max_size=32))
def test_every_checkpoint_comes_back(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(LOG.name, size, root)
    assert open_checkpoint(sign_note(checkpoint.text(), LOG.name, KEY), LOG) == checkpoint


def test_a_checkpoint_of_another_origin_is_refused_though_the_log_signed_it() -> None:
    data = sign_note(GOOD.replace("one", "two"), LOG.name, KEY)
    with pytest.raises(SignatureError, match=r"wanted origin log\.example/one, got log\.example/two"):
        open_checkpoint(data, LOG)


def test_a_checkpoint_that_another_key_signed_is_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
    with pytest.raises(SignatureError):
        open_checkpoint(sign_note(GOOD, LOG.name, other), LOG)
