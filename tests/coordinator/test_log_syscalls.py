"""The log, struck at each of its system calls, SQLite's own among them: killed before it, or told that the disk failed.

``test_log`` stands between our code and Python's ``os``; here strace stands between the process and the kernel.

Run as a program (``python -m tests.coordinator.test_log_syscalls``) this module forks the victims and has strace
attach to them.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_coordinator.log.storage import DiskStorage
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.launch import ROOT
from tests.kit.log_place import KEY, ORIGIN, VERIFIER, Place, entries

OLD, NEW = entries(0, 250), entries(250, 260)
BATCHES = NEW[:7], NEW[7:]  # the first fills a tile, and answers before the second begins
# Every call that changes a file or makes it durable; openat creates, and reads too. Each machine has some of them.
CALLS = {
    *("openat", "write", "writev", "pwrite64", "pwritev", "ftruncate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat"),
    *("mkdir", "mkdirat", "rmdir", "chmod", "fchmod", "fchmodat"),
}
MOST = 150
"""Beyond so many calls, only every so many-th is struck."""
LOUD = {"write", "fsync", "rename", "link", "fchmod"}
"""Calls whose failure must be told. A folder that cannot be made may be there already, and SQLite has its own ways: it
passes over the failed sync of a folder."""
KILL, FAIL = "signal=KILL", "error=EIO"
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1)


@dataclass(frozen=True)
class Strike:
    """What is done to a victim at its ``when``-th call of one name, counted from 1 once it is under way."""

    call: str
    when: int
    what: str


@dataclass(frozen=True)
class Outcome:
    """What a victim has said, whether it was killed, whether a call failed, and which calls it made until then."""

    answers: tuple[tuple[int, str], ...]
    refusals: tuple[str, ...]
    escaped: str
    killed: bool
    failed: bool
    calls: tuple[str, ...]


class Tracer:
    """The program that forks the victims, in a process without pytest's threads and files."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.coordinator.test_log_syscalls"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, act: str, home: Path, strike: Strike | None = None) -> Outcome:
        """Let a victim do ``act`` (append, recover, create) on the log in ``home``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        injected = f"{strike.call}:{strike.what}:when={strike.when}" if strike else ""
        print(json.dumps([act, str(home), injected]), file=self._process.stdin, flush=True)
        outcome = json.loads(self._process.stdout.readline())
        if isinstance(outcome, str):
            pytest.skip(f"wanted to trace a process with strace (Debian: apt-get install strace): {outcome}")
        answers, refusals, escaped, killed, failed, calls = outcome
        return Outcome(tuple((i, p) for i, p in answers), tuple(refusals), escaped, killed, failed, tuple(calls))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    if not shutil.which("strace"):
        pytest.skip("wanted strace; on Debian: apt-get install strace")
    with closing(Tracer()) as program:
        yield program


def strikes(calls: tuple[str, ...], what: str) -> list[Strike]:
    """One strike for each call of a run that went well, in its order."""
    seen: Counter[str] = Counter()
    every = []
    for call in calls:
        seen[call] += 1
        every.append(Strike(call, seen[call], what))
    return every[:: -(-len(every) // MOST)]


def struck(tracer: Tracer, act: str, place: Place, strike: Strike) -> Outcome:
    outcome = tracer.run(act, place.home, strike)
    assert outcome.escaped == "", strike
    assert (outcome.killed, outcome.failed) == (strike.what == KILL, strike.what == FAIL), strike
    if strike.call in LOUD and strike.what == FAIL:
        assert outcome.refusals, f"a failure that is passed over: {strike}"
    return outcome


@pytest.mark.parametrize("what", [KILL, FAIL])
def test_an_append_that_is_struck_at_any_call_loses_nothing_that_was_answered(
    tracer: Tracer, tmp_path: Path, what: str
) -> None:
    base = Place(tmp_path / "base").create(OLD[:249], OLD[249:])
    clean = tracer.run("append", base.copy(tmp_path / "clean").home)
    assert {"openat", "write", "pwrite64", "fsync", "fdatasync"} <= set(clean.calls)
    assert len(clean.answers) == len(NEW)
    found = Counter[tuple[int, int]]()
    untold = Counter[str]()
    for n, strike in enumerate(strikes(clean.calls, what)):
        place = base.copy(tmp_path / str(n))
        outcome = struck(tracer, "append", place, strike)
        if any("may be sent again" in refusal for refusal in outcome.refusals):
            assert len(outcome.answers) == len(NEW), "sent again, as the message allows"
        place.receipts += [(NEW[k], Sequenced(i, proof.encode())) for k, (i, proof) in enumerate(outcome.answers)]
        with closing(place.open()) as log:
            size = log.size
        found[len(outcome.answers), size] += 1
        untold[strike.call] += outcome.failed and not outcome.refusals
        place.audit_open([*OLD, *NEW][:size], every=61)
        for index, proof in outcome.answers:
            assert open_proof(proof.encode(), [*OLD, *NEW][index], VERIFIER)[0] == index < size
        shutil.rmtree(place.home)
    assert untold["pwrite64"] == 0
    assert untold["fdatasync"] <= 1, "of the folder, when SQLite begins a file there"
    lost_or_kept = {(0, 250), (0, 257), (7, 257), (7, 260)}
    assert set(found) == lost_or_kept | ({(10, 260)} if what == FAIL else set())


@pytest.mark.parametrize("what", [KILL, FAIL])
def test_a_recovery_that_is_struck_at_any_call_is_done_by_the_next(
    tracer: Tracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def lost(*_: object) -> NoReturn:
        raise StorageError("lost after the commit point")

    base = Place(tmp_path / "base").create(OLD[:249], OLD[249:])
    with monkeypatch.context() as patch, closing(base.open()) as log:
        patch.setattr(DiskStorage, "create", lost)
        with pytest.raises(StorageError, match="lost after the commit point"):
            log.append(NEW)
    clean = tracer.run("recover", base.copy(tmp_path / "clean").home)
    assert {"openat", "write", "fsync", "unlink"} <= set(clean.calls)
    for n, strike in enumerate(strikes(clean.calls, what)):
        place = base.copy(tmp_path / str(n))
        struck(tracer, "recover", place, strike)
        place.audit_open([*OLD, *NEW], every=61)
        shutil.rmtree(place.home)


@pytest.mark.parametrize("what", [KILL, FAIL])
def test_a_creation_that_is_struck_at_any_call_can_be_done_again_or_is_done(
    tracer: Tracer, tmp_path: Path, what: str
) -> None:
    clean = tracer.run("create", tmp_path / "clean")
    assert {"openat", "mkdir", "pwrite64", "fdatasync", "fsync"} <= set(clean.calls)
    done = Counter[bool]()
    for n, strike in enumerate(strikes(clean.calls, what)):
        place = Place(tmp_path / str(n))
        struck(tracer, "create", place, strike)
        done[place.lock.exists()] += 1
        if not place.lock.exists():
            place.create()
        place.audit_open([])
        shutil.rmtree(place.home)
    assert set(done) == ({True, False} if what == KILL else {True})


# -- the program


def _act(act: str, home: Path, go: int, say: socket.socket) -> None:
    """What a victim does, twice if the first time is refused; it speaks by a call that is not struck."""
    place = Place(home)
    log = place.open() if act == "append" else None
    say.sendall(b"ready\n")
    os.read(go, 1)
    done = 0
    for _ in range(2):
        try:
            if log is None:
                log = place.open() if act == "recover" else Log.create(place.public, place.lock, ORIGIN, KEY)
            for batch in BATCHES[done:] if act == "append" else ():
                for answer in log.append(batch):
                    say.sendall(json.dumps({"index": answer.index, "proof": answer.proof.decode()}).encode() + b"\n")
                done += 1
            return
        except StorageError as e:
            say.sendall(json.dumps({"refused": str(e)}).encode() + b"\n")


def _fork(act: str, home: Path) -> tuple[int, int, socket.socket]:
    """Start a victim; return its process, the descriptor on which it waits for a byte, and where it speaks."""
    waits, go = os.pipe()
    hears, says = socket.socketpair()
    if (pid := os.fork()) == 0:
        # Where a process may only be traced by its ancestors, this allows its sibling to.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
        hears.close()
        try:
            _act(act, home, waits, says)
        except BaseException:  # noqa: BLE001 - it is reported, and it is a failure there
            says.sendall(json.dumps({"escaped": traceback.format_exc()}).encode() + b"\n")
        os._exit(0)
    os.close(waits)
    says.close()
    return pid, go, hears


def _strike(act: str, home: Path, injected: str) -> object:
    """Let one victim run under strace; return what an Outcome holds, or why there is no tracing here."""
    trace = home.with_name(home.name + ".trace")
    pid, go, hears = _fork(act, home)
    lines = hears.makefile()
    lines.readline()  # what a victim has done until it is ready is not looked at
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=" + ",".join(f"?{call}" for call in sorted(CALLS))]
    command += ["-e", f"inject={injected}"] if injected else []
    with subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        ready = strace.stderr.readline()
        if "attached" not in ready:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return ready.strip() or "strace said nothing"
        os.write(go, b"x")
        os.close(go)
        with hears, lines:
            said = [json.loads(line) for line in lines if line.endswith("\n")]
        _, status = os.waitpid(pid, 0)
    calls = trace.read_text()
    return (
        [(line["index"], line["proof"]) for line in said if "proof" in line],
        [line["refused"] for line in said if "refused" in line],
        "".join(line["escaped"] for line in said if "escaped" in line),
        os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "EIO (Input/output error) (INJECTED)" in calls,
        re.findall(r"^[0-9]+ +([a-z0-9]+)\(", calls, re.MULTILINE),
    )


if __name__ == "__main__":
    for request in sys.stdin:
        act, home, injected = json.loads(request)
        print(json.dumps(_strike(act, Path(home), injected)), flush=True)
