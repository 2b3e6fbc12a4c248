"""Motions and ballots: who may say what when, what the count is, and what follows from it."""

from collections.abc import Callable

import pytest

from commonweal_protocols.base.errors import LogError, PeerError, RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.compact import Quorum
from commonweal_protocols.statements.governance import (
    Amendment,
    Ballot,
    Choice,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    Question,
    Recall,
    SealedBallot,
    seal,
)
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import Incident
from commonweal_protocols.statements.statement import Statement
from commonweal_protocols.statements.values import Blob
from commonweal_protocols.tlog.note import format_vkey
from tests.kit.deliberation import (
    DUE,
    OPENED,
    TEXT,
    a_motion,
    ballot,
    close,
    closing,
    moved,
    propose,
    recalled,
    the_motion,
    voted,
    with_a_release,
)
from tests.kit.federation import NAMES, Federation, blob_of, key_of

SALT = "5a" * 32
WHICH = Question(kind="question", text="When do we meet?", alternatives=("May", "June", "July"))


def sealed(f: Federation, who: str, choice: Choice = "yes", salt: str = SALT) -> SealedBallot:
    return SealedBallot(motion=the_motion(f), commitment=seal(the_motion(f), who, choice, salt))


def opened(f: Federation, choice: Choice = "yes", salt: str = SALT) -> OpenedBallot:
    return OpenedBallot(motion=the_motion(f), choice=choice, salt=salt, reason=None)


def sealed_by_all() -> Federation:
    f = moved(secret=True)
    for name in NAMES:
        f.say(name, sealed(f, name))
    return f


def opening() -> Federation:
    f = sealed_by_all()
    close(f)
    return f


def closed() -> Federation:
    f = voted(clinic="yes", school="yes", coop="no")
    close(f)
    return f


def result(f: Federation) -> str:
    outcome = f.state.motions[the_motion(f)].outcome
    assert outcome is not None
    return outcome.result


# -- what is refused


def of_another_log() -> str:
    other = Federation(witnesses=3)
    other.log_key = key_of("another log")
    return other.cosigned(DUE)


def without_its_quorum(f: Federation) -> str:
    """The log's own line, and that of one witness of the two that are wanted."""
    head, divider, lines = f.cosigned(DUE).partition("\n\n")
    return head + divider + "".join(lines.splitlines(keepends=True)[:2])


CASES: list[tuple[str, Callable[[], Federation], str, Callable[[Federation], Predicate], str]] = [
    ("the coordinator moves", lambda: moved(), "hub", lambda f: a_motion(), "motion: wanted a member as the author"),
    ("the coordinator votes", moved, "hub", ballot, "ballot: wanted a member as the author"),
    (
        "a recall of what was never released",
        moved,
        "clinic",
        lambda f: a_motion(Recall(kind="recall", round=1, institution=None)),
        "recall: round 1 has no release",
    ),
    (
        "a recall of an update that is in no release",
        with_a_release,
        "clinic",
        lambda f: a_motion(Recall(kind="recall", round=1, institution="library")),
        "recall: library has no part in the release of round 1",
    ),
    (
        "a second recall of an update",
        lambda: recalled("coop"),
        "clinic",
        lambda f: a_motion(Recall(kind="recall", round=1, institution="coop")),
        "recall: coop has no part in the release of round 1",
    ),
    (
        "a second recall of a release",
        recalled,
        "clinic",
        lambda f: a_motion(Recall(kind="recall", round=1, institution=None)),
        "the release of round 1 was recalled by [0-9a-f]{64} already",
    ),
    (
        "a ballot on no motion",
        moved,
        "clinic",
        lambda f: Ballot(motion="0" * 64, choice="yes", reason=None),
        f"ballot: wanted a logged motion, got {'0' * 64}",
    ),
    ("a ballot after the end", closed, "clinic", ballot, "ballot: the motion 'a motion' is closed, wanted open"),
    (
        "an open ballot on a secret motion",
        lambda: moved(secret=True),
        "clinic",
        ballot,
        "ballot: the motion is secret; wanted a sealed ballot",
    ),
    (
        "a sealed ballot on an open motion",
        moved,
        "clinic",
        lambda f: sealed(f, "clinic"),
        "sealed ballot: the motion is not secret; wanted an open ballot",
    ),
    ("a sealed ballot once they are opened", opening, "clinic", lambda f: sealed(f, "clinic"), "is opening, wanted op"),
    ("a ballot is opened too early", sealed_by_all, "clinic", opened, "is open, wanted opening"),
    (
        "another choice than was sealed",
        opening,
        "clinic",
        lambda f: opened(f, "no"),
        "opened ballot: wanted the choice and the salt that were sealed last, got others",
    ),
    ("another salt than was sealed with", opening, "clinic", lambda f: opened(f, salt="00" * 32), "got others"),
    ("a ranking of a yes-or-no", moved, "clinic", lambda f: ballot(f, (0,)), "wanted yes, no or abstain, got a rank"),
    ("yes to a question", lambda: moved(WHICH), "clinic", ballot, "wanted a ranking of the 3 alternatives"),
    ("no to a question", lambda: moved(WHICH), "clinic", lambda f: ballot(f, "no"), "wanted a ranking of the 3"),
    ("an alternative that is none", lambda: moved(WHICH), "clinic", lambda f: ballot(f, (3,)), "a ranking of the 3"),
    ("an alternative twice", lambda: moved(WHICH), "clinic", lambda f: ballot(f, (1, 1)), "each once at most"),
    (
        "an end before all have voted, and no time shown",
        lambda: voted(clinic="yes", coop="no"),
        "hub",
        closing,
        "closing: wanted a checkpoint that shows the time, since school may still act",
    ),
    (
        "an end of the opening before all have opened",
        opening,
        "hub",
        closing,
        "since clinic, coop, school may still act",
    ),
    ("an end too early", moved, "hub", lambda f: closing(f, DUE - 1), "wanted log time 1000 or later, got 999"),
    ("an opening's end too early", opening, "hub", lambda f: closing(f, DUE), "wanted log time 2000 or later, got 10"),
    ("an end of no motion", moved, "hub", lambda f: Closing(motion="0" * 64, checkpoint=None), "wanted an open motion"),
    ("a second end", closed, "hub", closing, "closing: wanted an open motion, got"),
    (
        "an end shown by a checkpoint from before the motion",
        lambda: Federation(witnesses=3),
        "hub",
        lambda f: Closing(motion=_proposed_after(f, note := f.cosigned(DUE)), checkpoint=note),
        "closing: wanted a checkpoint of size 2 to 2, got 1",
    ),
    (
        "an end shown by another log's checkpoint",
        moved,
        "hub",
        lambda f: Closing(motion=the_motion(f), checkpoint=of_another_log()),
        "closing: wanted a cosigned checkpoint of this log",
    ),
    (
        "an end shown by fewer witnesses than the quorum",
        moved,
        "hub",
        lambda f: Closing(motion=the_motion(f), checkpoint=without_its_quorum(f)),
        "closing: wanted a cosigned checkpoint of this log: .* missing: w1, w2",
    ),
    (
        "an exit of another",
        moved,
        "clinic",
        lambda f: Exit(institution="coop", reason="x"),
        "wanted institution clinic",
    ),
]


def _proposed_after(f: Federation, note: str) -> str:
    return propose(f)


@pytest.mark.parametrize(("why", "before", "who", "what", "message"), CASES, ids=[c[0] for c in CASES])
def test_what_may_not_be_said_is_refused_and_changes_nothing(
    why: str,
    before: Callable[[], Federation],
    who: str,
    what: Callable[[Federation], Predicate],
    message: str,
) -> None:
    f = before()
    said = what(f)
    state = f.state
    with pytest.raises(RuleError, match=message):
        f.say(who, said)
    assert f.state is state


def test_a_closing_s_checkpoint_is_of_this_very_history() -> None:
    f, other = moved(), Federation(witnesses=3)
    for name in reversed(NAMES):  # as many entries, in another order
        other.say(name, Identity(institution=name, transport_key="A" * 44))
    propose(other)
    with pytest.raises(LogError, match="forked: at size 5"):
        f.say("hub", Closing(motion=the_motion(f), checkpoint=other.cosigned(DUE)))
    close(f, DUE)


def test_without_a_quorum_of_witnesses_only_everybody_can_end_a_motion() -> None:
    f = Federation()
    propose(f)
    with pytest.raises(RuleError, match="no quorum of witnesses, so no time is shown; everybody must act"):
        close(f, DUE)
    for name in NAMES:
        f.say(name, ballot(f))
    close(f)
    assert result(f) == "passed"


def test_a_member_has_at_most_four_open_motions() -> None:
    f = moved()
    for _ in range(3):
        propose(f)
    with pytest.raises(RuleError, match="motion: wanted at most 4 open ones of clinic, got one more"):
        propose(f)
    propose(f, who="school")
    for name in NAMES:
        f.say(name, Ballot(motion=next(iter(f.state.motions)), choice="no", reason=None))
    f.say("hub", Closing(motion=next(iter(f.state.motions)), checkpoint=None))
    propose(f)


@pytest.mark.parametrize(
    "opens_until",
    [DUE, DUE - 1],
)
def test_sealed_ballots_are_opened_after_the_end_of_voting(opens_until: int) -> None:
    with pytest.raises(ValueError, match="opens_until: wanted a time after closes_at"):
        Motion(title="t", reasons="r", proposal=TEXT, closes_at=DUE, opens_until=opens_until)


# -- the count


def test_a_member_votes_as_it_last_did_and_every_ballot_stays_on_record() -> None:
    f = voted(clinic="yes", school="yes", coop="no")
    f.say("school", ballot(f, "no", "the losses name a small school"))
    close(f)
    m = f.state.motions[the_motion(f)]
    assert result(f) == "failed"
    assert [c.choice for c in m.ballots["school"]] == ["yes", "no"]
    assert m.ballots["school"][-1].reason == "the losses name a small school"


def test_a_ballot_that_comes_after_the_shown_time_does_not_count() -> None:
    f = voted(clinic="yes", coop="no")
    shown = closing(f, DUE)
    f.say("school", ballot(f, "yes"))
    f.say("coop", ballot(f, "yes"))
    f.say("hub", shown)
    m = f.state.motions[the_motion(f)]
    assert m.outcome is not None
    assert m.outcome.steps[:4] == (
        "yes: 1 (clinic)",
        "no: 1 (coop)",
        "abstain: 0 (nobody)",
        "no ballot: 1 (school)",
    )
    assert m.outcome.result == "failed"


def test_at_the_shown_time_silence_is_no_yes() -> None:
    f = voted(clinic="yes")
    close(f, DUE)
    assert result(f) == "failed"


def test_a_majority_of_all_members_passes_whoever_ends_it() -> None:
    for who in ("hub", "coop"):
        f = voted(clinic="yes", school="yes")
        f.say(who, closing(f, DUE))
        assert result(f) == "passed"


def test_who_may_vote_and_how_many_must_is_fixed_when_the_motion_is_made() -> None:
    f = moved()
    joined = f.amended(
        members=f.members(library="library"),
        quorum={"updates": 2, "ratifications": 3, "amendments": 4, "witnesses": 2},
    )
    f.add(f.amendment(joined, *NAMES, "library"))
    f.keys["library"] = key_of("library")
    with pytest.raises(RuleError, match="ballot: library was no member when the motion was made"):
        f.say("library", ballot(f))
    for name in ("clinic", "school", "coop"):
        f.say(name, ballot(f, "yes" if name != "coop" else "no"))
    close(f)
    assert result(f) == "passed"


def test_a_member_that_has_left_is_not_awaited_and_lowers_no_threshold() -> None:
    f = voted(clinic="yes", coop="no")
    f.say("school", Exit(institution="school", reason="no funds"))
    close(f)
    assert result(f) == "failed"


def test_a_member_that_votes_under_its_next_key_votes_again() -> None:
    f = voted(clinic="yes", school="yes", coop="no")
    f.rotate("school", "school-2")
    f.say("school", ballot(f, "no"))
    close(f)
    assert result(f) == "failed"


def test_a_question_is_decided_by_rankings_and_abstaining_makes_no_quorum() -> None:
    f = voted(WHICH, clinic=(0, 1), school=(1,), coop=(2, 1))
    close(f)
    m = f.state.motions[the_motion(f)]
    # One first place each: all three would leave at once.
    assert m.outcome is not None
    assert (m.outcome.result, m.outcome.winner) == ("tied", None)
    f = voted(WHICH, clinic=(0, 1), school=(1, 0), coop=(1,))
    close(f)
    m = f.state.motions[the_motion(f)]
    assert m.outcome is not None
    assert (m.outcome.result, m.outcome.winner) == ("passed", 1)
    f = voted(WHICH, clinic=(0, 1), school="abstain", coop="abstain")
    close(f)
    assert result(f) == "failed"


# -- secret ballots


def test_sealed_ballots_say_nothing_until_they_are_opened_and_then_count() -> None:
    f = moved(secret=True)
    for name in NAMES:
        f.say(name, sealed(f, name, "no" if name == "coop" else "yes"))
    assert f.state.motions[the_motion(f)].ballots == {}
    close(f)
    for name in NAMES:
        f.say(name, opened(f, "no" if name == "coop" else "yes"))
    close(f)
    assert result(f) == "passed"


def test_a_sealed_ballot_that_is_copied_cannot_be_opened() -> None:
    f = moved(secret=True)
    for name in NAMES:
        f.say(name, sealed(f, "clinic"))
    close(f)
    f.say("clinic", opened(f))
    with pytest.raises(RuleError, match="got others"):
        f.say("school", opened(f))


def test_a_sealed_ballot_that_is_not_opened_is_none() -> None:
    f = opening()
    f.say("clinic", opened(f))
    close(f, OPENED)
    assert result(f) == "failed"


def test_the_ballot_that_was_sealed_last_is_the_one_to_open() -> None:
    f = moved(secret=True)
    f.say("clinic", sealed(f, "clinic", "yes"))
    f.say("clinic", sealed(f, "clinic", "no"))
    close(f, DUE)
    with pytest.raises(RuleError, match="got others"):
        f.say("clinic", opened(f, "yes"))
    f.say("clinic", opened(f, "no"))


def test_a_ballot_is_opened_once() -> None:
    f = opening()
    f.say("clinic", opened(f))
    with pytest.raises(RuleError, match="clinic has opened its ballot already"):
        f.say("clinic", opened(f))


def test_what_is_sealed_after_the_shown_time_is_not_opened_and_nobody_waits_for_it() -> None:
    f = moved(secret=True)
    f.say("clinic", sealed(f, "clinic"))
    shown = closing(f, DUE)
    f.say("clinic", sealed(f, "clinic", "no"))
    f.say("school", sealed(f, "school"))
    f.say("hub", shown)
    with pytest.raises(RuleError, match="opened ballot: school has sealed none in time"):
        f.say("school", opened(f))
    f.say("clinic", opened(f))  # what it had sealed in time
    close(f)
    assert result(f) == "failed"


def test_what_is_opened_after_the_shown_time_does_not_count() -> None:
    f = opening()
    f.say("clinic", opened(f))
    shown = closing(f, OPENED)
    f.say("school", opened(f))
    f.say("hub", shown)
    assert result(f) == "failed"


# -- a compact that was voted for


def voted_for(**choices: Choice) -> tuple[Federation, bytes]:
    """A motion that a shorter deadline be the compact's; and that compact, carried by the coordinator alone."""
    f = Federation(witnesses=3)
    f.announce()
    compact = f.amended(round_deadline_seconds=60)
    payload = Statement(None, compact).payload()
    propose(f, Amendment(kind="amendment", compact=blob_of(payload)))
    for name, choice in choices.items():
        f.say(name, ballot(f, choice))
    return f, f.amendment(compact, "coordinator")


def test_a_compact_that_was_voted_for_needs_no_more_signatures_than_its_carrier_s() -> None:
    f, carried = voted_for(clinic="yes", school="yes", coop="no")
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 1, got 0"):
        f.add(carried)  # the motion is not over
    close(f)
    f.add(carried)
    assert (f.state.compact.version, f.state.compact.round_deadline_seconds) == (2, 60)


def test_a_compact_that_was_voted_down_is_in_force_by_nobody_s_carrying() -> None:
    f, carried = voted_for(clinic="yes", school="no", coop="no")
    close(f)
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 1, got 0"):
        f.add(carried)


def test_a_vote_is_for_one_statement_and_no_other() -> None:
    f, _ = voted_for(clinic="yes", school="yes", coop="yes")
    close(f)
    with pytest.raises(RuleError, match="got 0"):
        f.add(f.amendment(f.amended(round_deadline_seconds=61), "coordinator"))


HEIR = {
    "name": "heir",
    "key": public_hex(key_of("heir")),
    "log": format_vkey("log.test/heir", key_of("log of heir").public_key().public_bytes_raw()),
}


def ends_here(f: Federation) -> dict[str, object]:
    checkpoint = f.replica.checkpoint()
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def test_ballots_for_another_coordinator_count_for_no_history_that_goes_on_after_them() -> None:
    f = Federation(witnesses=3)
    voted_on = f.amended(coordinator=HEIR, succeeds=ends_here(f))
    propose(f, Amendment(kind="amendment", compact=blob_of(Statement(None, voted_on).payload())))
    for name in NAMES:
        f.say(name, ballot(f))
    close(f)
    assert result(f) == "passed"
    with pytest.raises(RuleError, match=f"succeeds: wanted the last checkpoint of .*, of the {f.state.size} entries"):
        f.add(f.amendment(voted_on, "heir"))
    # That they meant this coordinator does not say with which entries: those may have grown, or be fewer elsewhere.
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 1, got 0"):
        f.add(f.amendment(f.amended(coordinator=HEIR, succeeds=ends_here(f)), "heir"))


def test_a_successor_that_was_voted_for_still_needs_signatures_on_where_the_old_log_ends() -> None:
    f = Federation(witnesses=3)
    named = f.amended(successors=[HEIR])
    propose(f, Amendment(kind="amendment", compact=blob_of(Statement(None, named).payload())))
    for name in NAMES:
        f.say(name, ballot(f))
    close(f)
    f.add(f.amendment(named, "coordinator"))
    over = f.amended(coordinator=HEIR, successors=[], succeeds=ends_here(f))
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 2, got 0"):
        f.add(f.amendment(over, "heir"))
    f.add(f.amendment(over, "clinic", "school"))
    assert f.replica.log.name == "log.test/heir"


def test_a_compact_that_was_voted_for_is_carried_by_no_stranger() -> None:
    f, _ = voted_for(clinic="yes", school="yes", coop="yes")
    close(f)
    with pytest.raises(RuleError, match="members in good standing only"):
        f.add(f.amendment(f.amended(round_deadline_seconds=60), "stranger"))


def test_a_key_that_the_voted_compact_revokes_has_no_voice_in_it() -> None:
    f = Federation(witnesses=3)
    f.announce()
    revoked = [{"key": public_hex(f.key("clinic")), "from_index": 4, "reason": "laptop stolen"}]
    compact = f.amended(members=f.members(clinic="clinic-2"), revocations=revoked)
    propose(f, Amendment(kind="amendment", compact=blob_of(Statement(None, compact).payload())), who="school")
    f.say("clinic", ballot(f))
    f.say("school", ballot(f))
    f.say("coop", ballot(f, "no"))
    close(f)
    with pytest.raises(RuleError, match="members of version 1, got 1"):
        f.add(f.amendment(compact, "coordinator", "clinic-2"))


def test_whoever_joins_by_a_vote_must_still_sign() -> None:
    f = Federation(witnesses=3)
    f.announce()
    compact = f.amended(
        members=f.members(library="library"),
        quorum={"updates": 2, "ratifications": 3, "amendments": 3, "witnesses": 2},
    )
    propose(f, Amendment(kind="amendment", compact=blob_of(Statement(None, compact).payload())))
    for name in NAMES:
        f.say(name, ballot(f))
    close(f)
    with pytest.raises(RuleError, match=r"every key that joins; missing: \['library'\]"):
        f.add(f.amendment(compact, "coordinator"))
    f.add(f.amendment(compact, "coordinator", "library"))
    assert "library" in {m.institution for m in f.state.compact.members}


# -- recall


def test_a_recalled_release_is_ratified_no_more_and_the_next_round_starts_before_it() -> None:
    f = with_a_release()
    f.run_round()
    first = f.state.rounds[0].release
    assert first is not None
    recalled(f=f, number=2)
    assert f.state.ratified() == first
    assert f.state.next_start() == first.release.adapter
    assert not f.state.rounds[1].wants_release_again
    with pytest.raises(RuleError, match="the release of round 2 was recalled by"):
        f.say("clinic", f.ratification())
    with pytest.raises(RuleError, match="the release of round 2 is not ratified"):
        f.say("clinic", f.adoption())
    f.open_round()
    assert f.state.rounds[2].round.start == first.release.adapter


def test_a_release_is_computed_again_without_a_recalled_update_and_ratified_anew() -> None:
    f = recalled("coop")
    before = f.state.rounds[0].release
    assert before is not None
    assert f.state.rounds[0].wants_release_again
    f.say("hub", f.release())
    after = f.state.rounds[0].release
    assert after is not None
    assert [i.institution for i in after.release.inputs] == ["clinic", "school"]
    assert (after.release.adapter != before.release.adapter, after.is_ratified) == (True, False)
    with pytest.raises(RuleError, match="wanted the release entry"):
        f.say("coop", f.ratification().model_copy(update={"release_leaf": before.leaf}))
    for name in NAMES[:2]:
        f.say(name, f.ratification())
    assert f.state.next_start() == after.release.adapter
    with pytest.raises(RuleError, match="no round is open"):
        f.say("hub", f.release())


def test_a_recall_that_leaves_too_few_updates_ends_in_no_release() -> None:
    f = Federation(witnesses=3, quorum=Quorum(updates=3, ratifications=2, amendments=2))
    f.announce()
    f.run_round()
    recalled("coop", f)
    assert not f.state.rounds[0].wants_release_again
    assert f.state.next_start() == f.compact.start


def test_two_motions_that_recall_one_update_both_end_and_the_second_changes_nothing() -> None:
    f = with_a_release()
    leaves = [propose(f, Recall(kind="recall", round=1, institution="coop"), who=n) for n in ("clinic", "school")]
    for leaf in leaves:
        for name in NAMES:
            f.say(name, Ballot(motion=leaf, choice="yes", reason=None))
    f.say("hub", Closing(motion=leaves[0], checkpoint=None))
    f.say("hub", f.release())
    again = f.state.rounds
    f.say("hub", Closing(motion=leaves[1], checkpoint=None))
    assert f.state.rounds == again
    assert not f.state.motions[leaves[1]].is_open


def test_two_motions_that_recall_one_release_leave_the_first_as_its_reason() -> None:
    f = with_a_release()
    leaves = [propose(f, Recall(kind="recall", round=1, institution=None), who=n) for n in ("clinic", "school")]
    for leaf in leaves:
        for name in NAMES:
            f.say(name, Ballot(motion=leaf, choice="yes", reason=None))
        f.say("hub", Closing(motion=leaf, checkpoint=None))
    release = f.state.rounds[0].release
    assert release is not None
    assert release.recalled_by == leaves[0]


def test_a_recall_that_fails_withdraws_nothing() -> None:
    f = with_a_release()
    propose(f, Recall(kind="recall", round=1, institution=None))
    for name in NAMES:
        f.say(name, ballot(f, "no"))
    close(f)
    release = f.state.rounds[0].release
    assert release is not None
    assert release.is_ratified


# -- leaving


def test_who_leaves_speaks_no_more_and_what_it_gave_stays() -> None:
    f = with_a_release()
    f.say("coop", Exit(institution="coop", reason="no funds"))
    assert {m.institution for m in f.state.compact.members} == {"clinic", "school"}
    assert f.state.ratified() is not None
    with pytest.raises(RuleError, match="left the consortium"):
        f.say("coop", Identity(institution="coop", transport_key="B" * 44))


def test_an_exit_takes_its_witness_along_and_lowers_what_the_others_could_not_reach() -> None:
    f = Federation(quorum=Quorum(updates=3, ratifications=3, amendments=3))
    f.say("coop", Exit(institution="coop", reason="no funds"))
    assert f.state.compact.quorum == Quorum(updates=2, ratifications=2, amendments=2)


def test_the_last_member_cannot_leave() -> None:
    f = Federation()
    for name in NAMES[:2]:
        f.say(name, Exit(institution=name, reason="x"))
    with pytest.raises(RuleError, match=f"{NAMES[2]} is the last member"):
        f.say(NAMES[2], Exit(institution=NAMES[2], reason="x"))


def test_every_replay_stands_in_the_same_state() -> None:
    f = recalled("coop")
    again = Replica()
    for data in f.entries:
        again.add(data)
    assert again.state == f.state


def test_a_motion_does_not_hinder_a_round_and_a_round_does_not_hinder_a_motion() -> None:
    f = moved()
    f.open_round()
    f.say("clinic", ballot(f))
    f.say("clinic", f.update("clinic"))
    f.say("hub", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="x"))
    close(f, DUE)
    assert result(f) == "failed"


def test_the_seal_is_of_motion_voter_choice_and_salt() -> None:
    said = [
        seal("0" * 64, "clinic", "yes", SALT),
        seal("1" * 64, "clinic", "yes", SALT),
        seal("0" * 64, "coop", "yes", SALT),
        seal("0" * 64, "clinic", "no", SALT),
        seal("0" * 64, "clinic", (0, 1), SALT),
        seal("0" * 64, "clinic", (1, 0), SALT),
        seal("0" * 64, "clinic", "yes", "00" * 32),
    ]
    assert len(set(said)) == len(said)


def test_a_proposal_of_a_compact_names_its_bytes() -> None:
    with pytest.raises(ValueError, match="sha256"):
        Amendment(kind="amendment", compact=Blob(sha256="short", size_bytes=1))
    assert issubclass(RuleError, PeerError)
