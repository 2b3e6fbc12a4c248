"""Succession: the longest history that can be found, and the log of another coordinator that begins with all of it.

The new log's first batch is every old entry, byte for byte, and then the compact that names the new coordinator: one
step, so no reader ever sees a part of it. Who may follow, and who must sign, is :mod:`amendment`'s rule. The old log's
last checkpoint stays in ``mirror/checkpoint`` with the cosignatures it had: the proof of what it had signed.

::

    HOME/mirror/                  the history that is carried over
    HOME/succession/compact.json  the compact that names this coordinator, and its signatures (see ``signing``)
    HOME/succession/sealed        the compact with the signatures that it enters the log with
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.home import CoordinatorHome
from commonweal_coordinator.log.log import Cosign, Log
from commonweal_coordinator.log.storage import Storage
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.base.errors import CommonwealError, LogError
from commonweal_protocols.base.files import read_if_there, write_atomic
from commonweal_protocols.records.entries import open_entries
from commonweal_protocols.records.mirror import Mirror
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.signature_pool import checker_for, usable_cores
from commonweal_protocols.records.source import (
    DirectorySource,
    Source,
    read_blob,
    read_bundles,
    read_checkpoint,
    unverified_size,
)
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.statement import blobs_of, open_entry
from commonweal_protocols.statements.values import Blob, Digest, Seen
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class History:
    """A consortium's whole history, verified: its entries, where they lead, and the signed checkpoint of them all."""

    entries: tuple[bytes, ...]
    replica: Replica
    note: bytes

    @property
    def founding(self) -> Compact:
        """The compact that it began with."""
        compact = open_entry(self.entries[0]).statement.predicate
        if not isinstance(compact, Compact):
            raise TypeError("a history that was verified begins with a compact")
        return compact

    @property
    def last(self) -> Seen:
        """The checkpoint, as a statement names it."""
        checkpoint = self.replica.checkpoint()
        return Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex())


def read_history(source: Source, consortium: Digest) -> History:
    """Read and verify all that a source has of a consortium's history.

    Raises:
        PeerError: It breaks its compact, its signatures, or is of another consortium; or there is none.
        LocalError: It cannot be read now.
    """
    note = read_checkpoint(source)
    size = unverified_size(note)
    bundles, replica = list(read_bundles(source, 0, size)), Replica()
    with checker_for(size, usable_cores()) as checker:
        for entry in open_entries(bundles, checker):
            replica.admit(entry)
    if replica.state.consortium != consortium:
        raise LogError(f"consortium: wanted {consortium}, got {replica.state.consortium}")
    replica.check_checkpoint(replica.policy.open(note).checkpoint)
    return History(tuple(data for bundle in bundles for data in bundle), replica, note)


def longest(histories: Mapping[str, History]) -> History:
    """Return the one of some histories that all others begin.

    Raises:
        LogError: Two of them part: the old coordinator has shown two histories, and people must say which one holds.
    """
    name, best = max(histories.items(), key=lambda h: len(h[1].entries))
    for other, history in histories.items():
        size = len(history.entries)
        if best.replica.tree.root(size) != history.replica.tree.root(size):
            raise LogError(
                f"history: {other} ({size} entries) does not begin {name} ({len(best.entries)} entries): the log has "
                "forked; decide which one holds, and leave the others out"
            )
    return best


def keep_history(home: Path, history: History) -> None:
    """Make a history the home's mirror.

    Raises:
        StorageError: It cannot be written.
    """
    Mirror(CoordinatorHome(home).mirror).extend(history.entries, history.replica.tree, history.note)


def carry_blobs(store: BlobStore, history: History, sources: Sequence[Source]) -> tuple[Blob, ...]:
    """Fetch what the entries name and is not here from anyone who has it; returns what nobody has.

    Raises:
        StorageError: This disk is full or damaged.
    """
    wanted = {b.sha256: b for entry in history.entries for b in blobs_of(entry)}
    return tuple(blob for sha256, blob in wanted.items() if not store.has(sha256) and not _fetch(store, blob, sources))


def _fetch(store: BlobStore, blob: Blob, sources: Iterable[Source]) -> bool:
    for source in sources:
        try:
            data = read_blob(source, blob)
        except CommonwealError:
            continue  # the next one may have it
        store.put_bytes(data)
        return True
    return False


class Succession:
    """What a successor's log is to begin with, once enough members have signed it."""

    def __init__(self, home: Path, consortium: Digest) -> None:
        """Read the home's mirror and the draft.

        Raises:
            PeerError: The mirror does not hold, or the draft cannot follow it.
            StorageError: One of them is not there.
        """
        self._folder = CoordinatorHome(home).succession
        self._history = read_history(DirectorySource(CoordinatorHome(home).mirror), consortium)
        self.draft = Draft(self._folder, self._history.replica.state)

    @classmethod
    def open(cls, home: Path, consortium: Digest) -> Self | None:
        """Return the succession that is drafted in a home, or None. See :meth:`__init__`."""
        return cls(home, consortium) if CoordinatorHome(home).succession.exists() else None

    def entries(self) -> list[bytes]:
        """Return the new log's first batch; the same one each time, no matter who signs later.

        Raises:
            RuleError: Signatures are missing; says whose.
            PeerError: The compact does not go on from this history.
        """
        path = self._folder / _SEALED
        envelope = read_if_there(path, MAX_ENTRY_BYTES, "the entry that begins the new log")
        if envelope is None:
            envelope = self.draft.envelope()
            self._history.replica.check(envelope)
            # A batch may be sequenced and still wait for its witnesses. With one more signature, the next try would
            # be another entry.
            write_atomic(path, envelope)
        return [*self._history.entries, envelope]


def begin_log(
    storage: Storage, lock: Path, origin: str, key: Ed25519PrivateKey, cosign: Cosign, entries: Sequence[bytes]
) -> Log:
    """Return a log that begins with these entries, as one step: the one place where a log comes into being.

    After a crash, or where it was not cosigned, the same call again continues.

    Raises:
        UnavailableError: Too few witnesses answer.
        StorageError: It cannot be written; see :class:`Log`.
    """
    make = Log.open if lock.exists() else Log.create
    opened = make(storage, lock, origin, key, cosign)
    try:
        opened.append(entries)
    except CommonwealError:
        opened.close()
        raise
    return opened
