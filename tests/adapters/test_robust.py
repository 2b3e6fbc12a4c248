"""Rules on whole deltas: their weights follow from inner products, in integers; floats written by others agree."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import gram
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import Merged, merge
from commonweal_adapters.rules.mixing import factor_micros, make_mixing, squared_distances
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.rules import (
    AnyRule,
    CentredClipping,
    GeometricMedian,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from tests.kit.byzantine import aggregators
from tests.kit.deltas import SPEC, a_round, data, flat, matrix

UNIT = 1 << SPEC.grid_bits
Floats = NDArray[np.float64]


def moved(made: Merged, start: GridTensors) -> Floats:
    return (flat(made.adapter) - flat(start)).astype(np.float64)


def close(made: Merged, start: GridTensors, wanted: Floats, deltas: list[Delta]) -> None:
    """Within half a step, and a millionth of the deltas for the weights' own rounding."""
    slack = 1e-6 * np.abs(matrix(deltas, start)).sum(axis=0).max()
    np.testing.assert_allclose(moved(made, start), wanted, rtol=0, atol=0.5 + slack)


def with_hostile(seed: int, honest: int, hostile: int) -> tuple[GridTensors, list[Delta]]:
    """Honest deltas near one another, and hostile ones that are large and say the opposite."""
    rng = np.random.default_rng(seed)
    start, deltas = a_round(seed, honest + hostile, size=1 << 10)
    common = {name: rng.integers(-(1 << 12), 1 << 12, q.shape, np.int32) for name, q in start.items()}
    made = []
    for k, d in enumerate(deltas):
        q = {n: d.rows.read(n, 0, s.size).reshape(s.shape) + common[n] for n, s in start.items()}
        grid = GridTensors(q if k < honest else {n: -64 * v for n, v in q.items()})
        made.append(Delta(d.institution, 1, Held(grid)))
    return start, made


# -- geometric median


def weiszfeld(rows: Floats, weights: Floats, iterations: int, nu: float) -> Floats:
    z = np.zeros(rows.shape[1])
    for _ in range(iterations):
        b = weights / np.maximum(nu, np.linalg.norm(rows - z, axis=1))
        z = b @ rows / b.sum()
    return z


@pytest.mark.parametrize("smoothing_micros", [1000, 1_600_000, 10**8])
def test_the_geometric_median_is_weiszfelds_formula(smoothing_micros: int) -> None:
    start, deltas = a_round(1, 6, weights=[1, 5, 2, 2, 9, 1])
    made = merge(GeometricMedian(weights="examples", smoothing_micros=smoothing_micros), SPEC, start, deltas)
    rows = matrix(deltas, start).astype(np.float64)
    nu = smoothing_micros * UNIT / 1e6
    wanted = weiszfeld(rows, np.array([1, 5, 2, 2, 9, 1.0]), 16, nu)
    # The middle one lies between the deltas' distances, so that it counts for some and not for others.
    assert smoothing_micros != 1_600_000 or len(set((np.linalg.norm(rows - wanted, axis=1) < nu).tolist())) == 2
    close(made, start, wanted, deltas)
    assert sum(made.counted_micros) == 10**6


def test_three_points_meet_in_their_fermat_point() -> None:
    # Corners of an equilateral triangle: by symmetry each weighs a third, wherever the iteration begins.
    q = [[6000, 0, 0], [0, 6000, 0], [0, 0, 6000]]
    deltas = [Delta(f"i{k}", 1, Held(GridTensors({"a": np.array([v], np.int32)}))) for k, v in enumerate(q)]
    start = GridTensors({"a": np.zeros((1, 3), np.int32)})
    made = merge(GeometricMedian(weights="equal", iterations=64), SPEC, start, deltas)
    assert made.adapter["a"].tolist() == [[2000, 2000, 2000]]


def test_more_than_half_in_one_place_are_the_geometric_median() -> None:
    start, deltas = a_round(2, 2)
    same = [Delta(f"s{k}", 1, deltas[0].rows) for k in range(3)]
    rule = GeometricMedian(weights="equal", iterations=64, smoothing_micros=1)
    made = merge(rule, SPEC, start, [*same, deltas[1]])
    assert np.abs(moved(made, start) - matrix(deltas, start)[0]).max() <= 2


# -- multi-Krum


def krum(rows: Floats, f: int) -> set[int]:
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    scores = np.sort(squared, axis=1)[:, 1 : len(rows) - f].sum(axis=1)
    return set(np.argsort(scores)[: len(rows) - f].tolist())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_multi_krum_averages_whom_the_scores_choose(seed: int) -> None:
    start, deltas = a_round(seed, 7)
    made = merge(MultiKrum(weights="equal", hostile=2), SPEC, start, deltas)
    chosen = krum(matrix(deltas, start).astype(np.float64), 2)
    assert {i for i, c in enumerate(made.counted_micros) if c} == chosen
    close(made, start, matrix(deltas, start)[sorted(chosen)].mean(axis=0), deltas)


def test_of_equal_scores_those_first_by_name_are_chosen() -> None:
    start, deltas = a_round(3, 1)
    same = [Delta(name, 1, deltas[0].rows) for name in ("d", "a", "c", "b")]
    made = merge(MultiKrum(weights="equal", hostile=1), SPEC, start, same)
    assert [bool(c) for c in made.counted_micros] == [False, True, True, True]


# -- centred clipping and norm bounds


def clip(rows: Floats, weights: Floats, iterations: int, tau: float) -> Floats:
    v = np.zeros(rows.shape[1])
    for _ in range(iterations):
        size = np.linalg.norm(rows - v, axis=1)
        v = v + (weights / weights.sum() * np.minimum(1, tau / size)) @ (rows - v)
    return v


@pytest.mark.parametrize("norm_micros", [100_000, 2_500_000, 10**9])
def test_centred_clipping_is_its_formula(norm_micros: int) -> None:
    start, deltas = a_round(5, 5, weights=[1, 2, 3, 4, 5])
    made = merge(CentredClipping(weights="examples", norm_micros=norm_micros, iterations=4), SPEC, start, deltas)
    rows = matrix(deltas, start).astype(np.float64)
    close(made, start, clip(rows, np.arange(1, 6.0), 4, norm_micros * UNIT / 1e6), deltas)


@pytest.mark.parametrize("norm_micros", [100_000, 3_000_000, 10**9])
def test_a_norm_bound_scales_down_what_is_longer_and_nothing_else(norm_micros: int) -> None:
    start, deltas = a_round(6, 4, weights=[1, 2, 3, 4])
    made = merge(NormBound(weights="examples", norm_micros=norm_micros), SPEC, start, deltas)
    rows = matrix(deltas, start).astype(np.float64)
    factors = np.minimum(1, norm_micros * UNIT / 1e6 / np.linalg.norm(rows, axis=1))
    close(made, start, (np.array([0.1, 0.2, 0.3, 0.4]) * factors) @ rows, deltas)
    if norm_micros == 10**9:
        assert made.counted_micros == (100_000, 200_000, 300_000, 400_000)


@given(st.integers(0, 1 << 80), st.integers(1, 10**12), st.integers(8, 23))
def test_a_bounded_delta_is_never_longer_than_the_bound(squared: int, norm_micros: int, bits: int) -> None:
    factor = factor_micros(squared, norm_micros, bits)
    bound = norm_micros << bits  # in millionths of a step
    assert factor == 10**6 or factor**2 * squared <= bound**2 < (factor + 1) ** 2 * squared
    assert factor <= 10**6


# -- mixing


def test_mixing_replaces_each_by_the_mean_of_its_nearest() -> None:
    start, deltas = with_hostile(7, 5, 2)
    inner = gram(start, [d.rows for d in deltas])
    mixing = make_mixing(Median(weights="equal", mix_hostile=2), inner, SPEC.grid_bits)
    assert mixing is not None
    rows = matrix(deltas, start)
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    assert squared_distances(inner) == distances.tolist()
    made = mixing.apply(rows.astype(np.int32))
    for i, row in enumerate(distances):
        near = np.argsort(row, kind="stable")[:5]
        np.testing.assert_allclose(made[i], rows[near].mean(axis=0), rtol=0, atol=0.5)


def test_the_sums_inner_products_follow_from_the_deltas() -> None:
    start, deltas = with_hostile(8, 4, 1)
    inner = gram(start, [d.rows for d in deltas])
    rule = Median(weights="equal", mix_hostile=1, bound_norm_micros=40_000)
    mixing = make_mixing(rule, inner, SPEC.grid_bits)
    assert mixing is not None
    rows = np.array(mixing.matrix, object) @ matrix(deltas, start).astype(object)
    assert mixing.gram(inner) == (rows @ rows.T).tolist()
    assert mixing.divisor == 4 * 10**6
    assert {sum(row) for row in mixing.matrix} != {mixing.divisor}


def test_who_is_near_is_seen_after_the_bound_on_norms() -> None:
    # The second only exaggerates what the first and third say; bounded, it is as near to them as they to each other.
    rows = [[10, 0], [1000, 0], [11, 0], [0, 10], [0, 11]]
    inner = [[(x * a + y * b) << 20 for a, b in rows] for x, y in rows]
    near = make_mixing(Median(weights="equal", mix_hostile=2), inner, 20)
    bounded = make_mixing(Median(weights="equal", mix_hostile=2, bound_norm_micros=11_719), inner, 20)
    assert near is not None
    assert bounded is not None
    assert [j for j, m in enumerate(near.matrix[0]) if m] == [0, 2, 3]
    assert [j for j, m in enumerate(bounded.matrix[0]) if m] == [0, 1, 2]


ROBUST: list[AnyRule] = [
    TrimmedMean(weights="equal", hostile=2),
    Median(weights="equal"),
    GeometricMedian(weights="equal"),
    MultiKrum(weights="equal", hostile=2),
    CentredClipping(weights="equal", norm_micros=7_000, iterations=30),
]


@pytest.mark.parametrize("mix", [0, 2])
@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: str(r.name))
def test_two_hostile_of_seven_move_a_robust_rule_little_and_the_mean_far(rule: AnyRule, mix: int) -> None:
    start, deltas = with_hostile(9, 5, 2)
    honest = matrix(deltas, start)[:5].mean(axis=0)
    mean = matrix(deltas, start).mean(axis=0)
    made = merge(rule.model_copy(update={"mix_hostile": mix}), SPEC, start, deltas)
    off = np.linalg.norm(moved(made, start) - honest)
    assert off < 0.5 * np.linalg.norm(honest)
    assert off < np.linalg.norm(mean - honest) / 20


@pytest.mark.parametrize("rule", ROBUST[2:], ids=lambda r: str(r.name))
def test_the_published_shares_are_the_merge(rule: AnyRule) -> None:
    start, deltas = with_hostile(10, 5, 2)
    made = merge(rule.model_copy(update={"mix_hostile": 2}), SPEC, start, deltas)
    shares = np.array(made.counted_micros, object)
    exact = shares @ matrix(deltas, start).astype(object)
    assert max(abs(2 * 10**6 * int(m) - 2 * int(e)) for m, e in zip(moved(made, start), exact, strict=True)) <= 10**6
    assert made.counted_micros[5] < 10_000 > made.counted_micros[6]


@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: str(r.name))
def test_a_bound_on_norms_comes_before_the_rule(rule: AnyRule) -> None:
    start, deltas = with_hostile(11, 5, 2)
    low = 20_000
    bounded = merge(rule.model_copy(update={"bound_norm_micros": low}), SPEC, start, deltas)
    # No mean of deltas is longer than the longest.
    assert np.linalg.norm(moved(bounded, start)) <= low * UNIT / 10**6 + math.sqrt(flat(start).size)
    assert data(bounded.adapter) != data(merge(rule, SPEC, start, deltas).adapter)


def test_too_few_deltas_for_mixing_are_refused() -> None:
    start, deltas = a_round(1, 4)
    with pytest.raises(BlobError, match="mix_hostile 2: wanted more than 4 deltas, got 4"):
        merge(Median(weights="equal", mix_hostile=2), SPEC, start, deltas)
    with pytest.raises(BlobError, match="multi-krum with 2 hostile: wanted more than 4 deltas, got 4"):
        merge(MultiKrum(weights="equal", hostile=2), SPEC, start, deltas)


# -- byzfl


def test_byzfl_finds_the_same_within_the_rounding() -> None:
    byzfl = aggregators()
    start, deltas = with_hostile(12, 7, 2)
    rows = matrix(deltas, start).astype(np.float64)
    bits = SPEC.grid_bits
    rule: AnyRule = GeometricMedian(weights="equal", iterations=5, smoothing_micros=1000)
    close(merge(rule, SPEC, start, deltas), start, byzfl.GeometricMedian(nu=1e-3 * 2**bits, T=5)(rows), deltas)
    rule = MultiKrum(weights="equal", hostile=2)
    close(merge(rule, SPEC, start, deltas), start, byzfl.MultiKrum(f=2)(rows), deltas)
    rule = CentredClipping(weights="equal", norm_micros=50_000, iterations=4)
    close(merge(rule, SPEC, start, deltas), start, byzfl.CenteredClipping(L=4, tau=0.05 * 2**bits)(rows), deltas)
    mixed = byzfl.NNM(f=2)(rows)
    rule = Median(weights="equal", mix_hostile=2)
    # One more rounding: what is sorted is on the grid.
    np.testing.assert_allclose(
        moved(merge(rule, SPEC, start, deltas), start), byzfl.Median()(mixed), rtol=0, atol=1.0 + 1e-6
    )
    rule = MultiKrum(weights="equal", hostile=2, mix_hostile=2)
    close(merge(rule, SPEC, start, deltas), start, byzfl.MultiKrum(f=2)(mixed), deltas)
