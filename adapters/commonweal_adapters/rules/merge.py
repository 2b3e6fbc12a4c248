"""The one table of rules: a compact's parameters, a start and the cohort's deltas in, an adapter out.

    merge(rule, spec, start, deltas, round_seed, state) → Merged

A pure function: the same bytes on any machine, with any BLAS, any number of threads, in any order of arrival. What it
computes is in ``commonweal_protocols.statements.rules``, formula by formula; how, in the module that each line
of the table names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from commonweal_adapters.exact.gram import Gram, gram
from commonweal_adapters.exact.weighted_sum import combine, factor_mean, small_weights, to_micros
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import slots
from commonweal_adapters.files.source import Chunk, Delta, for_each
from commonweal_adapters.rules import robust
from commonweal_adapters.rules.coordinate import mean_of_middle
from commonweal_adapters.rules.mixing import Mixing, make_mixing
from commonweal_adapters.rules.outer import State, outer_step
from commonweal_adapters.rules.sparse import dare, ties
from commonweal_adapters.rules.svd import svd_merge
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.rules import (
    AnyRule,
    CentredClipping,
    Dare,
    FactorMean,
    FedAdam,
    FedAvgM,
    FrozenA,
    GeometricMedian,
    Median,
    MultiKrum,
    Nesterov,
    NormBound,
    Robust,
    ShareA,
    Svd,
    TaskArithmetic,
    Ties,
    TrimmedMean,
)

_MICROS = 10**6


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What a rule makes of a round."""

    adapter: GridTensors
    counted_micros: tuple[int, ...]
    """For each delta, in the order in which they were given, how much it counted, in millionths.

    Where the rule is a weighted sum of whole deltas: its coefficient. In ``ties``, ``trimmed-mean`` and ``median``: the
    share of its elements that counted. To be published: who counts little may be hostile, or a minority.
    """
    state: State = ()
    """What an outer optimiser keeps for the next round; empty for the others."""


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """What every rule looks at. Deltas are in the order of their institutions' names."""

    spec: AdapterSpec
    start: GridTensors
    deltas: Sequence[Delta]
    round_seed: str
    state: Sequence[GridTensors]
    threads: int | None

    def shares(self) -> tuple[int, ...]:
        """Weights in millionths."""
        return to_micros([d.weight for d in self.deltas], sum(d.weight for d in self.deltas))

    def gram(self) -> Gram:
        return gram(self.start, [d.rows for d in self.deltas], threads=self.threads)

    def combine(self, numerators: Sequence[int], divisor: int) -> GridTensors:
        return combine(self.start, numerators, divisor, [d.rows for d in self.deltas], threads=self.threads)

    def combine_micros(self, micros: tuple[int, ...]) -> Merged:
        """The weighted sum whose coefficients are what is published."""
        return Merged(self.combine(micros, _MICROS), micros)


def merge(
    rule: AnyRule,
    spec: AdapterSpec,
    start: GridTensors,
    deltas: Sequence[Delta],
    *,
    round_seed: str = "",
    state: Sequence[GridTensors] = (),
    threads: int | None = None,
) -> Merged:
    """Merge deltas into an adapter by a rule.

    Args:
        rule: The compact's.
        spec: The consortium's one shape.
        start: The adapter from which all trained.
        deltas: Of the spec's names and shapes, institutions all different, in any order: it changes no bit.
        round_seed: Text that no two rounds share, for rules that draw: the digest of the round's start.
        state: What an outer optimiser kept from the round before; empty at first, and for other rules.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: No delta, too few for the rule, one that the rule does not allow, or a value or result out of range.
    """
    if not deltas:
        raise BlobError("merge: wanted at least one delta, got none")
    order = sorted(range(len(deltas)), key=lambda i: deltas[i].institution)
    names = [deltas[i].institution for i in order]
    if len(set(names)) != len(names):
        raise BlobError("merge: wanted one delta of each institution, got two of one")
    if low := [d.weight for d in deltas if d.weight < 1]:
        raise BlobError(f"weight: wanted at least 1, got {low[0]}")
    if state and not isinstance(rule, FedAvgM | Nesterov | FedAdam):
        raise BlobError(f"{rule.name}: wanted no state, got {len(state)} grids")
    made = _apply(rule, _Round(spec, start, [deltas[i] for i in order], round_seed, state, threads))
    counted = dict(zip(order, made.counted_micros, strict=True))
    return Merged(made.adapter, tuple(counted[i] for i in range(len(deltas))), made.state)


def _apply(rule: AnyRule, r: _Round) -> Merged:
    """The table: one case for each rule. mypy holds it complete."""
    match rule:
        case FactorMean():
            return Merged(factor_mean(r.start, r.deltas, threads=r.threads), r.shares())
        case FrozenA():
            _check_untrained(r, "A")
            return Merged(factor_mean(r.start, r.deltas, threads=r.threads), r.shares())
        case ShareA():
            _check_untrained(r, "B")
            return Merged(factor_mean(r.start, r.deltas, threads=r.threads), r.shares())
        case Svd():
            return Merged(svd_merge(r.spec, r.start, r.deltas, threads=r.threads), r.shares())
        case TaskArithmetic():
            weights = small_weights([d.weight for d in r.deltas])
            made = r.combine([w * rule.scale_millis for w in weights], 1000 * sum(weights))
            return Merged(made, tuple(s * rule.scale_millis // 1000 for s in r.shares()))
        case Ties():
            return Merged(*ties(rule, r.start, r.deltas, threads=r.threads))
        case Dare():
            return Merged(dare(rule, r.start, r.deltas, r.round_seed, threads=r.threads), r.shares())
        case FedAvgM() | Nesterov() | FedAdam():
            return _outer(rule, r)
        case TrimmedMean():
            robust.check_hostile(rule.name, rule.hostile, len(r.deltas))
            return _middle(rule, r, rule.hostile)
        case Median():
            return _middle(rule, r, (len(r.deltas) - 1) // 2)
        case GeometricMedian() | MultiKrum() | CentredClipping():
            return _whole(rule, r)
        case NormBound():
            whole = _MICROS * sum(d.weight for d in r.deltas)
            parts = robust.norm_bound(r.gram(), [d.weight for d in r.deltas], rule.norm_micros, r.spec.grid_bits)
            return r.combine_micros(to_micros(parts, whole))
        case _:
            assert_never(rule)


def _check_untrained(r: _Round, factor: str) -> None:
    """Refuse deltas that are not 0 in one of the two factors."""
    chunks = [
        Chunk(name, 0, r.start[name].size)
        for slot in slots(r.spec)
        for name in [slot.name_a if factor == "A" else slot.name_b]
    ]

    def work(chunk: Chunk) -> None:
        for delta in r.deltas:
            if delta.rows.read(*chunk).any():
                raise BlobError(
                    f"delta of {delta.institution}: tensor {chunk.name}: wanted zeros: nobody trains {factor}"
                )

    for_each(work, chunks, r.threads)


def _outer(rule: FedAvgM | Nesterov | FedAdam, r: _Round) -> Merged:
    zeros = GridTensors({name: np.zeros(q.shape, np.int32) for name, q in r.start.items()})
    mean = factor_mean(zeros, r.deltas, threads=r.threads)
    adapter, state = outer_step(rule, r.start, mean, r.state, r.spec.grid_bits, threads=r.threads)
    return Merged(adapter, r.shares(), state)


def _middle(rule: Robust, r: _Round, drop: int) -> Merged:
    asked = rule.bound_norm_micros is not None or rule.mix_hostile
    mixing = make_mixing(rule, r.gram(), r.spec.grid_bits) if asked else None
    return Merged(*mean_of_middle(r.start, [d.rows for d in r.deltas], drop, mixing, threads=r.threads))


def _whole(rule: GeometricMedian | MultiKrum | CentredClipping, r: _Round) -> Merged:
    """Rules on the inner products of the deltas, or of what mixing makes of them."""
    inner = r.gram()
    mixing = make_mixing(rule, inner, r.spec.grid_bits)
    if mixing is None:
        mixing = Mixing.none(len(inner))
    inner = mixing.gram(inner)
    unit = mixing.divisor << r.spec.grid_bits
    weights = [d.weight for d in r.deltas]
    if isinstance(rule, CentredClipping):
        parts = robust.centred_clipping(inner, weights, rule.iterations, rule.norm_micros, unit)
        whole = robust.FINE
    else:
        if isinstance(rule, MultiKrum):
            parts = robust.multi_krum(inner, weights, rule.hostile)
        else:
            parts = robust.geometric_median(inner, weights, rule.iterations, rule.smoothing_micros, unit)
        whole = sum(parts)
    return r.combine_micros(to_micros(mixing.spread(parts), whole * mixing.divisor))
