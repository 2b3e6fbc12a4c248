"""Weights: integers from what is logged; the cap holds exactly; the worst-off weigh most, and nobody without bound."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.fold.weights import Voice, weigh
from commonweal_protocols.statements.rules import Capped, MinimaxFair, Weights

EXAMPLES = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)


def voices(examples: list[int]) -> list[Voice]:
    return [Voice(n, ()) for n in examples]


def faring(*losses_micronats: int) -> list[Voice]:
    return [Voice(1, (loss,)) for loss in losses_micronats]


def test_equal_and_by_examples() -> None:
    assert weigh("equal", voices([5, 9])) == (1, 1)
    assert weigh("examples", voices([5, 9])) == (5, 9)


@given(EXAMPLES, st.integers(1, 1000))
def test_nobody_weighs_more_than_the_cap_where_it_can_be_held(examples: list[int], cap: int) -> None:
    weights = weigh(Capped(cap_millis=cap), voices(examples))
    assert all(1 <= w <= 10**9 for w in weights)
    if cap * len(examples) >= 1000:
        assert max(weights) * 1000 <= cap * sum(weights)
    else:
        assert set(weights) == {1}


@given(EXAMPLES, st.integers(1, 1000))
def test_whoever_is_below_the_cap_keeps_the_ratio_of_the_examples(examples: list[int], cap: int) -> None:
    weights = weigh(Capped(cap_millis=cap), voices(examples))
    if cap * len(examples) < 1000:
        return
    below = [i for i, w in enumerate(weights) if w < max(weights)]
    for i in below:
        for j in below:
            assert weights[i] * examples[j] == weights[j] * examples[i]
    # More examples never weigh less.
    order = sorted(range(len(examples)), key=examples.__getitem__)
    assert [weights[i] for i in order] == sorted(weights)


def test_water_filling_by_hand() -> None:
    # 80, 10, 10 with a cap of a half: the first may have as much as the others together.
    assert weigh(Capped(cap_millis=500), voices([80, 10, 10])) == (2, 1, 1)
    # 60, 30, 10 with 40 %: 10 stays, the others have twice its 20 % ... at 40 % each.
    assert weigh(Capped(cap_millis=400), voices([60, 30, 10])) == (2, 2, 1)
    assert weigh(Capped(cap_millis=1000), voices([60, 30, 10])) == (6, 3, 1)


def filled(examples: list[int], cap: Fraction) -> list[Fraction]:
    """Shares by another way: cap the largest, share out what is left, and again until nobody is above the cap."""
    order = sorted(range(len(examples)), key=examples.__getitem__, reverse=True)
    for capped in range(len(examples) + 1):
        rest = order[capped:]
        left = (1 - capped * cap) / sum(examples[i] for i in rest) if rest else Fraction(0)
        if not rest or examples[rest[0]] * left <= cap:
            shares = dict.fromkeys(order[:capped], cap) | {i: examples[i] * left for i in rest}
            return [shares[i] for i in range(len(examples))]
    raise AssertionError("nobody is left")


@given(EXAMPLES, st.integers(1, 1000))
def test_shares_are_those_of_water_filling_in_fractions(examples: list[int], cap: int) -> None:
    if cap * len(examples) < 1000:
        return
    weights = weigh(Capped(cap_millis=cap), voices(examples))
    for w, share in zip(weights, filled(examples, Fraction(cap, 1000)), strict=True):
        assert abs(Fraction(w, sum(weights)) - share) < Fraction(1, 10**7)


def test_worse_off_communities_weigh_exponentially_more_up_to_the_bound() -> None:
    rule = MinimaxFair(eta_millis=2000, most_millis=5000)
    weights = weigh(rule, faring(3_000_000, 3_200_000, 3_500_000, 9_000_000))
    for w, loss in zip(weights, (0, 0.2, 0.5, 6.0), strict=True):
        assert abs(w - min(math.exp(2 * loss), 5) * 10**6) <= 1


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30), st.integers(1, 100_000), st.integers(1000, 100_000))
def test_minimax_weights_are_bounded_and_in_the_order_of_the_losses(losses: list[int], eta: int, most: int) -> None:
    weights = weigh(MinimaxFair(eta_millis=eta, most_millis=most), faring(*losses))
    assert min(weights) == 10**6
    assert max(weights) <= most * 1000
    order = sorted(range(len(losses)), key=losses.__getitem__)
    assert [weights[i] for i in order] == sorted(weights)


def test_what_was_lost_in_each_round_adds_up() -> None:
    rule = MinimaxFair(eta_millis=1000, most_millis=100_000)
    once, twice = (weigh(rule, [Voice(1, (10**6,) * n), Voice(1, (2 * 10**6,) * n)]) for n in (1, 2))
    assert abs(once[1] - math.e * 10**6) <= 1
    assert abs(twice[1] - math.e**2 * 10**6) <= 1


@pytest.mark.parametrize("weights", ["equal", Capped(cap_millis=300), MinimaxFair(eta_millis=500, most_millis=3000)])
def test_weights_follow_their_institutions_in_any_order(weights: Weights) -> None:
    said = [Voice(10 * k, (k * 100_000,)) for k in range(1, 8)]
    assert weigh(weights, said[::-1]) == weigh(weights, said)[::-1]
