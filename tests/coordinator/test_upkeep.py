"""A log that heals itself, and one that must not; a checkpoint that does not grow old."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.log.storage import DiskStorage, InconsistentError, StorageSource, UnsyncedError
from commonweal_coordinator.log.upkeep import MAX_PAUSE_SECONDS, Freshness, reopen
from commonweal_protocols.base.errors import StorageError, UnavailableError
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.federation import ORIGIN, Federation
from tests.kit.log_faults import Fault, FaultyLock, FaultyStorage, failing, unknown
from tests.kit.log_place import KEY, VERIFIER, Place, entries
from tests.kit.log_place import ORIGIN as LOG_ORIGIN
from tests.kit.witnesses import Clock


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "log").create(entries(0, 250))


def stopped(place: Place, write: str, effect: str) -> StorageError:
    fault = Fault(write, effect, unknown())
    log = Log(FaultyStorage(DiskStorage(place.public), fault), FaultyLock(place.lock, fault), LOG_ORIGIN, KEY)
    with closing(log), pytest.raises(StorageError):
        log.append(entries(250, 260))
    assert log.failure is not None
    return log.failure


@dataclass
class Told:
    """Where ``reopen`` says what it does; no time passes."""

    pauses: list[float] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    patience: int = 100

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return len(self.pauses) > self.patience


# -- repair


@pytest.mark.parametrize(("write", "effect"), [("swap", "kept"), ("create", "half"), ("replace", "lost")])
def test_a_log_that_stopped_is_opened_anew_and_lost_nothing(place: Place, write: str, effect: str) -> None:
    told = Told()
    log = reopen(place.open, stopped(place, write, effect), wait=told.wait, tell=told.words.append)
    assert log is not None
    log.close()
    assert told.words == ["the disk went away; the log is opened anew in 1 s"]
    place.audit_open(entries(0, 260), every=31)


def test_it_is_tried_for_ever_with_pauses_that_grow_up_to_a_bound(place: Place) -> None:
    told, left = Told(), [StorageError(f"full for the {n}th time") for n in range(9)]

    def open_log() -> Log:
        if left:
            raise left.pop(0)
        return place.open()

    log = reopen(open_log, StorageError("full"), wait=told.wait, tell=told.words.append)
    assert log is not None
    log.close()
    assert told.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert max(told.pauses) == MAX_PAUSE_SECONDS
    assert told.words[:2] == [
        "full; the log is opened anew in 1 s",
        "full for the 0th time; the log is opened anew in 2 s",
    ]


def test_a_daemon_that_is_to_end_waits_for_no_repair(place: Place) -> None:
    told = Told(patience=2)

    def open_log() -> Log:
        raise StorageError("full")

    assert reopen(open_log, StorageError("full"), wait=told.wait, tell=told.words.append) is None
    assert len(told.pauses) == 3


def rolled_back(place: Place, tmp_path: Path) -> None:
    (place.public / "checkpoint").write_bytes(
        Place(tmp_path / "other").create(entries(0, 3)).snapshot()["public/checkpoint"]
    )


def other_bytes(place: Place, tmp_path: Path) -> None:
    tile = place.public / "tile/0/001.p/4"
    tile.parent.mkdir(exist_ok=True)
    tile.write_bytes(b"other bytes")


@pytest.mark.parametrize(
    ("harm", "message"),
    [(rolled_back, "wanted size 250 or 260 published, got 3: it was rolled back"), (other_bytes, "other bytes")],
)
def test_what_is_not_what_was_signed_is_refused_for_good(
    place: Place, tmp_path: Path, harm: Callable[[Place, Path], None], message: str
) -> None:
    failure = stopped(place, "create", "lost")
    harm(place, tmp_path)
    told = Told()
    with pytest.raises(InconsistentError, match=message):
        reopen(place.open, failure, wait=told.wait, tell=told.words.append)
    assert len(told.pauses) == 1, "it is looked at once"


@pytest.mark.parametrize("fragment", ["/staging/260-", "/staging/writing-", "/tile/0/001.p", "/public"])
def test_after_a_failed_sync_this_process_believes_nothing_that_it_reads(
    place: Place, monkeypatch: pytest.MonkeyPatch, fragment: str
) -> None:
    with closing(place.open()) as log:
        unsound = OSError(errno.EIO, "Input/output error")
        with failing("fsync", fragment, unsound, monkeypatch) as struck, pytest.raises(UnsyncedError):
            log.append(entries(250, 260))
        assert struck
        failure = log.failure
    assert isinstance(failure, UnsyncedError)
    told = Told()
    with pytest.raises(UnsyncedError, match="cannot be made durable: Input/output error; check the disk"):
        reopen(place.open, failure, wait=told.wait, tell=told.words.append)
    assert told == Told()


def test_the_state_after_a_repair_holds_what_was_sequenced_and_never_answered(tmp_path: Path) -> None:
    f = Federation()
    public, lock = tmp_path / "public", tmp_path / "lock.db"
    with closing(Log.create(public, lock, ORIGIN, f.log_key)) as log:
        log.append(f.entries[:1])
    f.announce()
    fault = Fault("create", "lost", unknown())
    log = Log(FaultyStorage(DiskStorage(public), fault), FaultyLock(lock, fault), ORIGIN, f.log_key)
    sequencer = Sequencer.load(log, StorageSource(DiskStorage(public)), f.key("hub"))
    with pytest.raises(StorageError, match="the disk went away"):
        sequencer.submit(f.entries[1])
    sequencer.close()

    def again() -> Sequencer:
        return Sequencer.load(
            Log.open(public, lock, ORIGIN, f.log_key), StorageSource(DiskStorage(public)), f.key("hub")
        )

    assert log.failure is not None
    fixed = reopen(again, log.failure, wait=lambda _: False, tell=lambda _: None)
    assert fixed is not None
    assert fixed.state.size == 2
    assert [fixed.submit(data).index for data in f.entries[1:]] == [1, 2, 3]
    fixed.close()


# -- freshness


@dataclass
class Stamping:
    """A quorum that writes the time by a clock into its line; it can be away."""

    clock: Clock
    away: bool = False
    asked: int = 0

    def __call__(self, checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        self.asked += 1
        if self.away:
            raise UnavailableError("witnesses: wanted 2, got 0")
        return note + f"— at-{self.clock.now:g} AAAAAAAA\n".encode()


@pytest.fixture
def clock() -> Clock:
    return Clock(now=1000)


@pytest.fixture
def quorum(clock: Clock) -> Stamping:
    return Stamping(clock)


@pytest.fixture
def fresh(tmp_path: Path, quorum: Stamping) -> Iterator[Log]:
    with closing(Log.create(tmp_path / "public", tmp_path / "lock.db", LOG_ORIGIN, KEY, quorum)) as log:
        log.append([b"one", b"two"])
        yield log


def stamp(tmp_path: Path) -> str:
    note = (tmp_path / "public/checkpoint").read_bytes()
    assert open_checkpoint(note, VERIFIER).size in (2, 3)
    return note.decode().rpartition("at-")[2].split(" ")[0]


def test_the_newest_checkpoint_is_cosigned_again_at_a_start_and_then_at_its_age(
    tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping
) -> None:
    freshness, stamps = Freshness(600, clock), []
    for at in (1500, 1501, 2099, 2100, 2101, 2700):
        clock.now = at
        freshness.step(fresh)
        stamps.append(stamp(tmp_path))
        assert fresh.checkpoint == (tmp_path / "public/checkpoint").read_bytes()
    assert stamps == ["1500", "1500", "1500", "2100", "2100", "2700"]
    found = fresh.find(b"one")
    assert found is not None
    open_proof(found.proof, b"one", VERIFIER)
    assert b"at-2700" in found.proof
    assert quorum.asked == 4


def test_what_is_new_is_fresh_by_itself(tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping) -> None:
    freshness = Freshness(600, clock)
    freshness.step(fresh)
    clock.now = 1400
    fresh.append([b"three"])
    for at, wanted in ((1400, "1400"), (1999, "1400"), (2000, "2000")):
        clock.now = at
        freshness.step(fresh)
        assert stamp(tmp_path) == wanted


def test_without_witnesses_the_old_checkpoint_stays_and_they_are_asked_again_soon(
    tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping, caplog: pytest.LogCaptureFixture
) -> None:
    freshness = Freshness(600, clock)
    freshness.step(fresh)
    quorum.away, clock.now = True, 1600
    with caplog.at_level(logging.WARNING):
        freshness.step(fresh)
    assert "the checkpoint grows old: witnesses: wanted 2, got 0" in caplog.text
    assert (fresh.failure, stamp(tmp_path)) == (None, "1000")
    asked, quorum.away = quorum.asked, False
    for at, more in ((1609, 0), (1610, 1), (1620, 1)):
        clock.now = at
        freshness.step(fresh)
        assert quorum.asked == asked + more
    assert stamp(tmp_path) == "1610"


def test_zero_seconds_is_never(tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping) -> None:
    freshness = Freshness(0, clock)
    for at in (1000, 10**9):
        clock.now = at
        freshness.step(fresh)
    assert (quorum.asked, stamp(tmp_path)) == (1, "1000")


def test_what_waits_for_witnesses_is_published_by_a_refresh_and_swept_up(
    tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping
) -> None:
    quorum.away = True
    with pytest.raises(UnavailableError):
        fresh.append([b"three"])
    quorum.away, clock.now = False, 1700
    fresh.refresh()
    assert fresh.size == 3
    assert stamp(tmp_path) == "1700"
    assert list((tmp_path / "public/staging").iterdir()) == []


def test_what_waits_for_witnesses_is_tried_every_second_whoever_sent_it(
    tmp_path: Path, fresh: Log, clock: Clock, quorum: Stamping
) -> None:
    freshness = Freshness(0, clock)
    quorum.away = True
    with pytest.raises(UnavailableError):
        fresh.append([b"three"])
    asked = quorum.asked
    for at, more in ((1000, 1), (1000.5, 1), (1001, 2), (1001.5, 2)):
        clock.now = at
        freshness.step(fresh)
        assert quorum.asked == asked + more
    quorum.away, clock.now = False, 1002
    freshness.step(fresh)
    assert (fresh.size, stamp(tmp_path)) == (3, "1002")
