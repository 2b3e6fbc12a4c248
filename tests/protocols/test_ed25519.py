"""One answer for every signature, whichever library computes it: the log's determinism rests on this."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base import ed25519
from commonweal_protocols.base.ed25519 import PROBES, Check, holds, is_weak, load_libsodium, openssl
from tests.kit import curve
from tests.kit.curve import BASE, EIGHT, SMALL, L, P, add, encode, multiply

sodium = load_libsodium()
BACKENDS = [
    pytest.param(openssl, id="openssl"),
    pytest.param(
        sodium,
        id="libsodium",
        marks=pytest.mark.skipif(sodium is None, reason="wanted PyNaCl: pip install 'commonweal[fast]'"),
    ),
]

A, R = 7, 11
KEY, NONCE = multiply(A, BASE), multiply(R, BASE)
MIXED = add(KEY, EIGHT)


def message_for(key: curve.Point, nonce: curve.Point, wanted: Callable[[int], bool]) -> bytes:
    """A message for which the challenge is as wanted."""
    return next(m for m in (b"%d" % i for i in range(1000)) if wanted(curve.challenge(encode(nonce), encode(key), m)))


def made(key: curve.Point, nonce: curve.Point, message: bytes) -> tuple[bytes, bytes, bytes]:
    return (*curve.sign(A, key, nonce, R, message), message)


def small_key(nonce: curve.Point, key: curve.Point, wanted: Callable[[int], bool]) -> tuple[bytes, bytes, bytes]:
    """Signed with no secret at all: S is the nonce's own scalar."""
    message = message_for(key, nonce, wanted)
    return encode(key), encode(nonce) + (R if nonce == NONCE else 0).to_bytes(32, "little"), message


def small_nonce(message: bytes) -> tuple[bytes, bytes, bytes]:
    return (*curve.sign(A, KEY, SMALL[0], 0, message), message)


def plus_order(case: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    key, signature, message = case
    return key, signature[:32] + (int.from_bytes(signature[32:], "little") + L).to_bytes(32, "little"), message


def respelled(case: tuple[bytes, bytes, bytes], y: int, sign: int) -> tuple[bytes, bytes, bytes]:
    """The same with the key encoded as the y given, and signed anew, since the key's bytes are hashed."""
    raw = (y | sign << 255).to_bytes(32, "little")
    return raw, case[1], case[2]


def divides(k: int) -> bool:
    return k % 8 == 0


def does_not(k: int) -> bool:
    return k % 8 != 0


# The cases of "Taming the many EdDSAs" (section 5, table 5), built here: who is lenient takes more of them.
CASES: list[tuple[tuple[bytes, bytes, bytes], bool, str]] = [
    (made(KEY, NONCE, b"honest"), True, "an honest signature"),
    (small_key(SMALL[0], EIGHT, divides), False, "key and nonce of small order, S of 0, which holds"),
    (small_key(NONCE, EIGHT, divides), False, "a key of small order, which holds"),
    (small_key(NONCE, EIGHT, does_not), False, "a key of small order, which holds with the cofactor"),
    (small_key(NONCE, SMALL[0], divides), False, "the neutral key, under which everything holds"),
    (small_key(SMALL[4], SMALL[4], lambda k: k % 2 == 1), False, "key and nonce of order 2, which holds"),
    (made(MIXED, NONCE, message_for(MIXED, NONCE, divides)), True, "a mixed key, which holds"),
    (made(MIXED, NONCE, message_for(MIXED, NONCE, does_not)), False, "a mixed key, which holds with the cofactor"),
    (made(KEY, add(NONCE, EIGHT), b"x"), False, "a mixed nonce, which holds with the cofactor"),
    (plus_order(made(KEY, NONCE, b"x")), False, "S above the order"),
    (small_nonce(b"x"), False, "a nonce of small order, which holds"),
    (respelled(small_key(NONCE, SMALL[0], divides), P + 1, 0), False, "the neutral key as y = p + 1"),
    (respelled(small_key(NONCE, SMALL[0], divides), 1, 1), False, "the neutral key with a sign"),
    (respelled(small_key(NONCE, SMALL[2], divides), P, 0), False, "a key of order 4 as y = p"),
    (respelled(made(KEY, NONCE, b"x"), 2**255 - 1, 1), False, "y = 2^255 - 1"),
    ((encode(KEY), bytes(64), b"x"), False, "nothing but zeros"),
    ((bytes(32), bytes(64), b"x"), False, "nothing but zeros, and such a key"),
]  # fmt: skip


@pytest.mark.parametrize("check", BACKENDS)
@pytest.mark.parametrize(("case", "answer", "why"), CASES, ids=[why for _, _, why in CASES])
def test_every_backend_gives_the_rules_answer_to_signatures_that_no_honest_signer_makes(
    case: tuple[bytes, bytes, bytes], answer: bool, why: str, check: Check
) -> None:
    assert curve.holds(*case, small=False) is answer
    assert holds(*case, check) is answer


@pytest.mark.parametrize("why", [why for _, answer, why in CASES if not answer and why.endswith("which holds")])
def test_some_of_these_would_pass_without_the_rule_on_small_orders(why: str) -> None:
    (case,) = [case for case, _, w in CASES if w == why]
    assert curve.holds(*case, small=True)
    assert openssl(*case), "so that one library alone would not refuse it"


def test_the_points_of_small_order_are_all_known_in_every_encoding() -> None:
    assert len(set(SMALL)) == 8
    encodings = {(y, sign) for _, y in SMALL for sign in (0, 1)} | {(y, s) for y in range(P, 2**255) for s in (0, 1)}
    assert len(encodings) == 10 + 38
    assert all(is_weak((y | sign << 255).to_bytes(32, "little")) for y, sign in encodings)
    assert not is_weak(encode(BASE))
    assert not is_weak((P - 2).to_bytes(32, "little"))


def test_the_probes_tell_the_two_equations_apart() -> None:
    for key, signature, message, answer in PROBES:
        assert curve.holds(key, signature, message, small=False) is answer
        r, s = curve.point_of(signature[:32]), int.from_bytes(signature[32:], "little")
        k = curve.challenge(signature[:32], key, message)
        left = multiply(8, multiply(s, BASE))
        assert left == multiply(8, add(r, multiply(k, curve.point_of(key)))), "with the cofactor both hold"


def test_a_libsodium_with_another_equation_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = pytest.importorskip("nacl.bindings", reason="wanted PyNaCl: pip install 'commonweal[fast]'")
    monkeypatch.setattr(bindings, "crypto_sign_open", lambda signed, key: signed)
    assert load_libsodium() is None


def test_without_pynacl_signatures_are_checked_all_the_same() -> None:
    code = """
import sys
sys.modules["nacl"] = None
from commonweal_protocols.base import ed25519
assert ed25519._check is ed25519.openssl
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("key", "signature"), [(b"", bytes(64)), (encode(BASE), b""), (encode(BASE), bytes(65))])
def test_other_lengths_hold_under_nothing(key: bytes, signature: bytes) -> None:
    assert not holds(key, signature, b"x")


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """A signature in which any part may be another's, a special point's, or have other bits."""
    message = draw(st.binary(max_size=40))
    private = Ed25519PrivateKey.from_private_bytes(bytes([draw(st.integers(0, 255))]) * 32)
    key, signature = private.public_key().public_bytes_raw(), private.sign(message)
    special = st.sampled_from([encode(p) for p in (*SMALL, KEY, MIXED, NONCE)] + [b"\xff" * 32]) | st.binary(
        min_size=32, max_size=32
    )
    if draw(st.booleans()):
        key = draw(special | st.just(key))
        nonce = draw(special | st.just(signature[:32]))
        scalar = draw(st.sampled_from([0, 1, L - 1, L, 2**252, 2**256 - 1]) | st.just(None))
        signature = nonce + (signature[32:] if scalar is None else scalar.to_bytes(32, "little"))
    for at in draw(st.lists(st.integers(0, 767), max_size=2)):
        whole = bytearray(key + signature)
        whole[at // 8] ^= 1 << at % 8
        key, signature = bytes(whole[:32]), bytes(whole[32:])
    return key, signature, message


@settings(max_examples=250, deadline=None)
@given(mutated())
def test_every_backend_gives_the_second_implementations_answer_whatever_was_changed(
    case: tuple[bytes, bytes, bytes],
) -> None:
    answer = curve.holds(*case, small=False)
    assert holds(*case, openssl) is answer
    assert holds(*case) is answer
    if sodium is not None:
        assert holds(*case, sodium) is answer
        assert ed25519._check is sodium or ed25519._check.__name__ == "libsodium"
