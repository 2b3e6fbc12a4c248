"""Matrix products of integers in float64, exact as long as every sum of sizes stays below 2^53.

They go to BLAS in tiles, each too small for it to hand to threads of its own. Our callers have threads; and BLAS's
wait for one another at full speed, so that beside any other program they take longer than one alone.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEAST_SIDE = 16
_TILE = 1 << 18
"""OpenBLAS computes a product of up to 4 · 65,536 multiplications in the thread that asked for it."""


def integer_product(a: Floats, b: Floats) -> Floats:
    """Return a @ b.

    Args:
        a: Integers, (…, m, n).
        b: Integers, (…, n, p); Σ |a| |b| over n stays below 2^53.
    """
    out = np.zeros((*a.shape[:-1], b.shape[-1]))
    depth = a.shape[-1]
    high = min(a.shape[-2], _side(depth))
    wide = max(_LEAST_SIDE, _TILE // (high * depth))
    for i in range(0, a.shape[-2], high):
        rows = slice(i, i + high)
        for j in range(0, b.shape[-1], wide):
            columns = slice(j, j + wide)
            _add_tile(out[..., rows, columns], a[..., rows, :], b[..., :, columns])
    return out


def integer_gram(x: Floats) -> Floats:
    """Return x @ xᵀ, at half the cost.

    Args:
        x: Integers, (m, n); Σ x² over n stays below 2^53.
    """
    out = np.zeros((len(x), len(x)))
    side = _side(x.shape[1])
    for i in range(0, len(x), side):
        for j in range(i, len(x), side):
            tile = out[i : i + side, j : j + side]
            _add_tile(tile, x[i : i + side], x[j : j + side].T)
            out[j : j + side, i : i + side] = tile.T
    return out


def _side(depth: int) -> int:
    """How many rows and columns a tile has: as many as the whole depth allows, and never few."""
    return max(_LEAST_SIDE, math.isqrt(_TILE // depth))


def _add_tile(out: Floats, a: Floats, b: Floats) -> None:
    depth = _TILE // (a.shape[-2] * b.shape[-1])
    for k in range(0, a.shape[-1], depth):
        out += a[..., k : k + depth] @ b[..., k : k + depth, :]
