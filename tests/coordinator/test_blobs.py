"""The blob store: what lies under a name is what the name says, whatever goes wrong on the way."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from commonweal_coordinator.serving.blobs import MAX_PARTIALS, STALE_SECONDS, BlobStore
from commonweal_protocols.base.errors import BlobError, MalformedError, RuleError, StorageError, UnavailableError
from commonweal_protocols.statements.values import Blob

ALICE, BOB = "a" * 64, "b" * 64
DATA = bytes(range(256)) * 40


def blob_of(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


BLOB = blob_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "public")


def test_an_upload_becomes_a_read_only_file_under_its_digest(store: BlobStore, tmp_path: Path) -> None:
    assert store.begin(ALICE, BLOB) == 0
    assert store.append(ALICE, BLOB, 0, DATA[:100]) == 100
    assert not store.has(BLOB.sha256)
    assert store.append(ALICE, BLOB, 100, DATA[100:]) == len(DATA)
    assert not store.has(BLOB.sha256), "not before it is finished"
    store.finish(ALICE, BLOB)
    path = tmp_path / "public/blob" / BLOB.sha256
    assert store.path(BLOB.sha256) == path
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert [p for p in (tmp_path / "public/.partial").rglob("*") if p.is_file()] == []


def test_an_upload_goes_on_in_another_process_where_it_stopped(store: BlobStore, tmp_path: Path) -> None:
    store.begin(ALICE, BLOB)
    store.append(ALICE, BLOB, 0, DATA[:7])
    again = BlobStore(tmp_path / "public")
    assert again.received_bytes(BLOB.sha256) == 7
    assert again.begin(ALICE, BLOB) == 7
    again.append(ALICE, BLOB, 7, DATA[7:])
    again.finish(ALICE, BLOB)
    assert again.read(BLOB.sha256) == DATA


def test_a_wrong_digest_deletes_the_upload_and_says_wanted_and_got(store: BlobStore) -> None:
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    store.begin(ALICE, BLOB)
    store.append(ALICE, BLOB, 0, wrong)
    with pytest.raises(BlobError, match=f"wanted .*{BLOB.sha256}, got .*{blob_of(wrong).sha256}"):
        store.finish(ALICE, BLOB)
    assert not store.has(BLOB.sha256)
    assert store.received_bytes(BLOB.sha256) == 0


def test_more_bytes_than_declared_are_refused_before_any_of_them_is_kept(store: BlobStore) -> None:
    store.begin(ALICE, BLOB)
    store.append(ALICE, BLOB, 0, DATA[:-10])
    with pytest.raises(BlobError, match=f"wanted {len(DATA)} bytes, got {len(DATA) + 1}"):
        store.append(ALICE, BLOB, len(DATA) - 10, b"x" * 11)
    assert store.received_bytes(BLOB.sha256) == len(DATA) - 10


def test_a_full_disk_is_told_and_the_upload_goes_on_once_there_is_room(tmp_path: Path) -> None:
    room = 1000

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = os.write(fd, data[:room])
        room -= done
        return done

    store = BlobStore(tmp_path, write=write)
    store.begin(ALICE, BLOB)
    with pytest.raises(StorageError, match=rf"{ALICE}/{BLOB.sha256}: .*No space.*needed {len(DATA) - 1000} .*free"):
        store.append(ALICE, BLOB, 0, DATA)
    # What the disk took before it was full is not sent again.
    assert store.received_bytes(BLOB.sha256) == 1000
    room = len(DATA)
    assert store.begin(ALICE, BLOB) == 1000
    store.append(ALICE, BLOB, 1000, DATA[1000:])
    store.finish(ALICE, BLOB)
    assert store.read(BLOB.sha256) == DATA


def test_nothing_is_taken_that_would_touch_the_reserve(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    store = BlobStore(tmp_path, min_free_bytes=stat.f_blocks * stat.f_frsize)
    for store_it in (lambda: store.begin(ALICE, BLOB), lambda: store.put_bytes(DATA)):
        with pytest.raises(
            StorageError, match=rf"wanted {len(DATA)} bytes beside a reserve of \d+, got \d+ bytes free"
        ):
            store_it()
    assert store.received_bytes(BLOB.sha256) == 0


def test_a_member_has_few_unfinished_uploads_and_cannot_crowd_out_another(store: BlobStore) -> None:
    blobs = [blob_of(bytes([n])) for n in range(MAX_PARTIALS + 1)]
    for blob in blobs[:-1]:
        store.begin(ALICE, blob)
    with pytest.raises(RuleError, match=f"wanted at most {MAX_PARTIALS} unfinished uploads"):
        store.begin(ALICE, blobs[-1])
    assert store.begin(ALICE, blobs[0]) == 0, "one that has a place keeps it"
    assert store.begin(BOB, blobs[-1]) == 0, "another member has places of its own"
    store.append(ALICE, blobs[0], 0, bytes([0]))
    store.finish(ALICE, blobs[0])
    assert store.begin(ALICE, blobs[-1]) == 0, "a finished one frees its place"


def test_a_stale_unfinished_upload_gives_way(store: BlobStore, tmp_path: Path) -> None:
    blobs = [blob_of(bytes([n, 1])) for n in range(MAX_PARTIALS + 1)]
    for blob in blobs[:-1]:
        store.begin(ALICE, blob)
        store.append(ALICE, blob, 0, b"x")
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(tmp_path / "public/.partial" / ALICE / blobs[2].sha256, (long_ago, long_ago))
    store.begin(ALICE, blobs[-1])
    assert [store.received_bytes(b.sha256) for b in blobs] == [1, 1, 0, 1, 0]
    # The one that gave way finds out, and is told where to begin.
    assert store.append(ALICE, blobs[2], 1, b"y") == 0
    with pytest.raises(UnavailableError, match="taken away"):
        store.finish(ALICE, blobs[2])


def test_two_interleaved_uploads_of_one_blob_help_each_other(store: BlobStore) -> None:
    """One member, two connections: the schedule is every overlap of old and new bytes."""
    store.begin(ALICE, BLOB)
    store.begin(ALICE, BLOB)
    assert store.append(ALICE, BLOB, 0, DATA[:400]) == 400
    assert store.append(ALICE, BLOB, 0, DATA[:100]) == 400, "all of it is here"
    assert store.append(ALICE, BLOB, 100, DATA[100:900]) == 900, "a part of it is here"
    assert store.append(ALICE, BLOB, 901, DATA[901:950]) == 900, "a gap is never filled with guesses"
    assert store.append(ALICE, BLOB, 400, DATA[400:]) == len(DATA)
    store.finish(ALICE, BLOB)
    assert store.append(ALICE, BLOB, 900, DATA[900:]) == len(DATA)
    store.finish(ALICE, BLOB)
    assert store.read(BLOB.sha256) == DATA


def test_another_members_garbage_does_not_spoil_an_upload(store: BlobStore) -> None:
    for owner, data in ((BOB, b"\0" * len(DATA)), (ALICE, DATA)):
        store.begin(owner, BLOB)
        store.append(owner, BLOB, 0, data)
    store.finish(ALICE, BLOB)
    store.finish(BOB, BLOB)
    assert store.read(BLOB.sha256) == DATA
    assert store.begin(BOB, BLOB) == len(DATA)


def test_many_threads_that_upload_one_blob_at_once_store_it_once_and_whole(store: BlobStore) -> None:
    data = os.urandom(300_000)
    blob = blob_of(data)
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def upload(owner: str, chunk: int) -> None:
        start.wait()
        try:
            at = store.begin(owner, blob)
            while at < len(data):
                at = store.append(owner, blob, at, data[at : at + chunk])
            store.finish(owner, blob)
        except BaseException as e:  # noqa: BLE001 - reported by the main thread
            failures.append(e)

    threads = [threading.Thread(target=upload, args=((ALICE, BOB)[n % 2], 1000 + 337 * n)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    assert store.read(blob.sha256) == data


def test_a_name_that_is_not_a_digest_never_becomes_a_path(store: BlobStore) -> None:
    for name in ("../" + "a" * 61, "a" * 63, "A" * 64, "a" * 64 + "\n", "", "/etc/passwd", "a" * 64 + "/.."):
        for use in (store.path, store.has, store.read, store.received_bytes):
            with pytest.raises(MalformedError, match="wanted 64 lower-case hex digits"):
                use(name)
    with pytest.raises(MalformedError):
        store.begin("../" + "a" * 61, BLOB)


def test_a_blob_that_is_here_is_known_by_its_size_too(store: BlobStore) -> None:
    assert store.put_bytes(DATA) == BLOB
    assert store.put_bytes(DATA) == BLOB
    assert store.begin(ALICE, BLOB) == len(DATA)
    with pytest.raises(BlobError, match=f"wanted the size {len(DATA)} of the blob that is here, got 5"):
        store.begin(ALICE, Blob(sha256=BLOB.sha256, size_bytes=5))
    with store.open(BLOB.sha256) as f:
        assert f.read() == DATA


def test_an_unknown_blob_is_the_askers_problem_and_a_changed_one_is_ours(store: BlobStore) -> None:
    with pytest.raises(BlobError, match=f"{BLOB.sha256}: not here"):
        store.read(BLOB.sha256)
    store.put_bytes(DATA)
    path = store.path(BLOB.sha256)
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(StorageError, match="the disk has changed it"):
        store.read(BLOB.sha256)
