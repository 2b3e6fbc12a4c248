"""``commonweal adapter inspect`` and ``diff``: norms of adapters, their fit to a grid, their likeness. Floating point.

The LoRA product of a layer is s B A with s = ``spec.scale``. Its norm and inner products are had without making it:

    ‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ)        ⟨B A, D C⟩ = Σ (Bᵀ D) ∘ (A Cᵀ)

Factors alone mislead: B R and R⁻¹ A are the same adapter for every invertible R. So likeness is told of products too.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from commonweal_adapters.files.delta import LIMIT
from commonweal_adapters.files.lora_file import Slot, slots
from commonweal_adapters.files.peft_config import Scaling
from commonweal_adapters.files.peft_files import Adapter, load_adapter
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.base.report import Report
from commonweal_protocols.statements.compact import AdapterSpec

Tensors = Mapping[str, NDArray[np.float32]]
_ANY_BITS = 20
"""Likeness depends on no grid."""


class ModuleNorms(Report):
    """One module over all layers: Frobenius norms of its factors and of s B A, and its share of the whole ‖s B A‖².

    Of a delta the last two are None: the product of two deltas is nothing that a model ever adds.
    """

    module: str
    norm_a: float = Field(title="‖A‖")
    norm_b: float = Field(title="‖B‖")
    norm_product: float | None = Field(title="‖s·B·A‖")
    share: float | None


class GridFit(Report):
    """How values sit on a grid: the largest in units of the range, and what rounding to the grid would change."""

    grid_bits: int
    largest: float
    range_used: float
    """Of ±2^(24 - grid_bits); above 1 it does not fit."""
    off_grid: int
    """How many values are not on the grid as they are."""
    rounding_error: float
    """‖rounded - x‖ / ‖x‖ over all values; 0 where all are 0."""


class Likeness(Report):
    """Two adapters of one shape, in one module over all layers or in all: cosines, and ‖s B A - s' B' A'‖."""

    module: str
    cosine_factors: float = Field(title="cos factors")
    cosine_product: float = Field(title="cos B·A")
    distance_product: float = Field(title="‖difference‖")
    norm_first: float = Field(title="‖first‖")
    norm_second: float = Field(title="‖second‖")


class Inspection(Report):
    """One adapter. What needs a spec is None or empty where no consortium could have such an adapter."""

    path: str
    size_bytes: int
    dtypes: tuple[str, ...]
    is_delta: bool
    base: str | None
    elements: int
    rank: int | None
    alpha: float | None
    scaling: Scaling | None
    layers: int | None
    modules: tuple[ModuleNorms, ...]
    fit: GridFit | None
    problems: tuple[str, ...]


def inspect_file(path: Path, grid_bits: int) -> Inspection:
    """Look at an adapter or a delta, and say what is wrong with it.

    Raises:
        ConfigError: It cannot be read.
        BlobError: It is no adapter at all.
    """
    adapter = load_adapter(path)
    problems = list(adapter.problems)
    tensors = adapter.values(grid_bits)
    finite = all(np.isfinite(x).all() for x in tensors.values())
    fit = grid_fit(tensors, grid_bits) if finite else None
    if fit and fit.range_used > 1:
        problems.append(f"values: wanted at most ±2^{24 - fit.grid_bits} for this grid, got {fit.largest}")
    spec, norms = None, []
    try:
        spec = adapter.spec(grid_bits)
        norms = module_norms(spec, tensors) if finite else []
    except BlobError as e:
        problems.append(str(e))
    if spec and adapter.config and adapter.config.r != spec.rank:
        problems.append(f"r: wanted {spec.rank}, which the tensors have, got {adapter.config.r} in the configuration")
    return Inspection(
        path=str(adapter.path),
        size_bytes=adapter.size_bytes,
        dtypes=adapter.dtypes,
        is_delta=adapter.is_delta,
        base=adapter.config.base_model_name_or_path if adapter.config else None,
        elements=sum(x.size for x in tensors.values()),
        rank=spec.rank if spec else None,
        alpha=adapter.config.lora_alpha if adapter.config else None,
        scaling=adapter.config.scaling if adapter.config else None,
        layers=spec.layers if spec else None,
        modules=tuple(
            m.model_copy(update={"norm_product": None, "share": None}) if adapter.is_delta else m for m in norms
        ),
        fit=fit,
        problems=tuple(problems),
    )


def diff_files(one: Path, other: Path) -> tuple[Likeness, ...]:
    """Compare two adapters of the same layers and modules.

    Raises:
        ConfigError: One cannot be read.
        BlobError: One is no adapter, has a value that is not finite, or their layers or modules differ.
    """
    first, second = (load_sound(path) for path in (one, other))
    specs = first.spec(_ANY_BITS), second.spec(_ANY_BITS)
    same = specs[1].model_copy(update={k: getattr(specs[0], k) for k in ("rank", "alpha", "scaling")})
    if same != specs[0]:
        raise BlobError(f"{other}: wanted the layers and modules of {shape_of(specs[0])}, got {shape_of(specs[1])}")
    return tuple(compare(specs[0], first.values(_ANY_BITS), specs[1], second.values(_ANY_BITS)))


def load_sound(path: Path) -> Adapter:
    """Read an adapter that has no problems.

    Raises:
        ConfigError: It cannot be read.
        BlobError: It is no adapter, or has a problem: the first is told.
    """
    adapter = load_adapter(path)
    if adapter.problems:
        raise BlobError(f"{adapter.path}: {adapter.problems[0]}")
    return adapter


def shape_of(spec: AdapterSpec) -> str:
    """What distinguishes two specs, for an error's text."""
    scaling = "" if spec.scaling == "lora" else f" ({spec.scaling})"
    modules = ", ".join(f"{m.name} ({m.in_features} to {m.out_features})" for m in spec.modules)
    return f"rank {spec.rank}, alpha {spec.alpha}{scaling}, {spec.layers} layers {spec.prefix} of {modules}"


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
        ModuleNorms(
            module=name,
            norm_a=math.sqrt(a),
            norm_b=math.sqrt(b),
            norm_product=spec.scale * _root(product),
            share=product / whole if whole else 0.0,
        )
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
    return GridFit(
        grid_bits=grid_bits,
        largest=largest / scale,
        range_used=largest / LIMIT,
        off_grid=off,
        rounding_error=math.sqrt(error / whole) if whole else 0.0,
    )


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
