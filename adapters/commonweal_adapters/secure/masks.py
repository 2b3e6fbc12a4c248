"""The cryptography of masked rounds: a member's secrets, seeds, mask streams and boxes. No state, no I/O.

    pair seed   HKDF-SHA256( X25519(mask keys), "secure-mask" ‖ round ‖ both public keys, sorted )     32 bytes
    box key     HKDF-SHA256( X25519(box keys), "secure-box" ‖ round ‖ from ‖ to ‖ both public keys )   32 bytes
    secrets     each HKDF-SHA256( 32 random bytes, its use ‖ round ): mask key, box key, self-mask's bytes, and a stream
                for the shares of either
    self seed   32 of these bytes, through HKDF-SHA256 with "secure-self" ‖ round ‖ owner
    stream      ChaCha20 (RFC 8439) under a seed, from block 0, nonce 0, as unsigned 64-bit little-endian words
    box         ChaCha20-Poly1305 under a box key, nonce 0; each box key seals one box

A key is made for one round and one direction, hence the constant nonces. "round" is the consortium and the round's
leaf. Of two partners the one whose name comes first adds the stream and the other subtracts it, modulo 2^64.
"""

from collections.abc import Callable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from commonweal_adapters.secure.shamir import SHARE_BYTES
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.masked_round import Context
from commonweal_protocols.statements.values import Name

_CHUNK = 1 << 17
"""Words of a stream that are made at a time: 1 MiB."""
_NONCE = bytes(12)


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


def member_secret(context: Context, root: bytes, use: str) -> bytes:
    """Return one of the secrets, 32 bytes, that a member has for a round: all of them follow from 32 random bytes."""
    return _derive(root, context.info("secure-member", use))


def draw_from(seed: bytes) -> Callable[[int], bytes]:
    """Return a source of bytes that is the stream of a seed, from its beginning on."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return lambda count: stream.update(bytes(count))


def _agree(own: X25519PrivateKey, peer: str, who: Name) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer)))
    except ValueError as e:
        raise RuleError(
            f"{who}: wanted an X25519 key of its own, got {peer}, with which every secret is the same"
        ) from e


def public(key: X25519PrivateKey) -> str:
    """The public half in hex."""
    return key.public_key().public_bytes_raw().hex()


def pair_seed(context: Context, own: X25519PrivateKey, peer: str, who: Name) -> bytes:
    """The seed that two partners share; ``who`` is the peer, for the error.

    Raises:
        RuleError: The peer's key is of small order.
    """
    return _derive(_agree(own, peer, who), context.info("secure-mask", *sorted([public(own), peer])))


def self_seed(context: Context, seed: bytes, owner: Name) -> bytes:
    """The seed of the mask that an owner puts on alone."""
    return _derive(seed, context.info("secure-self", owner))


def seal(context: Context, own: X25519PrivateKey, sender: Name, peer: str, holder: Name, shares: bytes) -> str:
    """Return the box of ``sender``'s two shares for ``holder``, in hex.

    Raises:
        RuleError: The holder's key is of small order.
    """
    info = context.info("secure-box", sender, holder, public(own), peer)
    key = ChaCha20Poly1305(_derive(_agree(own, peer, holder), info))
    return key.encrypt(_NONCE, shares, info).hex()


def unseal(
    context: Context, own: X25519PrivateKey, holder: Name, peer: str, sender: Name, box: str
) -> tuple[bytes, bytes]:
    """Return the shares (of the mask key, of the self-mask's seed) that ``sender`` has sealed for ``holder``.

    Raises:
        RuleError: It is not a box of this sender for this holder and round, or the sender's key is of small order.
    """
    info = context.info("secure-box", sender, holder, peer, public(own))
    key = ChaCha20Poly1305(_derive(_agree(own, peer, sender), info))
    try:
        shares = key.decrypt(_NONCE, bytes.fromhex(box), info)
    except InvalidTag as e:
        raise RuleError(
            f"{sender}: its box for {holder} does not open: not sealed for this round, or tampered with"
        ) from e
    return shares[:SHARE_BYTES], shares[SHARE_BYTES:]


def add_stream(vector: NDArray[np.uint64], seed: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (-1) a seed's stream to a vector in place, modulo 2^64."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    for at in range(0, vector.size, _CHUNK):
        part = vector[at : at + _CHUNK]
        words = np.frombuffer(stream.update(bytes(8 * part.size)), "<u8")
        (np.add if sign > 0 else np.subtract)(part, words, out=part)
