"""A fork says where it comes from; anyone who joins holds that against the old log, and an auditor is told of it."""

from pathlib import Path

import pytest

from commonweal_adapters import recompute
from commonweal_coordinator.succession.compact_draft import CompactTerms
from commonweal_coordinator.succession.fork_draft import draft_fork
from commonweal_protocols.audit.audit import audit
from commonweal_protocols.base.errors import ConfigError, LogError, RuleError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.fork import check_fork, fork_of
from commonweal_protocols.records.replay import replay_at
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.compact import Compact, Coordinator, Quorum
from commonweal_protocols.statements.invite import Card
from commonweal_protocols.tlog.note import format_vkey, sign_note
from tests.kit.federation import NAMES, Federation, key_of, two_rounds
from tests.kit.shelf import note_of, shelf

AT = 15
"""After the first round; it is released and ratified there."""


def coordinator() -> Coordinator:
    log = format_vkey("log.test/spring", key_of("spring log").public_key().public_bytes_raw())
    return Coordinator(name="well", key=public_hex(key_of("well")), log=log)


def forked(f: Federation, at: int = AT, *members: str, terms: CompactTerms | None = None) -> Compact:
    (replica,) = replay_at(shelf(f), at)
    return draft_fork(replica, "spring", members or ("clinic", "coop"), (), coordinator(), terms)


def test_a_fork_starts_from_the_newest_release_that_was_ratified_where_the_ways_part() -> None:
    f = two_rounds()
    made = forked(f)
    first = f.state.rounds[0].release
    assert first is not None
    assert made.start == first.release.adapter
    assert made.forked_from is not None
    assert made.forked_from.release_leaf == first.leaf
    assert (made.forked_from.at.size, made.forked_from.at.root) == (AT, f.replica.tree.root(AT).hex())
    assert (made.forked_from.consortium, made.version, made.previous) == (f.state.consortium, 1, None)
    assert {m.institution: m.key for m in made.members} == {n: public_hex(f.keys[n]) for n in ("clinic", "coop")}
    check_fork(made, shelf(f))


def test_before_any_release_a_fork_starts_where_the_old_one_did() -> None:
    f = two_rounds()
    made = forked(f, 4)
    assert made.start == f.compact.start
    assert made.forked_from is not None
    assert made.forked_from.release_leaf is None
    check_fork(made, shelf(f))


def test_quorums_that_the_leaving_members_cannot_reach_become_all_of_them() -> None:
    f = Federation(names=("a", "b", "c", "d"), quorum=Quorum(updates=3, ratifications=3, amendments=3))
    alone = draft_fork(f.replica, "spring", ("a",), (), coordinator(), None)
    assert (alone.quorum.updates, alone.quorum.ratifications, alone.quorum.amendments) == (1, 1, 1)


def test_who_is_no_member_there_comes_with_a_card_only() -> None:
    f = two_rounds()
    with pytest.raises(ConfigError, match="fork: wanted members of three at entry 15, got library"):
        forked(f, AT, "clinic", "library")
    card = Card(institution="library", key=public_hex(key_of("library")))
    made = draft_fork(replay_at(shelf(f), AT)[0], "spring", ("clinic", "coop"), (card,), coordinator(), None)
    assert [m.institution for m in made.members] == ["clinic", "coop", "library"]


def lie(made: Compact, **changes: object) -> Compact:
    """The same compact with another origin story."""
    assert made.forked_from is not None
    at = made.forked_from.at.model_copy(update={k: v for k, v in changes.items() if k in ("root", "origin")})
    fork = {k: v for k, v in changes.items() if k in ("consortium", "log", "release_leaf")} | {"at": at}
    rest = {k: v for k, v in changes.items() if k in ("start", "base", "adapter")}
    return made.model_copy(update={"forked_from": made.forked_from.model_copy(update=fork), **rest})


def test_a_fork_that_says_other_than_the_old_log_is_refused() -> None:
    f = two_rounds()
    made, second = forked(f), f.state.rounds[1].release
    assert second is not None
    for changes, message in (
        ({"root": "0" * 64}, "forked_from"),
        ({"origin": "log.test/x"}, "forked_from"),
        ({"consortium": "0" * 64}, "forked_from"),
        ({"log": coordinator().log}, "forked_from"),
        ({"release_leaf": second.leaf}, "forked_from"),
        ({"release_leaf": None}, "forked_from"),
        ({"start": second.release.adapter}, "start"),
        ({"base": f.compact.base.model_copy(update={"sha256": "0" * 64})}, "base"),
        ({"adapter": f.compact.adapter.model_copy(update={"seed": 8})}, "adapter"),
    ):
        with pytest.raises(RuleError, match=f"fork: {message}: wanted .*, as the old log says, got"):
            check_fork(lie(made, **changes), shelf(f))


def test_an_old_log_that_does_not_hold_or_is_too_short_vouches_for_nothing() -> None:
    f = two_rounds()
    made = forked(f)
    with pytest.raises(LogError, match="wanted at least 15 entries, got 9"):
        check_fork(made, shelf(f, f.entries[:9]))
    text = f.replica.checkpoint().text()
    with pytest.raises(SignatureError):
        check_fork(made, shelf(f, note=sign_note(text, f.replica.log.name, key_of("well"))))
    with pytest.raises(LogError, match="forked: at size 26"):
        check_fork(made, shelf(f, note=note_of(f, [*f.entries[:-1], b"another"])))
    with pytest.raises(RuleError, match="wanted a compact that says where it comes from"):
        check_fork(f.compact, shelf(f))


def test_an_audit_names_what_a_fork_has_taken_over_and_does_not_look_for_a_seed_in_it(tmp_path: Path) -> None:
    f = two_rounds()
    fork, start = fork_of(replay_at(shelf(f), AT)[0])
    terms: dict[str, object] = {"start": start.model_dump(), "forked_from": fork.model_dump()}
    other = Federation(origin="log.test/spring", names=NAMES, terms=terms, blobs=dict(f.blobs))
    other.announce()
    other.run_round()
    public = other.publish(tmp_path)
    report = audit(DirectorySource(public), recompute=recompute)
    assert (report.verdict, report.forked_from) == ("pass", fork)
    (public / "blob" / start.sha256).unlink()
    assert audit(DirectorySource(public), recompute=recompute).verdict == "fail"
