"""Following a log: one's own verified replica, the memory of the newest checkpoint, and a copy of the records.

What was once verified must stay in the log. The memory is on disk before anything is signed on the strength of it, so
a coordinator that rolls back or forks is caught even across restarts, and a node then signs nothing. All processes of a
home share it: each reads it before the checkpoint that it is held against, and none puts it back. It holds across logs
too: where another coordinator continues under a log of its own, everything that was seen of the old one must have been
carried over. The copy is what such a successor starts from when the old coordinator is gone.
"""

from pathlib import Path

from pydantic import ValidationError

from commonweal_protocols.base.errors import LogError, RuleError, StorageError, UnavailableError
from commonweal_protocols.base.files import locked, read_if_there, write_atomic
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.mirror import Mirror
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.values import Digest, Seen
from commonweal_protocols.tlog.policy import Policy

_MAX_MEMORY_BYTES = 4096


class Follower:
    """One consortium's log, followed. Not thread-safe."""

    def __init__(self, source: Source, consortium: Digest, memory: Path, copy: Path | None = None) -> None:
        """Set up; nothing is read yet.

        Args:
            source: The records.
            consortium: Whose log this must be.
            memory: Where the newest verified checkpoint is kept.
            copy: The folder where a copy of the records is kept; None keeps none. It has one writer.
        """
        self._source = source
        self._consortium = consortium
        self._memory = memory
        self._copy = Mirror(copy) if copy else None
        self._replica = Replica()
        self._seen: Seen | None = None

    @property
    def state(self) -> State:
        """The state as of the newest verified checkpoint.

        Raises:
            LogError: Nothing has been verified yet.
        """
        return self._replica.state

    @property
    def policy(self) -> Policy:
        """Under which signatures this log's checkpoints are believed."""
        return self._replica.policy

    @property
    def size(self) -> int:
        """How many entries are verified."""
        return self._replica.size

    @property
    def seen(self) -> tuple[Seen, ...]:
        """The newest verified checkpoint: what this node's next statement vouches for."""
        return (self._seen,) if self._seen else ()

    def check_carried(self, seen: Seen) -> None:
        """Check that what was verified here continues from a checkpoint that was seen, of this log or of one before it.

        Raises:
            LogError: It does not: something is missing or another, or this history was never in that log.
        """
        _check_carried(self._replica, seen)

    def sync(self) -> int:
        """Read and verify what is new; returns how many entries that was.

        Raises:
            PeerError: The log breaks its compact, its signature, or what was seen before: sign nothing more.
            UnavailableError: The records are not served now, or nothing was ever published.
            StorageError: The memory or the copy cannot be kept.
        """
        # Before the checkpoint: another process of this home may remember a newer one while this one is read.
        remembered = self._load()
        note = self._read_checkpoint(is_first=remembered is None and self._seen is None)
        size = unverified_size(note)
        # A copy, so that nothing which a failed look has read ever counts as verified.
        replica = self._replica.copy() if size > self.size else self._replica
        entries: list[bytes] = []
        for data in read_entries(self._source, self.size, size):
            replica.add(data)
            if self._copy is not None:
                entries.append(data)
        if replica.state.consortium != self._consortium:
            raise RuleError(f"consortium: wanted {self._consortium}, got {replica.state.consortium}")
        checkpoint = replica.policy.open(note).checkpoint
        replica.check_checkpoint(checkpoint)
        if checkpoint.size < replica.size:
            raise LogError(f"log {checkpoint.origin}: rolled back from {replica.size} entries to {checkpoint.size}")
        if remembered is not None and remembered != self._seen:
            _check_carried(replica, remembered)
        seen = Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex())
        if seen != self._seen:
            if self._copy is not None:
                # Before the memory: nothing is ever vouched for that this host could not show again.
                self._copy.extend(entries, replica.tree, note)
            self._remember(seen, replica)
        added = replica.size - self.size
        self._replica, self._seen = replica, seen
        return added

    def _read_checkpoint(self, *, is_first: bool) -> bytes:
        try:
            return read_checkpoint(self._source)
        except LogError as e:
            if not is_first:
                raise  # what was seen once is there no more
            raise UnavailableError(
                f"log of {self._consortium}: nothing is published yet; it begins once every member has signed"
            ) from e

    def _remember(self, seen: Seen, replica: Replica) -> None:
        """Keep what was seen, unless another process of this home has seen more."""
        with locked(self._memory.with_name(self._memory.name + ".lock"), "the memory of the log", on_wait=lambda: None):
            newest = self._load()
            logs = (replica.log.name, *replica.state.origins)
            if newest is None or (newest.origin in logs and (newest.origin != seen.origin or newest.size <= seen.size)):
                write_atomic(self._memory, seen.model_dump_json().encode())

    def _load(self) -> Seen | None:
        data = read_if_there(self._memory, _MAX_MEMORY_BYTES, "the newest verified checkpoint")
        try:
            return None if data is None else Seen.model_validate_json(data)
        except ValidationError as e:
            raise StorageError(f"{self._memory}: wanted the newest verified checkpoint, got another file") from e


def _check_carried(replica: Replica, seen: Seen) -> None:
    # A replica takes unknown logs for gossip about others. What this host itself has seen is of this consortium.
    if seen.origin != replica.log.name and seen.origin not in replica.state.origins:
        raise LogError(
            f"log {replica.log.name}: {seen.size} entries were seen in log {seen.origin}, of which nothing was carried "
            "over here"
        )
    replica.check_seen(seen)
