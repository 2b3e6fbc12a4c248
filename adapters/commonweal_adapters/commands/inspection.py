"""What can be said of an adapter, and of two of them, for people: norms, fit to a grid, likeness. Pure, floating point.

The LoRA product of a layer is s B A with s = ``spec.scale``. Its norm and inner products are had without making it:

    ‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ)        ⟨B A, D C⟩ = Σ (Bᵀ D) ∘ (A Cᵀ)

Factors alone mislead: B R and R⁻¹ A are the same adapter for every invertible R. So likeness is told of products too.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT
from commonweal_adapters.files.lora_file import Slot, slots
from commonweal_protocols.statements.compact import AdapterSpec

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ModuleNorms:
    """One module over all layers: Frobenius norms of its factors and of s B A, and its share of the whole ‖s B A‖²."""

    module: str
    norm_a: float
    norm_b: float
    norm_product: float
    share: float


@dataclass(frozen=True, slots=True)
class GridFit:
    """How values sit on a grid: the largest in units of the range, and what rounding to the grid would change."""

    grid_bits: int
    largest: float
    range_used: float
    """Of ±2^(24 - grid_bits); above 1 it does not fit."""
    off_grid: int
    """How many values are not on the grid as they are."""
    rounding_error: float
    """‖rounded - x‖ / ‖x‖ over all values; 0 where all are 0."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two adapters of one shape, in one module over all layers or in all: cosines, and ‖s B A - s' B' A'‖."""

    module: str
    cosine_factors: float
    cosine_product: float
    distance_product: float
    norm_first: float
    norm_second: float


def module_norms(spec: AdapterSpec, tensors: Tensors) -> list[ModuleNorms]:
    """Return the norms of each module, in the spec's order."""
    squares: dict[str, list[float]] = {m.name: [0.0, 0.0, 0.0] for m in spec.modules}
    for name, slot in _named_slots(spec):
        a, b = _factors(slot, tensors)
        sums = squares[name]
        sums[0] += float(np.sum(a * a))
        sums[1] += float(np.sum(b * b))
        sums[2] += _inner(a, b, a, b)
    whole = sum(product for _, _, product in squares.values())
    return [
        ModuleNorms(name, math.sqrt(a), math.sqrt(b), spec.scale * _root(product), product / whole if whole else 0.0)
        for name, (a, b, product) in squares.items()
    ]


def grid_fit(tensors: Tensors, grid_bits: int) -> GridFit:
    """Return how values sit on a grid. Values are finite."""
    scale = 2.0**grid_bits
    largest, off, error, whole = 0.0, 0, 0.0, 0.0
    for x in tensors.values():
        scaled = x.astype(np.float64) * scale
        gap = np.rint(scaled) - scaled
        largest = max(largest, float(np.abs(scaled).max()))
        off += int(np.count_nonzero(gap))
        error += float(np.sum(gap * gap))
        whole += float(np.sum(scaled * scaled))
    return GridFit(grid_bits, largest / scale, largest / LIMIT, off, math.sqrt(error / whole) if whole else 0.0)


def compare(one_spec: AdapterSpec, one: Tensors, other_spec: AdapterSpec, other: Tensors) -> list[Likeness]:
    """Return how alike two adapters are: first in all, then module by module. Ranks and alphas may differ.

    Where ranks differ, factors cannot be compared: their cosine is then not a number.

    Args:
        one_spec: The first one's shape.
        one: Its tensors, finite.
        other_spec: The second one's shape: the first one's layers and modules.
        other: Its tensors, finite.
    """
    s, t = one_spec.scale, other_spec.scale
    sums: dict[str, NDArray[np.float64]] = {m.name: np.zeros(6) for m in one_spec.modules}
    for name, slot in _named_slots(one_spec):
        a, b = _factors(slot, one)
        c, d = _factors(slot, other)
        same = a.shape == c.shape
        sums[name] += (
            float(np.sum(a * c) + np.sum(b * d)) if same else math.nan,
            float(np.sum(a * a) + np.sum(b * b)),
            float(np.sum(c * c) + np.sum(d * d)),
            s * t * _inner(a, b, c, d),
            s * s * _inner(a, b, a, b),
            t * t * _inner(c, d, c, d),
        )
    return [_likeness("all", sum(sums.values(), np.zeros(6))), *(_likeness(name, v) for name, v in sums.items())]


def _likeness(module: str, sums: NDArray[np.float64]) -> Likeness:
    factors, one, other, product, one_product, other_product = sums.tolist()
    return Likeness(
        module=module,
        cosine_factors=_cosine(factors, one, other),
        cosine_product=_cosine(product, one_product, other_product),
        distance_product=_root(one_product + other_product - 2 * product),
        norm_first=_root(one_product),
        norm_second=_root(other_product),
    )


def _cosine(inner: float, one: float, other: float) -> float:
    return inner / math.sqrt(one * other) if one > 0 and other > 0 else math.nan


def _root(square: float) -> float:
    # Rounding may leave a difference of squares a little below 0.
    return math.sqrt(max(0.0, square))


def _factors(slot: Slot, tensors: Tensors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return tensors[slot.name_a].astype(np.float64), tensors[slot.name_b].astype(np.float64)


def _inner(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]) -> float:
    """⟨B A, D C⟩."""
    return float(np.sum((b.T @ d) * (a @ c.T)))


def _named_slots(spec: AdapterSpec) -> Iterator[tuple[str, Slot]]:
    """Each slot after its module's name."""
    return zip(itertools.cycle(m.name for m in spec.modules), slots(spec), strict=False)
