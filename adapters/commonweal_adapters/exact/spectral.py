"""Linear algebra in float64 whose bytes are the same everywhere: products, orthonormal columns, eigenvalues.

Addition, subtraction, multiplication, division and square root are correctly rounded by IEEE 754, so elementwise
arithmetic in a written order gives the same bits on any machine. What differs between machines is the order of sums
and fused multiply-adds inside a matrix product. :func:`fixed_matmul` therefore rounds its operands to 51 bits and cuts
them into limbs of 17, so that every product and partial sum in BLAS is an integer below 2^53 and exact in any order.
Nothing here calls LAPACK. Arrays are stacks of matrices; each matrix is computed without regard to its neighbours.
"""

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.blas import integer_product

Stack = NDArray[np.float64]
"""float64 (matrices, rows, columns)."""

_LIMB_BITS = 17
_LIMB = 2.0**_LIMB_BITS
_SWEEPS = 12
"""Jacobi converges quadratically: for 64 columns, 8 sweeps reach the last bit."""
_DEPENDENT = 1e-12


def fixed_matmul(left: Stack, right: Stack) -> Stack:
    """Return the products left @ right, to about 2^-51 of the largest entries' product.

    Args:
        left: (s, m, n) with n at most 2^19, finite.
        right: (s, n, p), finite.
    """
    a, scale_a = _limbs(left)
    b, scale_b = _limbs(right)
    # What is left out is below 2^-51 of the largest: (1, 2), (2, 1) and (2, 2).
    low = integer_product(a[0], b[2]) + integer_product(a[1], b[1]) + integer_product(a[2], b[0])
    middle = integer_product(a[0], b[1]) + integer_product(a[1], b[0])
    total = integer_product(a[0], b[0]) + middle / _LIMB + low / (_LIMB * _LIMB)
    return np.asarray(total * scale_a * scale_b)


def _limbs(x: Stack) -> tuple[list[Stack], Stack]:
    """Return limbs with x = scale · (limb₀ + limb₁ / 2^17 + limb₂ / 2^34), integers in ±2^17; and the scale."""
    _, exponent = np.frexp(np.abs(x).max(axis=(1, 2), keepdims=True))
    # |x| < 2^exponent: a power of two changes no digit.
    rest = np.ldexp(x, _LIMB_BITS - exponent)
    limbs = []
    for last in (False, False, True):
        limb = np.rint(rest) if last else np.floor(rest)
        limbs.append(limb)
        rest = (rest - limb) * _LIMB
    return limbs, np.ldexp(np.ones_like(exponent, np.float64), exponent - _LIMB_BITS)


def orthonormal(x: Stack, metric: Stack) -> Stack:
    """Return columns of the same span with Xᵀ G X = 1; a column that depends on those before it becomes 0.

    Gram-Schmidt, steered by the Gram matrix of the columns. Where columns are nearly dependent, once loses digits, and
    a second time makes them good.

    Args:
        x: (s, n, q).
        metric: G, (s, n, n), symmetric and not negative.
    """
    x = x.copy()
    inner = fixed_matmul(x.transpose(0, 2, 1).copy(), fixed_matmul(metric, x))
    first = np.einsum("sii->si", inner).copy()
    for j in range(x.shape[2]):
        pivot = inner[:, j, j]
        good = pivot > _DEPENDENT * first[:, j]
        factor = np.where(good, 1.0 / np.sqrt(np.where(good, pivot, 1.0)), 0.0)
        x[:, :, j] *= factor[:, None]
        along = inner[:, j, j + 1 :] * factor[:, None]
        x[:, :, j + 1 :] -= x[:, :, j, None] * along[:, None, :]
        inner[:, j + 1 :, j + 1 :] -= along[:, :, None] * along[:, None, :]
    return x


def eigen(symmetric: Stack) -> tuple[NDArray[np.float64], Stack]:
    """Return eigenvalues, largest first, and eigenvectors in columns, of symmetric matrices.

    Cyclic Jacobi in round-robin order (Brent and Luk 1985): q - 1 rounds of q / 2 rotations that touch no row or
    column in common, a fixed number of sweeps. Equal eigenvalues keep the order in which they were found.

    Args:
        symmetric: (s, q, q).
    """
    q = symmetric.shape[1]
    even = q + q % 2
    t = np.zeros((len(symmetric), even, even))
    t[:, :q, :q] = symmetric
    vectors = np.zeros_like(t)
    vectors[:, range(even), range(even)] = 1.0
    for _ in range(_SWEEPS):
        for first, second in _rounds(even):
            _rotate(t, vectors, first, second)
    values = t[:, range(q), range(q)]
    # A padding row and column stay 0 throughout, so it never mixes with the others.
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    return values, np.take_along_axis(vectors[:, :q, :q], order[:, None, :], axis=2)


def _rounds(q: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The circle method: each pair of an even number of players meets once in q - 1 rounds."""
    circle = list(range(q))
    rounds = []
    for _ in range(q - 1):
        pairs = [sorted((circle[i], circle[q - 1 - i])) for i in range(q // 2)]
        rounds.append((np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def _rotate(t: Stack, vectors: Stack, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Make the entries between disjoint pairs 0, by rotations of rows and columns; in place."""
    off = t[:, first, second]
    some = off != 0
    with np.errstate(over="ignore"):
        # An infinite tau is an angle of 0.
        tau = (t[:, second, second] - t[:, first, first]) / np.where(some, 2.0 * off, 1.0)
        tangent = np.where(tau >= 0, 1.0, -1.0) / (np.abs(tau) + np.sqrt(1.0 + tau * tau))
    tangent = np.where(some, tangent, 0.0)
    cosine = 1.0 / np.sqrt(1.0 + tangent * tangent)
    sine = tangent * cosine
    for matrix in (t, vectors):
        x, y = matrix[:, :, first], matrix[:, :, second]
        matrix[:, :, first] = cosine[:, None, :] * x - sine[:, None, :] * y
        matrix[:, :, second] = sine[:, None, :] * x + cosine[:, None, :] * y
    x, y = t[:, first, :], t[:, second, :]
    t[:, first, :] = cosine[:, :, None] * x - sine[:, :, None] * y
    t[:, second, :] = sine[:, :, None] * x + cosine[:, :, None] * y
