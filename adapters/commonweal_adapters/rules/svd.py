"""The best adapter of the spec's rank for the exact merge of products, ΔW = Σ wᵢ Bᵢ Aᵢ / W: the rule ``svd``.

Stacked, ΔW = L R with L = [B₁ … Bₖ] (out, n) and R = [w₁A₁ / W; …] (n, in), n = k · rank. Left singular vectors are
u = L x, and ΔW ΔWᵀ L x = L G_R G_L x with the exact n × n inner products G_L = LᵀL, G_R = R Rᵀ. So the search for the
leading r takes place among n numbers, however wide the layers are:

    X ← random integers (n, q), q = min(n, 2r)            from SHAKE-256, so that nothing depends on a generator
    12 times: X ← G_R G_L X, columns orthonormal in G_L   subspace iteration (Halko, Martinsson and Tropp 2011)
    Y = (G_L X)ᵀ, T = Y G_R Yᵀ = Q Λ Qᵀ                   Rayleigh-Ritz, by Jacobi
    B = L X Q Λ^¼, A = Λ^-¼ Qᵀ Y R                         the first r, then one rounding to the grid

The error is the best possible where n ≤ 2r, and near it elsewhere; what it came to is in the stated error. Each
singular pair's sign makes the largest entry of its column of B positive, the first of equals. Where ΔW has a lesser
rank than r, the columns of B that are left are 0 and the rows of A are the start's: they change no product, and can
still be trained. Floats come from ``spectral`` only, where their bytes are the same everywhere.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import factor_gram
from commonweal_adapters.exact.spectral import Stack, eigen, fixed_matmul, orthonormal
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import Slot, slots
from commonweal_adapters.files.source import Delta, for_each
from commonweal_adapters.rules.merge_error import Product, trained_products
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

_ITERATIONS = 12
_DOMAIN = b"urn:commonweal:svd:v1"
_BATCH_ELEMENTS = 1 << 21
"""Matrices of one batch together: part of nothing but memory, as each is computed by itself."""
_DEAD = 2.0**-44
"""A squared singular value below this part of the largest is lost in float64."""


def svd_merge(
    spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta], *, threads: int | None = None
) -> GridTensors:
    """Return the adapter of the spec's rank that is nearest to the exact merge.

    Args:
        spec: The consortium's one shape.
        start: The adapter from which all trained.
        deltas: With the weights of the merge. Memory holds, for each thread, the layers of a batch of each delta, and
            3 n² numbers for each layer in it.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: A value or a result is out of range.
    """
    out: dict[str, NDArray[np.int32]] = {}

    def work(batch: Sequence[Slot]) -> None:
        for slot, (b, a) in zip(batch, _merge_batch(spec.rank, start, deltas, batch), strict=True):
            out[slot.name_a], out[slot.name_b] = _on_grid(slot.name_a, a), _on_grid(slot.name_b, b)

    for_each(work, _batches(spec, len(deltas) * spec.rank), threads)
    return GridTensors({name: out[name] for name in start.values})


def _batches(spec: AdapterSpec, n: int) -> list[list[Slot]]:
    """Layers of one shape, as many together as memory allows."""
    by_shape: dict[tuple[int, int], list[Slot]] = {}
    for slot in slots(spec):
        by_shape.setdefault((slot.in_features, slot.out_features), []).append(slot)
    batches = []
    for (wide, high), same in by_shape.items():
        size = max(1, _BATCH_ELEMENTS // (n * (n + wide + high)))
        batches += [same[i : i + size] for i in range(0, len(same), size)]
    return batches


def _merge_batch(
    rank: int, start: GridTensors, deltas: Sequence[Delta], batch: Sequence[Slot]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return B and A in grid steps, not yet rounded, for each layer of a batch."""
    layers = [trained_products(start, deltas, slot) for slot in batch]
    left = np.stack([np.concatenate([t.b_rows for t in terms]) for terms in layers])
    right = np.stack([np.concatenate([t.a_rows for t in terms]) for terms in layers])
    weight = _row_weights(layers[0])
    metric_l = np.stack([factor_gram(b).floats() for b in left])
    metric_r = np.stack([factor_gram(a).floats() for a in right]) * weight[:, None] * weight
    x = _subspace(metric_l, metric_r, rank)
    y = fixed_matmul(metric_l, x).transpose(0, 2, 1).copy()
    ritz = fixed_matmul(y, fixed_matmul(metric_r, y.transpose(0, 2, 1).copy()))
    values, vectors = eigen((ritz + ritz.transpose(0, 2, 1)) / 2.0)
    values, vectors = values[:, :rank], vectors[:, :, :rank].copy()
    alive = values > np.maximum(values[:, :1], 0.0) * _DEAD
    quarter = np.sqrt(np.sqrt(np.where(alive, values, 1.0)))
    b = fixed_matmul(left.transpose(0, 2, 1).astype(np.float64), fixed_matmul(x, vectors) * quarter[:, None, :])
    a = fixed_matmul(
        fixed_matmul(vectors.transpose(0, 2, 1).copy(), y) / quarter[:, :, None] * weight, right.astype(np.float64)
    )
    made = []
    for i, slot in enumerate(batch):
        sign = _signs(b[i])
        full_b = np.zeros((slot.out_features, rank))
        full_a = start[slot.name_a].astype(np.float64)
        live = np.flatnonzero(alive[i])
        full_b[:, live] = b[i][:, live] * sign[live]
        full_a[live] = a[i][live] * sign[live, None]
        made.append((full_b, full_a))
    return made


def _row_weights(terms: Sequence[Product]) -> NDArray[np.float64]:
    """wᵢ / W for each row of R, correctly rounded."""
    total = sum(t.coefficient for t in terms)
    return np.concatenate([np.full(len(t.a_rows), t.coefficient / total) for t in terms])


def _subspace(metric_l: Stack, metric_r: Stack, rank: int) -> Stack:
    """Return columns, orthonormal in G_L, that span nearly the leading left singular vectors."""
    layers, n, _ = metric_l.shape
    q = min(n, 2 * rank)
    # 32-bit integers, so that no few columns are alike by chance, as signs alone would be where n is small.
    stream = np.frombuffer(hashlib.shake_256(_DOMAIN).digest(4 * n * q), "<i4").astype(np.float64).reshape(n, q)
    x = orthonormal(np.repeat(stream[None], layers, axis=0), metric_l)
    for _ in range(_ITERATIONS):
        x = orthonormal(fixed_matmul(metric_r, fixed_matmul(metric_l, x)), metric_l)
    return orthonormal(x, metric_l)


def _signs(b: NDArray[np.float64]) -> NDArray[np.float64]:
    """What makes the first largest entry of each column positive: +1 or -1 for each column."""
    largest = b[np.argmax(np.abs(b), axis=0), range(b.shape[1])]
    return np.where(largest < 0, -1.0, 1.0)


def _on_grid(name: str, values: NDArray[np.float64]) -> NDArray[np.int32]:
    rounded = np.rint(values)
    if rounded.min() < -LIMIT or rounded.max() > LIMIT:
        raise BlobError(
            f"merge: tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {np.abs(rounded).max():.0f}"
        )
    return rounded.astype(np.int32)
