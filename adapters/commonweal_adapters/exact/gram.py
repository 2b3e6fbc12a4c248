"""Inner products between deltas, exact: all that a rule needs to know of vectors that it weighs against each other.

Distances, norms and angles between k deltas, and between any weighted sums of them, follow from the k × k Gram matrix
Gᵢⱼ = ⟨dᵢ, dⱼ⟩. It is computed by matrix products in float64 in which every product and every partial sum is an integer
below 2^53, so that no order, no fused multiply-add, no BLAS and no number of threads changes it; and put together in
integers. No I/O but the reads, no clock.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.blas import integer_gram, integer_product
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import CHUNK, Chunk, Rows, chunks_of, for_each

Gram = list[list[int]]
"""k × k inner products in squared grid steps: Python integers, symmetric."""

_LIMB_BITS = 12
_WIDE_BITS = 13
_SPLIT_BITS = 26
DIGIT_BITS = 20
_HALF_DIGIT = 1 << DIGIT_BITS - 1
# CHUNK products of two such values sum to at most 2^53.
_NARROW = 1 << ((53 - CHUNK.bit_length() + 1) // 2)


def block(rows: Sequence[Rows], chunk: Chunk) -> NDArray[np.int32]:
    """Return one chunk of every delta: int32 (k, end - begin)."""
    values = np.empty((len(rows), chunk.end - chunk.begin), np.int32)
    for i, delta in enumerate(rows):
        values[i] = delta.read(*chunk)
    return values


def gram(shapes: GridTensors, rows: Sequence[Rows], *, threads: int | None = None) -> Gram:
    """Return the inner products between deltas over all tensors.

    Args:
        shapes: Any tensors of the deltas' names and shapes.
        rows: The k deltas. Memory holds k chunks for each thread.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: A value is out of range.
    """
    k = len(rows)
    # Sums of up to 2^34 products of 2^24 and less: below 2^63.
    high, low = np.zeros((k, k), np.int64), np.zeros((k, k), np.int64)
    lock = threading.Lock()

    def work(chunk: Chunk) -> None:
        upper, lower = _products(block(rows, chunk))
        with lock:
            np.add(high, upper, out=high)
            np.add(low, lower, out=low)

    for_each(work, chunks_of(shapes), threads)
    return [[(int(high[i, j]) << _SPLIT_BITS) + int(low[i, j]) for j in range(k)] for i in range(k)]


def _products(values: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (u, v) with u · 2^26 + v = values @ valuesᵀ; for |values| ≤ 2^24 and at most ``CHUNK`` columns."""
    if values.min() >= -_NARROW and values.max() <= _NARROW:
        product = integer_gram(values.astype(np.float64)).astype(np.int64)
        return product >> _SPLIT_BITS, product & ((1 << _SPLIT_BITS) - 1)
    # q = h · 2^12 + l with 0 ≤ l < 2^12: floor, so that it holds for negative q too.
    high, low = (values >> _LIMB_BITS).astype(np.float64), (values & ((1 << _LIMB_BITS) - 1)).astype(np.float64)
    hh, ll = integer_gram(high).astype(np.int64), integer_gram(low).astype(np.int64)
    hl = integer_product(high, low.T).astype(np.int64)
    hl += hl.T.copy()
    # Σ = hh · 2^24 + hl · 2^12 + ll, with each of them below 2^40: 2^24 hh = 2^26 (hh >> 2) + 2^24 (hh & 3).
    rest = ((hh & 3) << 24) + (hl << _LIMB_BITS) + ll
    return (hh >> 2) + (rest >> _SPLIT_BITS), rest & ((1 << _SPLIT_BITS) - 1)


class Limbs(NamedTuple):
    """Inner products as high · 2^26 + middle · 2^13 + low, each int64 (n, n), below 2^59 and exact."""

    high: NDArray[np.int64]
    middle: NDArray[np.int64]
    low: NDArray[np.int64]

    def digits(self) -> list[NDArray[np.int64]]:
        """Return digits in ±2^19 of base 2^20, the lowest first, as many as are not all 0; at least one."""
        seven = (1 << DIGIT_BITS - _WIDE_BITS) - 1
        rest = self.low + ((self.middle & seven) << _WIDE_BITS)
        carry = (self.middle >> DIGIT_BITS - _WIDE_BITS) + (self.high << 2 * _WIDE_BITS - DIGIT_BITS)
        digits = []
        while True:
            digit = ((rest + _HALF_DIGIT) & (2 * _HALF_DIGIT - 1)) - _HALF_DIGIT
            digits.append(digit)
            rest = ((rest - digit) >> DIGIT_BITS) + carry
            if not rest.any():
                return digits
            carry = np.zeros_like(rest)

    def floats(self) -> NDArray[np.float64]:
        """Return float64, rounded where it must be, in this order."""
        upper = self.high.astype(np.float64) * 2.0 ** (2 * _WIDE_BITS)
        return upper + (self.middle.astype(np.float64) * 2.0**_WIDE_BITS + self.low.astype(np.float64))


def factor_gram(rows: NDArray[np.int32]) -> Limbs:
    """Return the inner products between the rows of one block.

    Args:
        rows: int32 (n, width), in ±2^25; a width of at most 2^20.
    """
    high, middle, low = (np.zeros((len(rows), len(rows)), np.int64) for _ in Limbs._fields)
    for begin in range(0, rows.shape[1], CHUNK):
        part = rows[:, begin : begin + CHUNK]
        if part.min() >= -_NARROW and part.max() <= _NARROW:
            low += integer_gram(part.astype(np.float64)).astype(np.int64)
            continue
        # 2^26 a product, 2^41 a sum over a chunk.
        upper = (part >> _WIDE_BITS).astype(np.float64)
        lower = (part & ((1 << _WIDE_BITS) - 1)).astype(np.float64)
        cross = integer_product(upper, lower.T).astype(np.int64)
        high += integer_gram(upper).astype(np.int64)
        middle += cross + cross.T
        low += integer_gram(lower).astype(np.int64)
    return Limbs(high, middle, low)
