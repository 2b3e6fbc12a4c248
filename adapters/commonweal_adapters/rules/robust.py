"""Robust rules that look at whole deltas: geometric median, multi-Krum, centred clipping, norm bound.

Each ends in a weighted sum of the deltas. What the weights are follows from the deltas' exact inner products, by a
small calculation on k numbers, in Python's integers, in the order that is written here; then they are rounded to
millionths and ``aggregate.combine`` makes the one exact sum. So a release's published shares are not a description of
its merge: they are the merge. Formulas and papers are in ``commonweal_protocols.statements.rules``.
No I/O, no floats, no clock.
"""

import math
from collections.abc import Sequence

from commonweal_adapters.exact.gram import Gram
from commonweal_adapters.rules.mixing import factor_micros, squared_distances
from commonweal_protocols.base.errors import BlobError

_MICROS = 10**6
FINE = 1 << 40
"""The unit in which weights are kept between iterations, and in which norms are taken."""


def geometric_median(
    inner: Gram, weights: Sequence[int], iterations: int, smoothing_micros: int, unit: int
) -> list[int]:
    """Return weights bᵢ ≥ 0 whose weighted mean of the deltas is the smoothed geometric median.

    Args:
        inner: Inner products between deltas, k × k.
        weights: k, not negative, not all 0.
        iterations: Of Weiszfeld's step.
        smoothing_micros: ν.
        unit: How long a delta of length 1 is in the unit of ``inner``, before squaring.
    """
    least = max(1, smoothing_micros * unit // _MICROS)
    # z = 0 at first, as everywhere: the start is what nobody can have forged.
    parts = [0] * len(weights)
    for _ in range(iterations):
        distances = _distances(inner, parts, max(1, sum(parts)))
        parts = [w * FINE * least // max(least, d) for w, d in zip(weights, distances, strict=True)]
        parts = _normal(parts)
    return parts


def multi_krum(inner: Gram, weights: Sequence[int], hostile: int) -> list[int]:
    """Return the weights of those who are chosen, and 0 for the others.

    Raises:
        BlobError: Not more than twice as many deltas as may be hostile.
    """
    k = len(inner)
    check_hostile("multi-krum", hostile, k)
    # The first of the sorted distances is a delta's own, 0.
    scores = [sum(sorted(distances)[1 : k - hostile]) for distances in squared_distances(inner)]
    chosen = set(sorted(range(k), key=lambda i: (scores[i], i))[: k - hostile])
    return [w if i in chosen else 0 for i, w in enumerate(weights)]


def centred_clipping(inner: Gram, weights: Sequence[int], iterations: int, norm_micros: int, unit: int) -> list[int]:
    """Return coefficients cᵢ ≥ 0 in units of 2^-40: the result is v = Σ cᵢ dᵢ.

    Args:
        inner: Inner products between deltas, k × k.
        weights: k, not negative, not all 0.
        iterations: How often v moves, from 0.
        norm_micros: τ.
        unit: How long a delta of length 1 is in the unit of ``inner``, before squaring.
    """
    total = sum(weights)
    bound = norm_micros * unit // _MICROS
    parts = [0] * len(weights)
    for _ in range(iterations):
        distances = _distances(inner, parts, FINE)
        # wᵢ min(1, τ/‖dᵢ - v‖) / W, so that v ← v (1 - Σ) + Σ stepᵢ dᵢ.
        steps = [
            w * FINE * min(bound, d) // (total * d) if d else w * FINE // total
            for w, d in zip(weights, distances, strict=True)
        ]
        left = FINE - sum(steps)
        parts = [p * left // FINE + s for p, s in zip(parts, steps, strict=True)]
    return parts


def norm_bound(inner: Gram, weights: Sequence[int], norm_micros: int, grid_bits: int) -> list[int]:
    """Return wᵢ · ⌊10^6 min(1, τ/‖dᵢ‖)⌋, to be divided by 10^6 Σ wᵢ.

    Args:
        inner: Inner products between deltas, in squared grid steps.
        weights: k, at least 1.
        norm_micros: τ.
        grid_bits: A grid step is 2^-grid_bits.
    """
    return [w * factor_micros(inner[i][i], norm_micros, grid_bits) for i, w in enumerate(weights)]


def check_hostile(rule: str, hostile: int, count: int) -> None:
    """Check that the honest are more than half.

    Raises:
        BlobError: They might not be.
    """
    if count <= 2 * hostile:
        raise BlobError(f"{rule} with {hostile} hostile: wanted more than {2 * hostile} deltas, got {count}")


def _distances(inner: Gram, parts: Sequence[int], divisor: int) -> list[int]:
    """Return ⌊‖dᵢ - Σ partsⱼ dⱼ / divisor‖⌋ for each i, in the unit of ``inner`` before squaring."""
    k = len(inner)
    along = [sum(p * g for p, g in zip(parts, row, strict=True) if p) for row in inner]
    centre = sum(p * a for p, a in zip(parts, along, strict=True))
    return [math.isqrt((divisor**2 * inner[i][i] - 2 * divisor * along[i] + centre) // divisor**2) for i in range(k)]


def _normal(parts: Sequence[int]) -> list[int]:
    """Scale weights so that they sum to about 2^40; one that was not 0 stays so."""
    total = sum(parts)
    return [max(1, p * FINE // total) if p else 0 for p in parts]
