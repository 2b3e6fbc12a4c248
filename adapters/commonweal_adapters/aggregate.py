"""The merge ``factor-mean``: each of A and B becomes its start plus the weighted mean of its deltas.

    new = start + round( Σ wᵢ · dᵢ / Σ wᵢ )

per element, on the grid. The sums are int64 and cannot overflow, so they are associative: no order of arrival, no
thread and no machine changes a bit. There is one rounding, at the end, half to even; it is part of the contract and
is done in integers. No floats, no I/O, no clock.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.delta import LIMIT, GridTensors
from commonweal_protocols.errors import BlobError


def factor_mean(start: GridTensors, weighted: Iterable[tuple[int, GridTensors]]) -> GridTensors:
    """Merge deltas into their start.

    Args:
        start: The round's start; every integer in ±``LIMIT``.
        weighted: Weights ≥ 1 and deltas of the start's names and shapes, every integer in ±``LIMIT``. Taken one at a
            time: memory holds the start, the sums (8 bytes an element), and one delta.

    Raises:
        BlobError: No delta at all, a weight below 1, weights so large that a sum might not fit into 63 bits, or a
            result beyond ±``LIMIT``.
    """
    sums = {name: np.zeros(q.shape, np.int64) for name, q in start.items()}
    total = 0
    for weight, delta in weighted:
        if weight < 1:
            raise BlobError(f"weight: wanted at least 1, got {weight}")
        total += weight
        # |Σ wᵢ dᵢ| ≤ Σ wᵢ · 2^24. A compact's bounds (400 members, weights to 10^9) stay below; nothing else may pass.
        if total * LIMIT >= 1 << 63:
            raise BlobError(f"weights: wanted a sum below 2^63 / 2^24 = {(1 << 63) // LIMIT}, got {total}")
        for name, acc in sums.items():
            # dtype: a product of int32s would wrap.
            acc += np.multiply(delta[name], weight, dtype=np.int64)
        # Else it would live on while the next one is read.
        del delta
    if not total:
        raise BlobError("merge: wanted at least one delta, got none")
    merged: dict[str, NDArray[np.int32]] = {}
    for name, q in start.items():
        new = divide_half_even(sums.pop(name), total)
        new += q
        if new.min() < -LIMIT or new.max() > LIMIT:
            worst = max(int(new.max()), -int(new.min()))
            raise BlobError(f"merge: tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {worst}")
        merged[name] = new.astype(np.int32)
    return GridTensors(merged)


def divide_half_even(numerator: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """Divide and round to the nearest integer, ties to the even one.

    Args:
        numerator: int64, any shape.
        divisor: 1 to 2^62.
    """
    # Floor division, so that 0 ≤ rest < divisor for negative numerators too.
    quotient = numerator // divisor
    rest = numerator - quotient * divisor
    # rest > divisor/2 rounds up, rest = divisor/2 only from an odd quotient: 2 · rest + (quotient odd) > divisor.
    rest *= 2
    rest += quotient & 1
    quotient += rest > divisor
    return quotient
