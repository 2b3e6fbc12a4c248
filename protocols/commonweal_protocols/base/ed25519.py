"""Ed25519 signatures (RFC 8032): one answer for every input, whichever library computes it.

A log is one history only if all who replay it judge every signature alike. Libraries do not, where a signer plays
tricks (Chalkias, Garillot, Nikolaenko, "Taming the many EdDSAs", IACR ePrint 2020/1244), so the rule is written here:

1. In the key A and in the nonce R, y is below p, and the point is none of the eight of small order. Such a key would
   let one signature stand for many messages. These are comparisons of bytes, done before any library is asked.
2. S is below the group's order.
3. R has exactly the bytes of S·B − k·A, where k = SHA-512(R ‖ A ‖ message): the equation without the cofactor.

OpenSSL (``cryptography``) holds to 2 and 3, and libsodium (``PyNaCl``, the extra ``fast``, which is half as fast again)
to all three. A libsodium that does not, as one with the cofactor in its equation would, is not used. No I/O.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_Y = 2**255 - 1
# The points of order 1, 2, 4 and 8 have these y between them; a point with the other sign of x has the same.
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL = frozenset({0, 1, _ORDER_8, _P - _ORDER_8, _P - 1})

Check = Callable[[bytes, bytes, bytes], bool]
"""Whether a key (32 bytes) has made a signature (64 bytes) on a message, for keys and nonces that rule 1 lets pass."""


def openssl(key: bytes, signature: bytes, message: bytes) -> bool:
    """The :data:`Check` that is always there."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# A signature with one key, which has a point of order 8 in it, on two messages. The equation with the cofactor takes
# both, that without it only the one whose k is a multiple of 8.
_KEY = bytes.fromhex("08e8461bace82b50af65402ff1cad3d2399afe459544096a7f106c54fc875d42")
_NONCE = "edc876d6831fd2105d0b4389ca2e283166469289146e2ce06faefe98b22548df"
PROBES: tuple[tuple[bytes, bytes, bytes, bool], ...] = (
    (_KEY, bytes.fromhex(f"{_NONCE}4d39d79b6c4fcbe54b25adb865f732e1c16dd22873c73b9121acb0f948d48d03"), b"7", True),
    (_KEY, bytes.fromhex(f"{_NONCE}9231203f4b923fc9825fdd012debcabff0b410db1574e796c73229c43cd78a04"), b"0", False),
)
"""Key, signature, message, and whether it holds: where equations differ."""


def load_libsodium() -> Check | None:
    """Return libsodium's check, or None where PyNaCl is not installed or its libsodium has another equation."""
    try:
        from nacl.bindings import crypto_sign_open
        from nacl.exceptions import BadSignatureError
    except ModuleNotFoundError:
        return None

    def libsodium(key: bytes, signature: bytes, message: bytes) -> bool:
        try:
            crypto_sign_open(signature + message, key)
        except BadSignatureError:
            return False
        return True

    return libsodium if all(libsodium(k, s, m) is holds for k, s, m, holds in PROBES) else None


_check: Check = load_libsodium() or openssl


def is_weak(point: bytes) -> bool:
    """Whether an encoded point (32 bytes) is of small order, or has a y that is not below p."""
    y = int.from_bytes(point, "little") & _Y
    return y in _SMALL or y >= _P


def holds(key: bytes, signature: bytes, message: bytes, check: Check = _check) -> bool:
    """Whether ``key`` (32 bytes) has made ``signature`` (64 bytes) on ``message``; for bytes of other lengths, not.

    ``check`` changes how fast the answer comes, never what it is.
    """
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    return not is_weak(key) and not is_weak(signature[:KEY_BYTES]) and check(key, signature, message)
