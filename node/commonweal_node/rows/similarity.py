"""Near duplicates: MinHash signatures (Broder 1997) in bands (Leskovec, Rajaraman, Ullman 2020, section 3.4).

The Jaccard similarity of two texts is that of their sets of word n-grams. The share of places at which two signatures
agree is an unbiased estimate of it, with a standard deviation of at most 1 / (2 √128), which is 0.045. Signatures that
share a band are compared; how many bands there are follows from the threshold. Case, punctuation and white space do not
count; where a script writes no spaces, each character is a word. Pure; the hash functions are fixed by this module.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PLACES = 128
"""Of a signature, each 4 bytes."""
_CHANCE = 0.95
"""Two texts at the threshold share a band at least so likely; texts above it more likely still."""

_WORD = re.compile(
    # Thai to Khmer, kana, Han: a character is a word.
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_]+"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    stream = hashlib.shake_256(b"commonweal minhash").digest(16 * PLACES)
    both = np.frombuffer(stream, "<u8").reshape(2, PLACES).astype(np.uint64)
    return both[0] | np.uint64(1), both[1]


_A, _B = _constants()


def words(text: str) -> list[str]:
    """Return a text's words as they are compared."""
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def signature(text: str, n: int) -> bytes:
    """Return the signature of a text's word n-grams: 128 minima of 4 bytes. A shorter text is one n-gram."""
    hashes = np.array([_word_hash(w) for w in words(text)] or [0], np.uint64)
    n = min(n, len(hashes))
    grams = np.zeros(len(hashes) - n + 1, np.uint64)
    for i in range(n):
        # Order within an n-gram counts: each of its places is mixed in turn.
        grams = _mix(grams * _MULTIPLIER + hashes[i : len(hashes) - n + 1 + i])
    minima = np.full(PLACES, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(grams), 1024):
        # (a h + b) mod 2^64, the upper half: Dietzfelbinger 1996. In pieces, so that a long text needs no more memory.
        some = grams[start : start + 1024, None]
        minima = np.minimum(minima, ((some * _A + _B) >> np.uint64(32)).astype(np.uint32).min(axis=0))
    return minima.astype("<u4").tobytes()


def similarity(a: bytes, b: bytes) -> float:
    """Return the estimated Jaccard similarity of two texts by their signatures."""
    return float((np.frombuffer(a, "<u4") == np.frombuffer(b, "<u4")).mean())


def rows_per_band(threshold: float) -> int:
    """Return the most places in a band at which two texts at the threshold still share one with a chance of 0.95.

    Two texts of similarity s share one of 128 / r bands with a chance of 1 - (1 - s^r)^(128 / r).
    """
    fitting = (r for r in (32, 16, 8, 4, 2) if 1 - (1 - threshold**r) ** (PLACES // r) >= _CHANCE)
    return next(fitting, 1)


def bands(signature: bytes, rows: int) -> Iterator[bytes]:
    """Yield a key for each band of ``rows`` places: equal where the band and its minima are."""
    for i, start in enumerate(range(0, len(signature), 4 * rows)):
        yield hashlib.blake2b(signature[start : start + 4 * rows], digest_size=8, salt=i.to_bytes(2, "big")).digest()
