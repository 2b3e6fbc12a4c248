"""Verifying here or in processes beside this one: the same outcomes in order, whatever becomes of the processes."""

import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from commonweal_protocols.base.errors import MalformedError, PeerError, SignatureError
from commonweal_protocols.records import signature_pool
from commonweal_protocols.records.signature_pool import (
    MIN_POOLED_ENTRIES,
    Verify,
    usable_cores,
    verifier_for,
    verify_here,
)
from commonweal_protocols.records.signature_worker import Claim, answer
from commonweal_protocols.statements.envelope import Verified, format_envelope, parse_envelope, sign, verify_envelope
from tests.kit.federation import key_of
from tests.kit.proc import descendants, is_alive


def entry(payload: bytes, *names: str, forged: bool = False) -> bytes:
    signed = b"other bytes" if forged else payload
    return format_envelope(payload, [sign(signed, key_of(n)) for n in names or ("a",)])


GOOD = [entry(b"%d" % i, *("a", "b", "c")[: i % 3 + 1]) for i in range(20)]
FORGED = entry(b"bad", "a", "b", forged=True)


def opened(data: bytes) -> Verified:
    return verify_envelope(parse_envelope(data))


def told(outcomes: Sequence[Verified | PeerError]) -> list[Verified | str]:
    """Outcomes that can be compared."""
    return [o if isinstance(o, Verified) else f"{type(o).__name__}: {o}" for o in outcomes]


@pytest.fixture(params=["here", "pool"])
def verify(request: pytest.FixtureRequest) -> Iterator[Verify]:
    if request.param == "pool":
        with verifier_for(MIN_POOLED_ENTRIES, 2) as pooled:
            yield pooled
    else:
        yield verify_here


def test_each_entry_is_verified_or_refused_by_itself(verify: Verify) -> None:
    data = [*GOOD, FORGED, b"{", GOOD[0]]
    ((bundle, outcomes),) = verify([data])
    assert bundle == data
    assert outcomes[:20] == [opened(d) for d in GOOD]
    assert outcomes[22] == opened(GOOD[0])
    for bad, kind, outcome in zip((FORGED, b"{"), (SignatureError, MalformedError), outcomes[20:22], strict=True):
        with pytest.raises(kind) as alone:
            opened(bad)
        assert told([outcome]) == [f"{kind.__name__}: {alone.value}"]


def test_bundles_come_in_order(verify: Verify) -> None:
    bundles = [[GOOD[i % 20] for i in range(at, at + at % 5)] for at in range(60)]
    assert [(b, told(o)) for b, o in verify(bundles)] == [(b, [opened(d) for d in b]) for b in bundles]


def test_more_than_pipes_hold_waits_for_nobody_in_a_circle() -> None:
    large = entry(bytes(45_000))
    bundles = [[large] * 40] * 6 + [GOOD[:1] * 256] * 100
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        assert [len(o) for _, o in verify(bundles)] == [40] * 6 + [256] * 100


def test_with_one_job_or_few_entries_no_process_is_started() -> None:
    before = descendants(os.getpid())
    for entries, jobs in ((MIN_POOLED_ENTRIES - 1, 8), (10**9, 1)):
        with verifier_for(entries, jobs) as verify:
            for _ in verify([GOOD] * 20):
                assert descendants(os.getpid()) == before


def test_with_many_entries_there_are_as_many_processes_as_jobs_until_the_end() -> None:
    before = descendants(os.getpid())
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        assert len(list(verify([GOOD] * 6))) == 6
        assert len(descendants(os.getpid())) == len(before) + 2
    assert descendants(os.getpid()) == before
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_processes_end_where_their_user_fails_in_the_middle() -> None:
    before = descendants(os.getpid())
    with pytest.raises(PeerError, match="not allowed"), verifier_for(MIN_POOLED_ENTRIES, 2) as verify:  # noqa: PT012
        for _ in verify([GOOD] * 50):
            raise PeerError("not allowed")
    assert descendants(os.getpid()) == before


def test_a_worker_that_is_killed_costs_no_outcome_and_none_comes_twice() -> None:
    before = set(descendants(os.getpid()))
    bundles = [[*GOOD, FORGED, GOOD[i % 20]] for i in range(30)]
    wanted = [(b, told(o)) for b, o in verify_here(bundles)]
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        outcomes = verify(bundles)
        got = [next(outcomes)]
        first, second = set(descendants(os.getpid())) - before
        for worker in (first, second):
            # One that is stopped has answers to give yet, and bundles in its pipe.
            os.kill(worker, signal.SIGSTOP)
            os.kill(worker, signal.SIGKILL)
            got += [next(outcomes) for _ in range(10)]
        got += outcomes
    assert [(b, told(o)) for b, o in got] == wanted


def worker_that(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another program run where the worker should."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    "does",
    [
        "sys.stdout.write('\\7' * 10_000); sys.stdout.flush(); sys.stdin.read()",
        "sys.stdout.write('\\0' * 10_000); sys.stdout.flush(); sys.stdin.read()",
        "sys.exit(3)",
    ],
    ids=["no answer at all", "that nothing holds", "its end"],
)
def test_what_a_worker_does_not_vouch_for_is_verified_here(
    does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_that(does, tmp_path, monkeypatch)
    bundles = [[*GOOD, FORGED]] * 9
    wanted = [told(o) for _, o in verify_here(bundles)]
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        assert [told(o) for _, o in verify(bundles)] == wanted


def test_signatures_are_checked_in_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Verified:
        raise AssertionError("checked here")

    wanted = [opened(d) for d in GOOD]
    monkeypatch.setattr(signature_pool, "verify_envelope", fail)
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        assert [o for _, o in verify([GOOD] * 4)] == [wanted] * 4


def test_a_folder_that_holds_a_module_of_the_workers_name_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "commonweal_protocols").mkdir()
    (tmp_path / "commonweal_protocols/__init__.py").write_text("open('believed', 'w')")
    (tmp_path / "pickle.py").write_text("open('believed', 'w')")
    monkeypatch.chdir(tmp_path)
    with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
        assert len(list(verify([GOOD] * 4))) == 4
    assert not (tmp_path / "believed").exists()


def test_workers_end_with_their_parent_however_that_ends() -> None:
    code = """
import os
from commonweal_protocols.records.signature_pool import MIN_POOLED_ENTRIES, verifier_for
from tests.kit.proc import descendants
from tests.protocols.test_signature_pool import GOOD
with verifier_for(MIN_POOLED_ENTRIES, 2) as verify:
    assert len(list(verify([GOOD] * 4))) == 4
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


# -- one worker

COMMAND = [sys.executable, "-m", "commonweal_protocols.records.signature_worker"]


def claim(message: bytes, *names: str, flip: bool = False) -> Claim:
    keys = [key_of(name) for name in names]
    signed = [(k.public_key().public_bytes_raw(), k.sign(message)) for k in keys]
    if flip:
        key, value = signed[-1]
        signed[-1] = key, value[:-1] + bytes([value[-1] ^ 1])
    return message, signed


CLAIMS = [claim(b"x", "a"), claim(b"", "a", "b"), claim(b"y" * 70_000, "a", "b", flip=True), claim(b"z", "b")]


def test_one_signature_that_does_not_hold_spoils_its_claim_and_no_other() -> None:
    assert answer(CLAIMS) == b"\1\1\0\1"


def test_the_process_answers_each_list_and_ends_with_its_input_but_not_with_ctrl_c() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for claims in (CLAIMS, CLAIMS[:1], CLAIMS[2:] * 100):
            process.stdin.write(pickle.dumps(claims))
            process.stdin.flush()
            assert process.stdout.read(len(claims)) == answer(claims)
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(30) == 0


def test_a_list_that_is_cut_off_is_the_end() -> None:
    data = pickle.dumps(CLAIMS) + pickle.dumps(CLAIMS)[:-1]
    done = subprocess.run(COMMAND, input=data, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\1\1\0\1", b"")


def test_the_process_ends_in_silence_once_nobody_reads_its_answers() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(pickle.dumps(CLAIMS))
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
