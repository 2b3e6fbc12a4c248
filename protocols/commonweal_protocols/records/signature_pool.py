"""Checking the signatures of many envelopes: here, or in processes beside this one, with the same answers.

A :class:`Checker` is begun with a bundle and asked for the outcome later, in any order; what lies between is for other
work. Verification comes before anybody parses a payload, however it is done: a :class:`Verified` is made only of what
a check has let pass. No worker process is trusted with more than that one bit, or outlives this process.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from commonweal_protocols.base.errors import SignatureError, UnavailableError
from commonweal_protocols.records.signature_worker import HOLDS, HOLDS_NOT, Claim, encode_frame
from commonweal_protocols.statements.envelope import UnverifiedEnvelope, Verified, pae, verify_envelope

MIN_POOLED_ENTRIES = 2000
"""From here on processes pay: starting one costs about as much as checking this many."""
_PIPE_BYTES = 1 << 20
_MAX_UNREAD_FRAMES = 4
"""A worker's unread answers, at most 256 bytes each, must fit into its pipe."""
_END_SECONDS = 5

Checked = Sequence[Verified | None]
"""For each envelope what was verified, or None where a signature does not hold."""


class Checker(Protocol):
    """Checks signatures. Thread-safe."""

    @property
    def ahead(self) -> int:
        """How many bundles are worth beginning before the first is asked for."""

    def begin(self, envelopes: Sequence[UnverifiedEnvelope]) -> Callable[[], Checked]:
        """Begin to check 1 to 256 envelopes; calling what this returns, once, waits for the outcome.

        Raises:
            UnavailableError: A worker process has died, or answers nonsense; the same may be tried again. The call
                that waits raises this too.
        """


class InProcess:
    """The checker that is this process alone."""

    ahead = 0

    def begin(self, envelopes: Sequence[UnverifiedEnvelope]) -> Callable[[], Checked]:
        """See :class:`Checker`."""
        checked = [_check(e) for e in envelopes]
        return lambda: checked


def _check(envelope: UnverifiedEnvelope) -> Verified | None:
    try:
        return verify_envelope(envelope)
    except SignatureError:
        return None


class Pool:
    """Worker processes that check signatures. Close it, or use it in ``with``.

    Args:
        jobs: How many processes. Each is started when it is first needed, and anew after it has died.
    """

    def __init__(self, jobs: int) -> None:
        self._lock = threading.Lock()  # acquired to choose a worker, and to start one
        self._workers: list[_Worker | None] = [None] * jobs

    @property
    def ahead(self) -> int:
        """See :class:`Checker`: one bundle for each worker to check, and one to go on with."""
        return 2 * len(self._workers)

    def begin(self, envelopes: Sequence[UnverifiedEnvelope]) -> Callable[[], Checked]:
        """See :class:`Checker`."""
        frame = encode_frame([_claim(e) for e in envelopes])
        worker = self._choose()
        number = worker.ask(frame, len(envelopes))

        def wait() -> Checked:
            answer = worker.answer(number)
            return [
                Verified(e.payload, tuple(s.key for s in e.signatures)) if a == HOLDS else None
                for e, a in zip(envelopes, answer, strict=True)
            ]

        return wait

    def close(self) -> None:
        """End every worker; anyone who still waits gets an UnavailableError."""
        with self._lock:
            for worker in self._workers:
                if worker is not None:
                    worker.end()
            self._workers = [None] * len(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _choose(self) -> "_Worker":
        with self._lock:
            for i, worker in enumerate(self._workers):
                if worker is None or worker.is_broken:
                    started = self._workers[i] = _Worker()
                    return started
            return min((w for w in self._workers if w is not None), key=lambda w: w.unread)


def _claim(envelope: UnverifiedEnvelope) -> Claim:
    return Claim(pae(envelope.payload), tuple(bytes.fromhex(s.key) + s.value for s in envelope.signatures))


class _Worker:
    """One process. Frames are answered in the order in which they were sent. Thread-safe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # -P: whatever lies in the folder that we were started in is not our code.
            [sys.executable, "-P", "-m", "commonweal_protocols.records.signature_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("pipes were asked for")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # So that the next bundle lies ready and its sender need not wait. A user may have used up what there is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._stdin.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.is_broken = False
        self._sending = threading.Lock()  # acquired to write a frame, and to number it
        self._receiving = threading.Lock()  # acquired to read an answer
        self._asked = 0
        self._received = 0
        self._counts: deque[int] = deque()  # claims in each frame that is not answered yet
        self._answers: dict[int, bytes] = {}  # those that another thread has read

    @property
    def unread(self) -> int:
        """How many frames it has not answered yet."""
        return len(self._counts)

    def ask(self, frame: bytes, count: int) -> int:
        """Send a frame of ``count`` claims; return its number."""
        with self._sending:
            with self._receiving if self.unread >= _MAX_UNREAD_FRAMES else contextlib.nullcontext():
                while self.unread >= _MAX_UNREAD_FRAMES:
                    self._receive()
            try:
                self._stdin.write(frame)
                self._stdin.flush()
            except (OSError, ValueError) as e:
                # ValueError: another thread has closed it.
                raise self._died("to take a frame") from e
            self._counts.append(count)
            self._asked += 1
            return self._asked

    def answer(self, number: int) -> bytes:
        """Wait for the answer to a frame."""
        with self._receiving:
            while number > self._received:
                self._receive()
            return self._answers.pop(number)

    def end(self) -> None:
        """End the process: by the end of its input, or else by force."""
        self.is_broken = True
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    def _receive(self) -> None:
        if self.is_broken:
            raise self._died("to be alive")
        count = self._counts[0]
        try:
            answer = self._stdout.read(count)
        except ValueError as e:
            raise self._died("to be alive") from e
        if len(answer) < count:
            raise self._died(f"{count} answers")
        if answer.strip(bytes((HOLDS, HOLDS_NOT))):
            raise self._died("answers of one bit")
        self._counts.popleft()
        self._received += 1
        self._answers[self._received] = answer

    def _died(self, wanted: str) -> UnavailableError:
        self.is_broken = True
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        return UnavailableError(
            f"signature worker {self._process.pid}: wanted {wanted}, got its end with status {code}; try again, or "
            "check in one process (--jobs 1)"
        )


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def checker_for(entries: int, jobs: int) -> Iterator[Checker]:
    """Give the checker that fits so many entries: with one job, or few entries, no process is started.

    Raises:
        UnavailableError: See :class:`Checker`.
    """
    if jobs == 1 or entries < MIN_POOLED_ENTRIES:
        yield InProcess()
        return
    with Pool(jobs) as pool:
        yield pool
