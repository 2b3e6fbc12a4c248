"""The one writer: a refusal leaves no trace, an answer is durable, and a restart stands in the same state."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from commonweal_coordinator.log import sequencer as sequencing
from commonweal_coordinator.log.log import Log, Sequenced, no_witness
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_protocols.base.errors import (
    BlobError,
    ConfigError,
    LogError,
    PeerError,
    RuleError,
    SignatureError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.rounds import Incident
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.note import make_verifier
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.author import Author
from tests.kit.federation import NAMES, ORIGIN, Federation, key_of
from tests.kit.hub import Hub, founded, identity
from tests.kit.log_faults import Fault, faulty, full_disk, unknown
from tests.kit.log_place import Place, files_below
from tests.kit.refused_entries import (
    REFUSED,
    a_stranger,
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with founded(tmp_path / "hub") as h:
        yield h


# -- refusals


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=[make.__name__ for make, _, _ in REFUSED])
def test_a_refused_entry_leaves_no_trace(
    hub: Hub, make: Callable[[Federation], bytes], kind: type[PeerError], message: str
) -> None:
    hub.announce()
    hub.sequencer.say(hub.f.next_round())
    hub.catch_up()
    hub.say("clinic", hub.f.update("clinic"))
    bad = make(hub.f)
    before, state, checkpoint = files_below(hub.home), hub.sequencer.state, hub.sequencer.checkpoint
    for _ in range(2):
        with pytest.raises(kind, match=message):
            hub.sequencer.submit(bad)
    assert files_below(hub.home) == before
    assert hub.sequencer.state is state
    assert hub.sequencer.checkpoint == checkpoint
    good = hub.f.signed("school", hub.f.update("school"))
    hub.proven(good, hub.sequencer.submit(good))


def test_the_last_word_sees_the_entry_and_the_state_before_it_and_its_refusal_leaves_no_trace(hub: Hub) -> None:
    data = hub.f.signed("school", identity("school"))
    asked: list[tuple[Entry, State]] = []

    def refuse(entry: Entry, state: State) -> None:
        asked.append((entry, state))
        raise BlobError("no such delta")

    before, state = files_below(hub.home), hub.sequencer.state
    with pytest.raises(BlobError, match="no such delta"):
        hub.sequencer.submit(data, check=refuse)
    assert asked == [(open_entry(data), state)]
    assert files_below(hub.home) == before
    assert hub.sequencer.submit(data).index == 1


# -- answers


def test_the_same_envelope_again_gets_its_old_index_under_the_newest_checkpoint(hub: Hub) -> None:
    data = hub.f.signed("school", identity("school"))
    first = hub.sequencer.submit(data)
    hub.say("clinic", identity("clinic"))
    before = files_below(hub.home)

    def never(entry: Entry, state: State) -> None:
        raise AssertionError("an entry that is in the log is not judged again")

    again = hub.sequencer.submit(data, check=never)
    assert files_below(hub.home) == before
    assert (first.index, again.index) == (1, 1)
    for answer in (first, again):
        hub.proven(data, answer)
    verifier = make_verifier(ORIGIN, hub.f.log_key.public_key())
    assert [open_proof(a.proof, data, verifier)[1].size for a in (first, again)] == [2, 3]


def test_the_coordinators_own_statements_form_one_chain_that_names_what_it_saw(hub: Hub) -> None:
    hub.announce()
    for _ in range(3):
        hub.catch_up()
        hub.sequencer.say(hub.f.next_round())
        round_leaf = hub.sequencer.state.rounds[-1].leaf
        hub.sequencer.say(Incident(round=len(hub.sequencer.state.rounds), round_leaf=round_leaf, reason="none came"))
    said = [open_entry(e) for e in read_entries(DirectorySource(hub.public), 4, 10)]
    headers = [e.statement.header for e in said]
    assert [h and h.seq for h in headers] == [0, 1, 2, 3, 4, 5]
    assert [h and h.prev for h in headers] == [None, *(e.leaf for e in said[:-1])]
    assert [h and [(s.origin, s.size) for s in h.seen] for h in headers] == [[(ORIGIN, n)] for n in range(4, 10)]


def test_what_the_coordinator_may_not_say_is_refused_too(hub: Hub) -> None:
    before = files_below(hub.home)
    with pytest.raises(RuleError, match="incident: wanted an open round 1, but no round is open"):
        hub.sequencer.say(Incident(round=1, round_leaf="0" * 64, reason="because"))
    assert files_below(hub.home) == before


def test_threads_are_answered_one_by_one_and_the_log_replays(hub: Hub) -> None:
    start = threading.Barrier(len(NAMES) + 2)
    shared = Author(key_of("clinic"), hub.f.state.consortium).sign(identity("clinic", "S"), seq=0, prev=None, seen=())

    def announce(name: str) -> list[tuple[bytes, Sequenced]]:
        author, done = Author(key_of(name), hub.f.state.consortium), list[tuple[bytes, Sequenced]]()
        seq, prev = (1, open_entry(shared).leaf) if name == "clinic" else (0, None)
        start.wait()
        if name == "clinic":
            done.append((shared, hub.sequencer.submit(shared)))
        for n in range(5):
            data = author.sign(identity(name, "ABCDE"[n]), seq=seq + n, prev=prev, seen=())
            done.append((data, hub.sequencer.submit(data)))
            prev = open_entry(data).leaf
        return done

    def repeat(_: int) -> list[tuple[bytes, Sequenced]]:
        start.wait()
        return [(shared, hub.sequencer.submit(shared)) for _ in range(5)]

    with ThreadPoolExecutor(len(NAMES) + 2) as pool:
        futures = [pool.submit(announce, n) for n in NAMES] + [pool.submit(repeat, n) for n in range(2)]
        results = [r for future in futures for r in future.result(timeout=30)]
    assert hub.sequencer.state.size == 1 + 1 + 5 * len(NAMES)
    places = {data: answer.index for data, answer in results}
    assert sorted(places.values()) == list(range(1, hub.sequencer.state.size))
    for data, answer in results:
        assert answer.index == places[data]
        hub.proven(data, answer)
    state = hub.sequencer.state
    hub.restart()
    assert hub.sequencer.state == state


# -- replay


def test_a_restart_stands_in_the_same_state_and_goes_on(hub: Hub) -> None:
    hub.announce()
    hub.sequencer.say(hub.f.next_round())
    hub.catch_up()
    hub.say("clinic", hub.f.update("clinic"))
    state, checkpoint = hub.sequencer.state, hub.sequencer.checkpoint
    hub.restart()
    assert hub.sequencer.state == state
    assert hub.sequencer.checkpoint == checkpoint
    hub.say("school", hub.f.update("school"))
    assert hub.sequencer.state.size == 7


def test_a_log_that_breaks_its_own_compact_is_not_loaded(tmp_path: Path) -> None:
    f = Federation()
    f.announce()
    public = f.publish(tmp_path, [*f.entries, a_stranger(f)])
    log = Log.open(public, tmp_path / "lock.db", ORIGIN, f.log_key)
    with pytest.raises(RuleError, match="wanted a member as the author"):
        Sequencer.load(log, DirectorySource(public), f.coordinator)
    log.close()


def test_records_that_are_not_what_was_signed_are_not_loaded(tmp_path: Path) -> None:
    f = Federation()
    one, two = (
        Author(f.keys[n], f.state.consortium).sign(identity(n), seq=0, prev=None, seen=()) for n in ("clinic", "coop")
    )
    public = f.publish(tmp_path / "signed", [*f.entries, one, two])
    # Each order is a lawful history; but only one of them was signed.
    swapped = f.publish(tmp_path / "swapped", [*f.entries, two, one])
    log = Log.open(public, tmp_path / "signed/lock.db", ORIGIN, f.log_key)
    with pytest.raises(LogError, match="forked: at size 3"):
        Sequencer.load(log, DirectorySource(swapped), f.coordinator)
    assert Sequencer.load(log, DirectorySource(public), f.coordinator).state.size == 3
    log.close()


def test_a_log_under_another_key_than_its_compact_names_is_not_loaded(tmp_path: Path) -> None:
    f = Federation()
    f.log_key = key_of("another log")
    public = f.publish(tmp_path)
    log = Log.open(public, tmp_path / "lock.db", ORIGIN, f.log_key)
    with pytest.raises(SignatureError, match=f"wanted a signature of {ORIGIN}"):
        Sequencer.load(log, DirectorySource(public), f.coordinator)
    log.close()


# -- waiting


def waiting(hub: Hub, larger_than: int) -> tuple[threading.Thread, list[int]]:
    """Start a thread that waits for ten minutes, and return once it does."""
    sizes: list[int] = []
    thread = threading.Thread(target=lambda: sizes.append(hub.sequencer.wait(larger_than, 600)), daemon=True)
    thread.start()
    while not hub.sequencer._changed._waiters:  # type: ignore[attr-defined]
        assert thread.is_alive()
    return thread, sizes


def test_a_new_entry_wakes_whoever_waits_for_it_at_once(hub: Hub) -> None:
    thread, sizes = waiting(hub, 1)
    hub.say("school", identity("school"))
    thread.join(10)
    assert sizes == [2]


def test_closing_wakes_whoever_waits(hub: Hub) -> None:
    thread, sizes = waiting(hub, 10**9)
    hub.sequencer.close()
    thread.join(10)
    assert sizes == [1]


def test_nobody_waits_for_what_is_there_or_beyond_the_timeout(hub: Hub) -> None:
    assert hub.sequencer.wait(0, 600) == 1
    assert hub.sequencer.wait(1, 0) == 1


# -- a disk that fails


@contextmanager
def failing(hub: Hub, fault: Fault) -> Iterator[None]:
    """The hub again, on a disk of which one write fails."""
    hub.sequencer.close()
    place = Place(hub.home)
    place.lock.parent.mkdir()
    shutil.move(hub.home / "lock.db", place.lock)
    hub.log = faulty(place, fault, ORIGIN, hub.f.log_key)
    hub.sequencer = Sequencer.load(hub.log, DirectorySource(hub.public), hub.f.coordinator)
    yield
    hub.sequencer.close()
    shutil.move(place.lock, hub.home / "lock.db")
    hub.restart()


@pytest.mark.parametrize(
    ("write", "effect", "entered"), [("swap", "lost", False), ("swap", "kept", True), ("create", "lost", True)]
)
def test_after_a_failed_write_nothing_is_taken_until_a_restart_and_all_that_is_known_can_be_read(
    hub: Hub, write: str, effect: str, entered: bool
) -> None:
    hub.announce()
    state = hub.sequencer.state
    data = hub.f.signed("school", identity("school", "B"))
    with failing(hub, Fault(write, effect, unknown())):
        thread, sizes = waiting(hub, 4)
        with pytest.raises(StorageError, match="the disk went away"):
            hub.sequencer.submit(data)
        for again in (data, hub.f.signed("coop", identity("coop", "B"))):
            with pytest.raises(StorageError, match="stopped after: the disk went away; nothing is taken until"):
                hub.sequencer.submit(again)
        with pytest.raises(StorageError, match="stopped after: the disk went away; nothing is taken until"):
            hub.sequencer.say(hub.f.next_round())
        assert hub.sequencer.state == state
        assert hub.sequencer.wait(4, 0) == 4, "the daemon's loop continues"
        hub.sequencer.close()
        thread.join(10)
        assert sizes == [4]
    assert hub.sequencer.state.size == (5 if entered else 4)
    assert hub.sequencer.submit(data).index == 4


def test_a_full_disk_refuses_one_entry_and_takes_it_when_there_is_room(hub: Hub) -> None:
    hub.announce()
    data = hub.f.signed("school", identity("school", "B"))
    with failing(hub, Fault("stage", "lost", full_disk())):
        before, state = files_below(hub.public), hub.sequencer.state
        with pytest.raises(StorageError, match="No space left on device; nothing was added and nothing is lost"):
            hub.sequencer.submit(data)
        assert files_below(hub.public) == before
        assert hub.sequencer.state is state
        hub.proven(data, hub.sequencer.submit(data))
    assert hub.sequencer.state.size == 5


def test_the_checkpoint_is_the_published_one(hub: Hub) -> None:
    hub.announce()
    note = hub.sequencer.checkpoint
    assert note == (hub.public / "checkpoint").read_bytes()
    verifier = make_verifier(ORIGIN, hub.f.log_key.public_key())
    assert open_checkpoint(note, verifier) == hub.f.replica.checkpoint()


def test_an_entry_that_waits_for_witnesses_counts_and_is_answered_once_they_are_back(tmp_path: Path) -> None:
    f, away = Federation(), threading.Event()

    def cosign(checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        if away.is_set():
            raise UnavailableError("witnesses: wanted 2, got 0")
        return note

    log = Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, f.log_key, cosign)
    log.append(f.entries)
    sequencer = Sequencer.load(log, DirectorySource(tmp_path / "public"), f.coordinator)
    away.set()
    first, second = f.say("clinic", identity("clinic")), f.say("coop", identity("coop"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="wanted 2"):
            sequencer.submit(first)
    assert set(sequencer.state.identities) == {"clinic"}, "it keeps its place"
    with pytest.raises(UnavailableError):
        sequencer.submit(second)
    assert set(sequencer.state.identities) == {"clinic"}, "nothing is built on what no witness has seen"
    away.clear()
    assert [sequencer.submit(d).index for d in (second, first)] == [2, 1]
    assert set(sequencer.state.identities) == {"clinic", "coop"}
    sequencer.close()


def test_entries_that_come_together_share_one_checkpoint(tmp_path: Path) -> None:
    f, gate, sizes = Federation(), threading.Event(), []

    def cosign(checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        sizes.append(checkpoint.size)
        gate.wait(10)
        return note

    log = Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, f.log_key, cosign)
    gate.set()
    log.append(f.entries)
    sequencer = Sequencer.load(log, DirectorySource(tmp_path / "public"), f.coordinator)
    gate.clear()
    data = [f.signed(name, identity(name)) for name in NAMES]
    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(sequencer.submit, data[0])
        while len(sizes) < 2:
            assert not held.done()
        others = [pool.submit(sequencer.submit, d) for d in data[1:]]
        while len(sequencer._waiting) < 2:
            assert not held.done()
        gate.set()
        assert [w.result().index for w in (held, *others)] in ([1, 2, 3], [1, 3, 2])
    assert sizes == [1, 2, 4], "two entries, one checkpoint"
    sequencer.close()


def test_one_entry_more_than_may_wait_is_refused_and_may_come_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencing, "MAX_WAITING", 1)
    started, go = threading.Event(), threading.Event()

    def cosign(checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        started.set()
        go.wait(60)
        return note

    hub.log._cosign = cosign
    data = [hub.f.signed(name, identity(name)) for name in NAMES]
    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(hub.sequencer.submit, data[0])
        started.wait(60)
        queued = pool.submit(hub.sequencer.submit, data[1])
        while not hub.sequencer._waiting:
            assert not queued.done()
        with pytest.raises(UnavailableError, match="wanted at most 1 entries waiting"):
            hub.sequencer.submit(data[2])
        go.set()
        assert [w.result().index for w in (written, queued)] == [1, 2]
    assert hub.sequencer.submit(data[2]).index == 3


# -- witnesses


def away(*_: object) -> bytes:
    raise UnavailableError("witnesses: none answers")


def test_what_waits_for_its_witnesses_over_a_restart_keeps_its_place_in_the_state(tmp_path: Path) -> None:
    with founded(tmp_path / "hub") as hub:
        hub.log._cosign = away
        waiting = hub.f.signed("school", identity("school"))
        with pytest.raises(UnavailableError, match="none answers"):
            hub.sequencer.submit(waiting)
        hub.sequencer.close()
        hub.log = Log.open(hub.public, hub.home / "lock.db", ORIGIN, hub.f.log_key, away)
        hub.sequencer = Sequencer.load(hub.log, DirectorySource(hub.public), hub.f.coordinator)
        assert (hub.log.size, hub.sequencer.state.size) == (1, 2)
        hub.log._cosign = no_witness
        hub.f.add(waiting)
        hub.proven(waiting, hub.sequencer.submit(waiting))
        hub.say("clinic", identity("clinic"))
        assert hub.sequencer.state == hub.f.state


def test_whoever_cosigns_is_told_of_a_new_compact_before_its_checkpoint(tmp_path: Path) -> None:
    f, told = Federation(), list[int]()
    log = Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, f.log_key)
    sequencer = Sequencer(log, Replica(), f.coordinator, lambda compact: told.append(compact.version))
    sequencer.submit(f.entries[0])
    amendment = f.amendment(f.amended(round_deadline_seconds=60), "clinic", "coop")
    log._cosign = lambda checkpoint, note, path_from: note if told[-1] == 2 else away()
    sequencer.submit(amendment)
    sequencer.submit(f.signed("school", identity("school")))
    assert told == [1, 2]
    sequencer.close()
    log = Log.open(tmp_path / "public", tmp_path / "lock.db", ORIGIN, f.log_key)
    Sequencer.load(log, DirectorySource(tmp_path / "public"), f.coordinator, lambda c: told.append(c.version)).close()
    assert told == [1, 2, 2]


def test_a_compact_that_is_not_sequenced_leaves_the_witnesses_as_they_were(hub: Hub) -> None:
    told = list[int]()
    amendment = hub.f.amendment(hub.f.amended(round_deadline_seconds=60), "clinic", "coop")
    with failing(hub, Fault("stage", "lost", full_disk())):
        hub.sequencer._on_compact = lambda compact: told.append(compact.version)
        with pytest.raises(StorageError, match="cannot be staged"):
            hub.sequencer.submit(amendment)
        hub.sequencer.submit(amendment)
    assert told == [2, 1, 2]


def test_a_compact_whose_witness_cannot_be_asked_is_refused(hub: Hub) -> None:
    def cannot(_: Compact) -> None:
        raise ConfigError("witness: wanted an address, got none")

    hub.sequencer._on_compact = cannot
    with pytest.raises(ConfigError, match="wanted an address"):
        hub.sequencer.submit(hub.f.amendment(hub.f.amended(round_deadline_seconds=60), "clinic", "coop"))
    hub.sequencer._on_compact = lambda _: None
    hub.say("clinic", identity("clinic"))
