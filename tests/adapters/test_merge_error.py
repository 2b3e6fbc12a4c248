"""The stated error is the measured one, and says 0 where a merge is exact."""

import math
from fractions import Fraction

import numpy as np
import pytest

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import slots
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import error_micros, squared_error
from commonweal_adapters.rules.stack import exact_residual, stack
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.rules import AnyRule, FactorMean, FrozenA, Median, ShareA, Svd, Ties
from tests.kit.deltas import SPEC, a_round

RULES: list[AnyRule] = [
    FactorMean(weights="examples"),
    Svd(weights="examples"),
    Median(weights="equal"),
    Ties(weights="examples", density_millis=300),
]


def measured(
    start: GridTensors, deltas: list[Delta], merged: GridTensors, scale: float = 1.0, spec: AdapterSpec = SPEC
) -> float:
    """The formula on dense float64 matrices."""
    off = exact = 0.0
    total = sum(d.weight for d in deltas)
    for slot in slots(spec):
        wanted = np.zeros((slot.out_features, slot.in_features))
        for d in deltas:
            b, a = (
                (start[n] + d.rows.read(n, 0, start[n].size).reshape(start[n].shape)).astype(np.float64)
                for n in (slot.name_b, slot.name_a)
            )
            wanted += d.weight / total * (b @ a)
        made = scale * (merged[slot.name_b].astype(np.float64) @ merged[slot.name_a].astype(np.float64))
        off += ((made - wanted) ** 2).sum()
        exact += (wanted**2).sum()
    return math.sqrt(off / exact)


@pytest.mark.parametrize("size", [1 << 12, 1 << 22])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: str(r.name))
def test_the_stated_error_is_the_measured_one(rule: AnyRule, size: int) -> None:
    start, deltas = a_round(1, 5, size=size, weights=[1, 10, 3, 1000, 77])
    merged = merge(rule, SPEC, start, deltas).adapter
    stated = squared_error(SPEC, start, deltas, merged)
    assert stated is not None
    assert abs(math.sqrt(stated) - measured(start, deltas, merged)) < 1e-9
    assert error_micros(stated) == int(math.sqrt(stated) * 1e6)


def only(deltas: list[Delta], start: GridTensors, factor: str) -> list[Delta]:
    """The deltas, with zeros for the other factor."""
    return [
        Delta(d.institution, d.weight, Held(GridTensors({
            n: d.rows.read(n, 0, q.size).reshape(q.shape) * (f".lora_{factor}." in n) for n, q in start.items()
        })))
        for d in deltas
    ]  # fmt: skip


@pytest.mark.parametrize(("rule", "factor"), [(FrozenA(weights="equal"), "B"), (ShareA(weights="equal"), "A")])
def test_where_one_factor_is_not_trained_the_mean_is_exact_but_for_rounding(rule: AnyRule, factor: str) -> None:
    start, deltas = a_round(2, 4)
    deltas = only(deltas, start, factor)
    stated = squared_error(SPEC, start, deltas, merge(rule, SPEC, start, deltas).adapter)
    assert stated is not None
    assert error_micros(stated) <= 1
    other = "A" if factor == "B" else "B"
    for name, q in start.items():
        if f".lora_{other}." in name:
            assert np.array_equal(merge(rule, SPEC, start, deltas).adapter[name], q)


@pytest.mark.parametrize(("rule", "factor"), [(FrozenA(weights="equal"), "A"), (ShareA(weights="equal"), "B")])
def test_a_delta_that_trains_what_is_left_alone_is_refused_by_name(rule: AnyRule, factor: str) -> None:
    start, deltas = a_round(3, 3)
    good = only(deltas, start, "B" if factor == "A" else "A")
    with pytest.raises(
        BlobError, match=rf"^delta of i001: tensor .*lora_{factor}.*: wanted zeros: nobody trains {factor}$"
    ):
        merge(rule, SPEC, start, [good[0], deltas[1], good[2]])


def test_one_alone_has_no_error() -> None:
    start, deltas = a_round(4, 1)
    assert squared_error(SPEC, start, deltas, merge(FactorMean(weights="equal"), SPEC, start, deltas).adapter) == 0


def test_an_exact_merge_of_nothing_has_no_ratio() -> None:
    start, _ = a_round(5, 1)
    zero = GridTensors({n: np.zeros_like(q) for n, q in start.items()})
    nothing = [Delta("a", 1, Held(zero))]
    assert squared_error(SPEC, zero, nothing, zero) == 0
    assert squared_error(SPEC, zero, nothing, start) is None


# -- stacking and residuals


def test_stacking_with_equal_weights_is_exact_to_the_last_bit() -> None:
    start, deltas = a_round(6, 5)
    spec, stacked = stack(SPEC, start, deltas)
    assert (spec.rank, spec.alpha) == (10, SPEC.alpha)
    assert squared_error(SPEC, start, deltas, stacked, Fraction(SPEC.rank, spec.rank)) == 0


@pytest.mark.parametrize("weights", [[1, 2, 4], [10**9, 10**9 - 1, 10**9 - 2]])
def test_stacking_with_other_weights_rounds_a_once(weights: list[int]) -> None:
    start, deltas = a_round(7, 3, weights=weights)
    spec, stacked = stack(SPEC, start, deltas)
    stated = squared_error(SPEC, start, deltas, stacked, Fraction(SPEC.rank, spec.rank))
    assert stated is not None
    assert 0 < error_micros(stated) + 1 <= 3
    assert abs(math.sqrt(stated) - measured(start, deltas, stacked, SPEC.rank / spec.rank)) < 1e-9


def test_mean_and_residual_together_are_the_exact_merge() -> None:
    start, deltas = a_round(8, 4, size=1 << 20)
    mean, spec, residual = exact_residual(SPEC, start, deltas)
    assert mean.values.keys() == residual.values.keys()
    for slot in slots(SPEC):
        made = mean[slot.name_b].astype(np.float64) @ mean[slot.name_a]
        # Both are scaled by alpha / rank of their own spec.
        made += SPEC.rank / spec.rank * (residual[slot.name_b].astype(np.float64) @ residual[slot.name_a])
        wanted = sum(
            (
                start[slot.name_b]
                + d.rows.read(slot.name_b, 0, start[slot.name_b].size).reshape(start[slot.name_b].shape)
            ).astype(np.float64)
            @ (
                start[slot.name_a]
                + d.rows.read(slot.name_a, 0, start[slot.name_a].size).reshape(start[slot.name_a].shape)
            )
            / 4
            for d in deltas
        )
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        alone = np.abs(mean[slot.name_b].astype(np.float64) @ mean[slot.name_a] - wanted).max()
        assert alone > 1e-2 * np.abs(wanted).max()  # else the residual would prove nothing


def test_a_rank_that_no_spec_may_have_is_refused() -> None:
    start, deltas = a_round(9, 1)
    many = [Delta(f"i{k}", 1, deltas[0].rows) for k in range(513)]
    with pytest.raises(BlobError, match="stack: wanted a rank of 1 to 1024, got 513 times 2"):
        stack(SPEC, start, many)
    with pytest.raises(BlobError, match="stack: wanted a rank of 1 to 1024, got 0 times 2"):
        stack(SPEC, start, [])


def test_a_factor_out_of_range_is_refused() -> None:
    start, _ = a_round(10, 1)
    most = GridTensors({n: np.full(q.shape, LIMIT, np.int32) for n, q in start.items()})
    with pytest.raises(BlobError, match=r"merge: tensor .* wanted at most 2\^24 .* got 33554432"):
        stack(SPEC, most, [Delta("a", 1, Held(most))])
