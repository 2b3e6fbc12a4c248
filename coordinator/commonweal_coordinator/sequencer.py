"""The one writer of a consortium's log: check an envelope, make it durable, only then let it count.

Every thread of the daemon goes through here. An entry that is refused leaves no trace; an entry that is answered is on
disk under a signed checkpoint. After a failed write nothing more is taken until the daemon is started anew, because
what the disk holds is then unknown.
"""

import threading
from collections.abc import Callable
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log import Log, Sequenced
from commonweal_protocols.checkpoint import open_checkpoint
from commonweal_protocols.fold import State
from commonweal_protocols.keys import public_hex
from commonweal_protocols.predicates import Predicate
from commonweal_protocols.records import Source, read_entries
from commonweal_protocols.replica import Replica
from commonweal_protocols.statement import Author, Entry, Seen


class Sequencer:
    """The log, and the state that it stands for. Thread-safe."""

    def __init__(self, log: Log, replica: Replica, key: Ed25519PrivateKey) -> None:
        self._log = log
        self._replica = replica
        self._key = key
        self._changed = threading.Condition()  # guards _log and _replica
        self._closed = False

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
        """
        with self._changed:
            if (known := self._log.find(data)) is not None:
                return known
            entry, _ = self._replica.check(data)
            if check is not None:
                check(entry, self._replica.state)
            (sequenced,) = self._log.append([data])
            self._replica.add(data)
            self._changed.notify_all()
            return sequenced

    def say(self, predicate: Predicate) -> Sequenced:
        """Sign a statement of the coordinator's own and sequence it.

        Raises:
            PeerError: The compact does not allow it now.
            StorageError: It could not be made durable.
        """
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
        """Wake every waiter and close the log."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._log.close()
