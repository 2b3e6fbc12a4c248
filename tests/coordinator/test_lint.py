"""The linter of compacts: each choke point is named, with its numbers, and a compact without any is passed."""

import pytest

from commonweal_coordinator.commands.lint import choke_points
from commonweal_protocols.statements.compact import Compact, Quorum
from commonweal_protocols.statements.rules import AnyRule, Capped, FactorMean, MinimaxFair
from tests.kit.federation import Federation
from tests.kit.succession import heir

SOUND = ("a", "b", "c", "d")


def compact(
    witnesses: int = 4, quorum: int = 3, names: tuple[str, ...] = SOUND, rule: AnyRule | None = None, heirs: int = 1
) -> Compact:
    most = len(names) // 2 + 1
    quorum_of = Quorum(updates=1, ratifications=most, amendments=most)
    made = Federation(names=names, witnesses=witnesses, quorum=quorum_of).compact
    hosts = [w.model_copy(update={"url": f"http://w{i}.example:7480"}) for i, w in enumerate(made.witnesses)]
    return made.model_copy(
        update={
            "witnesses": tuple(hosts),
            "quorum": made.quorum.model_copy(update={"witnesses": quorum}),
            "successors": (heir(),) * heirs,
            "rule": rule or FactorMean(weights="equal"),
        }
    )


def test_a_compact_without_choke_points_is_passed() -> None:
    assert list(choke_points(compact())) == []


TABLE: list[tuple[Compact, str]] = [
    (compact(heirs=0), "successors: none"),
    (compact(witnesses=0, quorum=0), "witnesses: none are wanted"),
    (compact(witnesses=3, quorum=2), "2 of 3 survive no dishonest one: two quorums may share only 1"),
    (compact(witnesses=4, quorum=2), "2 of 4 survive no dishonest one: two quorums may share only 0"),
    (compact(witnesses=4, quorum=4), "4 of 4: any one of them stops the log"),
    (compact(rule=FactorMean(weights="examples")), "by examples: no bound"),
    (compact(rule=FactorMean(weights=Capped(cap_millis=400))), "one institution of 4 can have 40%"),
    # 3 against 1 + 1 + 1.
    (
        compact(rule=FactorMean(weights=MinimaxFair(eta_millis=1, most_millis=3000))),
        "one institution of 4 can have 50%",
    ),
]


@pytest.mark.parametrize(("made", "sentence"), TABLE)
def test_each_choke_point_is_named_with_its_numbers(made: Compact, sentence: str) -> None:
    (found,) = choke_points(made)
    assert sentence in found


def test_two_members_have_half_each_and_each_could_end_every_amendment() -> None:
    assert list(choke_points(compact(names=("a", "b")))) == [
        "amendments: 2 of 2 members: one lost key, or one no, ends every later amendment",
        "weights: one institution of 2 can have 50% of a release, more than a third",
    ]


QUORUMS = [(2, 3, 0), (3, 4, 1), (5, 7, 2), (4, 7, 0), (4, 5, 2), (3, 5, 0), (4, 6, 1)]


@pytest.mark.parametrize(("k", "n", "f"), QUORUMS)
def test_a_quorum_is_warned_of_exactly_where_one_liar_breaks_it(k: int, n: int, f: int) -> None:
    # f, by the definition: the most liars at which k + k > n + f still holds.
    assert max(x for x in range(-n, n) if 2 * k > n + x) == f
    warned = any("survive no dishonest one" in s for s in choke_points(compact(witnesses=n, quorum=k)))
    assert warned == (f == 0)


def test_one_operator_behind_a_quorum_and_a_coordinator_that_watches_itself_are_named() -> None:
    made = compact()
    same = [w.model_copy(update={"url": "http://w0.example:1"}) for w in made.witnesses[:3]]
    found = list(choke_points(made.model_copy(update={"witnesses": (*same, made.witnesses[3])})))
    assert found == ["witnesses: w0, w1, w2 are all at w0.example: one operator has the quorum of 3"]
    own = made.witnesses[0].model_copy(update={"url": "http://log.test:1"})
    found = list(choke_points(made.model_copy(update={"witnesses": (own, *made.witnesses[1:])})))
    assert found == ["witnesses: w0 is at the coordinator's own host log.test: it would watch itself"]
