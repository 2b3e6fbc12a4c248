"""The one writer of a consortium's log: check an envelope, make it durable, only then let it count.

Every thread of the daemon goes through here. An entry that is refused leaves no trace; an entry that is answered is on
disk under a signed checkpoint. After a failed write beyond staging nothing more is taken here, because what the disk
holds is then unknown: ``upkeep`` opens the log anew.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_protocols.base.errors import ConfigError, PeerError, StorageError, UnavailableError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.entries import open_entries
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.signature_pool import usable_cores, verifier_for
from commonweal_protocols.records.source import Source, read_bundles, unverified_size
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import Entry, Statement, open_entry
from commonweal_protocols.statements.values import Digest, Seen
from commonweal_protocols.tlog.checkpoint import open_checkpoint
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.proof import format_proof

BATCH_ENTRIES = 1024
"""Four bundles: what a batch costs by itself is then small beside what its entries cost."""
MAX_WAITING = 4096

Check = Callable[[Entry, State], None]
"""A last word on an entry, given the state before it; raises to refuse."""


@dataclass(frozen=True, slots=True)
class Place:
    """An entry's index, and the published checkpoint that it first was under: the tree's size and the signed note."""

    index: int
    size: int
    note: bytes


def _ignore(_: Compact) -> None:
    pass


@dataclass(slots=True)
class _Waiting:
    """An entry that waits for its place; the writer thread settles ``outcome``."""

    data: bytes
    entry: Entry
    check: Check | None
    outcome: Future[Place] = field(default_factory=Future)


class Sequencer:
    """The log, and the state that it stands for. Thread-safe.

    Callers wait in a bounded queue; one thread takes what waits, until it has :data:`BATCH_ENTRIES`, as one batch. So
    the cost of a sync and of a round trip to the witnesses is shared by anyone who comes at the same time, and an entry
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
        self._queue = threading.Condition()  # guards the two below
        self._waiting: deque[_Waiting] = deque()
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
        with verifier_for(log.sequenced_size, usable_cores()) as verify:
            for entry in open_entries(read_bundles(records, 0, log.sequenced_size), verify):
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
        # Signatures are the costly part, and are checked by anyone who brings them.
        waiting = _Waiting(data, open_entry(data), check)
        with self._queue:
            if self._closed:
                raise StorageError("log: is closed")
            if len(self._waiting) >= MAX_WAITING:
                raise UnavailableError(f"log: wanted at most {MAX_WAITING} entries waiting, got one more")
            self._waiting.append(waiting)
            self._queue.notify_all()
        place = waiting.outcome.result()
        with self._changed:
            path = self._replica.tree.inclusion_path(place.index, place.size)
        return Sequenced(place.index, format_proof(place.index, path, place.note))

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
            vouched = Seen(origin=seen.origin, size=seen.size, root=seen.root.hex())
            header = state.next_header(public_hex(self._key), (vouched,))
            return self.submit(sign_envelope(Statement(header, predicate).payload(), self._key))

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
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                self._sequence(batch)
        finally:
            # Whatever has ended this, nobody may wait for it for ever.
            with self._queue:
                self._closed = True
                batch += self._waiting
                self._queue.notify_all()
            for waiting in batch:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(StorageError("log: is closed"))

    def _take(self) -> list[_Waiting]:
        """Return what waits, once there is something; nothing once the sequencer is closed and all is settled."""
        with self._queue:
            self._queue.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_ENTRIES))]

    def _sequence(self, batch: list[_Waiting]) -> None:
        state = before = self._replica.state if self._replica.size else None
        fresh: dict[Digest, tuple[Entry, State]] = {}
        kept: list[_Waiting] = []
        refused: list[tuple[_Waiting, PeerError | StorageError]] = []
        try:
            held = self._log.held(bytes.fromhex(waiting.entry.leaf) for waiting in batch)
            for waiting in batch:
                entry = waiting.entry
                if bytes.fromhex(entry.leaf) not in held and entry.leaf not in fresh:
                    try:
                        after = self._replica.judge(entry, state)
                        if waiting.check is not None and state is not None:
                            waiting.check(entry, state)
                    except (PeerError, StorageError) as e:
                        refused.append((waiting, e))
                        continue
                    fresh[entry.leaf], state = (entry, after), after
                kept.append(waiting)
            self._announce(before, state)
            indices = self._log.sequence([waiting.data for waiting in kept])
        except (ConfigError, StorageError, UnavailableError) as e:
            # Without witnesses the batch may be sequenced all the same: then it counts, though nobody is told yet.
            if isinstance(e, UnavailableError) and kept and self._log.held([leaf_hash(kept[-1].data)]):
                self._grow(fresh.values())
            elif not isinstance(e, ConfigError):
                self._announce(state, before)
            # Those refused too: the state that refused them may not have come about.
            for waiting in batch:
                waiting.outcome.set_exception(e)
            return
        # The size as the note itself says it, since another thread may have it signed anew.
        note = self._log.checkpoint
        size = unverified_size(note)
        self._grow(fresh.values())
        for waiting, error in refused:
            waiting.outcome.set_exception(error)
        for waiting, index in zip(kept, indices, strict=True):
            waiting.outcome.set_result(Place(index, size, note))

    def _announce(self, before: State | None, after: State | None) -> None:
        """Say which compact is in force, if that changes."""
        if after is not None and (before is None or before.compact != after.compact):
            self._on_compact(after.compact)

    def _grow(self, entries: Iterable[tuple[Entry, State]]) -> None:
        with self._changed:
            for entry, state in entries:
                self._replica.grow(entry, state)
            self._changed.notify_all()
