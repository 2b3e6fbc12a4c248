"""Replaying a whole log from its public records: for a look at a consortium, where an audit's report is not wanted."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from commonweal_protocols.base.errors import LogError
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.merkle import leaf_hash


@dataclass(frozen=True, slots=True)
class LoggedCompact:
    """A version of a compact as the entry at ``index`` put it in force."""

    index: int
    leaf: Digest
    compact: Compact


def replay(source: Source) -> Replica:
    """Return the replica of all published entries, verified one by one and against the signed checkpoint.

    Raises:
        PeerError: The log breaks its compact or its signatures; or there is none.
        LocalError: The records cannot be read now.
    """
    return replay_keeping(source, ())[0]


def replay_at(source: Source, *sizes: int) -> tuple[Replica, ...]:
    """Verify a whole log, and return the replica of its first entries, for each of these numbers of them.

    Raises:
        PeerError: The log breaks its compact or its signatures, or has fewer entries.
        LocalError: The records cannot be read now.
    """
    whole, kept = replay_keeping(source, sizes)
    if missing := [size for size in sizes if size not in kept]:
        raise LogError(f"log {whole.log.name}: wanted at least {max(missing)} entries, got {whole.size}")
    return tuple(kept[size] for size in sizes)


def replay_keeping(source: Source, sizes: Collection[int]) -> tuple[Replica, dict[int, Replica]]:
    """Do both: return the replica of all entries, and by its size that of the first so many, where there are so many.

    Raises:
        PeerError: As :func:`replay`.
        LocalError: The records cannot be read now.
    """
    kept: dict[int, Replica] = {}

    def keep(replica: Replica, _: bytes) -> None:
        if replica.size in sizes:
            kept[replica.size] = replica.copy()

    return _replay(source, keep), kept


def replay_compacts(source: Source) -> tuple[Replica, dict[int, LoggedCompact]]:
    """Return the replica of all entries, and by its number each version of the compact that was ever in force.

    Raises:
        PeerError: As :func:`replay`.
        LocalError: The records cannot be read now.
    """
    versions: dict[int, LoggedCompact] = {}

    def keep(replica: Replica, data: bytes) -> None:
        compact = replica.state.compact
        if compact.version not in versions:
            versions[compact.version] = LoggedCompact(replica.size - 1, leaf_hash(data).hex(), compact)

    return _replay(source, keep), versions


def _replay(source: Source, look: Callable[[Replica, bytes], None]) -> Replica:
    """Replay a whole log; ``look`` is shown the replica after each entry, before anything of it counts as verified."""
    note = read_checkpoint(source)
    replica = Replica()
    # The size is only a bound on how much to read: the signed root decides whether it was true.
    for data in read_entries(source, 0, unverified_size(note)):
        replica.add(data)
        look(replica, data)
    replica.check_checkpoint(replica.policy.open(note).checkpoint)
    return replica
