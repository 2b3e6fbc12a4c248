"""The threats to deciding together, one by one; and every test that SECURITY.md names is real."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.tally import count
from commonweal_protocols.statements.compact import Quorum
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.rules import FactorMean
from tests.kit.author import Author
from tests.kit.deliberation import ballot, close, moved, voted
from tests.kit.federation import NAMES, Federation, key_of

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")
TABLE = re.search(r"\n\| threat \|.*?\n\n", SECURITY, re.DOTALL)
ROWS = TABLE[0].strip().splitlines()[2:] if TABLE else []
NAMED = [(row.split("|")[1].strip(), name) for row in ROWS for name in re.findall(r"`(test_\w+::test_\w+)`", row)]
THREATS = (
    "captured majority",
    "Sybil admission",
    "ballot stuffing",
    "a ballot withheld until after the close",
    "votes bought by weight",
    "rule change during a round",
    "replayed ballot",
    "key theft in mid-vote",
    "hostile fork",
    "deadlock",
    "false provenance",
    "a delegate that gives its own instead",
)


def test_the_table_has_every_threat_and_each_row_names_a_test() -> None:
    assert tuple(row.split("|")[1].strip() for row in ROWS) == THREATS
    assert {threat for threat, _ in NAMED} == set(THREATS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+::test_\w+)`", SECURITY))))
def test_every_test_that_a_table_names_is_there(name: str) -> None:
    module, function = name.split("::")
    tree = ast.parse(next((ROOT / "tests").rglob(f"{module}.py")).read_text("utf-8"))
    assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


# -- captured majority


def test_a_majority_that_throws_a_member_out_leaves_all_that_it_said_in_its_place() -> None:
    f = voted(clinic="yes", school="yes")
    f.say("coop", ballot(f, "no", "our members were not asked"))
    close(f)
    before = list(f.entries)
    f.add(f.amendment(f.amended(members=f.members(coop=None)), "clinic", "school"))
    assert f.state.key("coop") is None
    assert f.entries[: len(before)] == before
    (m,) = f.state.motions.values()
    assert m.ballots["coop"][-1].reason == "our members were not asked"


def test_a_majority_cannot_speak_in_a_members_name() -> None:
    f = moved()
    chain = f.state.chain(public_hex(f.keys["coop"]))
    for who in ("clinic", "school", "hub"):
        author = Author(f.key(who), f.state.consortium)
        forged = author.sign(ballot(f), seq=chain.seq + 1, prev=chain.leaf, seen=())
        with pytest.raises(RuleError, match=r"wanted number|as the entry of school before it|wanted a member"):
            f.add(forged)
    (m,) = f.state.motions.values()
    assert m.ballots == {}


# -- Sybil admission


def test_a_member_does_not_admit_friends_by_their_own_signatures_however_many_they_are() -> None:
    f = Federation()
    friends = {f"friend-{n}": f"friend-{n}" for n in range(6)}
    version = f.amended(
        members=f.members(**friends), quorum=Quorum(updates=2, ratifications=5, amendments=5).model_dump()
    )
    with pytest.raises(RuleError, match=r"wanted 2 signatures of the members of version 1, got 1; missing: .*school"):
        f.add(f.amendment(version, "clinic", *friends))
    f.add(f.amendment(version, "clinic", "school", *friends))


def test_one_key_is_not_admitted_under_two_names() -> None:
    f = Federation()
    with pytest.raises(ValueError, match="members: a public key is repeated"):
        f.amended(members=f.members(**{"one": "friend", "another": "friend"}))


# -- ballot stuffing


def test_an_institution_has_one_ballot_however_often_it_votes() -> None:
    f = moved()
    for _ in range(5):
        f.say("clinic", ballot(f))
    f.say("school", ballot(f, "no"))
    f.say("coop", ballot(f, "no"))
    close(f)
    (m,) = f.state.motions.values()
    assert m.outcome is not None
    assert m.outcome.steps[0] == "yes: 1 (clinic)"
    assert m.outcome.result == "failed"


def test_neither_a_stranger_nor_the_coordinator_casts_a_ballot() -> None:
    f = moved()
    f.keys["stranger"] = key_of("stranger")
    for who in ("stranger", "hub"):
        with pytest.raises(RuleError, match="ballot: wanted a member as the author"):
            f.say(who, ballot(f))


# -- a withheld ballot

choices = st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from(["yes", "no", "abstain"]))


@given(choices, st.sets(st.sampled_from("abcdefg")), st.integers(4, 7))
def test_a_withheld_ballot_passes_nothing_that_would_have_failed(
    cast: dict[str, str], withheld: set[str], threshold: int
) -> None:
    left = {name: choice for name, choice in cast.items() if name not in withheld}
    if count(left, "abcdefg", threshold).result == "passed":
        assert count(cast, "abcdefg", threshold).result == "passed"


# -- votes bought by weight


def test_examples_buy_weight_in_a_merge_and_no_ballot() -> None:
    f = Federation(rule=FactorMean(weights="examples"))
    f.announce()
    f.open_round()
    for name in NAMES:
        update = f.update(name)
        f.say(name, Update(**{**dict(update), "num_examples": 10**9}) if name == "school" else update)
    f.say("hub", f.release())
    weights = {i.institution: i.weight for i in f.release().inputs}
    assert weights["school"] > 10**7 * weights["clinic"]
    g = voted(school="yes", clinic="no", coop="no")
    close(g)
    (m,) = g.state.motions.values()
    assert m.outcome is not None
    assert m.outcome.result == "failed"


# -- rule change during a round


def test_a_round_is_released_by_the_rule_that_it_began_under() -> None:
    f = Federation()
    f.announce()
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    f.add(f.amendment(f.amended(rule={"name": "factor-mean", "weights": "examples"}), *NAMES))
    release = f.release()
    assert release.rule == FactorMean(weights="equal")
    with pytest.raises(RuleError, match="release: wanted the start and the rule of round 1"):
        f.say("hub", release.model_copy(update={"rule": f.state.compact.rule}))
    f.say("hub", release)
    with pytest.raises(RuleError, match="round: wanted the compact's rule"):
        f.say("hub", f.next_round().model_copy(update={"rule": release.rule}))


# -- replayed ballot


def test_a_ballot_is_logged_once_and_counts_nowhere_else() -> None:
    f = moved()
    said = f.say("clinic", ballot(f))
    f.say("clinic", ballot(f, "no"))
    with pytest.raises(RuleError, match="ballot: wanted number 4 in the chain of clinic, got 2"):
        f.add(said)
    elsewhere = Federation(quorum=Quorum(updates=3, ratifications=2, amendments=2), witnesses=3)
    elsewhere.announce()
    with pytest.raises(RuleError, match=f"ballot: wanted consortium {elsewhere.state.consortium}"):
        elsewhere.add(said)


# -- key theft in mid-vote


def test_who_has_a_stolen_key_votes_until_its_owner_rotates_it_and_then_the_owners_word_stands() -> None:
    f = voted(school="yes", coop="no")
    f.say("clinic", ballot(f, "yes"))  # the thief
    f.rotate("clinic", "clinic-2")
    f.say("clinic", ballot(f, "no"))
    f.keys["clinic"] = key_of("clinic")
    with pytest.raises(RuleError, match=r"wanted a key in force, got .* of clinic, ended at entry"):
        f.say("clinic", ballot(f, "yes"))
    close(f)
    (m,) = f.state.motions.values()
    assert m.outcome is not None
    assert m.outcome.result == "failed"
    assert [c.choice for c in m.ballots["clinic"]] == ["yes", "no"], "and what the thief did is on record"


# -- hostile fork


def test_a_fork_with_other_terms_is_another_consortium_in_which_no_old_statement_holds() -> None:
    f, fork = moved(), Federation(quorum=Quorum(updates=1, ratifications=2, amendments=2))
    assert fork.state.consortium != f.state.consortium
    for data in f.entries[1:]:
        with pytest.raises(RuleError):
            fork.add(data)


# -- deadlock


def test_members_who_stay_silent_cannot_keep_a_motion_open() -> None:
    f = voted(clinic="yes", school="yes")
    with pytest.raises(RuleError, match="wanted a checkpoint that shows the time, since coop may still act"):
        close(f)
    close(f, 1_000)
    (m,) = f.state.motions.values()
    assert m.outcome is not None
    assert m.outcome.result == "passed"
