"""What a mean hides: who is like whom, and how far they are apart.

All of it comes from the deltas alone, without anybody's data, by their exact inner products. It is a proxy: two
communities may want the same of different elements. Integers only; no I/O, no clock.
"""

import math

import numpy as np

from commonweal_adapters.exact.gram import Gram
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import chunks_of

_MICROS = 10**6


def diversity_micros(inner: Gram) -> int:
    """Return 1 - ‖mean d‖² / mean ‖d‖² in millionths, rounded down: 0 where all deltas are equal.

    k deltas at right angles and of one length have 1 - 1/k; what cancels out entirely has 1. It is one minus the
    inverse, times k, of the gradient diversity of Yin et al. (2018, arXiv 1706.05699).
    """
    k = len(inner)
    lengths = sum(inner[i][i] for i in range(k))
    if lengths == 0:
        return 0
    mean = sum(map(sum, inner))
    return (k * lengths - mean) * _MICROS // (k * lengths)


def cosine_micros(inner: Gram, i: int, j: int) -> int:
    """Return the cosine of the angle between two deltas in millionths, cut off towards 0."""
    squared = inner[i][i] * inner[j][j]
    if squared == 0:
        return 0
    size = math.isqrt(inner[i][j] ** 2 * _MICROS**2 // squared)
    return size if inner[i][j] >= 0 else -size


def clusters(inner: Gram, likeness_micros: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of like deltas, by average linkage on cosines: candidates for sub-releases.

    At first everyone is alone; the two groups of the greatest mean cosine become one, as long as that is at least
    ``likeness_micros``. Of equals, those whose first members come first. Groups and members are in ascending order.

    Args:
        inner: Inner products between deltas, k × k.
        likeness_micros: -10^6 to 10^6.
    """
    k = len(inner)
    groups = [[i] for i in range(k)]
    # Sums of cosines between groups; a group is known by its first member, and the others' places are given up.
    between = np.array([[cosine_micros(inner, i, j) for j in range(k)] for i in range(k)], np.int64)
    sizes = np.ones(k, np.int64)
    apart = np.triu(np.ones((k, k), np.bool_), 1)
    while apart.any():
        # argmax takes the first of equals, by rows.
        mean = np.where(apart, between // np.outer(sizes, sizes), np.iinfo(np.int64).min)
        first, second = divmod(int(np.argmax(mean)), k)
        if mean[first, second] < likeness_micros:
            break
        groups[first] = sorted(groups[first] + groups[second])
        groups[second] = []
        between[first] += between[second]
        between[:, first] += between[:, second]
        sizes[first] += sizes[second]
        apart[second] = apart[:, second] = False
    return tuple(tuple(g) for g in groups if g)


def distance_micros(a: GridTensors, b: GridTensors, grid_bits: int) -> int:
    """Return ‖a - b‖ over all elements in millionths of an adapter's unit, rounded down: exact but for that.

    Args:
        a: Every integer in ±``LIMIT``.
        b: Of the same names and shapes.
        grid_bits: A grid step is 2^-grid_bits.
    """
    squared = 0
    for name, begin, end in chunks_of(a):
        change = a[name].reshape(-1)[begin:end].astype(np.int64) - b[name].reshape(-1)[begin:end]
        # A chunk of squares of 2^25 may sum to 2^65; their halves do not.
        square = change * change
        squared += (int((square >> 26).sum()) << 26) + int((square & ((1 << 26) - 1)).sum())
    return math.isqrt(squared * _MICROS**2 >> 2 * grid_bits)
