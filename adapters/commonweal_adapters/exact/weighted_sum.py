"""The exact weighted mean: the rule ``factor-mean``, and the last step of every rule that ends in a weighted sum.

    new = start + round( Σ nᵢ · dᵢ / D )

per element, on the grid, with integers nᵢ and D. The sums are int64 and cannot overflow, so they are associative: no
order of arrival, no thread and no machine changes a bit. There is one rounding, at the end, half to even; it is part
of the contract and is done in integers. No floats, no clock.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Chunk, Delta, Rows, chunks_of, for_each
from commonweal_protocols.base.errors import BlobError


def factor_mean(start: GridTensors, deltas: Sequence[Delta], *, threads: int | None = None) -> GridTensors:
    """Return start + round( Σ wᵢ dᵢ / Σ wᵢ ), for A and B each.

    Args:
        start: The round's start; every integer in ±``LIMIT``.
        deltas: Of the start's names and shapes. Memory holds start, result, and a chunk for each thread, however many
            deltas there are and however large they are on disk.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: No delta at all, a weight below 1, weights so large that a sum might not fit into 63 bits, or a
            result beyond ±``LIMIT``.
    """
    for delta in deltas:
        if delta.weight < 1:
            raise BlobError(f"weight: wanted at least 1, got {delta.weight}")
    total = sum(d.weight for d in deltas)
    return combine(start, [d.weight for d in deltas], total, [d.rows for d in deltas], threads=threads)


def combine(
    start: GridTensors,
    numerators: Sequence[int],
    divisor: int,
    rows: Sequence[Rows],
    *,
    threads: int | None = None,
) -> GridTensors:
    """Return start + round( Σ nᵢ dᵢ / divisor ).

    Args:
        start: Every integer in ±``LIMIT``.
        numerators: One for each of ``rows``; where it is 0, that one is not read.
        divisor: At least 1.
        rows: Deltas of the start's names and shapes.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: No delta at all, a sum that might not fit into 63 bits, or a result beyond ±``LIMIT``.
    """
    if not rows:
        raise BlobError("merge: wanted at least one delta, got none")
    common = math.gcd(divisor, *numerators)
    divisor //= common
    used = [(n // common, r) for n, r in zip(numerators, rows, strict=True) if n]
    # |Σ nᵢ dᵢ| ≤ Σ |nᵢ| · 2^24. A compact's bounds (400 members, weights to 10^9) stay below; nothing else may pass.
    if (total := max(sum(abs(n) for n, _ in used), divisor)) * LIMIT >= 1 << 63:
        raise BlobError(f"weights: wanted a sum below 2^63 / 2^24 = {(1 << 63) // LIMIT}, got {total}")
    out = {name: np.empty(q.shape, np.int32) for name, q in start.items()}

    def work(chunk: Chunk) -> None:
        sums = np.zeros(chunk.end - chunk.begin, np.int64)
        scaled = np.empty_like(sums)
        for numerator, delta in used:
            # Widened before the product: one of int32s would wrap.
            scaled[...] = delta.read(*chunk)
            scaled *= numerator
            sums += scaled
        store(out, start, chunk, divide_half_even(sums, divisor))

    for_each(work, chunks_of(start), threads)
    return GridTensors(out)


def store(out: dict[str, NDArray[np.int32]], start: GridTensors, chunk: Chunk, moved: NDArray[np.int64]) -> None:
    """Write start + ``moved`` to a chunk of the result. ``moved`` is used up.

    Raises:
        BlobError: A result beyond ±``LIMIT``.
    """
    moved += start[chunk.name].reshape(-1)[chunk.begin : chunk.end]
    if moved.min() < -LIMIT or moved.max() > LIMIT:
        worst = max(int(moved.max()), -int(moved.min()))
        raise BlobError(f"merge: tensor {chunk.name}: wanted at most 2^24 = {LIMIT} grid steps, got {worst}")
    out[chunk.name].reshape(-1)[chunk.begin : chunk.end] = moved


def divide_half_even(numerator: NDArray[np.int64], divisor: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide and round to the nearest integer, ties to the even one.

    Args:
        numerator: int64, any shape.
        divisor: 1 to 2^62; one for all, or one for each.
    """
    # Floor division, so that 0 ≤ rest < divisor for negative numerators too.
    quotient = numerator // divisor
    rest = numerator - quotient * divisor
    # rest > divisor/2 rounds up, rest = divisor/2 only from an odd quotient: 2 · rest + (quotient odd) > divisor.
    rest *= 2
    rest += quotient & 1
    quotient += rest > divisor
    return quotient


def to_micros(parts: Sequence[int], whole: int) -> tuple[int, ...]:
    """Return each part of a whole in millionths; where they make up the whole, these sum to exactly 10^6.

    Rounded down, and then those of the largest remainders up, the earlier first among equals, until the sum is right.

    Args:
        parts: None negative, and their sum at most ``whole``.
        whole: At least 1.
    """
    shares = [p * 10**6 // whole for p in parts]
    by_rest = sorted(range(len(parts)), key=lambda i: (-(parts[i] * 10**6 % whole), i))
    for i in by_rest[: sum(parts) * 10**6 // whole - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def small_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """Return weights of the same ratios that leave room in int64 for a rule's own factors.

    Divided by what they have in common; where they still sum to more than 2^25, as millionths of the whole.

    Args:
        weights: At least one; each at least 1.
    """
    common = math.gcd(*weights)
    if sum(weights) // common <= 1 << 25:
        return tuple(w // common for w in weights)
    return to_micros(weights, sum(weights))
