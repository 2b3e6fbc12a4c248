"""How far a merged adapter is from the exact merge of the products, exact itself.

    error = ‖B A - Σ wᵢ Bᵢ Aᵢ / W‖ / ‖Σ wᵢ Bᵢ Aᵢ / W‖

in the Frobenius norm over all layers, with Bᵢ, Aᵢ the whole trained factors, start + delta. Products are never made:
with one list of factors and coefficients eᵢ,

    ‖Σᵢ eᵢ Bᵢ Aᵢ‖² = Σᵢⱼ eᵢ eⱼ tr( (Bⱼᵀ Bᵢ)(Aᵢ Aⱼᵀ) )

which needs only inner products between columns of B and between rows of A. All in integers until the last root.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import DIGIT_BITS, factor_gram
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import Slot, slots
from commonweal_adapters.files.source import Delta
from commonweal_protocols.statements.compact import AdapterSpec

ONE = Fraction(1)


class Product(NamedTuple):
    """One term e · B A of a sum of products."""

    coefficient: int
    b_rows: NDArray[np.int32]
    """B transposed: (rank, out_features), in ±2^25."""
    a_rows: NDArray[np.int32]
    """A: (rank, in_features), in ±2^25."""


def trained_products(start: GridTensors, deltas: Sequence[Delta], slot: Slot) -> list[Product]:
    """Return wᵢ Bᵢ Aᵢ of one layer for each delta, with the whole factors that were trained."""
    return [
        Product(
            d.weight,
            np.ascontiguousarray(_trained(start, d, slot.name_b).T),
            _trained(start, d, slot.name_a),
        )
        for d in deltas
    ]


def _trained(start: GridTensors, delta: Delta, name: str) -> NDArray[np.int32]:
    before = start[name]
    return before + delta.rows.read(name, 0, before.size).reshape(before.shape)


def inner_products(terms: Sequence[Product]) -> NDArray[np.object_]:
    """Return ⟨Bᵢ Aᵢ, Bⱼ Aⱼ⟩ for each two terms, without their coefficients: Python integers (terms, terms)."""
    begins = np.cumsum([0, *(len(t.a_rows) for t in terms[:-1])])
    of_b = factor_gram(np.concatenate([t.b_rows for t in terms])).digits()
    of_a = factor_gram(np.concatenate([t.a_rows for t in terms])).digits()
    total = np.zeros((len(terms), len(terms)), object)
    for i, b in enumerate(of_b):
        for j, a in enumerate(of_a):
            # 2^38 a product of digits, at most 2^20 of them in a block of two ranks.
            blocks = np.add.reduceat(np.add.reduceat(b * a, begins, axis=0), begins, axis=1)
            total += blocks.astype(object) * (1 << DIGIT_BITS * (i + j))
    return total


def squared_error(
    spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta], merged: GridTensors, scale: Fraction = ONE
) -> Fraction | None:
    """Return the square of the error of ``merged``, exact; None where the exact merge is 0 and ``merged`` is not.

    Args:
        spec: The shape of start and deltas.
        start: The adapter from which all trained.
        deltas: With the weights of the exact merge. Memory holds one layer of each.
        merged: The spec's layers, of any rank.
        scale: What the alpha / rank of ``merged`` is against the spec's: 1, unless its rank is another.

    Raises:
        BlobError: A delta's value is out of range.
    """
    weights = [scale.denominator * d.weight for d in deltas]
    coefficients = [scale.numerator * sum(d.weight for d in deltas), *(-w for w in weights)]
    off = exact = 0
    for slot in slots(spec):
        made = Product(0, np.ascontiguousarray(merged[slot.name_b].T), merged[slot.name_a])
        inner = inner_products([made, *trained_products(start, deltas, slot)])
        off += _quadratic(coefficients, inner)
        exact += _quadratic([0, *weights], inner)
    if exact == 0:
        return Fraction(0) if off == 0 else None
    return Fraction(off, exact)


def error_micros(squared: Fraction) -> int:
    """Return the error in millionths, rounded down: how it is published."""
    return math.isqrt(squared.numerator * 10**12 // squared.denominator)


def _quadratic(coefficients: Sequence[int], inner: NDArray[np.object_]) -> int:
    """Σᵢⱼ eᵢ eⱼ innerᵢⱼ."""
    e = np.array(coefficients, object)
    return int(e @ inner @ e)
