"""What may come before a robust rule: a bound on norms, then nearest-neighbour mixing. Both make weighted sums.

Each of the k deltas becomes yᵢ = Σⱼ mᵢⱼ dⱼ / D with integers mᵢⱼ ≥ 0 that follow from the Gram matrix alone. Rules that
look at elements round yᵢ to the grid, half to even; those that look at whole deltas never make it. The formulas and
papers are in ``commonweal_protocols.statements.rules.Robust``. No I/O, no clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.blas import integer_product
from commonweal_adapters.exact.gram import Gram
from commonweal_adapters.exact.weighted_sum import divide_half_even
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.rules import Robust

_MICROS = 10**6


@dataclass(frozen=True, slots=True)
class Mixing:
    """k weighted sums of k deltas: row i, divided by ``divisor``, makes the delta that stands for the i-th."""

    matrix: tuple[tuple[int, ...], ...]
    """Not negative; each row sums to at most ``divisor``."""
    divisor: int
    """At most 400 · 10^6 < 2^29, so that with values of 2^24 every sum stays below 2^53."""

    @staticmethod
    def none(k: int) -> "Mixing":
        """Every delta stands for itself."""
        return Mixing(tuple(tuple(int(i == j) for j in range(k)) for i in range(k)), 1)

    def apply(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the rounded sums of one chunk: int32 (k, n) → int32 (k, n)."""
        # float64 products of integers below 2^53 are exact, in any order.
        sums = integer_product(np.array(self.matrix, np.float64), values.astype(np.float64))
        return divide_half_even(sums.astype(np.int64), self.divisor).astype(np.int32)

    def gram(self, inner: Gram) -> Gram:
        """Return ``divisor``² times the inner products between the sums, unrounded."""
        return product(product(self.matrix, inner), list(zip(*self.matrix, strict=True)))

    def spread(self, parts: Sequence[int]) -> list[int]:
        """Return what weights of the sums make of the deltas' own weights: Σᵢ partsᵢ mᵢⱼ, for each j."""
        return [sum(p * row[j] for p, row in zip(parts, self.matrix, strict=True)) for j in range(len(parts))]


def make_mixing(rule: Robust, inner: Gram, grid_bits: int) -> Mixing | None:
    """Return what a rule asks for; None: deltas go in as they are.

    Args:
        rule: Its ``bound_norm_micros`` and ``mix_hostile`` count here.
        inner: The deltas' inner products.
        grid_bits: A grid step is 2^-grid_bits.

    Raises:
        BlobError: Too few deltas for that many hostile ones.
    """
    k = len(inner)
    if rule.bound_norm_micros is None and not rule.mix_hostile:
        return None
    if k <= 2 * rule.mix_hostile:
        raise BlobError(f"mix_hostile {rule.mix_hostile}: wanted more than {2 * rule.mix_hostile} deltas, got {k}")
    factors = [_MICROS] * k
    if rule.bound_norm_micros is not None:
        factors = [factor_micros(inner[i][i], rule.bound_norm_micros, grid_bits) for i in range(k)]
    if not rule.mix_hostile:
        return Mixing(tuple(tuple(f if i == j else 0 for j in range(k)) for i, f in enumerate(factors)), _MICROS)
    bounded = [[factors[i] * factors[j] * inner[i][j] for j in range(k)] for i in range(k)]
    keep = k - rule.mix_hostile
    rows = []
    for distances in squared_distances(bounded):
        near = set(sorted(range(k), key=lambda j: (distances[j], j))[:keep])
        rows.append(tuple(f if j in near else 0 for j, f in enumerate(factors)))
    return Mixing(tuple(rows), keep * _MICROS)


def factor_micros(squared: int, norm_micros: int, grid_bits: int) -> int:
    """Return ⌊10^6 · min(1, norm / ‖d‖)⌋.

    Args:
        squared: ‖d‖² in squared grid steps.
        norm_micros: The bound, in millionths of an adapter's unit.
        grid_bits: A grid step is 2^-grid_bits.
    """
    # norm in grid steps is norm_micros · 2^grid_bits / 10^6; the millionths cancel.
    bound = norm_micros << grid_bits
    if squared * _MICROS**2 <= bound**2:
        return _MICROS
    return math.isqrt(bound**2 // squared)


def squared_distances(inner: Gram) -> list[list[int]]:
    """Return ‖xᵢ - xⱼ‖² from inner products, in their unit."""
    k = len(inner)
    return [[inner[i][i] - 2 * inner[i][j] + inner[j][j] for j in range(k)] for i in range(k)]


def product(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return a product of matrices of Python integers."""
    made = np.array(left, object) @ np.array(right, object)
    return [list(row) for row in made]
