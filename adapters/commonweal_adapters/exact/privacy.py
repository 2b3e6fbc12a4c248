"""An institution's own protection: its delta clipped to a norm, then noised, on the grid and before it leaves.

    clipped = d · min(1, C / ‖d‖)      each element towards 0
    private = saturate( clipped + N )  N discrete Gaussian with parameter σ, one sample an element

The norm is exact and the clip is integer arithmetic, so ‖clipped‖ ≤ C holds and is no matter of rounding. Elements
saturate at ±2^24 after the noise; that looks at nothing but the noised value and costs no privacy. What a round costs,
and who is protected from what, is in ``commonweal_protocols.statements.privacy_budget``. Randomness comes through
the caller; no I/O.
"""

import math

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.discrete_gaussian import Source, discrete_gaussian
from commonweal_adapters.exact.gram import gram
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Held
from commonweal_protocols.statements.privacy_budget import PrivacyTerms

_FRACTION_BITS = 38


def squared_norm(grid: GridTensors) -> int:
    """Return the sum of all squares, exact: ‖d‖² in squared grid steps.

    Args:
        grid: Every integer in ±``LIMIT``.
    """
    return gram(grid, [Held(grid)])[0][0]


def clip(delta: GridTensors, clip_steps: int) -> GridTensors:
    """Return the delta itself if its L2 norm is at most ``clip_steps`` grid steps, and else one scaled down to that.

    Each |q| becomes ⌊|q| · f⌋ with f = C / ‖d‖ rounded down to 38 binary places: the norm cannot be more than C.
    """
    squared = squared_norm(delta)
    if squared <= clip_steps**2:
        return delta
    # ⌊ 2^38 · C / ‖d‖ ⌋ < 2^38, and |q| ≤ 2^24: int64 holds the product.
    factor = math.isqrt((clip_steps**2 << 2 * _FRACTION_BITS) // squared)
    scaled: dict[str, NDArray[np.int32]] = {}
    for name, q in delta.items():
        size = np.abs(q.astype(np.int64)) * factor >> _FRACTION_BITS
        scaled[name] = (np.sign(q) * size).astype(np.int32)
    return GridTensors(scaled)


def privatise(delta: GridTensors, terms: PrivacyTerms, source: Source) -> GridTensors:
    """Return what an institution may show of a delta under the compact's terms: a delta again.

    Args:
        delta: Every integer in ±``LIMIT``.
        terms: The compact's; whether their budget still allows it is for the caller to ask.
        source: Uniform random bytes that nobody else knows: ``secrets.token_bytes``. They are used once: two deltas
            under the same noise show their difference.
    """
    clipped = clip(delta, terms.clip_steps)
    noised: dict[str, NDArray[np.int32]] = {}
    for name, q in clipped.items():
        value = discrete_gaussian(terms.sigma_steps, q.size, source).reshape(q.shape)
        value += q
        noised[name] = np.clip(value, -LIMIT, LIMIT).astype(np.int32)
    return GridTensors(noised)
