"""Counting ballots: against a formula, against pref-voting, and by what must hold of every count."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.fold.tally import Outcome, count, instant_runoff

VECTORS = Path(__file__).parents[1] / "vectors/runoffs.json"
"""What ``make_runoffs`` has made of pref-voting."""
NAMES = tuple(f"m{i}" for i in range(9))


def runoff(ballots: Sequence[Sequence[int]], alternatives: int, quorum: int = 1) -> Outcome:
    voters = [f"v{i:02}" for i in range(len(ballots))]
    called = [f"alternative {a}" for a in range(alternatives)]
    return instant_runoff(dict(zip(voters, ballots, strict=True)), called, voters, quorum)


def won(outcome: Outcome) -> tuple[str, int | None]:
    return outcome.result, outcome.winner


@st.composite
def profiles(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    alternatives = draw(st.integers(2, 6))
    rankings = st.permutations(range(alternatives)).flatmap(
        lambda order: st.integers(1, alternatives).map(lambda n: order[:n])
    )
    return alternatives, draw(st.lists(rankings, min_size=1, max_size=15))


# -- yes or no


def test_a_motion_passes_from_the_threshold_on_whatever_the_others_do() -> None:
    for yes in range(10):
        choices = dict.fromkeys(NAMES[:yes], "yes") | dict.fromkeys(NAMES[yes:7], "no")
        assert count(choices, NAMES, 5).result == ("passed" if yes >= 5 else "failed")


def test_a_vote_of_who_could_not_vote_is_none() -> None:
    outcome = count({"m0": "yes", "stranger": "yes"}, NAMES[:3], 2)
    assert outcome.result == "failed"
    assert outcome.steps[0] == "yes: 1 (m0)"


def test_every_step_of_a_count_is_told() -> None:
    assert count({"m2": "yes", "m0": "yes", "m1": "no"}, NAMES[:4], 3) == Outcome(
        "failed",
        None,
        (
            "yes: 2 (m0, m2)",
            "no: 1 (m1)",
            "abstain: 0 (nobody)",
            "no ballot: 1 (m3)",
            "wanted 3 yes of 4 members, got 2",
        ),
    )


# -- which of several


def test_who_has_more_than_half_of_the_first_places_wins_at_once() -> None:
    assert runoff([[0], [0, 1], [1, 0]], 2).steps == (
        "3 of 3 members have voted; wanted 1",
        "alternative 0: 2; alternative 1: 1; 3 ballots count",
        "alternative 0 has more than half",
    )


def test_the_last_leave_and_their_ballots_count_for_the_next() -> None:
    outcome = runoff([[0], [0], [1], [1], [2, 1]], 3)
    assert won(outcome) == ("passed", 1)
    assert outcome.steps[1:] == (
        "alternative 0: 2; alternative 1: 2; alternative 2: 1; 5 ballots count",
        "out: alternative 2",
        "alternative 0: 2; alternative 1: 3; 5 ballots count",
        "alternative 1 has more than half",
    )


def test_a_ballot_that_names_nobody_who_is_left_does_not_count_any_more() -> None:
    outcome = runoff([[0], [0], [0], [1], [1], [2], [3]], 4)
    assert won(outcome) == ("passed", 0)
    assert outcome.steps[3] == "alternative 0: 3; alternative 1: 2; 5 ballots count"


def test_too_few_ballots_decide_nothing() -> None:
    assert won(runoff([[0], [0]], 2, quorum=3)) == ("failed", None)
    assert won(runoff([[0], [0]], 2, quorum=2)) == ("passed", 0)
    assert won(runoff([], 2, quorum=0)) == ("tied", None)


def test_a_tie_has_no_winner() -> None:
    assert won(runoff([[0, 1], [1, 0]], 2)) == ("tied", None)


def test_pref_voting_finds_the_same_winners() -> None:
    vectors = json.loads(VECTORS.read_text())
    ties = 0
    for v in vectors:
        expected = ("passed", v["winners"][0]) if len(v["winners"]) == 1 else ("tied", None)
        assert won(runoff(v["ballots"], v["alternatives"])) == expected, v
        ties += expected[0] == "tied"
    assert 20 < ties < len(vectors) - 100


@given(profiles())
def test_an_alternative_that_is_first_on_more_than_half_of_the_ballots_wins(
    profile: tuple[int, list[list[int]]],
) -> None:
    alternatives, ballots = profile
    for a in range(alternatives):
        if 2 * sum(b[0] == a for b in ballots) > len(ballots):
            assert won(runoff(ballots, alternatives)) == ("passed", a)


@given(profiles(), st.randoms(use_true_random=False))
def test_who_cast_which_ballot_changes_nothing(profile: tuple[int, list[list[int]]], rng: random.Random) -> None:
    alternatives, ballots = profile
    shuffled = rng.sample(ballots, len(ballots))
    assert runoff(shuffled, alternatives) == runoff(ballots, alternatives)


@given(profiles(), st.randoms(use_true_random=False))
def test_the_order_in_which_alternatives_were_named_changes_nothing(
    profile: tuple[int, list[list[int]]], rng: random.Random
) -> None:
    alternatives, ballots = profile
    other = rng.sample(range(alternatives), alternatives)
    result, winner = won(runoff(ballots, alternatives))
    renamed = runoff([[other[a] for a in b] for b in ballots], alternatives)
    assert won(renamed) == (result, None if winner is None else other[winner])


@given(profiles())
def test_a_winner_has_more_than_half_of_the_ballots_that_count_in_the_end(
    profile: tuple[int, list[list[int]]],
) -> None:
    alternatives, ballots = profile
    outcome = runoff(ballots, alternatives)
    out = {int(word.split()[-1]) for s in outcome.steps if s.startswith("out: ") for word in s[5:].split(", ")}
    left = [next((a for a in b if a not in out), None) for b in ballots]
    counted = [a for a in left if a is not None]
    assert (outcome.winner is not None) == (outcome.result == "passed")
    if outcome.winner is not None:
        assert 2 * counted.count(outcome.winner) > len(counted)
