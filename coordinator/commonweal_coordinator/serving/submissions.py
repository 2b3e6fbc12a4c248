"""Many submissions over one gRPC call, with back-pressure: who sends faster than the log can take is made to wait.

For each call one thread reads: it takes a request's entries apart, has their signatures checked in other processes and
queues what holds; the thread that gRPC gave the call answers, in order, as places come in. The next request is read
only while few entries of the call are on their way, and the sequencer's queue has room; behind that, gRPC's own flow
control stops the sender. So a call costs bounded memory, whatever its sender does or leaves undone.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from commonweal_coordinator.log.sequencer import Check, Offered, Place, Sequencer, Settled
from commonweal_coordinator.serving.rpc_errors import refusal
from commonweal_protocols.base.errors import CommonwealError, MalformedError, PeerError, StorageError, UnavailableError
from commonweal_protocols.records.entries import begin_opening
from commonweal_protocols.records.signature_pool import Checker
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.tlog.merkle import HASH_BYTES
from commonweal_protocols.wire import commonweal_pb2 as pb

MAX_ITEMS = 256
_PART_ITEMS = 64
"""What one worker is given of a request, so that a single sender keeps several busy."""

Slot = int | Place | PeerError | None
"""What will become of an item: what the request's group is told at that place, a known place, a refusal, or nothing."""


class _Taken(NamedTuple):
    """A request that was read: a slot for each item, and what the sequencer will say of the entries among them."""

    slots: list[Slot]
    outcome: "Future[list[Settled]] | None"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What is borne of those who call."""

    calls: int = 8
    """At a time, on this server: a quarter of its threads."""
    entries: int = 1024
    """On their way in one call, before its next request is read: as many as the sequencer takes at once."""
    call_seconds: float = 300
    """The longest deadline that a call may have, and it must have one."""
    silence_seconds: float = 30
    """How long a call may ask nothing, with nothing on its way; and how long it may leave an answer untaken."""


class Submissions:
    """Serves every ``SubmitMany`` call of a server. Thread-safe."""

    def __init__(self, checker: Checker, limits: CallLimits | None = None) -> None:
        self._checker = checker
        self._limits = limits or CallLimits()
        self._free = threading.BoundedSemaphore(self._limits.calls)

    def serve(
        self,
        sequencer: Sequencer,
        check: Check,
        requests: Iterator[pb.SubmitManyRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.SubmitManyReply]:
        """Yield a reply to each request, in order.

        Raises:
            MalformedError: A request is not of the form, or the call has no deadline or one too far off.
            StorageError: The log takes no more.
            UnavailableError: Too many calls, silence, too few witnesses, or a dead worker process. The same entries
                may be asked for by their tokens, and sent again.
        """
        seconds = context.time_remaining()
        if seconds is None or seconds > self._limits.call_seconds:
            raise MalformedError(f"submit many: wanted a deadline of at most {self._limits.call_seconds:.0f} s")
        if not self._free.acquire(blocking=False):
            raise UnavailableError(f"submit many: wanted at most {self._limits.calls} calls at a time, got one more")
        try:
            call = _Call(sequencer, check, self._checker, self._limits, context)
            threading.Thread(target=call.read, args=(requests,), name="submissions", daemon=True).start()
            yield from call.answer()
        finally:
            self._free.release()


class _Call:
    """One call: ``read`` runs in a thread of its own, ``answer`` in that of the call."""

    def __init__(
        self,
        sequencer: Sequencer,
        check: Check,
        checker: Checker,
        limits: CallLimits,
        context: grpc.ServicerContext,
    ) -> None:
        self._sequencer = sequencer
        self._check = check
        self._checker = checker
        self._limits = limits
        self._context = context
        self._changed = threading.Condition()  # guards the two below
        self._on_the_way = 0
        self._is_over = False
        # What read() has for answer(): a request, an error that ends the call, or None for the end.
        self._read: queue.SimpleQueue[_Taken | CommonwealError | None] = queue.SimpleQueue()

    # -- the reading thread

    def read(self, requests: Iterator[pb.SubmitManyRequest]) -> None:
        """Take requests until there are no more, one is wrong, or the call is over."""
        try:
            while self._wait_for_room() and (request := next(requests, None)) is not None:
                with self._changed:
                    self._on_the_way += len(request.items)
                self._read.put(self._take(request))
        except CommonwealError as e:
            self._read.put(e)
        except grpc.RpcError:
            pass  # the sender is gone, and so is whoever would be answered
        finally:
            self._read.put(None)

    def _wait_for_room(self) -> bool:
        """Wait until another request may be read; False once the call is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._on_the_way < self._limits.entries)
            return not self._is_over

    def _take(self, request: pb.SubmitManyRequest) -> _Taken:
        items = request.items
        if not 1 <= len(items) <= MAX_ITEMS:
            raise MalformedError(f"submit many: wanted 1 to {MAX_ITEMS} items in a request, got {len(items)}")
        envelopes = [item.envelope for item in items if item.WhichOneof("item") == "envelope"]
        waits = [
            begin_opening(envelopes[at : at + _PART_ITEMS], self._checker)
            for at in range(0, len(envelopes), _PART_ITEMS)
        ]
        opened = (entry for wait in waits for entry in wait())
        group: list[Offered] = []
        slots = [self._slot(item, opened, group) for item in items]
        outcome = self._sequencer.offer(group, check=self._check, is_wanted=self._is_wanted) if group else None
        return _Taken(slots, outcome)

    def _slot(self, item: pb.SubmitItem, opened: Iterator[Entry | PeerError], group: list[Offered]) -> Slot:
        match item.WhichOneof("item"):
            case "envelope":
                entry = next(opened)
                if isinstance(entry, PeerError):
                    return entry
                group.append((item.envelope, entry))
                return len(group) - 1
            case "token":
                if len(item.token) != HASH_BYTES:
                    raise MalformedError(f"token: wanted {HASH_BYTES} bytes, got {len(item.token)}")
                return self._sequencer.find(item.token)
        raise MalformedError("submit many: wanted an envelope or a token in each item")

    def _is_wanted(self) -> bool:
        with self._changed:
            return not self._is_over

    # -- the answering thread

    def answer(self) -> Iterator[pb.SubmitManyReply]:
        """Yield the replies, until the last request is answered or the call is over."""
        if not self._context.add_callback(self._end):
            return
        try:
            while (taken := self._next()) is not None:
                if isinstance(taken, CommonwealError):
                    raise taken
                reply = self._reply(taken)
                # gRPC comes back for the next reply once the connection has taken this one.
                untaken = threading.Timer(self._limits.silence_seconds, self._context.cancel)
                untaken.daemon = True
                untaken.start()
                try:
                    yield reply
                finally:
                    untaken.cancel()
                with self._changed:
                    self._on_the_way -= len(taken.slots)
                    self._changed.notify_all()
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._read.put(None)

    def _next(self) -> _Taken | CommonwealError | None:
        while True:
            try:
                return self._read.get(timeout=self._limits.silence_seconds)
            except queue.Empty:
                with self._changed:
                    if not self._on_the_way:
                        raise UnavailableError(
                            f"submit many: wanted a request within {self._limits.silence_seconds:.0f} s, got none"
                        ) from None

    def _reply(self, taken: _Taken) -> pb.SubmitManyReply:
        told = taken.outcome.result() if taken.outcome else []
        settled = [told[slot] if isinstance(slot, int) else slot for slot in taken.slots]
        places = [s for s in settled if isinstance(s, Place)]
        receipts = self._sequencer.prove(places) if places else None
        paths = iter(receipts.paths if receipts else ())
        answers = []
        for s in settled:
            match s:
                case Place():
                    answers.append(pb.SubmitAnswer(place=pb.Place(index=s.index, path=b"".join(next(paths)))))
                case PeerError():
                    answers.append(pb.SubmitAnswer(refusal=refusal(s)))
                case StorageError():
                    # What is wrong with us ends the call.
                    raise s
                case None:
                    answers.append(pb.SubmitAnswer(unknown=True))
        return pb.SubmitManyReply(answers=answers, checkpoint=receipts.note if receipts else b"")
