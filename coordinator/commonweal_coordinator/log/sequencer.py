"""The one writer of a consortium's log: check an envelope, make it durable, only then let it count.

Every thread of the daemon goes through here. An entry that is refused leaves no trace; an entry that is answered is on
disk under a signed checkpoint. After a failed write beyond staging nothing more is taken here, because what the disk
holds is then unknown: ``upkeep`` opens the log anew.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_protocols.base.errors import ConfigError, PeerError, StorageError, UnavailableError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.entries import open_entries
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.signature_pool import checker_for, usable_cores
from commonweal_protocols.records.source import Source, read_bundles, unverified_size
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import Author, Entry, open_entry
from commonweal_protocols.statements.values import Compact, Digest, Seen
from commonweal_protocols.tlog.checkpoint import open_checkpoint
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.proof import format_proof

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


Offered = tuple[bytes, Entry]
"""An envelope, and what it says, verified."""
Settled = Place | PeerError | StorageError
"""What has become of one of several entries: a place, or why it has none."""


@dataclass(slots=True)
class _Group:
    """Entries that came together and wait for their places; the writer thread settles ``outcome``, for all at once."""

    entries: Sequence[Offered]
    check: Check | None
    outcome: Future[list[Settled]] = field(default_factory=Future)


class Sequencer:
    """The log, and the state that it stands for. Thread-safe.

    Callers wait in a bounded queue; one thread takes what waits, until it has :data:`BATCH_ENTRIES`, as one batch. So
    the cost of a sync and of a round trip to the witnesses is shared by whoever comes at the same time, and an entry
    that comes alone waits for nobody.
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
        self._queue = threading.Condition()  # guards the three below
        self._groups: deque[_Group] = deque()
        self._waiting = 0  # entries in them
        self._closed = False  # nothing more is taken in
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
        return self._waiting

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
        group = _Group([(data, open_entry(data))], check)
        if not self._put(group, 0):
            raise UnavailableError(f"log: wanted at most {MAX_WAITING} entries waiting, got one more")
        (settled,) = group.outcome.result()
        if not isinstance(settled, Place):
            raise settled
        receipts = self.prove([settled])
        return Sequenced(settled.index, format_proof(settled.index, receipts.paths[0], receipts.note))

    def offer(
        self, entries: Sequence[Offered], *, check: Check | None, is_wanted: Callable[[], bool]
    ) -> Future[list[Settled]]:
        """Queue envelopes behind all that wait, and wait for room where there is none: their places come later.

        Args:
            entries: 1 to :data:`BATCH_ENTRIES`; what becomes of one is nothing to the others.
            check: See :data:`Check`.
            is_wanted: Whether to go on waiting for room.

        Raises:
            StorageError: The log is closed. The future raises this too, and the UnavailableError of :meth:`submit`.
            UnavailableError: There was no room for as long as it was wanted.
        """
        group = _Group(entries, check)
        while not self._put(group, _ROOM_SECONDS):
            if not is_wanted():
                raise UnavailableError("log: there was no room for as long as it was wanted")
        return group.outcome

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

    def _put(self, group: _Group, timeout_seconds: float) -> bool:
        """Queue a group within some time. Whether there was room for it."""
        count = len(group.entries)
        with self._queue:
            self._queue.wait_for(lambda: self._closed or self._has_room(count), timeout_seconds)
            if self._closed:
                raise StorageError("log: is closed")
            if not self._has_room(count):
                return False
            self._groups.append(group)
            self._waiting += count
            self._queue.notify_all()
            return True

    def _has_room(self, count: int) -> bool:
        # Where nothing waits there is room for any group, or the largest would wait for ever.
        return not self._groups or self._waiting + count <= MAX_WAITING

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
        with self._queue:
            self._closed = True
            self._queue.notify_all()
        with self._changed:
            self._changed.notify_all()
        self._writer.join()
        self._log.close()

    # -- the writer thread

    def _write(self) -> None:
        batch: list[_Group] = []
        try:
            while batch := self._take():
                self._sequence(batch)
        finally:
            # Whatever has ended this, nobody may wait for it for ever.
            with self._queue:
                self._closed = True
                batch += self._groups
                self._queue.notify_all()
            for group in batch:
                if not group.outcome.done():
                    group.outcome.set_exception(StorageError("log: is closed"))

    def _take(self) -> list[_Group]:
        """Return what waits, once there is something; nothing once the sequencer is closed and all is settled."""
        with self._queue:
            self._queue.wait_for(lambda: self._groups or self._closed)
            batch, count = [], 0
            while self._groups and count < BATCH_ENTRIES:
                batch.append(group := self._groups.popleft())
                count += len(group.entries)
            self._waiting -= count
            self._queue.notify_all()
            return batch

    def _sequence(self, batch: list[_Group]) -> None:
        state = before = self._replica.state if self._replica.size else None
        fresh: dict[Digest, tuple[Entry, State]] = {}
        kept: list[bytes] = []
        refused: dict[tuple[int, int], PeerError | StorageError] = {}
        try:
            held = self._log.held(bytes.fromhex(entry.leaf) for group in batch for _, entry in group.entries)
            for g, group in enumerate(batch):
                for i, (data, entry) in enumerate(group.entries):
                    if bytes.fromhex(entry.leaf) not in held and entry.leaf not in fresh:
                        try:
                            after = self._replica.judge(entry, state)
                            if group.check is not None and state is not None:
                                group.check(entry, state)
                        except (PeerError, StorageError) as e:
                            refused[g, i] = e
                            continue
                        fresh[entry.leaf], state = (entry, after), after
                    kept.append(data)
            self._announce(before, state)
            places = iter(self._placed(self._log.sequence(kept)))
        except (ConfigError, StorageError, UnavailableError) as e:
            # Without witnesses the batch may be sequenced all the same: then it counts, though nobody is told yet.
            if isinstance(e, UnavailableError) and kept and self._log.held([leaf_hash(kept[-1])]):
                self._grow(fresh.values())
            elif not isinstance(e, ConfigError):
                self._announce(state, before)
            for group in batch:
                group.outcome.set_exception(e)
            return
        self._grow(fresh.values())
        for g, group in enumerate(batch):
            group.outcome.set_result([refused.get((g, i)) or next(places) for i in range(len(group.entries))])

    def _announce(self, before: State | None, after: State | None) -> None:
        """Say which compact is in force, if that changes."""
        if after is not None and (before is None or before.compact != after.compact):
            self._on_compact(after.compact)

    def _grow(self, entries: Iterable[tuple[Entry, State]]) -> None:
        with self._changed:
            for entry, state in entries:
                self._replica.grow(entry, state)
            self._changed.notify_all()
