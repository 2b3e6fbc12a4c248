"""The one writer of a consortium's log: check an envelope, make it durable, only then let it count.

Every thread of the daemon goes through here. An entry that is refused leaves no trace; an entry that is answered is on
disk under a signed checkpoint. After a failed write nothing more is taken until the daemon is started anew, because
what the disk holds is then unknown.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log import Log, Sequenced
from commonweal_protocols.checker import checker_for, usable_cores
from commonweal_protocols.checkpoint import open_checkpoint
from commonweal_protocols.errors import ConfigError, PeerError, StorageError, UnavailableError
from commonweal_protocols.keys import public_hex
from commonweal_protocols.kinds import Predicate
from commonweal_protocols.opening import open_entries
from commonweal_protocols.predicates import Compact, Digest, Seen
from commonweal_protocols.proof import format_proof
from commonweal_protocols.records import Source, read_bundles, unverified_size
from commonweal_protocols.replica import Replica
from commonweal_protocols.state import State
from commonweal_protocols.statement import Author, Entry, open_entry

BATCH_ENTRIES = 1024
"""Four bundles: what a batch costs by itself is then small beside what its entries cost."""
MAX_WAITING = 4096
_GROW_SECONDS = 30
_ROOM_SECONDS = 0.2
"""How often whoever waits for room looks whether it is still of use."""

Check = Callable[[Entry, State], None]
"""A last word on an entry, given the state before it; raises to refuse."""


@dataclass(frozen=True, slots=True)
class Place:
    """An entry's index, and the published checkpoint that it first was under: the tree's size and the signed note."""

    index: int
    size: int
    note: bytes


class Receipts(NamedTuple):
    """The newest of some entries' checkpoints, and for each entry its inclusion path in that tree."""

    note: bytes
    paths: list[list[bytes]]


def _ignore(_: Compact) -> None:
    pass


@dataclass(slots=True)
class _Waiting:
    """An entry that waits for its place; the writer thread settles ``place``."""

    data: bytes
    entry: Entry
    check: Check | None
    place: Future[Place]


class Sequencer:
    """The log, and the state that it stands for. Thread-safe.

    Callers wait in a bounded queue; one thread takes all that wait, at most :data:`BATCH_ENTRIES` at a time, as one
    batch. So the cost of a sync and of a round trip to the witnesses is shared by whoever comes at the same time, and
    an entry that comes alone waits for nobody.
    """

    def __init__(
        self,
        log: Log,
        replica: Replica,
        key: Ed25519PrivateKey,
        on_compact: Callable[[Compact], None] = _ignore,
    ) -> None:
        """Start taking entries.

        Args:
            log: Open for writing; closed with this.
            replica: Of all that the log holds.
            key: Signs the coordinator's own statements.
            on_compact: Is told of the compact that will be in force at the next checkpoint, before that is cosigned;
                and again of the one before, should the batch that changes it not be sequenced.
        """
        self._log = log
        self._on_compact = on_compact
        self._replica = replica  # changed by the writer thread alone, under _changed
        self._key = key
        self._changed = threading.Condition()
        self._saying = threading.Lock()  # held while a statement of our own is between its number and its place
        self._closed = False
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write, name="sequencer", daemon=True)
        self._writer.start()

    @classmethod
    def load(
        cls, log: Log, records: Source, key: Ed25519PrivateKey, on_compact: Callable[[Compact], None] = _ignore
    ) -> Self:
        """Replay the whole log from its own records, also what waits for its witnesses.

        Raises:
            PeerError: The log on disk breaks its own compact, or is not what its newest checkpoint signs.
        """
        replica = Replica()
        with checker_for(log.sequenced_size, usable_cores()) as checker:
            for entry in open_entries(read_bundles(records, 0, log.sequenced_size), checker):
                replica.admit(entry)
        if log.size:
            # The log itself has re-hashed its tiles, but of the entries only the last bundle.
            replica.check_checkpoint(open_checkpoint(log.checkpoint, replica.log))
        if replica.size:
            on_compact(replica.state.compact)
        return cls(log, replica, key, on_compact)

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

    def submit(self, data: bytes, *, check: Check | None = None) -> Sequenced:
        """Sequence an envelope; the same envelope again gets its old index.

        Args:
            data: The envelope's bytes, unverified.
            check: See :data:`Check`.

        Raises:
            PeerError: It is malformed, badly signed, or the compact does not allow it now.
            StorageError: It could not be made durable.
            UnavailableError: Too many wait, or too few witnesses answer: the same envelope may be sent again.
        """
        # Signatures are the costly part, and are checked by whoever brings them.
        waiting = _Waiting(data, open_entry(data), check, Future())
        try:
            self._put(waiting, None)
        except queue.Full as e:
            raise UnavailableError(f"log: wanted at most {MAX_WAITING} entries waiting, got one more") from e
        place = waiting.place.result()
        receipts = self.prove([place])
        return Sequenced(place.index, format_proof(place.index, receipts.paths[0], receipts.note))

    def offer(self, data: bytes, entry: Entry, *, check: Check | None, is_wanted: Callable[[], bool]) -> Future[Place]:
        """Queue an envelope behind all that wait, and wait for room where there is none: its place comes later.

        Args:
            data: The envelope's bytes.
            entry: What they say, verified.
            check: See :data:`Check`.
            is_wanted: Whether to go on waiting for room.

        Raises:
            StorageError: The log is closed; the place raises this too, and what :meth:`submit` raises.
            UnavailableError: There was no room for as long as it was wanted.
        """
        waiting = _Waiting(data, entry, check, Future())
        while True:
            try:
                self._put(waiting, _ROOM_SECONDS)
                return waiting.place
            except queue.Full as e:
                if not is_wanted():
                    raise UnavailableError("log: there was no room for as long as it was wanted") from e

    def find(self, leaf: bytes) -> Place | None:
        """Return the place of a published entry, by its leaf hash, or None.

        Raises:
            StorageError: See :meth:`submit`.
        """
        if (index := self._log.place(leaf)) is None:
            return None
        (place,) = self._placed([index])
        with self._changed:
            # The log is ahead of the replica for a moment, while the writer is between the two.
            if not self._changed.wait_for(lambda: self._replica.size >= place.size, _GROW_SECONDS):
                raise StorageError("log: is ahead of its replica; start the coordinator anew")
        return place

    def _placed(self, indices: Iterable[int]) -> list[Place]:
        # The size as the note itself says it, since another thread may have it signed anew.
        note = self._log.checkpoint
        size = unverified_size(note)
        return [Place(index, size, note) for index in indices]

    def prove(self, places: Sequence[Place]) -> Receipts:
        """Return what proves some entries, one or more, all under one checkpoint."""
        newest = max(places, key=lambda p: p.size)
        with self._changed:
            tree = self._replica.tree
            return Receipts(newest.note, [tree.inclusion_path(p.index, newest.size) for p in places])

    def _put(self, waiting: _Waiting, timeout_seconds: float | None) -> None:
        """Queue something, at once or within some time; queue.Full where there is no room."""
        if self._closed or not self._writer.is_alive():
            raise StorageError("log: is closed")
        self._queue.put(waiting, timeout_seconds is not None, timeout_seconds)
        if not self._writer.is_alive():
            self._abandon()

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
            self._abandon(batch)

    def _abandon(self, batch: Iterable[_Waiting] = ()) -> None:
        """Settle all that waits once nobody writes any more: whatever ended that, nobody may wait for it for ever."""
        waiting = list(batch)
        with contextlib.suppress(queue.Empty):
            while True:
                waiting += [w for w in (self._queue.get_nowait(),) if w]
        for w in waiting:
            # One that was put at the last moment may be settled from two sides.
            with contextlib.suppress(InvalidStateError):
                if not w.place.done():
                    w.place.set_exception(StorageError("log: is closed"))

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
        state = before = self._replica.state if self._replica.size else None
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
            self._announce(before, state)
            places = self._placed(self._log.sequence([w.data for w in kept]))
        except (ConfigError, StorageError, UnavailableError) as e:
            # Without witnesses the batch may be sequenced all the same: then it counts, though nobody is told yet.
            if isinstance(e, UnavailableError) and kept and self._log.holds(kept[-1].data):
                self._grow(fresh.values())
            elif not isinstance(e, ConfigError):
                self._announce(state, before)
            for waiting in batch:
                if not waiting.place.done():
                    waiting.place.set_exception(e)
            return
        self._grow(fresh.values())
        for waiting, place in zip(kept, places, strict=True):
            waiting.place.set_result(place)

    def _announce(self, before: State | None, after: State | None) -> None:
        """Say which compact is in force, if that changes."""
        if after is not None and (before is None or before.compact != after.compact):
            self._on_compact(after.compact)

    def _grow(self, entries: Iterable[tuple[Entry, State]]) -> None:
        with self._changed:
            for entry, state in entries:
                self._replica.grow(entry, state)
            self._changed.notify_all()
