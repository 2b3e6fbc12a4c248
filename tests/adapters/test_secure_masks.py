"""Masks, boxes and commitments: the streams are the RFC's, and everything is bound to its round and its parties."""

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from commonweal_adapters.secure import masks
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.masked_round import Context
from commonweal_protocols.statements.secure_messages import Secret

HERE, THERE = Context("c0" * 32, "1f" * 32), Context("c0" * 32, "2f" * 32)
A, B = (X25519PrivateKey.from_private_bytes(hashlib.sha256(n).digest()) for n in (b"a", b"b"))
SHARES = bytes(range(66))
SECRETS: tuple[Secret, ...] = ("mask", "self")


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt and one block."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_stream_is_that_of_rfc_8439() -> None:
    # Appendix A.1, test vector 1: the key stream of the zero key, nonce and counter.
    wanted = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    vector = np.zeros(8, np.uint64)
    masks.add_stream(vector, bytes(32), 1)
    assert vector.astype("<u8").tobytes() == wanted


def test_a_stream_does_not_depend_on_where_it_is_cut_and_taking_it_off_undoes_it() -> None:
    long = np.arange((1 << 17) + 5, dtype=np.uint64)
    vector = long.copy()
    masks.add_stream(vector, b"s" * 32, 1)
    short = np.zeros(3, np.uint64)
    masks.add_stream(short, b"s" * 32, 1)
    assert np.array_equal(vector[:3] - long[:3], short)
    assert len(set((vector - long).tolist())) == long.size
    masks.add_stream(vector, b"s" * 32, -1)
    assert np.array_equal(vector, long)


def test_both_partners_have_one_seed_and_it_is_the_docstrings() -> None:
    one = masks.pair_seed(HERE, A, masks.public(B), "b")
    assert one == masks.pair_seed(HERE, B, masks.public(A), "a")
    info = "\n".join(
        ["urn:commonweal:secure-mask:v1", "c0" * 32, "1f" * 32, *sorted([masks.public(A), masks.public(B)])]
    )
    assert one == hkdf(A.exchange(B.public_key()), info.encode())
    assert one != masks.pair_seed(THERE, A, masks.public(B), "b")


def test_a_self_mask_is_of_one_round_and_one_owner() -> None:
    seeds = {masks.self_seed(c, s, o) for c in (HERE, THERE) for s in (b"1" * 32, b"2" * 32) for o in ("a", "b")}
    assert len(seeds) == 8


def test_a_box_opens_for_its_holder_alone_and_in_its_round_alone() -> None:
    box = masks.seal(HERE, A, "a", masks.public(B), "b", SHARES)
    assert masks.unseal(HERE, B, "b", masks.public(A), "a", box) == (SHARES[:33], SHARES[33:])
    info = "\n".join(["urn:commonweal:secure-box:v1", "c0" * 32, "1f" * 32, "a", "b", masks.public(A), masks.public(B)])
    key = ChaCha20Poly1305(hkdf(A.exchange(B.public_key()), info.encode()))
    assert key.decrypt(bytes(12), bytes.fromhex(box), info.encode()) == SHARES
    for context, own, holder, peer, sender, data in (
        (THERE, B, "b", A, "a", box),
        (HERE, A, "b", A, "a", box),
        (HERE, B, "c", A, "a", box),
        (HERE, B, "b", B, "a", box),
        (HERE, B, "b", A, "c", box),
        (HERE, B, "b", A, "a", box[:-1] + ("0" if box[-1] != "0" else "1")),
        (HERE, B, "b", A, "a", masks.seal(HERE, B, "b", masks.public(A), "a", SHARES)),
    ):
        with pytest.raises(RuleError, match=f"{sender}: its box for {holder} does not open"):
            masks.unseal(context, own, holder, masks.public(peer), sender, data)


def test_a_key_that_makes_every_secret_the_same_is_refused_by_name() -> None:
    for use in (
        lambda: masks.pair_seed(HERE, A, "00" * 32, "coop"),
        lambda: masks.seal(HERE, A, "a", "00" * 32, "coop", SHARES),
        lambda: masks.unseal(HERE, A, "a", "01" + "00" * 31, "coop", "0" * 164),
    ):
        with pytest.raises(RuleError, match="coop: wanted an X25519 key of its own, got 0"):
            use()


def test_a_commitment_is_to_one_share_of_one_owner_for_one_holder_in_one_round() -> None:
    every = {
        c.share_commitment(owner, holder, secret, share)
        for c in (HERE, THERE)
        for owner in ("a", "b")
        for holder in ("a", "b")
        for secret in SECRETS
        for share in (SHARES[:33], SHARES[33:])
    }
    assert len(every) == 32
    assert len({c.seed_commitment(o, s) for c in (HERE, THERE) for o in "ab" for s in (b"1", b"2")}) == 8


def test_a_members_secrets_are_of_one_use_and_one_round_and_follow_from_its_root() -> None:
    root = bytes(range(32))
    uses = ("mask-key", "box-key")
    every = {masks.member_secret(c, r, use) for c in (HERE, THERE) for r in (root, root[::-1]) for use in uses}
    assert len(every) == 8
    info = "\n".join(["urn:commonweal:secure-member:v1", "c0" * 32, "1f" * 32, "mask-key"]).encode()
    assert masks.member_secret(HERE, root, "mask-key") == hkdf(root, info)


def test_what_is_drawn_is_the_stream_of_a_seed_piece_by_piece() -> None:
    vector = np.zeros(4, np.uint64)
    masks.add_stream(vector, b"s" * 32, 1)
    draw = masks.draw_from(b"s" * 32)
    assert draw(5) + draw(27) == vector.astype("<u8").tobytes()
