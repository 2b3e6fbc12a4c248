"""Diversity, conflicts, groups and influence: against their formulas, and where the answer is plain."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.exact.gram import gram
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.rules.plural import (
    clusters,
    cosine_micros,
    distance_micros,
    diversity_micros,
)
from tests.kit.deltas import a_round, matrix


def inner(*rows: list[int]) -> list[list[int]]:
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]


SPREADS: list[tuple[list[list[int]], int, str]] = [
    ([[3, 4], [3, 4], [3, 4]], 0, "all equal"),
    ([[5, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 0]], 750_000, "three at right angles and one that stayed"),
    ([[7, 0], [-7, 0]], 10**6, "all cancels out"),
    ([[0, 0], [0, 0]], 0, "nobody moved"),
    ([[1, 2]], 0, "one alone"),
]


@pytest.mark.parametrize(("rows", "wanted", "why"), SPREADS, ids=[w for _, _, w in SPREADS])
def test_diversity_is_what_the_mean_loses(rows: list[list[int]], wanted: int, why: str) -> None:
    assert diversity_micros(inner(*rows)) == wanted


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_figures_are_their_formulas_in_floats(seed: int) -> None:
    start, deltas = a_round(seed, 4, size=1 << 20)
    rows = matrix(deltas, start).astype(np.float64)
    exact = gram(start, [d.rows for d in deltas])
    spread = 1 - (rows.mean(axis=0) ** 2).sum() / (rows**2).sum(axis=1).mean()
    assert abs(diversity_micros(exact) - spread * 1e6) <= 1
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = [[cosine_micros(exact, i, j) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(cosines, unit @ unit.T * 1e6, rtol=0, atol=1.001)


def test_cosines_are_cut_off_towards_zero_on_both_sides() -> None:
    exact = inner([3, 0], [1, 1], [-1, 1])
    assert cosine_micros(exact, 0, 1) == 707_106
    assert cosine_micros(exact, 0, 2) == -707_106


def test_a_delta_of_zeros_is_like_nobody() -> None:
    assert [cosine_micros(inner([1, -1], [0, 0]), 1, j) for j in range(2)] == [0, 0]


def test_like_communities_form_groups_and_a_stranger_stays_alone() -> None:
    rows = [[100, 1, 0], [0, 99, 3], [101, -2, 0], [2, 100, 0], [0, 0, 50]]
    assert clusters(inner(*rows), 500_000) == ((0, 2), (1, 3), (4,))
    assert clusters(inner(*rows), -(10**6)) == ((0, 1, 2, 3, 4),)
    assert clusters(inner(*rows), 10**6) == ((0,), (1,), (2,), (3,), (4,))


def test_average_linkage_looks_at_all_pairs_of_two_groups() -> None:
    # 1 and 2 are near, 2 and 3 as well, but 1 and 3 are not: the mean of 0.87 and 0.5 is below the bar.
    angles = (0, 30, 61)
    rows = [[round(1e6 * math.cos(math.radians(a))), round(1e6 * math.sin(math.radians(a)))] for a in angles]
    assert clusters(inner(*rows), 700_000) == ((0, 1), (2,))
    assert clusters(inner(*rows), 650_000) == ((0, 1, 2),)


def test_whoever_comes_before_a_group_is_compared_with_all_of_it() -> None:
    # 1 and 2 join first; 0 is at 40 and 60 degrees from them, a mean cosine of 0.63.
    rows = [[round(1e6 * math.cos(math.radians(a))), round(1e6 * math.sin(math.radians(a)))] for a in (0, 40, 60)]
    assert clusters(inner(*rows), 600_000) == ((0, 1, 2),)
    assert clusters(inner(*rows), 700_000) == ((0,), (1, 2))


def test_of_equally_like_pairs_those_who_come_first_join_first() -> None:
    # 0 with 1 is as like as 1 with 2; after the first two have joined, the third is too far from them together.
    angles = (0, 60, 120)
    rows = [[round(1e6 * math.cos(math.radians(a))), round(1e6 * math.sin(math.radians(a)))] for a in angles]
    rows[2] = [-rows[1][0], rows[1][1]]
    exact = inner(*rows)
    exact[0][1] = exact[1][0] = exact[1][2] = exact[2][1] = min(exact[0][1], exact[1][2])
    exact[0][0] = exact[1][1] = exact[2][2] = max(exact[i][i] for i in range(3))
    assert clusters(exact, 400_000) == ((0, 1), (2,))


def test_the_largest_change_does_not_overflow() -> None:
    high = GridTensors({"a": np.full((3, 1 << 15), 1 << 24, np.int32)})
    low = GridTensors({"a": np.full((3, 1 << 15), -(1 << 24), np.int32)})
    squared = 3 * (1 << 15) * (1 << 50)
    assert distance_micros(high, low, 20) == math.isqrt(squared * 10**12 >> 40)
