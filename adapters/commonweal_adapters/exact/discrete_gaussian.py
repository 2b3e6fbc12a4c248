"""Exact samples of the discrete Gaussian, in integers only: no float decides anything.

    P(x) ∝ exp(-x² / (2σ²))      over all integers x

by rejection from a discrete Laplace, as Canonne, Kamath and Steinke do it (2020, arXiv 2004.00010, algorithms 1 to 3),
a whole array at a time. Naive rounding of a float's Gaussian leaks through the floats' gaps (Mironov 2012); here every
probability is a fraction of whole numbers, and every coin is thrown with it exactly.

Where the paper throws a coin of probability exp(-a²/2b²), the fraction would not fit into 64 bits. With a = i b + r,

    exp(-a²/2b²) = exp(-1/2)^(i²) · exp(-r/b)^i · exp(-r²/2b²)

and each factor is thrown on its own. Randomness comes through the caller; nothing here takes the same time for every
outcome, so the sampler does not hide its results from who can time it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Source = Callable[[int], bytes]
"""Returns so many random bytes: ``secrets.token_bytes``, but for tests."""

MAX_SIGMA = 1 << 24
_U64 = 1 << 64
_BATCH = 1 << 16
"""Elements sampled at a time: the arrays in between stay small."""


def discrete_gaussian(sigma: int, count: int, source: Source) -> NDArray[np.int64]:
    """Return independent samples; int64, (count,).

    Args:
        sigma: σ, 1 to ``MAX_SIGMA``. The variance is σ² but for less than one part in 10^7 (Canonne et al., fact 17).
        count: How many.
        source: Uniform random bytes.
    """
    if not 1 <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma: wanted 1 to {MAX_SIGMA}, got {sigma}")
    out = np.empty(count, np.int64)
    for at in range(0, count, _BATCH):
        part = out[at : at + _BATCH]
        left = np.arange(part.size)
        while left.size:
            drawn = _laplace(sigma + 1, left.size, source)
            taken = _accept(np.abs(drawn), sigma, source)
            part[left[taken]] = drawn[taken]
            left = left[~taken]
    return out


def _accept(size: NDArray[np.int64], sigma: int, source: Source) -> NDArray[np.bool_]:
    """Coins of probability exp(-(|y| - σ²/t)² / (2σ²)) with t = σ + 1."""
    # |y| t - σ² over σ t. A Laplace sample beyond 2^37, t = 2^13 scales, comes with probability e^-8192: it would wrap.
    b = sigma * (sigma + 1)
    a = np.abs(size * (sigma + 1) - sigma * sigma)
    whole, rest = a // b, a % b
    taken = np.ones(size.size, np.bool_)
    for power in range(int(whole.max(initial=0)) ** 2):
        alive = np.flatnonzero(taken & (whole * whole > power))
        taken[alive] = _exp_coin(np.ones(alive.size, np.int64), 2, source)
    for power in range(int(whole.max(initial=0))):
        alive = np.flatnonzero(taken & (whole > power))
        taken[alive] = _exp_coin(rest[alive], b, source)
    alive = np.flatnonzero(taken)
    taken[alive] = _exp_coin(rest[alive], b, source, halved_square=True)
    return taken


def _laplace(t: int, count: int, source: Source) -> NDArray[np.int64]:
    """Samples with P(x) ∝ exp(-|x| / t): algorithm 2."""
    out = np.empty(count, np.int64)
    left = np.arange(count)
    while left.size:
        low = _uniform(t, left.size, source)
        kept = np.flatnonzero(_exp_coin(low, t, source))
        value = low[kept] + t * _geometric(kept.size, source)
        negative = _uniform(2, kept.size, source) == 1
        # Else 0 would come twice as often.
        good = ~(negative & (value == 0))
        out[left[kept[good]]] = np.where(negative, -value, value)[good]
        again = np.ones(left.size, np.bool_)
        again[kept[good]] = False
        left = left[again]
    return out


def _geometric(count: int, source: Source) -> NDArray[np.int64]:
    """How often a coin of probability exp(-1) falls on its head before it first does not."""
    out = np.zeros(count, np.int64)
    alive = np.arange(count)
    while alive.size:
        alive = alive[_exp_coin(np.ones(alive.size, np.int64), 1, source)]
        out[alive] += 1
    return out


def _exp_coin(
    numerator: NDArray[np.int64], denominator: int, source: Source, *, halved_square: bool = False
) -> NDArray[np.bool_]:
    """Coins of probability exp(-γ): algorithm 1, for 0 ≤ γ ≤ 1.

    γ is x = numerator / denominator ≤ 1, or x²/2 where ``halved_square``. The k-th coin of the algorithm has
    probability γ/k, and is thrown as one of x (for x²/2: two of x and one of 1/2) and one of 1/k: all have to fall
    on their heads.
    """
    out = np.zeros(numerator.size, np.bool_)
    alive = np.arange(numerator.size)
    k = 1
    while alive.size:
        odds = numerator[alive]
        head = _uniform(denominator, alive.size, source) < odds
        if halved_square:
            head &= _uniform(denominator, alive.size, source) < odds
        divisor = 2 * k if halved_square else k
        if divisor > 1:
            head &= _uniform(divisor, alive.size, source) == 0
        # Who falls at an odd k has won.
        if k % 2:
            out[alive[~head]] = True
        alive = alive[head]
        k += 1
    return out


def _uniform(below: int, count: int, source: Source) -> NDArray[np.int64]:
    """Integers in [0, below), each exactly as likely: words from the uneven end are thrown away. below ≤ 2^62."""
    if below == 1:
        return np.zeros(count, np.int64)
    last = np.uint64(_U64 - _U64 % below - 1)
    words = np.frombuffer(source(8 * count), "<u8").copy()
    while (odd := np.flatnonzero(words > last)).size:
        words[odd] = np.frombuffer(source(8 * odd.size), "<u8")
    return (words % np.uint64(below)).astype(np.int64)
