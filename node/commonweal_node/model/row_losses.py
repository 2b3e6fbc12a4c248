"""Losses row by row, and how two adapters compare on the same rows. Pure; numpy only.

Guarantees: the same losses give the same interval on every machine: the resamples come from a fixed seed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_SEED = 20240229


@dataclass(frozen=True, slots=True, eq=False)
class RowLosses:
    """What each row costs under one adapter.

    Attributes:
        nats: (n,) float64, summed over the row's supervised tokens.
        tokens: (n,) int64, how many those are.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Nats for each supervised token, over all rows."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def micronats(self) -> int:
        """The mean as an entry has it."""
        return round(self.mean * 1_000_000)


@dataclass(frozen=True, slots=True)
class Gap:
    """One adapter's mean loss minus another's, in nats for each token; ``low`` to ``high`` is the 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def micros(self) -> tuple[int, int, int]:
        """Mean, low and high in micronats."""
        return round(self.mean * 1e6), round(self.low * 1e6), round(self.high * 1e6)

    @property
    def is_better(self) -> bool:
        """Whether the first is better, beyond what the choice of rows explains."""
        return self.high < 0


def gap(a: RowLosses, b: RowLosses) -> Gap:
    """Compare ``a`` with ``b`` on the same rows, in the same order: a paired percentile bootstrap over rows.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises:
        ValueError: They are not of the same rows.
    """
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("gap: wanted losses of the same rows")
    drawn = np.random.default_rng(_SEED).integers(0, len(a.tokens), (_RESAMPLES, len(a.tokens)))
    means = (a.nats - b.nats)[drawn].sum(axis=1) / a.tokens[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Gap(a.mean - b.mean, float(low), float(high))
