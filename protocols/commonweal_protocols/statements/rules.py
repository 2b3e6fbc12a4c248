"""The aggregation rules that a compact may name: one closed model of parameters for each, and how institutions weigh.

A rule is chosen by its ``name``; the arithmetic is in ``commonweal_adapters.rules.merge``, which turns a rule, a start
and the cohort's deltas into an adapter, byte for byte the same for everybody. In the formulas dᵢ is the delta of
institution i, wᵢ its weight, W = Σ wᵢ, n how many deltas there are, and ‖d‖ the L2 norm over all tensors of a delta.

All parameters are integers with their unit in the name: ``_millis`` 1e-3, ``_micros`` 1e-6; a norm in ``_micros`` is
in millionths of the unit in which an adapter's values are written. No I/O, no numbers but these.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from commonweal_protocols.base.schema import Closed

Share = Annotated[int, Field(ge=1, le=1000)]
"""A part of a whole, in thousandths."""
Scale = Annotated[int, Field(ge=1, le=10_000)]
"""A factor up to 10, in thousandths."""
Decay = Annotated[int, Field(ge=0, le=999)]
"""What an average keeps of its past in each round, in thousandths."""
NormMicros = Annotated[int, Field(ge=1, le=10**12)]
Hostile = Annotated[int, Field(ge=1, le=199)]
"""How many of the deltas may be anything at all; a rule with it wants more than twice as many."""


# -- how institutions weigh


class Capped(Closed):
    """By examples, with no institution above a share of the whole: wᵢ = min(examplesᵢ, L).

    L is the largest level at which L ≤ cap · Σ wᵢ (water-filling, from above). A cap below 1/n cannot be held by
    anybody: then all weigh the same.
    """

    name: Literal["capped"] = "capped"
    cap_millis: Share


class MinimaxFair(Closed):
    """The worse a community has fared under the shared adapter, the more it weighs: wᵢ ∝ min(exp(η · Σₜ lossᵢₜ), most).

    Multiplicative weights (Freund and Schapire 1997) as the player who looks for the worst community, which is the
    agnostic objective of Mohri, Sivek and Suresh (2019, arXiv 1902.00146). lossᵢₜ is the held-out loss in nats that
    institution i logged at the start of round t; exponents count from the least sum, so the least weight is 1, and
    nobody weighs more than ``most_millis`` / 1000.
    """

    name: Literal["minimax-fair"] = "minimax-fair"
    eta_millis: Annotated[int, Field(ge=1, le=100_000)]
    most_millis: Annotated[int, Field(ge=1000, le=100_000)]


Weights: TypeAlias = Literal["equal", "examples"] | Capped | MinimaxFair
"""``equal``: one institution, one vote. ``examples``: by the number of examples that each says it has."""


class Weighted(Closed):
    """What most rules share."""

    weights: Weights


# -- means of factors, and of products


class FactorMean(Weighted):
    """FedIT (Zhang et al. 2023, arXiv 2305.05644): A and B each become start + Σ wᵢ dᵢ / W."""

    name: Literal["factor-mean"] = "factor-mean"


class FrozenA(Weighted):
    """FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): ``factor-mean`` where nobody trains A, so B̄ A is the exact mean."""

    name: Literal["frozen-a"] = "frozen-a"


class ShareA(Weighted):
    """FedSA-LoRA (Guo et al. 2024, arXiv 2410.01463): A is averaged; each institution keeps its B to itself.

    Deltas hold zeros for B, and the release has the start's B.
    """

    name: Literal["share-a"] = "share-a"


class Svd(Weighted):
    """FlexLoRA (Bai et al. 2024, arXiv 2402.11505): the best adapter of the spec's rank for Σ wᵢ Bᵢ Aᵢ / W.

    Bᵢ and Aᵢ are whole factors, start + delta. Rows of A are in the order of the singular values, so an institution
    of a lesser rank r trains the first r rows of A and columns of B, and zeroes the rest: ranks may be mixed.
    """

    name: Literal["svd"] = "svd"


class TaskArithmetic(Weighted):
    """Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): start + scale · Σ wᵢ dᵢ / W."""

    name: Literal["task-arithmetic"] = "task-arithmetic"
    scale_millis: Scale


class Ties(Weighted):
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect a sign, average those who agree.

    Of each tensor of dᵢ, the ``density`` of largest values stays (with all that equal the least of them), the rest
    becomes 0. An element's sign is that of Σ wᵢ dᵢ; the result is start + scale · (Σ wᵢ dᵢ / Σ wᵢ over those of that
    sign), and the start alone where the sum is 0.
    """

    name: Literal["ties"] = "ties"
    density_millis: Share
    scale_millis: Scale = 1000


class Dare(Weighted):
    """DARE (Yu et al. 2024, arXiv 2311.03099): drop each element of each dᵢ with chance p, scale the rest by 1/(1 - p).

    Which ones is drawn by SHAKE-256 from the round's start, ``seed``, the institution's name and the tensor's name.
    """

    name: Literal["dare"] = "dare"
    drop_millis: Annotated[int, Field(ge=1, le=990)]
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0


# -- outer optimisers: Δ = Σ wᵢ dᵢ / W is their negative gradient, and the consortium keeps their state


class FedAvgM(Weighted):
    """Server momentum (Hsu, Qi and Brown 2019, arXiv 1909.06335): m ← β m + Δ, new = start + η m."""

    name: Literal["fedavgm"] = "fedavgm"
    momentum_millis: Decay
    rate_millis: Scale = 1000


class Nesterov(Weighted):
    """The outer step of DiLoCo (Douillard et al. 2023, arXiv 2311.08105): m ← β m + Δ, new = start + η (β m + Δ)."""

    name: Literal["nesterov"] = "nesterov"
    momentum_millis: Decay = 900
    rate_millis: Scale = 700


class FedAdam(Weighted):
    """FedAdam (Reddi et al. 2021, arXiv 2003.00295), without bias correction as there.

    m ← β₁ m + (1 - β₁) Δ, s² ← β₂ s² + (1 - β₂) Δ², new = start + η m / (s + τ), element by element. η and τ are in
    the unit of an adapter's values.
    """

    name: Literal["fedadam"] = "fedadam"
    momentum_millis: Decay = 900
    second_millis: Decay = 990
    rate_micros: Annotated[int, Field(ge=1, le=10**6)]
    tau_micros: Annotated[int, Field(ge=1, le=10**6)] = 1000


# -- robust rules


class Robust(Closed):
    """What may come before a robust rule; first the bound, then the mixing.

    ``bound_norm_micros`` scales every delta down to that norm. ``mix_hostile`` = f > 0 replaces each delta by the mean
    of the n - f nearest to it, itself among them (nearest-neighbour mixing, Allouah et al. 2023, arXiv 2302.01772).
    """

    bound_norm_micros: NormMicros | None = None
    mix_hostile: Annotated[int, Field(ge=0, le=199)] = 0


class TrimmedMean(Robust):
    """Element by element the mean without the f largest and the f least (Yin et al. 2018, arXiv 1803.01498).

    Every institution counts once: a number of examples is its own word, and a hostile one would say 10^9.
    """

    name: Literal["trimmed-mean"] = "trimmed-mean"
    weights: Literal["equal"]
    hostile: Hostile


class Median(Robust):
    """Element by element the median, the mean of the middle two where n is even (Yin et al. 2018, arXiv 1803.01498)."""

    name: Literal["median"] = "median"
    weights: Literal["equal"]


class GeometricMedian(Robust):
    """The point of least Σ wᵢ ‖dᵢ - z‖, by the smoothed Weiszfeld iteration (Pillutla et al. 2022, arXiv 1912.13445).

    From z = 0: z ← Σ bᵢ dᵢ / Σ bᵢ with bᵢ = wᵢ / max(ν, ‖dᵢ - z‖), ``iterations`` times. ν is ``smoothing_micros``.
    """

    name: Literal["geometric-median"] = "geometric-median"
    weights: Weights
    iterations: Annotated[int, Field(ge=1, le=64)] = 16
    smoothing_micros: NormMicros = 1000


class MultiKrum(Robust):
    """The mean of the n - f deltas that lie closest to their n - f - 1 nearest (Blanchard et al. 2017).

    arXiv 1703.02757. Closeness is the sum of squared distances. The original sums over n - f - 2; this is the
    resilient form of Farhadkhani et al. (2022, arXiv 2205.12173). Of equals, those first by name.
    """

    name: Literal["multi-krum"] = "multi-krum"
    weights: Weights
    hostile: Hostile


class CentredClipping(Robust):
    """From v = 0, ``iterations`` times: v ← v + Σ wᵢ (dᵢ - v) min(1, τ/‖dᵢ - v‖) / W (Karimireddy et al. 2021).

    arXiv 2012.10333. τ is ``norm_micros``; v = 0 is the round's start.
    """

    name: Literal["centred-clipping"] = "centred-clipping"
    weights: Weights
    norm_micros: NormMicros
    iterations: Annotated[int, Field(ge=1, le=64)] = 3


class NormBound(Closed):
    """start + Σ wᵢ dᵢ min(1, τ/‖dᵢ‖) / W (Sun et al. 2019, arXiv 1911.07963). τ is ``norm_micros``."""

    name: Literal["norm-bound"] = "norm-bound"
    weights: Weights
    norm_micros: NormMicros


AnyRule: TypeAlias = (
    FactorMean
    | FrozenA
    | ShareA
    | Svd
    | TaskArithmetic
    | Ties
    | Dare
    | FedAvgM
    | Nesterov
    | FedAdam
    | TrimmedMean
    | Median
    | GeometricMedian
    | MultiKrum
    | CentredClipping
    | NormBound
)
Rule = Annotated[AnyRule, Field(discriminator="name")]
"""Any of them, told apart by ``name``: the type of a compact's field."""


def weights_name(rule: AnyRule) -> str:
    """How institutions weigh under a rule, in a word."""
    return rule.weights if isinstance(rule.weights, str) else rule.weights.name
