"""How much each institution counts in a merge, from what its updates say: pure, in integers, in the order given.

The fold and every auditor call the same function, so a release's weights are checked and not believed. Weights matter
only by their ratios; each is between 1 and 10^9.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from commonweal_protocols.statements.rules import Capped, MinimaxFair, Weights

_MOST = 10**9
_MICROS = 10**6
_FRACTION_BITS = 64


class Voice(NamedTuple):
    """What one institution's logged updates say that a weight may rest on."""

    num_examples: int
    """1 to 10^9, its own word."""
    losses_micronats: tuple[int, ...]
    """Its community's held-out loss at the start of each round that counts, this one's among them."""


def weigh(weights: Weights, voices: Sequence[Voice]) -> tuple[int, ...]:
    """Return each institution's weight, 1 to 10^9.

    Args:
        weights: The compact's choice.
        voices: One for each update that enters the merge; at least one.
    """
    if isinstance(weights, Capped):
        return _capped([v.num_examples for v in voices], weights.cap_millis)
    if isinstance(weights, MinimaxFair):
        return _minimax_fair([sum(v.losses_micronats) for v in voices], weights)
    return tuple(1 if weights == "equal" else v.num_examples for v in voices)


def _capped(examples: Sequence[int], cap_millis: int) -> tuple[int, ...]:
    """Return min(nᵢ, L), where a level between two small counts is as fine as weights up to 10^9 allow."""
    if cap_millis * len(examples) < 1000:
        return (1,) * len(examples)
    # Once to learn the level in 10^-9 of an example, and again in the unit in which it comes to 10^9.
    scale = _MOST**2 // _level([n * _MOST for n in examples], cap_millis)
    scaled = [n * scale for n in examples]
    level = _level(scaled, cap_millis)
    capped = [min(n, level) for n in scaled]
    common = math.gcd(*capped)
    return tuple(n // common for n in capped)


def _level(parts: Sequence[int], cap_millis: int) -> int:
    """Water-filling: the largest L, up to the largest part, at which 1000 L ≤ cap · Σ min(partᵢ, L)."""
    # cap · Σ min(partᵢ, L) - 1000 L is concave in L, 0 at 0, and not negative at the least part: it holds up to one L.
    low, high = min(parts), max(parts)
    while low < high:
        level = (low + high + 1) // 2
        if 1000 * level <= cap_millis * sum(min(n, level) for n in parts):
            low = level
        else:
            high = level - 1
    return low


def _minimax_fair(losses_micronats: Sequence[int], rule: MinimaxFair) -> tuple[int, ...]:
    least = min(losses_micronats)
    most = rule.most_millis * (_MICROS // 1000)
    # ln(most) is below 5, so nothing above can count; and the series below is short.
    exponents = (min(rule.eta_millis * (loss - least) // 1000, 5 * _MICROS) for loss in losses_micronats)
    return tuple(min(_exp_micros(x), most) for x in exponents)


def _exp_micros(micros: int) -> int:
    """⌊10^6 · exp(x)⌋ for x in millionths, 0 to 5: the series in 64-bit fixed point, each term cut off."""
    x = (micros << _FRACTION_BITS) // _MICROS
    term = total = 1 << _FRACTION_BITS
    n = 0
    while term:
        n += 1
        term = (term * x >> _FRACTION_BITS) // n
        total += term
    return (total * _MICROS) >> _FRACTION_BITS
