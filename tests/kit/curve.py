"""The Ed25519 curve in a page: RFC 8032 section 5.1 with plain integers, slow, and with every point that it has.

The second implementation beside the libraries, for signatures that no honest signer makes: it can add a point of order
8 to a key, which they cannot.
"""

import hashlib

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
"""The order of the base point; the curve has 8·L points."""
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]
ZERO: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def multiply(n: int, point: Point) -> Point:
    result = ZERO
    while n:
        if n & 1:
            result = add(result, point)
        point, n = add(point, point), n >> 1
    return result


def decode(raw: bytes) -> Point | None:
    """The point, as most libraries decode it: a y of p or more is reduced, and a zero may have a sign."""
    n = int.from_bytes(raw, "little")
    sign, y = n >> 255, n % 2**255 % P
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return (-x % P if x & 1 != sign else x), y


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def point_of(raw: bytes) -> Point:
    point = decode(raw)
    assert point is not None
    return point


BASE = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
# L times any point is one of the eight whose order divides 8; with the y of 3 it is one of order 8 itself.
EIGHT = multiply(L, point_of((3).to_bytes(32, "little")))
SMALL = [multiply(i, EIGHT) for i in range(8)]


def challenge(nonce: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(nonce + key + message).digest(), "little") % L


def sign(scalar: int, key: Point, nonce: Point, nonce_scalar: int, message: bytes) -> tuple[bytes, bytes]:
    """Sign as somebody may who chooses every part freely; returns the encoded key and the signature."""
    a, r = encode(key), encode(nonce)
    return a, r + ((nonce_scalar + challenge(r, a, message) * scalar) % L).to_bytes(32, "little")


def holds(key: bytes, signature: bytes, message: bytes, *, small: bool) -> bool:
    """The equation without the cofactor, S below L. ``small`` says whether points of small order, and a y of p or more,
    may take part."""
    a, r, s = decode(key), signature[:32], int.from_bytes(signature[32:], "little")
    if a is None or s >= L:
        return False
    for raw in (key, r):
        y = int.from_bytes(raw, "little") % 2**255
        if not small and (y >= P or decode(raw) in SMALL):
            return False
    k = challenge(r, key, message)
    return encode(add(multiply(s, BASE), multiply(k, (-a[0] % P, a[1])))) == r
