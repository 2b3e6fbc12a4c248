"""Verifying the envelopes of many entries, in order: here, or ahead in processes beside this one; the same outcomes.

Verification comes before anybody parses a payload, however it is done: a :class:`Verified` is made only of what a check
has let pass. A worker is believed only if it says that an entry's signatures hold; whatever else it says, or leaves
unsaid because it died, is verified here. No worker outlives this process.
"""

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from commonweal_protocols.base.errors import CommonwealError, PeerError
from commonweal_protocols.statements.envelope import UnverifiedEnvelope, Verified, pae, parse_envelope, verify_envelope

MIN_POOLED_ENTRIES = 2000
"""From here on processes pay: starting one costs about as much as checking this many."""
_PIPE_BYTES = 1 << 20

Bundle = Sequence[bytes]
"""Up to 256 entries."""
Outcomes = Sequence[Verified | PeerError]
"""For each entry of a bundle what was verified, or why it is refused."""
Verify = Callable[[Iterable[Bundle]], Iterator[tuple[Bundle, Outcomes]]]
"""Gives bundles back in order, each with its outcomes. What reading one raises comes after all those before it."""


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def verifier_for(entries: int, jobs: int) -> Iterator[Verify]:
    """Give what verifies so many entries: with one job, or few entries, no process is started."""
    if jobs == 1 or entries < MIN_POOLED_ENTRIES:
        yield verify_here
        return
    with contextlib.ExitStack() as stack:
        yield lambda bundles: _verify_ahead(bundles, jobs, stack)


def verify_here(bundles: Iterable[Bundle]) -> Iterator[tuple[Bundle, Outcomes]]:
    """The :data:`Verify` that is this process alone; nothing is read ahead."""
    for bundle in bundles:
        yield bundle, [_verify(_parse(data)) for data in bundle]


def _verify_ahead(
    bundles: Iterable[Bundle], jobs: int, stack: contextlib.ExitStack
) -> Iterator[tuple[Bundle, Outcomes]]:
    """Workers take turns, so each one's answers come in the order of its bundles."""
    source = iter(bundles)
    workers: deque[_Worker] = deque()
    begun: deque[tuple[Bundle, list[UnverifiedEnvelope | PeerError], _Worker]] = deque()
    trouble: CommonwealError | None = None
    more = True
    while more or begun:
        # One bundle for each worker to check, and one to continue with.
        while more and len(begun) <= 2 * jobs:
            try:
                bundle = next(source, None)
            except CommonwealError as e:
                bundle, trouble = None, e
            if bundle is None:
                more = False
                break
            workers.append(stack.enter_context(_Worker()) if len(workers) < jobs else workers.popleft())
            parsed = [_parse(data) for data in bundle]
            workers[-1].ask([e for e in parsed if isinstance(e, UnverifiedEnvelope)])
            begun.append((bundle, parsed, workers[-1]))
        if begun:
            bundle, parsed, worker = begun.popleft()
            holds = iter(worker.answer(sum(isinstance(e, UnverifiedEnvelope) for e in parsed)))
            yield bundle, [_verify(e, isinstance(e, UnverifiedEnvelope) and next(holds)) for e in parsed]
    if trouble is not None:
        raise trouble


def _parse(data: bytes) -> UnverifiedEnvelope | PeerError:
    try:
        return parse_envelope(data)
    except PeerError as e:
        return e


def _verify(envelope: UnverifiedEnvelope | PeerError, holds: bool = False) -> Verified | PeerError:
    """``holds``: a worker has checked it."""
    if isinstance(envelope, PeerError):
        return envelope
    if holds:
        return Verified(envelope.payload, tuple(s.key for s in envelope.signatures))
    try:
        return verify_envelope(envelope)
    except PeerError as e:
        return e


class _Worker:
    """One process. Once it has died, it takes what it is asked and holds nothing to be true."""

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

    def ask(self, envelopes: Sequence[UnverifiedEnvelope]) -> None:
        """Send a bundle's envelopes."""
        claims = [(pae(e.payload), [(bytes.fromhex(s.key), s.value) for s in e.signatures]) for e in envelopes]
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(pickle.dumps(claims))
            self._stdin.flush()

    def answer(self, count: int) -> list[bool]:
        """Wait for the answer to the first bundle, of ``count`` envelopes, that was asked and is not answered yet."""
        answer = self._stdout.read(count)
        return [a == 1 for a in answer.ljust(count, b"\0")]

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        with contextlib.suppress(BrokenPipeError):
            # What it did not take is still to be flushed.
            self._stdin.close()
