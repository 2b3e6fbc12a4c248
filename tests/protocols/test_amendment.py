"""Versions of a compact, and keys that rotate, expire or are revoked: who decides, and what a thief is left with."""

import pytest

from commonweal_protocols.base.errors import LogError, PeerError, RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.compact import Compact, Quorum
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import Refusal
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.note import format_vkey
from tests.kit.author import Author
from tests.kit.federation import NAMES, Federation, key_of, two_rounds


def announced() -> Federation:
    f = Federation()
    f.announce()
    return f


def revocation(f: Federation, name: str, from_index: int) -> dict[str, object]:
    return {"key": public_hex(f.key(name)), "from_index": from_index, "reason": "laptop stolen"}


def hello(name: str) -> Predicate:
    return Identity(institution=name, transport_key="B" * 44)


# -- the threshold rule


def test_a_new_version_is_in_force_from_its_own_entry_on() -> None:
    f = announced()
    compact = f.amended(round_deadline_seconds=60)
    f.add(f.amendment(compact, "clinic", "coop"))
    assert f.state.compact == compact
    with pytest.raises(RuleError, match="a deadline of at most 60 s, got 600"):
        f.open_round()


@pytest.mark.parametrize(
    ("members", "quorum", "signers", "message", "why"),
    [
        ({}, {}, ("clinic",), "wanted 2 signatures of the members of version 1, got 1", "below the old threshold"),
        (
            {},
            {"amendments": 3},
            ("clinic", "coop"),
            "wanted 3 .* of version 2, got 2; missing: .'school'",
            "below its own",
        ),
        (
            {"library": "library"},
            {"amendments": 3},
            ("clinic", "coop", "school"),
            "every key that joins; missing: .'library'",
            "joined unasked",
        ),
        (
            {"school": "thief"},
            {},
            ("clinic", "thief"),
            "members of version 1, got 1",
            "a key that joins is none of the old",
        ),
        ({}, {}, ("clinic", "stranger"), "members in good standing only", "a stranger"),
        (
            {"clinic": "c2", "coop": "d2", "school": None},
            {},
            ("c2", "d2"),
            "members of version 1, got 0",
            "a takeover by new keys",
        ),
        (
            {"clinic": None, "coop": None, "x": "x", "y": "y"},
            {"amendments": 3},
            ("clinic", "coop", "x", "y"),
            "of version 2, got 2",
            "the old alone cannot choose the new",
        ),
    ],
)
def test_both_thresholds_must_sign(
    members: dict[str, str | None], quorum: dict[str, int], signers: tuple[str, ...], message: str, why: str
) -> None:
    f = announced()
    wanted = {"updates": 2, "ratifications": 3 if len(f.members(**members)) > 3 else 2, "amendments": 2, "witnesses": 0}
    compact = f.amended(members=f.members(**members), quorum={**wanted, **quorum})
    before = f.state
    with pytest.raises(RuleError, match=message):
        f.add(f.amendment(compact, *signers))
    assert f.state == before


def test_a_member_joins_and_another_leaves() -> None:
    f = announced()
    f.add(f.amendment(f.amended(members=f.members(school=None, library="library")), "clinic", "coop", "library"))
    f.keys["library"] = key_of("library")
    f.say("library", hello("library"))
    with pytest.raises(RuleError, match=r"wanted a key in force, got .* of school, ended at entry 4: not in version 2"):
        f.say("school", hello("school"))


CHANGES: list[tuple[dict[str, object], str]] = [
    ({"version": 3}, "wanted version 2, got 3"),
    ({"version": 1, "previous": None}, "wanted version 2, got 1"),
    ({"previous": "0" * 64}, "as the version before"),
    ({"consortium": "four"}, "the same consortium as before"),
    ({"base": {"reference": "path:/other", "sha256": "0" * 64}}, "the same base as before"),
    ({"start": {"sha256": "0" * 64, "size_bytes": 9}}, "the same start as before"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_what_makes_a_consortium_this_one_does_not_change(changes: dict[str, object], message: str) -> None:
    f = announced()
    with pytest.raises(RuleError, match=message):
        f.add(f.amendment(f.amended(**changes), *NAMES))


# -- another coordinator, another log


OTHER = "log.test/other"


def heir(**changes: object) -> dict[str, object]:
    """Another coordinator, as a compact names it."""
    log = format_vkey(OTHER, key_of("other log").public_key().public_bytes_raw())
    return {"name": "heir", "key": public_hex(key_of("heir")), "log": log, "post_quantum": None, **changes}


def last(f: Federation) -> dict[str, object]:
    checkpoint = f.replica.checkpoint()
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def test_another_coordinator_goes_on_with_the_same_history_under_another_log() -> None:
    f = two_rounds()
    seen = last(f)
    f.add(f.amendment(f.amended(coordinator=heir(), succeeds=seen), *NAMES))
    assert f.replica.log.name == OTHER
    with pytest.raises(RuleError, match=r"wanted a key in force, got .* of hub"):
        f.open_round()
    f.coordinator = key_of("heir")
    # Statements still carry what their authors saw of the log before.
    chain = f.state.chain(public_hex(f.keys["coop"]))
    author = Author(f.keys["coop"], f.state.consortium)
    f.add(author.sign(hello("coop"), seq=chain.seq + 1, prev=chain.leaf, seen=(Seen.model_validate(seen),)))
    f.run_round()
    assert len(f.state.rounds) == 3


def test_an_open_round_ends_under_the_successor() -> None:
    f = stolen()
    f.add(f.amendment(f.amended(coordinator=heir(), succeeds=last(f)), *NAMES))
    f.coordinator = key_of("heir")
    f.say("coop", f.update("coop"))
    f.say("hub", f.release())
    assert [i.institution for i in f.release().inputs] == ["clinic", "coop", "school"]


SUCCESSIONS: list[tuple[dict[str, object], dict[str, object] | None, str, str]] = [
    ({}, None, "succeeds: wanted the last checkpoint of log.test/three, of the 4 entries", "no checkpoint"),
    ({}, {"size": 3}, "of the 4 entries that are carried over", "an entry is not carried over"),
    ({}, {"root": "0" * 64}, "forked: at size 4", "another history"),
    ({}, {"origin": "log.test/x"}, "wanted the last checkpoint of log.test/three", "another log"),
    ({"name": "hub"}, {}, "another name, key and log", "the old name"),
    ({"key": public_hex(key_of("coordinator"))}, {}, "another name, key and log", "the old key"),
]


@pytest.mark.parametrize(("changes", "checkpoint", "message", "why"), SUCCESSIONS)
def test_a_succession_carries_everything_over(
    changes: dict[str, object], checkpoint: dict[str, object] | None, message: str, why: str
) -> None:
    f = announced()
    succeeds = None if checkpoint is None else last(f) | checkpoint
    with pytest.raises(PeerError, match=message):
        f.add(f.amendment(f.amended(coordinator=heir(**changes), succeeds=succeeds), *NAMES))


def test_who_saw_more_of_the_old_log_than_was_carried_over_says_so() -> None:
    f = announced()
    f.add(f.amendment(f.amended(coordinator=heir(), succeeds=last(f)), *NAMES))
    chain = f.state.chain(public_hex(f.keys["coop"]))
    more = Seen(origin="log.test/three", size=9, root="0" * 64)
    data = Author(f.keys["coop"], f.state.consortium).sign(
        hello("coop"), seq=chain.seq + 1, prev=chain.leaf, seen=(more,)
    )
    with pytest.raises(LogError, match="left behind: 9 entries were seen there, 4 were carried over"):
        f.add(data)


def test_the_same_log_is_not_succeeded() -> None:
    f = announced()
    with pytest.raises(RuleError, match="succeeds: wanted nothing"):
        f.add(f.amendment(f.amended(succeeds=last(f)), *NAMES))


# -- leaving


def test_who_leaves_says_nothing_more_and_what_it_gave_stays() -> None:
    f = stolen()
    f.say("clinic", Exit(institution="clinic", reason="we found another way"))
    assert [m.institution for m in f.state.compact.members] == ["coop", "school"]
    with pytest.raises(RuleError, match="of clinic, ended at entry 7: left the consortium"):
        f.add(f.signed("clinic", hello("clinic")))
    f.say("hub", f.release())
    assert "clinic" in [i.institution for i in f.release().inputs]


def test_quorums_that_could_not_be_reached_any_more_become_all_who_are_left() -> None:
    f = Federation(quorum=Quorum(updates=3, ratifications=3, amendments=2))
    f.say("clinic", Exit(institution="clinic", reason="bye"))
    assert f.state.compact.quorum == Quorum(updates=2, ratifications=2, amendments=2)
    f.say("coop", Exit(institution="coop", reason="bye"))
    with pytest.raises(RuleError, match="school is the last member"):
        f.say("school", Exit(institution="school", reason="bye"))


def test_nobody_is_made_to_leave_by_another() -> None:
    f = announced()
    with pytest.raises(RuleError, match=r"wanted institution clinic \(the author\), got school"):
        f.say("clinic", Exit(institution="school", reason="out"))


def test_a_version_cannot_be_replayed() -> None:
    f = announced()
    data = f.amendment(f.amended(round_deadline_seconds=60), *NAMES)
    f.add(data)
    with pytest.raises(RuleError, match="wanted version 3, got 2"):
        f.add(data)


def test_of_two_versions_that_follow_one_only_the_first_is_taken() -> None:
    f = announced()
    one = f.amendment(f.amended(round_deadline_seconds=60), *NAMES)
    other = f.amendment(f.amended(round_deadline_seconds=90), *NAMES)
    f.add(one)
    with pytest.raises(RuleError, match="wanted version 3, got 2"):
        f.add(other)


def test_a_second_founding_compact_is_no_amendment() -> None:
    f = announced()
    with pytest.raises(RuleError, match="wanted version 2, got 1"):
        f.add(f.founding())


def test_a_log_does_not_begin_with_a_later_version() -> None:
    f = announced()
    with pytest.raises(RuleError, match="index 0: wanted version 1 of a compact, got 2"):
        Replica().add(f.amendment(f.amended(), *NAMES))


# -- a round ends under the quorums that it began under


def test_an_open_round_ends_under_the_quorums_that_it_began_under() -> None:
    f = announced()
    f.open_round()
    for name in NAMES[:2]:
        f.say(name, f.update(name))
    quorum = {"updates": 3, "ratifications": 3, "amendments": 3, "witnesses": 0}
    f.add(f.amendment(f.amended(quorum=quorum), *NAMES))
    f.say("hub", f.release())
    for name in NAMES[:2]:
        f.say(name, f.ratification())
    assert f.state.ratified() is not None
    f.open_round()
    for name in NAMES[:2]:
        f.say(name, f.update(name))
    with pytest.raises(RuleError, match="wanted at least 3 updates, got 2"):
        f.say("hub", f.release())


# -- rotation


def test_a_chain_goes_on_under_the_new_key_and_the_old_one_is_refused() -> None:
    f = announced()
    old = f.signed("clinic", hello("clinic"))
    before = f.state.chain(public_hex(key_of("clinic")))
    f.rotate("clinic", "clinic-2")
    chain = f.state.chain(public_hex(key_of("clinic-2")))
    assert chain.seq == before.seq + 1
    with pytest.raises(RuleError, match=r"of clinic, ended at entry 4: rotated"):
        f.add(old)
    f.say("clinic", hello("clinic"))
    assert f.state.key("clinic") == public_hex(key_of("clinic-2"))


def test_the_coordinator_rotates_its_own_key_too() -> None:
    f = announced()
    f.rotate("hub", "hub-2")
    f.run_round()
    assert f.state.ratified() is not None


@pytest.mark.parametrize(
    ("who", "key", "signers", "message", "why"),
    [
        ("clinic", "clinic-2", ("clinic",), "two signatures", "the new key has not signed"),
        ("clinic", "clinic-2", ("clinic-2",), "two signatures", "the old key has not signed"),
        ("clinic", "clinic-2", ("clinic", "clinic-2", "x"), "two signatures", "a third signature"),
        ("clinic", "clinic-2", ("school", "clinic-2"), "wanted number|as the entry of school", "in another's chain"),
        ("clinic", "clinic-2", ("x", "clinic-2"), "wanted number 0 in the chain", "a stranger's key"),
        ("clinic", "school", ("clinic", "school"), "is in use; wanted one of clinic alone", "a key under two names"),
        ("clinic", "hub", ("clinic", "hub-key"), "two signatures", "the key itself has not signed"),
        ("clinic", "coordinator", ("clinic", "coordinator"), "is in use", "the coordinator's key"),
    ],
)
def test_a_rotation_is_signed_by_both_keys_of_one_owner(
    who: str, key: str, signers: tuple[str, ...], message: str, why: str
) -> None:
    f = announced()
    with pytest.raises(RuleError, match=message):
        f.add(f.rotation(who, key, *signers))


def test_nobody_rotates_in_another_s_name() -> None:
    f = announced()
    data = f.rotation("clinic", "clinic-2")
    f.keys["clinic"], f.keys["school"] = f.keys["school"], f.keys["clinic"]
    with pytest.raises(RuleError, match="wanted name school"):
        f.add(f.rotation("clinic", "clinic-2"))
    f.add(data)


def test_a_key_that_was_rotated_out_never_comes_back() -> None:
    f = announced()
    f.rotate("clinic", "clinic-2")
    with pytest.raises(RuleError, match=r"has ended \(rotated\); wanted one that was never used"):
        f.add(f.rotation("clinic", "clinic"))
    with pytest.raises(RuleError, match="wanted no key that has ended"):
        f.add(f.amendment(f.amended(members=f.members(clinic="clinic")), "coop", "school", "clinic"))


def test_a_draft_from_before_a_rotation_does_not_undo_it() -> None:
    f = announced()
    draft = f.amended(round_deadline_seconds=60)
    f.rotate("clinic", "clinic-2")
    with pytest.raises(RuleError, match="wanted no key that has ended"):
        f.add(f.amendment(draft, "coop", "school"))


# -- expiry


def test_an_expired_key_is_refused_and_a_new_version_renews_it() -> None:
    f = announced()
    members = [m | {"expires_at_index": 6} if m["institution"] == "clinic" else m for m in f.members()]
    f.add(f.amendment(f.amended(members=members), *NAMES))
    assert f.state.size == 5
    f.say("clinic", hello("clinic"))
    for data in (f.signed("clinic", hello("clinic")), f.rotation("clinic", "clinic-2")):
        with pytest.raises(RuleError, match="the key of clinic has expired at index 6"):
            f.add(data)
    renewed = f.amended(members=f.members(clinic="clinic-2"))
    with pytest.raises(RuleError, match="members in good standing only"):
        f.add(f.amendment(renewed, "clinic", "coop", "clinic-2"))
    f.add(f.amendment(renewed, "coop", "school", "clinic-2"))
    f.keys["clinic"] = key_of("clinic-2")
    f.say("clinic", hello("clinic"))


# -- revocation


def stolen() -> Federation:
    """Clinic's key is stolen after the announcements; the thief answers the round, and one more does honestly."""
    f = announced()
    f.open_round()
    f.say("school", f.update("school"))
    f.say("clinic", f.update("clinic"))
    return f


def revoke(f: Federation, from_index: int, new_key: str | None = "clinic-2") -> None:
    compact = f.amended(members=f.members(clinic=new_key), revocations=[revocation(f, "clinic", from_index)])
    f.add(f.amendment(compact, "coop", "school", *([new_key] if new_key else [])))
    if new_key:
        f.keys["clinic"] = key_of(new_key)


def test_a_revoked_key_is_refused_by_name() -> None:
    f = stolen()
    late = f.signed("clinic", hello("clinic"))
    revoke(f, 5)
    with pytest.raises(RuleError, match=r"of clinic, ended at entry 7: revoked: laptop stolen"):
        f.add(late)


def test_a_suspect_answer_to_the_open_round_is_gone_and_its_owner_answers_anew() -> None:
    f = stolen()
    revoke(f, 6)
    assert sorted(f.state.rounds[-1].updates) == ["school"]
    f.say("clinic", f.update("clinic"))
    f.say("hub", f.release())
    assert [i.institution for i in f.release().inputs] == ["clinic", "school"]


def test_an_answer_from_before_the_suspect_index_stands() -> None:
    f = stolen()
    revoke(f, 7)
    assert sorted(f.state.rounds[-1].updates) == ["clinic", "school"]


def test_a_suspect_refusal_is_gone_too() -> None:
    f = announced()
    f.open_round()
    f.say("clinic", Refusal(round=1, round_leaf=f.state.rounds[-1].leaf, reason="says the thief"))
    revoke(f, 5)
    assert f.state.awaited(f.state.rounds[-1]) == ("clinic", "coop", "school")


def test_a_release_made_with_a_suspect_update_can_no_longer_be_ratified() -> None:
    f = stolen()
    f.say("hub", f.release())
    f.say("school", f.ratification())
    revoke(f, 6)
    with pytest.raises(RuleError, match="the release of round 1 is void: made with an update under a key of clinic"):
        f.say("coop", f.ratification())
    f.open_round()  # from the same start as before
    assert f.state.rounds[-1].round.start == f.compact.start


def test_a_suspect_ratification_does_not_count() -> None:
    f = stolen()
    f.say("hub", f.release())
    f.say("clinic", f.ratification())
    revoke(f, 8)
    f.say("school", f.ratification())
    assert f.state.ratified() is None
    f.say("clinic", f.ratification())
    assert f.state.ratified() is not None


def test_what_was_ratified_stays_ratified() -> None:
    f = two_rounds()
    revoke(f, 5)
    assert all(r.release and r.release.is_ratified for r in f.state.rounds)
    assert f.state.retired[public_hex(key_of("clinic"))].suspect_from_index == 5


def test_a_thief_does_not_count_for_the_version_that_revokes_his_key() -> None:
    f = stolen()
    compact = f.amended(members=f.members(clinic="clinic-2"), revocations=[revocation(f, "clinic", 5)])
    with pytest.raises(RuleError, match="members in good standing only"):
        f.add(f.amendment(compact, "clinic", "coop", "clinic-2"))
    with pytest.raises(RuleError, match="members of version 1, got 1"):
        f.add(f.amendment(compact, "coop", "clinic-2"))


@pytest.mark.parametrize(
    ("key", "from_index", "message"),
    [
        ("clinic", 99, "from an index up to 7, got 99"),
        ("stranger", 3, "a key that is or was in use"),
        ("school", 3, "school keeps key .* which it revokes"),
    ],
)
def test_a_revocation_names_a_key_that_ends_and_an_index_that_was(key: str, from_index: int, message: str) -> None:
    f = stolen()
    revoked = [{"key": public_hex(key_of(key)), "from_index": from_index, "reason": "lost"}]
    with pytest.raises(RuleError, match=message):
        f.add(f.amendment(f.amended(members=f.members(clinic=None), revocations=revoked), "coop", "school"))


def test_a_key_rotated_out_is_revoked_later_once_the_theft_is_known() -> None:
    f = stolen()
    old = public_hex(key_of("clinic"))
    f.rotate("clinic", "clinic-2")
    revoked = [{"key": old, "from_index": 6, "reason": "was stolen before"}]
    f.add(f.amendment(f.amended(revocations=revoked), *NAMES[1:]))
    assert f.state.retired[old].suspect_from_index == 6
    assert "clinic" not in f.state.rounds[-1].updates
    with pytest.raises(RuleError, match="is revoked already, from index 6"):
        f.add(f.amendment(f.amended(revocations=revoked), *NAMES[1:]))


def test_every_replay_stands_in_the_same_state() -> None:
    f = stolen()
    revoke(f, 6)
    f.rotate("school", "school-2")
    f.say("clinic", f.update("clinic"))
    f.say("hub", f.release())
    again = Replica()
    for data in f.entries:
        again.add(data)
    assert again.state == f.state


def test_a_compact_entry_is_opened_with_all_its_signers() -> None:
    f = announced()
    entry = open_entry(f.amendment(f.amended(), *NAMES))
    assert isinstance(entry.statement.predicate, Compact)
    assert sorted(entry.signers) == sorted(public_hex(key_of(n)) for n in NAMES)
