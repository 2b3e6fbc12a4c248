"""Checking signatures here or in processes beside this one: the same answers, and a typed error for a broken worker."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.records.signature_pool import (
    MIN_POOLED_ENTRIES,
    Checker,
    InProcess,
    Pool,
    checker_for,
    usable_cores,
)
from commonweal_protocols.statements.envelope import UnverifiedEnvelope, Verified, format_envelope, parse_envelope, sign
from tests.kit.federation import key_of
from tests.kit.proc import descendants, is_alive
from tests.kit.worker import worker_that


def envelope(payload: bytes, *names: str, forged: bool = False) -> UnverifiedEnvelope:
    signed = b"other bytes" if forged else payload
    return parse_envelope(format_envelope(payload, [sign(signed, key_of(n)) for n in names or ("a",)]))


def verified(e: UnverifiedEnvelope) -> Verified:
    return Verified(e.payload, tuple(s.key for s in e.signatures))


GOOD = [envelope(b"%d" % i, *("a", "b", "c")[: i % 3 + 1]) for i in range(20)]
BAD = envelope(b"bad", "a", "b", forged=True)


@pytest.fixture(params=["in process", "pool"])
def checker(request: pytest.FixtureRequest) -> Iterator[Checker]:
    if request.param == "pool":
        with Pool(2) as pool:
            yield pool
    else:
        yield InProcess()


def test_what_holds_is_verified_and_what_does_not_is_not(checker: Checker) -> None:
    wait = checker.begin([*GOOD, BAD, GOOD[0]])
    assert wait() == [*map(verified, GOOD), None, verified(GOOD[0])]


def test_bundles_may_be_asked_for_in_any_order(checker: Checker) -> None:
    begun = [(part, checker.begin(part)) for part in ([e] for e in (*GOOD, BAD, *GOOD))]
    for part, wait in begun[::-1]:
        assert wait() == [None if part == [BAD] else verified(part[0])]


def test_threads_that_share_a_checker_get_each_its_own_answers(checker: Checker) -> None:
    def check(i: int) -> bool:
        part = [BAD if j % 7 == i % 7 else GOOD[(i + j) % 20] for j in range(i % 30 + 1)]
        return checker.begin(part)() == [None if e is BAD else verified(e) for e in part]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, range(120)))


def test_more_bundles_than_pipes_hold_wait_for_nobody_in_a_circle() -> None:
    large = envelope(bytes(45_000))
    with Pool(1) as pool:
        begun = [pool.begin([large] * 40) for _ in range(6)] + [pool.begin(GOOD[:1] * 256) for _ in range(100)]
        assert all(len(wait()) in (40, 256) for wait in begun)


def test_with_one_job_or_few_entries_no_process_is_started() -> None:
    before = descendants(os.getpid())
    for entries, jobs in ((MIN_POOLED_ENTRIES - 1, 8), (10**9, 1)):
        with checker_for(entries, jobs) as chosen:
            chosen.begin(GOOD)()
            assert isinstance(chosen, InProcess)
            assert descendants(os.getpid()) == before


def test_with_many_entries_there_are_as_many_processes_as_jobs_until_the_end() -> None:
    before = descendants(os.getpid())
    with checker_for(MIN_POOLED_ENTRIES, 2) as chosen:
        for wait in [chosen.begin(GOOD) for _ in range(6)]:
            wait()
        assert len(descendants(os.getpid())) == len(before) + 2
    assert descendants(os.getpid()) == before
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_worker_that_dies_is_an_error_by_name_and_the_next_bundle_gets_a_new_one() -> None:
    before = set(descendants(os.getpid()))
    with Pool(1) as pool:
        pool.begin(GOOD)()
        (worker,) = set(descendants(os.getpid())) - before
        os.kill(worker, signal.SIGSTOP)
        waits = [pool.begin(GOOD), pool.begin(GOOD)]
        os.kill(worker, signal.SIGKILL)
        for wait in waits:
            with pytest.raises(UnavailableError, match=rf"signature worker {worker}: wanted .*, got its end"):
                wait()
        assert pool.begin([BAD])() == [None]


def test_a_worker_that_is_dead_already_is_an_error_by_name_or_is_replaced() -> None:
    before = set(descendants(os.getpid()))
    with Pool(1) as pool:
        pool.begin(GOOD)()
        (worker,) = set(descendants(os.getpid())) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UnavailableError, match=f"signature worker {worker}: "):
            pool.begin(GOOD)()
        assert pool.begin([BAD])() == [None]


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("sys.stdout.write('\\7' * 20); sys.stdout.flush(); sys.stdin.read()", "wanted answers of one bit"),
        ("sys.stdout.write('\\1' * 19)", "wanted 20 answers, got its end with status"),
        ("sys.exit(3)", "wanted .*, got its end with status"),
    ],
)
def test_a_worker_that_answers_nonsense_is_ended_and_is_an_error_by_name(
    does: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_that(does, tmp_path, monkeypatch)
    before = descendants(os.getpid())
    with Pool(1) as pool:
        with pytest.raises(UnavailableError, match=message):
            pool.begin(GOOD)()
        assert descendants(os.getpid()) == before


def test_a_folder_that_holds_a_module_of_the_workers_name_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "commonweal_protocols").mkdir()
    (tmp_path / "commonweal_protocols/__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Pool(1) as pool:
        assert pool.begin([BAD])() == [None]


def test_workers_end_with_their_parent_however_that_ends() -> None:
    code = """
import os, signal
from commonweal_protocols.records.signature_pool import Pool
from tests.kit.proc import descendants
from tests.protocols.test_checker import GOOD
pool = Pool(2)
for wait in [pool.begin(GOOD) for _ in range(4)]:
    wait()
print(*descendants(os.getpid()), flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        watches = [os.pidfd_open(pid) for pid in workers]
        parent.kill()
        for pid, watch in zip(workers, watches, strict=True):
            assert select.select([watch], [], [], 30)[0], f"worker {pid} lives on"
            os.close(watch)
            assert not is_alive(pid)
