"""Merges of a higher rank than their inputs, for anyone who may publish one: stacking, and the residual of a mean.

A compact's releases all have its spec's rank, so these are no rules of a compact; they are what the stated error of
those is measured against, and what a base model can be updated with. Each result comes with its own spec. Integers
only; no I/O but the reads.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.weighted_sum import divide_half_even, factor_mean, small_weights
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import slots
from commonweal_adapters.files.source import Delta
from commonweal_adapters.rules.merge_error import Product, trained_products
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

MAX_RANK = 1024
"""The largest rank that a spec may have."""


def stack(spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta]) -> tuple[AdapterSpec, GridTensors]:
    """Return FLoRA's merge (Wang et al. 2024, arXiv 2409.05976): B = [B₁ … Bₖ], A = [k w₁A₁ / W; …; k wₖAₖ / W].

    With rank k · r and the same alpha, the scaling alpha / (k r) of the sum makes it the mean of the products. With
    equal weights that is exact; else A is rounded to the grid once, half to even. Weights whose sum, without what they
    have in common, is more than 2^25 count in millionths.

    Args:
        spec: The shape of start and deltas.
        start: The adapter from which all trained.
        deltas: At least one. Memory holds the result, k times a start.

    Raises:
        BlobError: A rank beyond ``MAX_RANK``, rsLoRA's scaling, or a value out of range.
    """
    return _stacked(spec, len(deltas), lambda slot_terms, _: slot_terms, start, deltas)


def exact_residual(
    spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta]
) -> tuple[GridTensors, AdapterSpec, GridTensors]:
    """Return FedEx-LoRA's merge (Singhal et al. 2024, arXiv 2410.09432): the factor mean B̄, Ā, and what it misses.

    The residual mean(Bᵢ Aᵢ) - B̄ Ā = Σ wᵢ (Bᵢ - B̄)(Aᵢ - Ā) / W is an adapter of rank k · r beside the mean, to be added
    to it or to the base model. Together they are the exact merge, but for the rounding of B̄ and Ā.

    Args:
        spec: The shape of start and deltas.
        start: The adapter from which all trained.
        deltas: At least one. Memory holds the result, k + 1 times a start.

    Returns:
        The mean; and the residual's spec and tensors.

    Raises:
        BlobError: A rank beyond ``MAX_RANK``, rsLoRA's scaling, or a value out of range.
    """
    mean = factor_mean(start, deltas)
    spec_of, residual = _stacked(
        spec,
        len(deltas),
        lambda terms, names: [
            Product(t.coefficient, t.b_rows - mean[names[1]].T, t.a_rows - mean[names[0]]) for t in terms
        ],
        start,
        deltas,
    )
    return mean, spec_of, residual


def _stacked(
    spec: AdapterSpec,
    count: int,
    factors: Callable[[list[Product], tuple[str, str]], list[Product]],
    start: GridTensors,
    deltas: Sequence[Delta],
) -> tuple[AdapterSpec, GridTensors]:
    """Lay what ``factors`` makes of each layer's trained products side by side; A takes the weights."""
    rank = count * spec.rank
    if not 1 <= rank <= MAX_RANK:
        raise BlobError(f"stack: wanted a rank of 1 to {MAX_RANK}, got {count} times {spec.rank}")
    if spec.scaling != "lora":
        # alpha / √(k r) is alpha / √r times 1 / √k: A would have to take √k, which no grid has.
        raise BlobError(
            f"stack: wanted the scaling lora, got {spec.scaling}, which is not exact at {count} times the rank"
        )
    weights = small_weights([d.weight for d in deltas])
    out: dict[str, NDArray[np.int32]] = {}
    for slot in slots(spec):
        terms = factors(trained_products(start, deltas, slot), (slot.name_a, slot.name_b))
        # 2^10 · 2^25 · 2^26 < 2^63.
        weighted = [
            divide_half_even(t.a_rows.astype(np.int64) * (count * w), sum(weights))
            for t, w in zip(terms, weights, strict=True)
        ]
        out[slot.name_a] = _held(slot.name_a, np.concatenate(weighted))
        out[slot.name_b] = _held(slot.name_b, np.concatenate([t.b_rows for t in terms]).T)
    return spec.model_copy(update={"rank": rank}), GridTensors(out)


def _held(name: str, values: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int32]:
    if values.min() < -LIMIT or values.max() > LIMIT:
        raise BlobError(f"merge: tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {np.abs(values).max()}")
    return np.ascontiguousarray(values, np.int32)
