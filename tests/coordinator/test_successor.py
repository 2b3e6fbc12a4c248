"""Before another coordinator's log begins: the history it continues from, the draft, a beginning that survives."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from commonweal_coordinator.home import CoordinatorHome
from commonweal_coordinator.log.log import Log, no_witness
from commonweal_coordinator.log.storage import DiskStorage, LockDatabase
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.succession.compact_draft import amend_compact
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_coordinator.succession.standby import Standby
from commonweal_coordinator.succession.succession import (
    History,
    Succession,
    begin_log,
    carry_blobs,
    keep_history,
    longest,
    read_history,
)
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import LogError, PeerError, RuleError, UnavailableError
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.statement import blobs_of
from tests.kit.federation import Federation, two_rounds
from tests.kit.shelf import Shelf, beginning, note_of, shelf
from tests.kit.succession import LOG_KEY, OTHER, heir, signed


def history_of(f: Federation) -> History:
    return read_history(shelf(f), f.state.consortium)


def drafted(f: Federation, home: Path) -> Succession:
    """A succession in a home, which nobody has signed yet."""
    history = history_of(f)
    keep_history(home, history)
    Draft.store(
        CoordinatorHome(home).succession, amend_compact(f.state, None, (), (), (), succession=(heir(), history.last))
    )
    made = Succession.open(home, f.state.consortium)
    assert made is not None
    return made


# -- the history


def test_the_longest_history_is_the_one_that_all_others_begin() -> None:
    f = two_rounds()
    short, whole = beginning(f, 9), history_of(f)
    assert longest({"a": history_of(short), "b": whole, "c": history_of(beginning(f, 20))}) is whole


def test_of_two_histories_that_part_none_is_taken() -> None:
    f = two_rounds()
    other = beginning(f, 20)
    other.say("clinic", Identity(institution="clinic", transport_key="B" * 44))
    with pytest.raises(LogError, match=r"mine \(21 entries\) does not begin theirs \(26 entries\): the log has forked"):
        longest({"theirs": history_of(f), "mine": history_of(other)})


def test_a_history_of_another_consortium_or_that_does_not_hold_is_refused() -> None:
    f = two_rounds()
    with pytest.raises(LogError, match=r"consortium: wanted 0{64}, got"):
        read_history(shelf(f), "0" * 64)
    with pytest.raises(PeerError):
        read_history(shelf(f, note=note_of(f, f.entries[:-1], 25)), "0" * 64)


def test_what_an_entry_names_is_carried_over_from_whoever_has_it_and_what_nobody_has_is_named(tmp_path: Path) -> None:
    f = two_rounds()
    history, names = history_of(f), sorted(f.blobs)
    one = Shelf({f"blob/{n}": f.blobs[n] for n in names[:3]})
    two = Shelf({f"blob/{n}": f.blobs[n] for n in names[2:-1]} | {f"blob/{names[-1]}": b"other bytes"})
    store = BlobStore(tmp_path)
    assert [b.sha256 for b in carry_blobs(store, history, [one, two])] == names[-1:]
    assert all(store.read(n) == f.blobs[n] for n in names[:-1])


# -- a standby


def test_a_standby_holds_all_that_the_log_and_its_entries_name(tmp_path: Path) -> None:
    f = Federation()
    source = shelf(f)
    standby = Standby(tmp_path, source, f.state.consortium, 0)
    standby.step()
    f.announce()
    f.run_round()
    source.files = shelf(f).files
    lost = f.state.rounds[0].release
    assert lost is not None
    del source.files[f"blob/{lost.release.adapter.sha256}"]
    standby.step()
    assert (standby.size, standby.missing) == (len(f.entries), (lost.release.adapter.sha256,))
    source.files = shelf(f).files
    standby.step()
    assert standby.missing == ()
    mirror = DirectorySource(CoordinatorHome(tmp_path).mirror)
    assert replay(mirror).state == f.state
    wanted = {b.sha256 for data in f.entries for b in blobs_of(data)}
    assert {p.name for p in (CoordinatorHome(tmp_path).mirror / "blob").iterdir()} == wanted == set(f.blobs)


def test_a_standby_that_is_started_again_takes_no_other_history(tmp_path: Path) -> None:
    f = two_rounds()
    Standby(tmp_path, shelf(f), f.state.consortium, 0).step()
    again = Standby(tmp_path, shelf(beginning(f, 9)), f.state.consortium, 0)
    with pytest.raises(LogError, match="rolled back: 26 entries were seen, 9 are here"):
        again.step()
    assert replay(DirectorySource(CoordinatorHome(tmp_path).mirror)).size == 26


# -- the draft


def test_the_draft_names_the_successor_and_the_last_checkpoint_and_the_one_after_it_no_log_change() -> None:
    f = two_rounds()
    history = history_of(f)
    f.add(f.amendment(f.amended(successors=[heir().model_dump(), heir("second").model_dump()]), *f.keys))
    history = history_of(f)
    made = amend_compact(f.state, None, (), (), (), succession=(heir(), history.last))
    assert (made.coordinator, made.succeeds, made.successors) == (heir(), history.last, (heir("second"),))
    f.add(f.amendment(made, *f.keys))
    assert f.state.origins == {"log.test/three": 27}
    after = amend_compact(f.state, None, (), (), ())
    assert (after.succeeds, after.coordinator) == (None, heir())


def test_the_first_batch_waits_for_the_thresholds_and_is_then_the_same_whoever_signs_later(tmp_path: Path) -> None:
    f = two_rounds()
    succession = drafted(f, tmp_path)
    succession.draft.sign(signed(succession.draft, "coop"))
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 1, got 1"):
        succession.entries()
    succession.draft.sign(signed(succession.draft, "school"))
    first = succession.entries()
    succession.draft.sign(signed(succession.draft, "clinic"))
    again = Succession.open(tmp_path, f.state.consortium)
    assert again is not None
    assert again.entries() == first
    assert first[:-1] == f.entries
    f.add(first[-1])
    assert f.state.compact.coordinator == heir()


def test_a_home_without_a_draft_has_no_succession(tmp_path: Path) -> None:
    assert Succession.open(tmp_path, "0" * 64) is None


# -- the beginning


def batch_of(tmp_path: Path) -> tuple[Federation, list[bytes]]:
    f = two_rounds()
    succession = drafted(f, tmp_path / "draft")
    for name in f.keys:
        succession.draft.sign(signed(succession.draft, name))
    return f, succession.entries()


def begin(home: Path, entries: list[bytes]) -> Log:
    return begin_log(DiskStorage(home / "public"), home / "lock.db", OTHER, LOG_KEY, no_witness, entries)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed right before its n-th step on the disk; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = step

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*args, **options)

            return call

        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        setattr(LockDatabase, "swap", counted(LockDatabase.swap))  # noqa: B010 - for a type checker it is no variable
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_beginning_that_is_killed_at_any_step_ends_in_the_same_log(tmp_path: Path) -> None:
    f, entries = batch_of(tmp_path)
    step = 0
    while True:
        home = tmp_path / str(step)
        home.mkdir()
        was_killed = killed_at(step, lambda home=home: begin(home, entries).close())  # type: ignore[misc]
        begin(home, entries).close()
        replica = replay(DirectorySource(home / "public"))
        assert replica.size == len(f.entries) + 1
        assert replica.state.compact.coordinator == heir()
        if not was_killed:
            break
        step += 1
    assert step > 10, "every write was a place to be killed at"


def test_a_beginning_that_waits_for_its_witnesses_shows_nothing_before_they_answer(tmp_path: Path) -> None:
    f, entries = batch_of(tmp_path)

    def nobody(*_: object) -> bytes:
        raise UnavailableError("witnesses: wanted a quorum")

    storage, lock = DiskStorage(tmp_path / "public"), tmp_path / "lock.db"
    for _ in range(2):
        with pytest.raises(UnavailableError):
            begin_log(storage, lock, OTHER, LOG_KEY, nobody, entries)
        assert b"\n0\n" in (tmp_path / "public/checkpoint").read_bytes()
    begin(tmp_path, entries).close()
    assert replay(DirectorySource(tmp_path / "public")).size == len(f.entries) + 1
    assert digest_of(entries[0]) == digest_of(f.entries[0])
