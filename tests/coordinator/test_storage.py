"""One contract for every place that a log's store may lie in, and the log's crash table on the object stores."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_coordinator.log.object_storage import ObjectStorage, open_s3
from commonweal_coordinator.log.storage import (
    DiskStorage,
    InconsistentError,
    LockDatabase,
    Storage,
    StorageSource,
)
from commonweal_protocols.base.errors import ConfigError, LogError, StorageError
from commonweal_protocols.records.source import read_checkpoint, read_entries
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.log_faults import FAULTS, Fault, FaultyLock, FaultyStorage
from tests.kit.log_place import KEY, ORIGIN, VERIFIER, entries, entry, expected_tiles, leaf, mth
from tests.kit.s3 import CREDENTIALS, S3, serve_s3

Open = Callable[[], Storage]
"""Opens the same place again: what another process, or the next start, would see."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as m, serve_s3() as server:
        for name, value in CREDENTIALS.items():
            m.setenv(name, value)
        yield server


class Contract:
    """What ``Storage`` promises. A subclass says in ``storage`` where."""

    def test_what_is_written_is_read_back_from_elsewhere(self, storage: Open) -> None:
        here = storage()
        here.begin()
        here.stage("staging/1-ab", b"staged")
        here.create({"tile/0/000.p/1": b"a tile", "tile/entries/000.p/1": b""})
        here.replace("checkpoint", b"one")
        there = storage()
        found = {p: there.read(p) for p in ("staging/1-ab", "tile/0/000.p/1", "tile/entries/000.p/1", "checkpoint")}
        assert list(found.values()) == [b"staged", b"a tile", b"", b"one"]

    def test_what_is_not_there_is_none_and_may_be_removed(self, storage: Open) -> None:
        here = storage()
        here.begin()
        assert here.read("checkpoint") is None
        assert here.read("tile/0/000") is None
        assert here.staged() == []
        here.discard("staging/none")
        here.prune("tile/0/000.p")

    def test_a_staged_file_is_overwritten_listed_and_discarded(self, storage: Open) -> None:
        here = storage()
        here.begin()
        for path, data in (("staging/2-b", b"1"), ("staging/1-a", b"2"), ("staging/2-b", b"3")):
            here.stage(path, data)
        assert storage().staged() == ["staging/1-a", "staging/2-b"]
        assert here.read("staging/2-b") == b"3"
        here.discard("staging/2-b")
        assert storage().staged() == ["staging/1-a"]

    def test_a_created_file_may_be_created_again_with_the_same_bytes_only(self, storage: Open) -> None:
        here = storage()
        here.begin()
        here.create({"tile/0/000": b"a", "tile/0/001": b"b"})
        here.create({"tile/0/000": b"a", "tile/0/002": b"c"})
        storage().create({"tile/0/001": b"b"})
        for writer in (here, storage()):
            with pytest.raises(InconsistentError, match="tile/0/001: exists with other bytes; a published file never"):
                writer.create({"tile/0/001": b"x"})
        assert [here.read(f"tile/0/00{n}") for n in range(3)] == [b"a", b"b", b"c"]

    def test_a_checkpoint_is_replaced_whole_again_and_again(self, storage: Open) -> None:
        here = storage()
        here.begin()
        for n in range(4):
            here.replace("checkpoint", b"%d" % n * 1000)
            assert storage().read("checkpoint") == b"%d" % n * 1000
        there = storage()
        there.replace("checkpoint", b"of the next start")
        assert there.read("checkpoint") == b"of the next start"

    def test_pruning_takes_one_folder_and_leaves_its_namesakes(self, storage: Open) -> None:
        here = storage()
        here.begin()
        kept = {"tile/0/000": b"full", "tile/0/000.px/1": b"no", "tile/0/001.p/1": b"other"}
        here.create({"tile/0/000.p/1": b"1", "tile/0/000.p/255": b"2", **kept})
        here.prune("tile/0/000.p")
        there = storage()
        assert {p: there.read(p) for p in kept} == kept
        assert there.read("tile/0/000.p/1") is there.read("tile/0/000.p/255") is None

    @pytest.mark.parametrize("path", ["checkpoint", "tile/0/000.p/1"])
    def test_a_log_is_begun_where_there_is_none(self, storage: Open, path: str) -> None:
        here = storage()
        here.begin()
        here.stage("staging/1-ab", b"what a first start has left is no log")
        here.begin()
        here.create({path: b"something"})
        for writer in (here, storage()):
            with pytest.raises(StorageError, match="a log is there already; a log is created once"):
                writer.begin()

    def test_as_records_no_more_is_read_than_was_asked_for(self, storage: Open) -> None:
        here = storage()
        here.begin()
        here.replace("checkpoint", b"12345")
        source = StorageSource(storage())
        assert source.read("checkpoint", max_bytes=5) == b"12345"
        assert source.read("tile/0/000", max_bytes=5) is None
        with pytest.raises(LogError, match="checkpoint: wanted at most 4 bytes, got 5"):
            source.read("checkpoint", max_bytes=4)


class TestOnDisk(Contract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Open:
        return lambda: DiskStorage(tmp_path / "public")


class ObjectContract(Contract):
    """What is promised of object stores besides: a write that comes late does no harm."""

    def test_a_checkpoint_that_arrives_late_cannot_undo_a_newer_one(self, storage: Open) -> None:
        late = storage()
        late.begin()
        late.replace("checkpoint", b"one")
        storage().replace("checkpoint", b"two")
        with pytest.raises(StorageError, match="checkpoint: cannot be written: "):
            late.replace("checkpoint", b"one and a half")
        assert storage().read("checkpoint") == b"two"

    def test_a_log_over_many_starts_has_the_tiles_of_the_specification(self, storage: Open, tmp_path: Path) -> None:
        held = entries(0, 600)
        with closing(Log.create(storage(), tmp_path / "lock.db", ORIGIN, KEY)) as log:
            log.append(held[:100])
        for cut in (256, 300, 600):
            with closing(Log.open(storage(), tmp_path / "lock.db", ORIGIN, KEY)) as log:
                log.append(held[log.size : cut])
        audit(storage(), held)

    @pytest.mark.parametrize(
        ("write", "effect", "error", "outcome", "entered", "why"), FAULTS, ids=[f"{row[0]}-{row[1]}" for row in FAULTS]
    )
    def test_a_failed_write_loses_nothing_that_was_answered(
        self, storage: Open, tmp_path: Path, write: str, effect: str, error: Callable[[], Exception],
        outcome: str, entered: bool, why: str,
    ) -> None:  # fmt: skip
        lock, old, new = tmp_path / "lock.db", entries(0, 250), entries(250, 260)
        with closing(Log.create(storage(), lock, ORIGIN, KEY)) as log:
            receipts = list(zip(old, log.append(old), strict=True))
        fault = Fault(write, effect, error())
        with closing(Log(FaultyStorage(storage(), fault), FaultyLock(lock, fault), ORIGIN, KEY)) as log:
            with pytest.raises(StorageError, match=r"No space left on device|the disk went away"):
                log.append(new)
            assert (log.failure is None) == (outcome == "again")
        with closing(Log.open(storage(), lock, ORIGIN, KEY)) as log:
            assert log.size == (260 if entered else 250)
            receipts += zip(new, log.append(new), strict=True)
        audit(storage(), [*old, *new], receipts)


class TestInMemory(ObjectContract):
    @pytest.fixture
    def storage(self) -> Open:
        store = MemoryStore()
        return lambda: ObjectStorage(store, "memory")


class TestOnS3(ObjectContract):
    @pytest.fixture
    def storage(self, s3: S3) -> Open:
        bucket = s3.bucket()
        return lambda: open_s3(bucket, endpoint=s3.endpoint)


def audit(storage: Storage, held: list[bytes], receipts: list[tuple[bytes, Sequenced]] | None = None) -> None:
    """Hold all that is public to a second computation of it."""
    source = StorageSource(storage)
    signed = open_checkpoint(read_checkpoint(source), VERIFIER)
    assert signed == Checkpoint(ORIGIN, len(held), mth([leaf(e) for e in held]))
    assert list(read_entries(source, 0, signed.size)) == held
    wanted = expected_tiles(held)
    assert {path: storage.read(path) for path in wanted} == wanted
    assert storage.staged() == []
    for data, answer in receipts or []:
        assert open_proof(answer.proof, data, VERIFIER)[0] == answer.index


def test_a_folder_through_the_library_is_no_place_for_a_log(tmp_path: Path) -> None:
    """Its local store neither syncs nor replaces under a condition: ``DiskStorage`` is for disks."""
    store = LocalStore(tmp_path)
    obstore.put(store, "checkpoint", b"one")
    with pytest.raises(NotImplementedError):
        obstore.put(store, "checkpoint", b"two", mode={"e_tag": obstore.head(store, "checkpoint")["e_tag"] or ""})


def test_a_server_that_is_gone_stops_nothing_at_staging_and_everything_after_it(tmp_path: Path, s3: S3) -> None:
    with serve_s3() as short:
        storage = open_s3(short.bucket(), endpoint=short.endpoint)
        log = Log.create(storage, tmp_path / "lock.db", ORIGIN, KEY)
        log.append([entry(0)])
    with closing(log):
        with pytest.raises(StorageError, match=r"cannot be staged: .*; nothing was added and nothing is lost"):
            log.append([entry(1)])
        assert log.failure is None
        assert log.size == 1
        for use in (lambda: storage.read("checkpoint"), storage.staged, lambda: storage.replace("checkpoint", b"")):
            with pytest.raises(StorageError, match=r"s3://bucket-\d+/a/prefix/\S+: cannot be ") as e:
                use()
            assert len(str(e.value).splitlines()) == 1
            assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(e.value)


def test_the_store_from_a_backup_is_refused_on_s3_too(tmp_path: Path, s3: S3) -> None:
    lock, bucket = tmp_path / "lock.db", s3.bucket()
    with closing(Log.create(open_s3(bucket, endpoint=s3.endpoint), lock, ORIGIN, KEY)) as log:
        log.append(entries(0, 3))
        backup = log.checkpoint
        log.append(entries(3, 5))
    open_s3(bucket, endpoint=s3.endpoint).replace("checkpoint", backup)
    with pytest.raises(InconsistentError, match="size 5 was signed, 3 is published and nothing is staged"):
        Log.open(open_s3(bucket, endpoint=s3.endpoint), lock, ORIGIN, KEY)


@pytest.mark.parametrize("url", ["", "bucket", "file:///tmp", "s3://", "s3:///prefix", "s3://b/p?x=1", "https://b/p"])
def test_an_address_that_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="log store: wanted s3://BUCKET/PREFIX, got"):
        open_s3(url)


def test_a_lock_database_opens_with_all_its_commits_in_the_file_itself(tmp_path: Path) -> None:
    """A commit in SQLite's write-ahead log may be one that the kernel failed to sync: opening writes it anew."""
    path = tmp_path / "lock.db"
    LockDatabase.create(path, b"one")
    with closing(LockDatabase(path)) as lock:
        lock.swap(b"one", b"two")
        left = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock.db.flock"}
    assert left["lock.db-wal"] != b""
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    with closing(LockDatabase(path)) as lock:
        assert lock.read() == b"two"
        assert (tmp_path / "lock.db-wal").read_bytes() == b""
