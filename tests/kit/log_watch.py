"""A log in a folder, followed entry by entry, with the moment at which each was first seen under a checkpoint."""

import time
from pathlib import Path
from typing import NamedTuple

from commonweal_protocols.base.errors import CommonwealError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import open_entry


class SeenEntry(NamedTuple):
    """An entry, who said it, and when it was first seen (``time.monotonic``)."""

    at: float
    author: str
    predicate: Predicate


class LogWatch:
    """Reads what is new at each look; every entry is checked as a node checks it."""

    def __init__(self, public: Path) -> None:
        self._public = public
        self._replica = Replica()
        self.entries: list[SeenEntry] = []

    def look(self) -> State | None:
        """The state now; None before the log's first entry is published.

        Raises:
            CommonwealError: The log, once begun, breaks its compact or cannot be read.
        """
        try:
            source = DirectorySource(self._public)
            size = unverified_size(read_checkpoint(source))
        except CommonwealError:
            if self._replica.size:
                raise
            return None
        if size == 0:
            return None
        now = time.monotonic()
        for data in read_entries(source, self._replica.size, size):
            entry = open_entry(data)
            self._replica.admit(entry)
            self.entries.append(SeenEntry(now, self._author(entry.signers), entry.statement.predicate))
        return self._replica.state

    def _author(self, signers: tuple[str, ...]) -> str:
        """The member that signed; the coordinator signs what has no one member, and the founding."""
        names = [m.institution for m in self._replica.state.compact.members if m.key in signers]
        return names[0] if len(names) == 1 else "coordinator"
