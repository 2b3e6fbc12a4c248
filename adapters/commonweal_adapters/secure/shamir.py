"""Shamir's secret sharing (1979) of 32-byte secrets, over the integers modulo p = 2^256 + 297, a prime.

A secret s is the value at 0 of a random polynomial of degree t - 1, and the share at x = 1 … n is its value there: any
t shares give s, and fewer say nothing about it. Integers of Python; they do not take constant time, which is why
shares are handled by the secret's owner, a holder that learns its own share anyway, and anyone who unmasks.
"""

from collections.abc import Callable, Mapping

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_SPARE_BYTES = 24
"""Beyond 33: a remainder of so many more random bytes favours no coefficient by more than 2^-191."""


def split(secret: bytes, threshold: int, holders: int, source: Callable[[int], bytes]) -> tuple[bytes, ...]:
    """Return the shares at x = 1 … ``holders``, 33 bytes each.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back; 1 to ``holders``.
        holders: How many shares.
        source: Uniform random bytes that nobody else knows.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= holders:
        raise ValueError(f"shares: wanted 32 bytes and 1 ≤ threshold ≤ holders, got {threshold} and {holders}")
    coefficients = [int.from_bytes(secret)]
    coefficients += (int.from_bytes(source(SHARE_BYTES + _SPARE_BYTES)) % PRIME for _ in range(threshold - 1))
    return tuple(_value_at(x, coefficients).to_bytes(SHARE_BYTES) for x in range(1, holders + 1))


def _value_at(x: int, coefficients: list[int]) -> int:
    value = 0
    for c in reversed(coefficients):
        value = (value * x + c) % PRIME
    return value


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that shares give, or None where what they give is not 32 bytes.

    Args:
        shares: x → share; exactly as many as the threshold says. Wrong ones give a wrong secret: it is for the caller
            to hold it against something that is known.
    """
    secret = 0
    for x, share in shares.items():
        up, down = 1, 1
        for other in shares:
            if other != x:
                up, down = up * other % PRIME, down * (other - x) % PRIME
        secret += int.from_bytes(share) * up * pow(down, -1, PRIME)
    secret %= PRIME
    return secret.to_bytes(SECRET_BYTES) if secret < 1 << 8 * SECRET_BYTES else None
