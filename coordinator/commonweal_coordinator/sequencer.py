"""The one writer of a consortium's log: check an envelope, make it durable, only then let it count.

Every thread of the daemon goes through here. An entry that is refused leaves no trace; an entry that is answered is on
disk under a signed checkpoint. After a failed write nothing more is taken until the daemon is started anew, because
what the disk holds is then unknown.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log import Log, Sequenced
from commonweal_protocols.checkpoint import open_checkpoint
from commonweal_protocols.errors import PeerError, StorageError, UnavailableError
from commonweal_protocols.keys import public_hex
from commonweal_protocols.predicates import Digest, Predicate
from commonweal_protocols.records import Source, read_entries
from commonweal_protocols.replica import Replica
from commonweal_protocols.state import State
from commonweal_protocols.statement import Author, Entry, Seen, open_entry

BATCH_ENTRIES = 1024
"""Four bundles: what a batch costs by itself is then small beside what its entries cost."""
MAX_WAITING = 4096


@dataclass(slots=True)
class _Waiting:
    """An entry that waits for its place; the writer thread settles ``place``."""

    data: bytes
    entry: Entry
    check: Callable[[Entry, State], None] | None
    place: Future[Sequenced]


class Sequencer:
    """The log, and the state that it stands for. Thread-safe.

    Callers wait in a bounded queue; one thread takes all that wait, at most :data:`BATCH_ENTRIES` at a time, as one
    batch. So the cost of a sync and of a round trip to the witnesses is shared by whoever comes at the same time, and
    an entry that comes alone waits for nobody.
    """

    def __init__(self, log: Log, replica: Replica, key: Ed25519PrivateKey) -> None:
        self._log = log
        self._replica = replica  # changed by the writer thread alone, under _changed
        self._key = key
        self._changed = threading.Condition()
        self._saying = threading.Lock()  # held while a statement of our own is between its number and its place
        self._closed = False
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write, name="sequencer", daemon=True)
        self._writer.start()

    @classmethod
    def load(cls, log: Log, records: Source, key: Ed25519PrivateKey) -> Self:
        """Replay the whole log from its own public records.

        Raises:
            PeerError: The log on disk breaks its own compact, or is not what its newest checkpoint signs.
        """
        replica = Replica()
        for data in read_entries(records, 0, log.size):
            replica.add(data)
        if log.size:
            # The log itself has re-hashed its tiles, but of the entries only the last bundle.
            replica.check_checkpoint(open_checkpoint(log.checkpoint, replica.log))
        return cls(log, replica, key)

    @property
    def state(self) -> State:
        """The state after the newest entry."""
        with self._changed:
            return self._replica.state

    @property
    def waiting(self) -> int:
        """How many entries wait for their place."""
        return self._queue.qsize()

    @property
    def checkpoint(self) -> bytes:
        """The newest signed checkpoint."""
        with self._changed:
            return self._log.checkpoint

    def submit(self, data: bytes, *, check: Callable[[Entry, State], None] | None = None) -> Sequenced:
        """Sequence an envelope; the same envelope again gets its old index.

        Args:
            data: The envelope's bytes, unverified.
            check: A last word on the entry, given the state before it; raises to refuse.

        Raises:
            PeerError: It is malformed, badly signed, or the compact does not allow it now.
            StorageError: It could not be made durable.
            UnavailableError: Too many wait, or too few witnesses answer: the same envelope may be sent again.
        """
        # Signatures are the costly part, and are checked by whoever brings them.
        waiting = _Waiting(data, open_entry(data), check, Future())
        try:
            if self._closed or not self._writer.is_alive():
                raise StorageError("log: is closed")
            self._queue.put_nowait(waiting)
        except queue.Full as e:
            raise UnavailableError(f"log: wanted at most {MAX_WAITING} entries waiting, got one more") from e
        return waiting.place.result()

    def say(self, predicate: Predicate) -> Sequenced:
        """Sign a statement of the coordinator's own and sequence it.

        Raises:
            PeerError: The compact does not allow it now.
            StorageError: It could not be made durable.
            UnavailableError: See :meth:`submit`.
        """
        with self._saying:
            with self._changed:
                state, seen = self._replica.state, self._replica.checkpoint()
            chain = state.chain(public_hex(self._key))
            data = Author(self._key, state.consortium).sign(
                predicate,
                seq=chain.seq + 1,
                prev=chain.leaf or None,
                seen=(Seen(origin=seen.origin, size=seen.size, root=seen.root.hex()),),
            )
            return self.submit(data)

    def wait(self, larger_than: int, timeout_seconds: float) -> int:
        """Return the log's size once it is above ``larger_than``, or at the timeout, or when closing."""
        with self._changed:
            # The replica's size, which a log that has stopped after a failed write still has.
            self._changed.wait_for(lambda: self._closed or self._replica.size > larger_than, timeout_seconds)
            return self._replica.size

    def close(self) -> None:
        """Settle what waits, wake every waiter, and close the log."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._queue.put(None)
        self._writer.join()
        self._log.close()

    # -- the writer thread

    def _write(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                self._sequence(batch)
        finally:
            # Whatever ends this thread, nobody may wait for it for ever.
            while not self._queue.empty():
                batch += [w for w in (self._queue.get_nowait(),) if w]
            for waiting in batch:
                if not waiting.place.done():
                    waiting.place.set_exception(StorageError("log: is closed"))

    def _take(self) -> list[_Waiting]:
        """Return what waits, once there is something; nothing once the sequencer is closed."""
        first = self._queue.get()
        batch = [first] if first else []
        while batch and len(batch) < BATCH_ENTRIES and not self._queue.empty():
            if (more := self._queue.get_nowait()) is None:
                self._queue.put(None)
                break
            batch.append(more)
        return batch

    def _sequence(self, batch: list[_Waiting]) -> None:
        state = self._replica.state if self._replica.size else None
        fresh: dict[Digest, tuple[Entry, State]] = {}
        kept: list[_Waiting] = []
        try:
            for waiting in batch:
                if not self._log.holds(waiting.data) and waiting.entry.leaf not in fresh:
                    try:
                        after = self._replica.judge(waiting.entry, state)
                        if waiting.check is not None and state is not None:
                            waiting.check(waiting.entry, state)
                    except (PeerError, StorageError) as e:
                        waiting.place.set_exception(e)
                        continue
                    fresh[waiting.entry.leaf], state = (waiting.entry, after), after
                kept.append(waiting)
            places = self._log.append([w.data for w in kept])
        except (StorageError, UnavailableError) as e:
            # Without witnesses the batch may be sequenced all the same: then it counts, though nobody is told yet.
            if isinstance(e, UnavailableError) and kept and self._log.holds(kept[-1].data):
                self._grow(fresh.values())
            for waiting in batch:
                if not waiting.place.done():
                    waiting.place.set_exception(e)
            return
        self._grow(fresh.values())
        for waiting, place in zip(kept, places, strict=True):
            waiting.place.set_result(place)

    def _grow(self, entries: Iterable[tuple[Entry, State]]) -> None:
        with self._changed:
            for entry, state in entries:
                self._replica.grow(entry, state)
            self._changed.notify_all()
