"""The log's sequencer: whatever fails, wherever it is killed, what was answered stays answered.

Run as a program (``python -m tests.coordinator.test_log``) this module is the victim: it appends, and kills
itself at a given call.
"""

import errno
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_coordinator.log.storage import LockDatabase
from commonweal_protocols.base.errors import CommonwealError, ConfigError, MalformedError, StorageError
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.note import sign_note
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.launch import ROOT
from tests.kit.log_faults import FAULTS, Fault, Outcome, failing, faulty, full_disk, unknown
from tests.kit.log_place import (
    KEY,
    ORIGIN,
    OTHER_KEY,
    VERIFIER,
    Place,
    entries,
    entry,
    expected_tiles,
    files_below,
    leaf,
    mth,
)

P = ParamSpec("P")
R = TypeVar("R")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "log")


# -- what it answers


def test_an_empty_log_is_published_and_its_root_is_that_of_no_leaves(place: Place) -> None:
    place.create()
    note = (place.public / "checkpoint").read_bytes()
    assert note.startswith(f"{ORIGIN}\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n".encode())
    place.audit_open([])


@pytest.mark.parametrize(
    ("cuts", "why"),
    [
        ((1, 2, 3), "single entries"),
        ((255, 256, 257), "up to, onto and past a bundle's end"),
        ((256, 512), "whole bundles only"),
        ((100, 1000), "one batch over several bundles"),
        ((3, 700, 701), "a large batch, then a small one"),
    ],
)
def test_any_batching_gives_the_tree_and_the_tiles_of_the_specification(
    place: Place, cuts: tuple[int, ...], why: str
) -> None:
    place.create()
    with closing(place.open()) as log:
        for start, end in itertools.pairwise((0, *cuts)):
            answers = place.append(log, entries(start, end))
            assert [a.index for a in answers] == list(range(start, end))
            place.audit(entries(0, end), every=37)
    place.audit_open(entries(0, cuts[-1]), every=37)


def test_the_tree_goes_on_growing_over_many_starts(place: Place) -> None:
    place.create()
    for start, end in itertools.pairwise((0, 5, 255, 256, 300, 600)):
        with closing(place.open()) as log:
            place.append(log, entries(start, end))
    place.audit_open(entries(0, 600), every=11)


def test_a_proof_is_of_exactly_its_entry(place: Place) -> None:
    place.create(entries(0, 9))
    data, answer = place.receipts[4]
    assert open_proof(answer.proof, data, VERIFIER)[0] == 4
    with pytest.raises(CommonwealError, match="does not lead to root"):
        open_proof(answer.proof, entry(5), VERIFIER)


def test_what_is_there_already_keeps_its_index_even_within_one_batch(place: Place) -> None:
    place.create([entry(0), entry(1)])
    with closing(place.open()) as log:
        answers = place.append(log, [entry(2), entry(0), entry(3), entry(2), entry(1), entry(3)])
        assert [a.index for a in answers] == [2, 0, 3, 2, 1, 3]
        before = place.snapshot()
        assert [a.index for a in place.append(log, [entry(3), entry(0)])] == [3, 0]
        assert log.append([]) == []
        assert place.snapshot() == before, "nothing new, nothing written"
    place.audit_open(entries(0, 4))


def test_an_entry_that_is_not_there_is_not_found(place: Place) -> None:
    place.create(entries(0, 3))
    with closing(place.open()) as log:
        assert log.find(entry(3)) is None


def test_one_entry_that_is_too_large_adds_nothing_of_its_batch(place: Place) -> None:
    place.create([entry(0)])
    with closing(place.open()) as log:
        before = place.snapshot()
        with pytest.raises(MalformedError, match="entry: wanted at most 65535 bytes, got 65536"):
            log.append([entry(1), bytes(65536), entry(2)])
        assert log.size == 1
        assert log.find(entry(1)) is None
        assert place.snapshot() == before
        place.append(log, [bytes(65535), b""])
    place.audit_open([entry(0), bytes(65535), b""])


def test_a_closed_log_still_says_its_size_and_checkpoint_and_takes_nothing(place: Place) -> None:
    place.create(entries(0, 3))
    log = place.open()
    log.close()
    log.close()
    assert log.size == 3
    assert log.checkpoint == (place.public / "checkpoint").read_bytes()
    for call in (lambda: log.append([entry(3)]), lambda: log.find(entry(0))):
        with pytest.raises(StorageError, match=f"log {ORIGIN}: is closed"):
            call()
    place.audit_open(entries(0, 3))


def test_threads_get_distinct_indices_and_proofs_that_hold(place: Place) -> None:
    place.create()
    start = threading.Barrier(4)

    def work(n: int) -> list[Sequenced]:
        start.wait()
        return [a for i in range(n * 5, n * 5 + 5) for a in log.append([entry(i), b"the same for all"])]

    with closing(place.open()) as log, ThreadPoolExecutor(4) as pool:
        answers = [a for done in pool.map(work, range(4)) for a in done]
    held = list(read_entries(DirectorySource(place.public), 0, 21))
    assert sorted(held) == sorted([*entries(0, 20), b"the same for all"])
    place.receipts = [(held[a.index], a) for a in answers]
    place.audit_open(held)


# -- what lies on the disk


def test_files_have_their_modes_whatever_the_umask(place: Place) -> None:
    umask = os.umask(0o077)
    try:
        place.create(entries(0, 300))
    finally:
        os.umask(umask)
    modes = {str(p.relative_to(place.public)): p.stat().st_mode & 0o777 for p in place.public.rglob("*")}
    assert modes.pop("checkpoint") == 0o644
    assert modes.pop("staging") == 0o700
    assert {m for p, m in modes.items() if (place.public / p).is_dir()} == {0o755}
    assert {m for p, m in modes.items() if (place.public / p).is_file()} == {0o444}
    assert place.lock.stat().st_mode & 0o777 == 0o600


def test_a_log_is_created_once_and_beside_other_files(tmp_path: Path) -> None:
    place = Place(tmp_path / "log")
    (place.public / "blob").mkdir(parents=True)
    (place.public / "blob/x").write_bytes(b"kept")
    place.create([entry(0)])
    before = place.snapshot()
    with pytest.raises(StorageError, match="checkpoint: a log is there already; a log is created once"):
        Log.create(place.public, place.lock, ORIGIN, KEY)
    with pytest.raises(StorageError, match="checkpoint: a log is there already; a log is created once"):
        Log.create(place.public, tmp_path / "other.db", ORIGIN, KEY)
    with pytest.raises(StorageError, match=r"lock\.db: a lock database is there already; a log is created once"):
        Log.create(tmp_path / "elsewhere", place.lock, ORIGIN, KEY)
    assert place.snapshot() == before
    assert (place.public / "blob/x").read_bytes() == b"kept"


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "x" * 256])
def test_an_origin_that_cannot_name_a_log_creates_nothing(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError, match=r"origin|key name"):
        Log.create(tmp_path / "public", tmp_path / "lock.db", origin, KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_published_file_with_other_bytes_is_fatal_and_never_overwritten(place: Place) -> None:
    place.create(entries(0, 3))
    foreign = place.public / "tile/0/000.p/4"
    foreign.write_bytes(b"other bytes")
    with closing(place.open()) as log:
        with pytest.raises(StorageError, match=r"tile/0/000\.p/4: exists with other bytes; a published file never"):
            log.append([entry(3)])
        with pytest.raises(StorageError, match="nothing is taken until it is opened anew"):
            log.append([entry(4)])
    with pytest.raises(StorageError, match=r"tile/0/000\.p/4: exists with other bytes"):
        place.open()
    assert foreign.read_bytes() == b"other bytes"
    foreign.unlink()
    place.audit_open(entries(0, 4))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Every call from here on that syncs, renames, makes or removes, and every compare-and-swap."""
    seen: list[tuple[str, str, str]] = []

    def spied(real: Callable[P, R], describe: Callable[..., tuple[str, str]]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            seen.append((real.__name__, *describe(*args)))
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", spied(os.fsync, lambda fd: (os.readlink(f"/proc/self/fd/{fd}"), "")))
    monkeypatch.setattr(os, "replace", spied(os.replace, lambda a, b: (str(a), str(b))))
    for call in (os.mkdir, os.unlink, os.rmdir):
        monkeypatch.setattr(os, call.__name__, spied(call, lambda path, *_: (str(path), "")))
    monkeypatch.setattr(LockDatabase, "swap", spied(LockDatabase.swap, lambda *_: ("", "")))
    return seen


def test_bytes_are_durable_before_their_name_and_names_before_what_points_to_them(
    place: Place, events: list[tuple[str, str, str]]
) -> None:
    """Power may fail after any call; a kill test cannot see that, since the kernel survives it."""
    place.create(entries(0, 250))
    with closing(place.open()) as log:
        del events[:]
        log.append(entries(250, 260))

    def at(*event: str, after: int = -1, before: int = len(events)) -> int:
        found = [i for i in range(after + 1, before) if events[i] == event]
        assert found, f"wanted {event} after {after} and before {before}"
        return found[0]

    commit = at("swap", "", "")
    root = mth([leaf(e) for e in entries(0, 260)]).hex()
    staging = place.public / "staging"
    staged = at("fsync", str(staging / f"260-{root}"), "", before=commit)
    at("fsync", str(staging), "", after=staged, before=commit)
    publish = next(i for i, e in enumerate(events) if e[2] == str(place.public / "checkpoint"))
    published = at("fsync", str(place.public), "", after=publish)
    renames = [i for i, e in enumerate(events) if e[0] == "replace"]
    assert len(renames) == len(expected_tiles(entries(0, 260))) + 1
    for i in renames:
        _, source, target = events[i]
        earlier = [j for j in renames if j < i and events[j][1] == source]
        at("fsync", source, "", after=max([commit, *earlier]), before=i)
        at("fsync", str(Path(target).parent), "", after=i, before=publish if i < publish else len(events))
        assert i <= publish, "the checkpoint comes last"
    for i, (name, path, _) in enumerate(events):
        if name == "mkdir":
            at("fsync", str(Path(path).parent), "", after=i, before=publish)
        if name in ("unlink", "rmdir") and "writing-" not in path:
            assert i > published, "nothing is removed before what takes its place is public"


def test_a_recovery_makes_durable_what_the_crash_may_have_left_in_memory(
    place: Place, events: list[tuple[str, str, str]]
) -> None:
    place.create(entries(0, 250))
    with closing(faulty(place, Fault("create", "kept", unknown()))) as log, pytest.raises(StorageError):
        log.append(entries(250, 260))
    del events[:]
    place.open().close()
    publish = next(i for i, e in enumerate(events) if e[2] == str(place.public / "checkpoint"))
    synced = {e[1] for e in events[:publish] if e[0] == "fsync"}
    new = expected_tiles(entries(0, 260)).keys() - expected_tiles(entries(0, 250)).keys()
    above = {folder for path in new for folder in (place.public / path).parents if folder.is_relative_to(place.public)}
    assert {str(folder) for folder in above} <= synced


# -- faults


@pytest.mark.parametrize(("write", "effect", "error", "outcome", "entered", "why"), FAULTS)
def test_a_failed_write_either_may_be_tried_again_or_stops_the_log_until_it_is_opened_anew(
    place: Place, write: str, effect: str, error: Callable[[], Exception], outcome: Outcome, entered: bool, why: str
) -> None:
    old, new = entries(0, 250), entries(250, 260)  # a bundle fills up: every kind of write takes place
    place.create(old[:100], old[100:])
    fault = Fault(write, effect, error())
    with closing(faulty(place, fault)) as log:
        with pytest.raises(StorageError, match=r"No space left on device|the disk went away") as caught:
            log.append(new)
        if outcome == "again":
            assert "nothing was added and nothing is lost; the same entries may be sent again" in str(caught.value)
            assert log.size == 250
            assert log.find(new[0]) is None
            place.append(log, new)
            place.audit([*old, *new], every=31)
        else:
            calls = fault.calls
            uses: list[Callable[[], object]] = [
                lambda: log.append(new),
                lambda: log.append(old[:1]),
                lambda: log.find(old[0]),
                lambda: log.size,
                lambda: log.checkpoint,
            ]
            for use in uses:
                with pytest.raises(
                    StorageError, match=f"^log {ORIGIN}: stopped after: .*; nothing is taken until it is opened anew"
                ):
                    use()
            assert fault.calls == calls, "nothing is tried again by itself"
    held = [*old, *new] if outcome == "again" or entered else old
    place.audit_open(held, every=31)
    with closing(place.open()) as log:
        # The author, who got no answer, sends the same again: one index, whatever had become of it.
        start = 250 if held[-1:] == new[-1:] else 251
        assert [a.index for a in log.append(new)] == list(range(start, start + 10))


RECOVERY_FAULTS = [row[:3] for row in FAULTS if row[0] in ("create", "replace", "prune", "discard")]


@pytest.mark.parametrize(("write", "effect", "error"), RECOVERY_FAULTS)
def test_a_recovery_that_fails_too_is_repeated_by_the_next_start(
    place: Place, write: str, effect: str, error: Callable[[], Exception]
) -> None:
    old, new = entries(0, 250), entries(250, 260)
    place.create(old)
    with closing(faulty(place, Fault("create", "lost", unknown()))) as log, pytest.raises(StorageError):
        log.append(new)
    fault = Fault(write, effect, error())
    with pytest.raises(StorageError, match="the disk went away"):
        faulty(place, fault)
    assert fault.strikes == 1
    place.audit_open([*old, *new], every=31)


@pytest.mark.parametrize("effect", ["lost", "kept"])
def test_a_first_start_that_is_cut_off_is_finished_by_opening(place: Place, effect: str) -> None:
    LockDatabase.create(place.lock, sign_note(Checkpoint(ORIGIN, 0, mth([])).text(), ORIGIN, KEY))
    place.public.mkdir()
    with pytest.raises(StorageError, match="the disk went away"):
        faulty(place, Fault("replace", effect, unknown()))
    place.audit_open([])


def test_a_full_disk_at_staging_leaves_no_file_and_a_log_that_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(entries(0, 3))
    with closing(place.open()) as log:
        before = place.snapshot()
        for _ in range(2):
            with failing("write", "/staging/5-", full_disk(), monkeypatch) as struck:
                with pytest.raises(StorageError, match="cannot be staged: No space left on device; nothing was added"):
                    log.append(entries(3, 5))
                assert struck
            assert place.snapshot() == before
            assert log.find(entry(0)) is not None
        place.append(log, entries(3, 5))
    place.audit_open(entries(0, 5))


def test_a_full_disk_after_the_commit_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(entries(0, 3))
    with closing(place.open()) as log:
        with (
            failing("write", "/staging/writing-", full_disk(), monkeypatch),
            pytest.raises(StorageError, match=r"files cannot be written: No space left on device; nothing is lost"),
        ):
            log.append(entries(3, 5))
        with pytest.raises(StorageError, match="nothing is taken until it is opened anew"):
            log.append(entries(3, 5))
    place.audit_open(entries(0, 5))


@pytest.mark.parametrize("fragment", ["/staging/5-", "/staging", "/staging/writing-", "/tile/0/000.p", "/public"])
def test_a_sync_that_fails_stops_the_log_and_is_never_tried_again(
    place: Place, fragment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create(entries(0, 3))
    with closing(place.open()) as log:
        unsound = OSError(errno.EIO, "Input/output error")
        with failing("fsync", fragment, unsound, monkeypatch) as struck:
            for message in ("Input/output error", "stopped after.*Input/output error"):
                with pytest.raises(StorageError, match=message):
                    log.append(entries(3, 5))
        assert len(struck) == 1
    held = list(read_entries(DirectorySource(place.public), 0, open_checkpoint(reopened(place), VERIFIER).size))
    assert held in (entries(0, 3), entries(0, 5))
    place.audit_open(held)


def reopened(place: Place) -> bytes:
    with closing(place.open()) as log:
        return log.checkpoint


# -- kill -9


def victim(*args: object) -> subprocess.Popen[str]:
    """Start this module as a program."""
    command = [sys.executable, "-m", "tests.coordinator.test_log", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()


def test_a_kill_before_any_call_of_an_append_loses_nothing_and_half_adds_nothing(place: Place, tmp_path: Path) -> None:
    old, new = entries(0, 250), entries(250, 260)
    place.create(old[:249], old[249:])
    calls = [json.loads(line) for line in finished(victim("append", place.home, tmp_path))]
    names = [call["before"] for call in calls]
    assert [call["killed"] for call in calls] == [True] * (len(calls) - 1) + [False]
    assert {"write", "torn write", "fsync", "replace", "mkdir", "unlink", "rmdir", "swap", "swapped"} <= set(names)
    sizes = []
    for n in range(len(calls)):
        killed = Place(tmp_path / str(n), [*place.receipts])
        with closing(killed.open()) as log:
            sizes.append(log.size)
        killed.audit_open([*old, *new] if sizes[-1] == 260 else old, every=61)
    commit = names.index("swapped")
    assert sizes == [250] * commit + [260] * (len(calls) - commit), "there is one commit point"


def test_a_kill_before_any_call_of_a_recovery_is_recovered_from(place: Place, tmp_path: Path) -> None:
    old, new = entries(0, 250), entries(250, 260)
    place.create(old)
    with closing(faulty(place, Fault("create", "lost", unknown()))) as log, pytest.raises(StorageError):
        log.append(new)
    calls = [json.loads(line) for line in finished(victim("recover", place.home, tmp_path))]
    assert [call["killed"] for call in calls] == [True] * (len(calls) - 1) + [False]
    assert len(calls) > 30
    for n in range(len(calls)):
        Place(tmp_path / str(n), [*place.receipts]).audit_open([*old, *new], every=61)


def test_what_was_answered_before_a_kill_at_any_time_is_there_after_it(place: Place) -> None:
    place.create()
    for answered in (1, 4, 20):
        process = victim("stream", place.home)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(answered)]
        process.send_signal(signal.SIGKILL)  # somewhere in the next append
        lines += process.stdout.readlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        for line in lines:
            if line.endswith("\n"):
                answer = json.loads(line)
                place.receipts.append((entry(answer["index"]), Sequenced(answer["index"], answer["proof"].encode())))
        assert len(place.receipts) >= answered
        size = open_checkpoint(reopened(place), VERIFIER).size
        assert size in (len(place.receipts), len(place.receipts) + 1)
        place.receipts += [(entry(n), answer_of(place, entry(n))) for n in range(len(place.receipts), size)]
        place.audit(entries(0, size))


def answer_of(place: Place, data: bytes) -> Sequenced:
    with closing(place.open()) as log:
        (answer,) = log.append([data])
        return answer


def _kill_before(n: int, calls: list[str]) -> None:
    """From here on, kill this process before its ``n``-th call that changes a file; ``calls`` gets their names."""

    def count(name: str) -> None:
        if len(calls) == n:
            print(json.dumps({"before": name, "killed": True}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(name)

    def watched(real: Callable[P, R]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            count(real.__name__)
            return real(*args, **kwargs)

        return call

    write = os.write

    def torn(fd: int, data: memoryview) -> int:
        count("write")
        half = write(fd, data[: len(data) // 2])
        count("torn write")
        return half + write(fd, data[half:])

    for real in (os.open, os.fsync, os.fchmod, os.chmod, os.replace, os.mkdir, os.unlink, os.rmdir):
        setattr(os, real.__name__, watched(real))
    os.write = torn  # type: ignore[assignment]
    swap = LockDatabase.swap

    def counted_swap(lock: LockDatabase, old: bytes, new: bytes) -> None:
        count("swap")
        swap(lock, old, new)
        count("swapped")

    LockDatabase.swap = counted_swap  # type: ignore[method-assign, assignment]


def _die_at_each_call(what: str, base: Path, out: Path) -> None:
    """Copy ``base`` to ``out/0``, ``out/1`` …, and in a process for each append or recover, killed one call later."""
    for n in itertools.count():
        place = Place(base).copy(out / str(n))
        if (pid := os.fork()) == 0:
            calls: list[str] = []
            if what == "recover":
                _kill_before(n, calls)
            log = place.open()
            if what == "append":
                _kill_before(n, calls)
                log.append(entries(250, 260))
            print(json.dumps({"before": "nothing", "killed": False}), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


def _stream(home: Path) -> None:
    """Append entry after entry, and print each answer."""
    log = Place(home).open()
    for index in itertools.count(log.size):
        (answer,) = log.append([entry(index)])
        print(json.dumps({"index": answer.index, "proof": answer.proof.decode()}), flush=True)


# -- one writer


def test_a_second_process_is_refused_while_the_first_has_the_log(place: Place) -> None:
    place.create(entries(0, 3))
    with closing(place.open()) as log:
        (refusal,) = finished(victim("open", place.home))
        assert "lock.db.flock: wanted the log for this process alone, got another at work" in refusal
        place.append(log, [entry(3)])
        with pytest.raises(StorageError, match="wanted the log for this process alone"):
            place.open()
        # Who was refused has not broken the lock of who holds it.
        (refusal,) = finished(victim("open", place.home))
        assert "wanted the log for this process alone" in refusal
    assert finished(victim("open", place.home)) == ["4"]


def test_a_lock_database_that_somebody_else_has_moved_stops_the_log_before_anything_is_public(place: Place) -> None:
    place.create(entries(0, 3))
    before = files_below(place.public)
    with closing(place.open()) as log:
        moved = sign_note(Checkpoint(ORIGIN, 4, bytes(32)).text(), ORIGIN, KEY)
        with closing(sqlite3.connect(place.lock, isolation_level=None)) as other:
            other.execute("UPDATE checkpoint SET note = ?", (moved,))
        with pytest.raises(StorageError, match="another writer has moved the log; stop it, a log has one writer"):
            log.append([entry(3)])
    assert {p: d for p, d in files_below(place.public).items() if not p.startswith("staging/")} == before


# -- rollback, forks, damage: refused before anything is signed


def a_lock_from_a_backup(place: Place, backup: Place) -> None:
    shutil.copy(backup.lock, place.lock)


def a_store_from_a_backup(place: Place, backup: Place) -> None:
    shutil.rmtree(place.public)
    shutil.copytree(backup.public, place.public)


def a_store_from_a_backup_but_for_its_staging(place: Place, backup: Place) -> None:
    with closing(faulty(place, Fault("create", "lost", unknown()))) as log, pytest.raises(StorageError):
        log.append([entry(9)])
    staged = files_below(place.public / "staging")
    a_store_from_a_backup(place, backup)
    for name, data in staged.items():
        (place.public / "staging" / name).write_bytes(data)


def another_history(place: Place, backup: Place) -> None:
    other = Place(backup.home.parent / "other").create(entries(100, 105))
    a_lock_from_a_backup(place, other)


def no_checkpoint(place: Place, backup: Place) -> None:
    (place.public / "checkpoint").unlink()


def a_torn_checkpoint(place: Place, backup: Place) -> None:
    path = place.public / "checkpoint"
    path.write_bytes(path.read_bytes()[:-20])


def no_lock(place: Place, backup: Place) -> None:
    place.lock.unlink()


def a_damaged_lock(place: Place, backup: Place) -> None:
    place.lock.write_bytes(b"not a database " * 100)


def an_empty_lock(place: Place, backup: Place) -> None:
    with closing(sqlite3.connect(place.lock, isolation_level=None)) as other:
        other.execute("DELETE FROM checkpoint")


def no_store(place: Place, backup: Place) -> None:
    shutil.rmtree(place.public)


def a_lost_tile(place: Place, backup: Place) -> None:
    (place.public / "tile/0/000.p/5").unlink()


def a_lost_bundle(place: Place, backup: Place) -> None:
    (place.public / "tile/entries/000.p/5").unlink()


def a_short_tile(place: Place, backup: Place) -> None:
    path = place.public / "tile/0/000.p/5"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-32])


def a_damaged_batch(place: Place, backup: Place) -> None:
    with closing(faulty(place, Fault("create", "lost", unknown()))) as log, pytest.raises(StorageError):
        log.append([entry(9)])
    (staged,) = (place.public / "staging").iterdir()
    staged.write_bytes(staged.read_bytes()[:-1])


REFUSALS: list[tuple[Callable[[Place, Place], None], str]] = [
    (a_lock_from_a_backup, r"lock database: is at size 3, but 5 is published: it was rolled back"),
    (a_store_from_a_backup, r"store: size 5 was signed, 3 is published and nothing is staged: the store was rolled"),
    (a_store_from_a_backup_but_for_its_staging, r"store: wanted size 5 or 6 published, got 3: it was rolled back"),
    (another_history, r"log: the lock database and the store are forked at size 5"),
    (no_checkpoint, r"checkpoint: wanted size 5 in the store, got none: the store is lost"),
    (a_torn_checkpoint, r"the published checkpoint: wanted a checkpoint of log\.test/sequencer under this key"),
    (no_lock, r"lock\.db: wanted the log's lock database, got no such file; was the log created\?"),
    (a_damaged_lock, r"lock\.db: the lock database cannot be opened: file is not a database"),
    (an_empty_lock, r"lock\.db: wanted a checkpoint in the lock database, got none"),
    (no_store, r"checkpoint: wanted size 5 in the store, got none: the store is lost"),
    (a_lost_tile, r"tile/0/000\.p/5: wanted 160 bytes, got no such file; restore it from a mirror"),
    (a_lost_bundle, r"tile/entries/000\.p/5: wanted its bytes, got no such file; restore it from a mirror"),
    (a_short_tile, r"tile/0/000\.p/5: wanted 160 bytes, got 128; restore it from a mirror"),
    (a_damaged_batch, r"staging: the batch up to size 6 is damaged; restore it, nothing else has it"),
]


@pytest.mark.parametrize(("harm", "message"), REFUSALS, ids=[harm.__name__ for harm, _ in REFUSALS])
def test_a_log_that_is_not_what_was_signed_last_is_refused_and_left_as_it_is(
    place: Place, tmp_path: Path, harm: Callable[[Place, Place], None], message: str
) -> None:
    place.create(entries(0, 3))
    backup = place.copy(tmp_path / "backup")
    with closing(place.open()) as log:
        log.append(entries(3, 5))
    harm(place, backup)
    before = place.snapshot()
    for _ in range(2):
        with pytest.raises(StorageError, match=message):
            place.open()
    assert place.snapshot() == before


def test_a_log_under_another_key_or_name_is_refused(place: Place) -> None:
    place.create(entries(0, 3))
    before = place.snapshot()
    with pytest.raises(StorageError, match=f"the lock database: wanted a checkpoint of {ORIGIN} under this key"):
        Log.open(place.public, place.lock, ORIGIN, OTHER_KEY)
    with pytest.raises(StorageError, match=r"the lock database: wanted a checkpoint of log\.test/other under"):
        Log.open(place.public, place.lock, "log.test/other", KEY)
    assert place.snapshot() == before


@pytest.mark.parametrize(
    ("size", "path", "message"),
    [
        (5, "tile/0/000.p/5", r"tile/0/000\.p/5: "),
        (256, "tile/0/000", r"tile/0/000\b"),
        (600, "tile/0/001", r"tile/0/001\b"),
        (600, "tile/0/002.p/88", r"tile/0/002\.p/88: "),
        (600, "tile/1/000.p/2", r"tile/1/000\.p/2: "),
        (5, "tile/entries/000.p/5", r"tile/entries/000\.p/5: "),
        (256, "tile/entries/000", r"tile/entries/000: "),
        (600, "tile/entries/002.p/88", r"tile/entries/002\.p/88: "),
    ],
)
@pytest.mark.parametrize("where", [0, -1])
def test_one_flipped_bit_on_the_disk_is_refused_by_the_files_name(
    place: Place, size: int, path: str, message: str, where: int
) -> None:
    place.create(entries(0, size))
    file = place.public / path
    good = file.read_bytes()
    bad = bytearray(good)
    bad[where] ^= 1
    file.chmod(0o644)
    file.write_bytes(bad)
    with pytest.raises(StorageError, match=message):
        place.open()
    file.write_bytes(good)
    place.audit_open(entries(0, size), every=37)


def a_hash(log: Log) -> None:
    flipped = bytearray(log._tree._levels[1])
    flipped[0] ^= 1
    log._tree._levels[1] = flipped


def an_entry(log: Log) -> None:
    log._tail[1] = log._tail[1].upper()


@pytest.mark.parametrize(
    ("flip", "message"),
    [
        (a_hash, "root: two computations differ before signing; check the memory"),
        (an_entry, r"tile/0/000\.p/4: is not the hashes of its bundle before signing; check the memory"),
    ],
)
def test_a_flip_in_memory_is_found_before_it_is_signed(place: Place, flip: Callable[[Log], None], message: str) -> None:
    place.create(entries(0, 3))
    before = place.snapshot()
    with closing(place.open()) as log:
        flip(log)
        for expected in (message, f"stopped after: {message}"):
            with pytest.raises(StorageError, match=expected):
                log.append([entry(3)])
    assert place.snapshot() == before
    place.audit_open(entries(0, 3))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["append" | "recover" as what, base, out]:
            _die_at_each_call(what, Path(base), Path(out))
        case ["stream", home]:
            _stream(Path(home))
        case ["open", home]:
            try:
                with closing(Place(Path(home)).open()) as opened:
                    print(opened.size)
            except StorageError as e:
                print(e)
