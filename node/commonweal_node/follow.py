"""Following a log: a node's own verified replica, and its memory of the newest checkpoint.

What a node has once verified must stay in the log. The memory is on disk before anything is signed on the strength of
it, so a coordinator that rolls back or forks is caught even across restarts, and the node then signs nothing.
"""

from pathlib import Path

from pydantic import ValidationError

from commonweal_protocols.errors import LogError, RuleError, StorageError
from commonweal_protocols.files import write_atomic
from commonweal_protocols.policy import Policy
from commonweal_protocols.predicates import Digest, Seen
from commonweal_protocols.records import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.replica import Replica
from commonweal_protocols.state import State


class Follower:
    """One log, followed. Not thread-safe."""

    def __init__(self, source: Source, consortium: Digest, memory: Path) -> None:
        self._source = source
        self._consortium = consortium
        self._memory = memory
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

    def sync(self) -> int:
        """Read and verify what is new; returns how many entries that was.

        Raises:
            PeerError: The log breaks its compact, its signature, or what was seen before: sign nothing more.
            UnavailableError: The records are not served now.
            StorageError: The memory cannot be kept.
        """
        note = read_checkpoint(self._source)
        size = unverified_size(note)
        # A copy, so that nothing which a failed look has read ever counts as verified.
        replica = self._replica.copy() if size > self.size else self._replica
        for data in read_entries(self._source, self.size, size):
            replica.add(data)
        if replica.state.consortium != self._consortium:
            raise RuleError(f"consortium: wanted {self._consortium}, got {replica.state.consortium}")
        checkpoint = replica.policy.open(note).checkpoint
        replica.check_checkpoint(checkpoint)
        if checkpoint.size < replica.size:
            raise LogError(f"log {checkpoint.origin}: rolled back from {replica.size} entries to {checkpoint.size}")
        if self._seen is None and (remembered := self._load()) is not None:
            replica.check_seen(remembered)
        seen = Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex())
        if seen != self._seen:
            write_atomic(self._memory, seen.model_dump_json().encode())
        added = replica.size - self.size
        self._replica, self._seen = replica, seen
        return added

    def _load(self) -> Seen | None:
        try:
            return Seen.model_validate_json(self._memory.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as e:
            raise StorageError(f"{self._memory}: wanted the newest verified checkpoint, got another file") from e
