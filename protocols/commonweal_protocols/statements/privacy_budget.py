"""What noise is agreed on, what a round of it costs, and whether a budget allows one more. Integers; no numpy, no I/O.

*Who is protected.* An institution clips its delta to an L2 norm of C grid steps and adds discrete Gaussian noise of
parameter σ grid steps to every element, before anybody sees it. Any two deltas that it could have sent differ by at
most Δ = 2C, so one update costs, by Canonne, Kamath and Steinke (2020, arXiv 2004.00010, theorem 14),

    ρ = Δ² / (2 σ²) = 2 C² / σ²      zero-concentrated differential privacy (Bun and Steinke 2016, arXiv 1605.02635)

against everybody, coordinator and members included. What holds for the whole of an institution's rows holds for each
person in them. Over rounds the ρ of one institution add up; those of different institutions do not, since each spends
on its own rows. Costs are whole micro-ρ (1e-6), each rounded up.

*Not claimed.* No amplification: neither by sampling rows (the cohort and its rows are known), nor by shuffling
(updates are signed), nor by secure aggregation (members might collude). That an institution really added noise cannot
be seen from outside: the budget protects those who keep to it. What was published before a compact had privacy terms
is not counted and not protected.
"""

import math
from collections.abc import Collection, Iterable
from typing import Annotated

from pydantic import Field

from commonweal_protocols.base.schema import Closed

MICRO = 10**6


class PrivacyTerms(Closed):
    """A compact's clip, noise and budget. Steps are those of the compact's grid: 2^-grid_bits each.

    ``clip_steps``: C, the largest L2 norm of a delta over all its tensors. ``sigma_steps``: σ. ``budget_micro_rho``:
    how much an institution may spend in all rounds together.
    """

    clip_steps: Annotated[int, Field(ge=1, le=1 << 40)]
    sigma_steps: Annotated[int, Field(ge=1, le=1 << 24)]
    budget_micro_rho: Annotated[int, Field(ge=1, le=10**12)]


def cost_micro_rho(terms: PrivacyTerms) -> int:
    """What one update costs its author, in micro-ρ, rounded up."""
    return -(-2 * MICRO * terms.clip_steps**2 // terms.sigma_steps**2)


def spent_micro_rho(institution: str, rounds: Iterable[tuple[PrivacyTerms | None, Collection[str]]]) -> int:
    """What an institution has spent so far.

    Args:
        institution: Its name.
        rounds: Each round's terms (None: it had none, and is not counted), and who has an update of it in the log. One
            that was rejected, or whose round was closed without a release, has been seen and counts.
    """
    return sum(cost_micro_rho(terms) for terms, updates in rounds if terms is not None and institution in updates)


def allows(terms: PrivacyTerms, spent: int) -> bool:
    """Whether one more update under ``terms`` stays within their budget, for one who has spent ``spent`` micro-ρ."""
    return spent + cost_micro_rho(terms) <= terms.budget_micro_rho


def epsilon(micro_rho: int, delta: float) -> float:
    """Return an ε such that micro-ρ of zCDP is (ε, δ)-differential privacy. For people to read: floating point.

    Canonne, Kamath and Steinke (2020), proposition 12 with zCDP's Rényi bound αρ, minimised over α > 1 to about 1e-6:

        ε = α ρ + ( ln(1/δ) + (α - 1) ln(1 - 1/α) - ln α ) / (α - 1)

    Every α gives a true bound, so a minimum that is found only nearly is true too, and at most slightly too large.

    Args:
        micro_rho: What was spent; 0 gives 0.
        delta: 0 < δ < 1; below 1 / (number of people) to mean anything.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta: wanted a number between 0 and 1, got {delta}")
    if not micro_rho:
        return 0.0
    rho = micro_rho / MICRO

    def bound(log_order: float) -> float:
        excess = math.exp(log_order)  # α - 1
        order = 1 + excess
        inner = math.log(1 / delta) - excess * math.log1p(1 / excess) - math.log(order)
        return order * rho + inner / excess

    # The bound falls, then rises; thirds of a range that no sensible ρ and δ leave.
    low, high = -14.0, 28.0
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if bound(left) < bound(right):
            high = right
        else:
            low = left
    return max(0.0, bound(low))
