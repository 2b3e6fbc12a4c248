"""Trimmed mean and median: the network sorts, the middle is averaged exactly, and who was cut off is told."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.coordinate import mean_of_middle, prune, sort_rows, sorting_network
from commonweal_adapters.rules.merge import merge
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.rules import Median, TrimmedMean
from tests.kit.byzantine import aggregators
from tests.kit.deltas import SPEC, a_round, flat, matrix


@pytest.mark.parametrize("k", range(1, 13))
def test_the_network_sorts_every_row_of_zeros_and_ones(k: int) -> None:
    # The 0-1 principle (Knuth, volume 3, 5.3.4): a network that sorts these sorts everything.
    values = np.array(list(itertools.product((0, 1), repeat=k)), np.int32).T
    assert np.array_equal(np.stack(sort_rows(values, sorting_network(k))), np.sort(values, axis=0))


@pytest.mark.parametrize("k", [33, 100, 400])
def test_the_network_sorts_whole_consortia(k: int) -> None:
    values = np.random.default_rng(k).integers(-LIMIT, LIMIT, (k, 50), np.int32)
    assert np.array_equal(np.stack(sort_rows(values, sorting_network(k))), np.sort(values, axis=0))


@pytest.mark.parametrize("k", range(3, 13))
def test_a_pruned_network_still_puts_the_wanted_rows_in_their_places(k: int) -> None:
    values = np.array(list(itertools.product((0, 1), repeat=k)), np.int32).T
    wanted = range((k - 1) // 2, k // 2 + 1)
    network = prune(sorting_network(k), wanted)
    made = sort_rows(values, network)
    for i in wanted:
        assert np.array_equal(made[i], np.sort(values, axis=0)[i])


def test_sorting_leaves_its_input_alone() -> None:
    values = np.array([[3], [1], [2]], np.int32)
    sort_rows(values, sorting_network(3))
    assert values.tolist() == [[3], [1], [2]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([2, LIMIT // 2]), st.data())
def test_the_result_is_the_mean_of_the_middle_in_fractions(seed: int, k: int, size: int, draw: st.DataObject) -> None:
    drop = draw.draw(st.integers(0, (k - 1) // 2))
    start, deltas = a_round(seed, k, size=size)
    made, _ = mean_of_middle(start, [d.rows for d in deltas], drop, None)
    columns = matrix(deltas, start).T.tolist()
    moved = [round(Fraction(sum(sorted(c)[drop : k - drop]), k - 2 * drop)) for c in columns]
    assert flat(made).tolist() == [s + m for s, m in zip(flat(start).tolist(), moved, strict=True)]


def one(*values: int) -> tuple[GridTensors, list[Delta]]:
    """Deltas of four elements each: the values, three times, and once their negatives."""
    deltas = [
        Delta(f"i{k}", 1, Held(GridTensors({"a": np.array([[v, v, v, -v]], np.int32)}))) for k, v in enumerate(values)
    ]
    return GridTensors({"a": np.zeros((1, 4), np.int32)}), deltas


def test_who_was_cut_off_where_is_published() -> None:
    start, deltas = one(1, 2, 3, 4, 1000)
    _, inside = mean_of_middle(start, [d.rows for d in deltas], 1, None)
    assert inside == (0, 10**6, 10**6, 10**6, 0)


def test_equals_at_the_border_count_as_inside() -> None:
    start, deltas = one(5, 5, 5, 9)
    made, inside = mean_of_middle(start, [d.rows for d in deltas], 1, None)
    assert made["a"].tolist() == [[5, 5, 5, -5]]
    assert inside == (10**6, 10**6, 10**6, 0)


def test_a_hostile_minority_cannot_leave_the_range_of_the_honest() -> None:
    start, deltas = one(10, 11, 12, LIMIT, LIMIT)
    for rule in (TrimmedMean(weights="equal", hostile=2), Median(weights="equal")):
        made = merge(rule, SPEC, start, deltas)
        assert 10 <= made.adapter["a"][0, 0] <= 12


def test_too_few_deltas_for_the_hostile_are_refused() -> None:
    start, deltas = one(1, 2, 3, 4)
    with pytest.raises(BlobError, match="trimmed-mean with 2 hostile: wanted more than 4 deltas, got 4"):
        merge(TrimmedMean(weights="equal", hostile=2), SPEC, start, deltas)


@pytest.mark.parametrize("k", [5, 8])
def test_byzfl_finds_the_same_within_half_a_grid_step(k: int) -> None:
    byzfl = aggregators()
    start, deltas = a_round(4, k)
    rows = matrix(deltas, start).astype(np.float64)
    trimmed = merge(TrimmedMean(weights="equal", hostile=2), SPEC, start, deltas).adapter
    median = merge(Median(weights="equal"), SPEC, start, deltas).adapter
    np.testing.assert_allclose(flat(trimmed) - flat(start), byzfl.TrMean(f=2)(rows), atol=0.5 + 1e-6, rtol=0)
    np.testing.assert_allclose(flat(median) - flat(start), byzfl.Median()(rows), atol=0.5 + 1e-6, rtol=0)
