"""The merge: exact, whatever the order; one rounding; a second implementation in fractions gives the same numbers."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_adapters.exact.weighted_sum import combine, divide_half_even, factor_mean, small_weights, to_micros
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Delta, Held
from commonweal_protocols.base.errors import BlobError

STEPS = st.integers(-LIMIT, LIMIT)
WEIGHTS = st.integers(1, 10**9)


def tensors(*values: int) -> GridTensors:
    """Two tensors with these integers, so that names are told apart."""
    q = np.array([values], np.int32)
    return GridTensors({"a": q, "b": -q.T})


def voiced(*weighted: tuple[int, GridTensors]) -> list[Delta]:
    return [Delta(f"i{k}", weight, Held(grid)) for k, (weight, grid) in enumerate(weighted)]


def naive(start: Sequence[int], weighted: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """The formula in Python's integers and fractions; ``round`` takes ties to even."""
    total = sum(w for w, _ in weighted)
    return [s + round(Fraction(sum(w * d[i] for w, d in weighted), total)) for i, s in enumerate(start)]


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, list[int]]]]:
    n = draw(st.integers(1, 5))
    start = draw(st.lists(STEPS, min_size=n, max_size=n))
    # Small weights meet ties, large ones meet the end of float64.
    weights = st.one_of(st.integers(1, 4), WEIGHTS)
    deltas = st.tuples(weights, st.lists(STEPS, min_size=n, max_size=n))
    return start, draw(st.lists(deltas, min_size=1, max_size=6))


@given(merges())
def test_the_merge_is_the_formula_in_fractions(case: tuple[list[int], list[tuple[int, list[int]]]]) -> None:
    start, weighted = case
    wanted = naive(start, weighted)
    given_ = voiced(*((w, tensors(*d)) for w, d in weighted))
    if max(map(abs, wanted)) > LIMIT:
        with pytest.raises(BlobError, match=r"wanted at most 2\^24"):
            factor_mean(tensors(*start), given_)
    else:
        made = factor_mean(tensors(*start), given_)
        assert made["a"].dtype == np.int32
        assert made["a"].tolist() == [wanted]
        # Half to even is the same rounding on both sides of zero.
        assert made["b"].tolist() == [[-q] for q in wanted]


@given(st.lists(st.tuples(WEIGHTS, STEPS, STEPS), min_size=2, max_size=5))
def test_arrival_order_never_changes_a_bit(rows: list[tuple[int, int, int]]) -> None:
    seen = set()
    for order in itertools.islice(itertools.permutations(rows), 24):
        made = factor_mean(tensors(0, 0), voiced(*((w, tensors(x, y)) for w, x, y in order)))
        seen.add(made["a"].tobytes() + made["b"].tobytes())
    assert len(seen) == 1


DIVISIONS: list[tuple[int, int, int, str]] = [
    (1, 2, 0, "a half, down to the even 0"),
    (3, 2, 2, "one and a half, up to the even 2"),
    (5, 2, 2, "two and a half, down to the even 2"),
    (-1, 2, 0, "minus a half, up to the even 0"),
    (-3, 2, -2, "minus one and a half, down to the even -2"),
    (-5, 2, -2, "minus two and a half, up to the even -2"),
    (1, 3, 0, "a third: nearest, not up"),
    (2, 3, 1, "two thirds: nearest, not down"),
    (-1, 3, 0, "minus a third: nearest, where floor would give -1"),
    (-2, 3, -1, "minus two thirds"),
    (7, 1, 7, "by one"),
    (2**62 - 1, 2**62, 1, "the largest divisor"),
    (2**61, 2**62, 0, "a half of the largest divisor"),
    (2**63 - 1, 2, 2**62, "the largest numerator: a tie above an odd quotient"),
    (-(2**63), 3, round(Fraction(-(2**63), 3)), "the least numerator"),
]


@pytest.mark.parametrize(("n", "d", "wanted", "why"), DIVISIONS, ids=[w for _, _, _, w in DIVISIONS])
def test_division_rounds_half_to_even(n: int, d: int, wanted: int, why: str) -> None:
    assert divide_half_even(np.array([n], np.int64), d).tolist() == [wanted]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**62))
def test_division_is_python_s_rounding_of_the_fraction(n: int, d: int) -> None:
    assert divide_half_even(np.array([n], np.int64), d).tolist() == [round(Fraction(n, d))]


def test_a_mean_that_float64_rounds_to_the_wrong_side() -> None:
    # d1 = q with weight w + 1 and d2 = q + 1 with weight w: their mean is q + 1/2 - 1/(2 (2w + 1)), just below the
    # half, so q is nearest. float64 cannot tell it from the half, and q is odd.
    q, w = LIMIT - 3, 10**9 - 1
    assert float(((w + 1) * q + w * (q + 1)) / (2 * w + 1)) == q + 0.5
    made = factor_mean(tensors(0), voiced((w + 1, tensors(q)), (w, tensors(q + 1))))
    assert made["a"].tolist() == [[q]]


def test_the_largest_consortium_with_the_largest_weights_stays_exact() -> None:
    most = tensors(LIMIT, -LIMIT)
    made = factor_mean(tensors(0, 0), voiced(*((10**9, most) for _ in range(400))))
    assert made["a"].tolist() == [[LIMIT, -LIMIT]]


def test_equal_weights_give_the_same_bits_whatever_their_size() -> None:
    deltas = [tensors(k, 7 * k, -k) for k in range(1, 8)]
    one, many = (factor_mean(tensors(5, 5, 5), voiced(*((w, d) for d in deltas))) for w in (1, 10**9))
    assert one["a"].tobytes() == many["a"].tobytes()


def test_inputs_are_not_changed() -> None:
    start, delta = tensors(1, 2), tensors(3, 4)
    factor_mean(start, voiced((2, delta)))
    assert start["a"].tolist() == [[1, 2]]
    assert delta["a"].tolist() == [[3, 4]]


def test_a_weighted_sum_may_take_away_and_leaves_out_whose_part_is_zero() -> None:
    unread = GridTensors({"a": np.array([[LIMIT + 1]], np.int32), "b": np.array([[LIMIT + 1]], np.int32)})
    made = combine(tensors(100), [3, -2, 0], 4, [Held(g) for g in (tensors(7), tensors(5), unread)])
    assert made["a"].tolist() == [[100 + round(Fraction(3 * 7 - 2 * 5, 4))]]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=9).filter(any), st.integers(0, 10**12))
def test_millionths_are_the_parts_within_one_and_lose_nothing(parts: list[int], left_out: int) -> None:
    whole = sum(parts) + left_out
    micros = to_micros(parts, whole)
    assert sum(micros) == 10**6 * sum(parts) // whole
    rests = [Fraction(part * 10**6, whole) - share for part, share in zip(parts, micros, strict=True)]
    assert all(abs(r) < 1 for r in rests)
    # Anyone who was rounded up had at least the remainder of anyone who was not.
    assert min([r + 1 for r in rests if r < 0], default=1) >= max([r for r in rests if r >= 0], default=0)


def test_of_equal_remainders_the_earlier_rounds_up() -> None:
    assert to_micros([1, 1, 1], 3) == (333_334, 333_333, 333_333)
    assert to_micros([1, 1, 4], 6) == (166_667, 166_667, 666_666)


@given(st.lists(WEIGHTS, min_size=1, max_size=400))
def test_small_weights_keep_the_ratios_exactly_or_to_a_millionth_and_stay_small(weights: list[int]) -> None:
    small = small_weights(weights)
    assert sum(small) <= 1 << 25
    off = max(abs(Fraction(s, sum(small)) - Fraction(w, sum(weights))) for s, w in zip(small, weights, strict=True))
    assert off < Fraction(1, 10**6)
    if sum(weights) <= 1 << 25:
        assert off == 0


def test_equal_weights_are_ones_however_large() -> None:
    assert small_weights([10**9] * 3) == (1, 1, 1)


REFUSED: list[tuple[str, int, list[tuple[int, int]], str]] = [
    ("nothing to merge", 0, [], "wanted at least one delta, got none"),
    ("a weight of zero", 0, [(0, 1)], "weight: wanted at least 1, got 0"),
    ("a negative weight", 0, [(5, 1), (-1, 1)], "weight: wanted at least 1, got -1"),
    ("sums that might not fit", 0, [(2**38, 1), (2**38 + 1, 1)], f"wanted a sum below .* = {2**39}, got {2**39 + 1}"),
    ("above the range", LIMIT, [(1, 1)], f"tensor a: wanted at most .* got {LIMIT + 1}"),
    ("below the range", -LIMIT, [(1, -1)], f"tensor a: wanted at most .* got {LIMIT + 1}"),
]


@pytest.mark.parametrize(("why", "start", "rows", "message"), REFUSED, ids=[w for w, _, _, _ in REFUSED])
def test_a_merge_that_cannot_be_exact_is_refused(
    why: str, start: int, rows: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(BlobError, match=message):
        factor_mean(tensors(start), voiced(*((w, tensors(d)) for w, d in rows)))


def test_the_error_against_the_exact_merge_is_the_factors_covariance() -> None:
    # README: mean(B A) - mean(B) mean(A) = mean((B - mean B)(A - mean A)). Deviations that sum to zero with weights
    # make every mean an integer, so that both sides are exact.
    rng = np.random.default_rng(3)
    weights = [1, 2, 3]
    mean_a, mean_b = (rng.integers(-9, 9, shape).astype(np.int32) for shape in ((2, 5), (4, 2)))
    dev_a, dev_b = ([6 * rng.integers(-9, 9, m.shape).astype(np.int32) for _ in range(2)] for m in (mean_a, mean_b))
    for dev in (dev_a, dev_b):
        dev.append(-(weights[0] * dev[0] + weights[1] * dev[1]) // weights[2])
    deltas = [GridTensors({"A": mean_a + a, "B": mean_b + b}) for a, b in zip(dev_a, dev_b, strict=True)]
    zero = GridTensors({"A": np.zeros_like(mean_a), "B": np.zeros_like(mean_b)})
    merged = factor_mean(zero, voiced(*zip(weights, deltas, strict=True)))
    assert np.array_equal(merged["A"], mean_a)
    assert np.array_equal(merged["B"], mean_b)
    exact = sum(w * (d["B"] @ d["A"]) for w, d in zip(weights, deltas, strict=True))
    covariance = sum(w * (b @ a) for w, a, b in zip(weights, dev_a, dev_b, strict=True))
    assert np.array_equal(exact - sum(weights) * (merged["B"] @ merged["A"]), covariance)
    assert np.any(covariance)
