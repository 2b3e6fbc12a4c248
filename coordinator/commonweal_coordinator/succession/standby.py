"""A coordinator that waits: it mirrors the log and the blobs of the one in office, so that nothing goes with that one.

::

    HOME/mirror/          the verified records, as anybody reads them; ``blob`` in it is ``public/blob``
    HOME/public/blob/     what the entries name, where a coordinator serves it from
    HOME/memory.json      the newest checkpoint that was verified: no later one may contradict it

It sequences nothing and signs nothing. Once a succession is drafted, it is over: from then on the mirror is what the
new log is to begin with.
"""

import logging
import os
import signal
import threading
from pathlib import Path

from commonweal_coordinator.home import CoordinatorHome
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.status import CoordinatorStatus
from commonweal_protocols.base.errors import BlobError, CommonwealError, StorageError
from commonweal_protocols.base.status_file import now, save_status
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.source import DirectorySource, Source, read_blob, read_entries
from commonweal_protocols.statements.statement import blobs_of
from commonweal_protocols.statements.values import Blob, Digest

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


def link_blobs(home: Path) -> None:
    """Let the mirror have its blobs where a coordinator has them.

    Raises:
        StorageError: It cannot be made.
    """
    mirror = CoordinatorHome(home).mirror
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        if not (mirror / "blob").is_symlink():
            (mirror / "blob").symlink_to("../public/blob")
    except OSError as e:
        raise StorageError(f"{mirror / 'blob'}: cannot be made: {e.strerror}") from e


class Standby:
    """One mirror. Whatever interrupts it, the next step continues where the last one was."""

    def __init__(self, home: Path, source: Source, consortium: Digest, min_free_bytes: int) -> None:
        """Set up; nothing is read yet.

        Args:
            home: The home that ``home.make_home`` has made.
            source: The records of the one in office.
            consortium: Whose log this must be.
            min_free_bytes: Blobs are refused when the disk has less than this left.
        """
        files = CoordinatorHome(home)
        self._source = source
        self._mirror = files.mirror
        self._follower = Follower(source, consortium, files.memory, self._mirror)
        self._blobs = BlobStore(files.public, min_free_bytes=min_free_bytes)
        self._looked = 0
        self._missing: dict[Digest, Blob] = {}
        link_blobs(home)

    @property
    def size(self) -> int:
        """How many entries are mirrored."""
        return self._follower.size

    @property
    def missing(self) -> tuple[Digest, ...]:
        """The blobs that entries name and the source does not have."""
        return tuple(self._missing)

    def step(self) -> None:
        """Mirror what is new.

        Raises:
            PeerError: The log breaks its compact, or contradicts what was mirrored before: nothing of that is kept.
            UnavailableError: The source does not answer now.
            StorageError: This disk is full or damaged.
        """
        self._follower.sync()
        if self._looked < self.size:
            for entry in read_entries(DirectorySource(self._mirror), self._looked, self.size):
                self._missing |= {b.sha256: b for b in blobs_of(entry) if not self._blobs.has(b.sha256)}
            self._looked = self.size
        for sha256, blob in list(self._missing.items()):
            try:
                self._blobs.put_bytes(read_blob(self._source, blob))
                del self._missing[sha256]
            except BlobError as e:
                log.debug("%s", e)  # its author may still be sending it; `missing` says so


def run(home: Path, standby: Standby, consortium: Digest) -> None:
    """Mirror until SIGTERM or SIGINT, or until a succession is drafted in this home.

    Raises:
        StorageError: The status cannot be written.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    told = ""
    while not stopping.is_set() and not CoordinatorHome(home).succession.exists():
        trouble = ""
        try:
            standby.step()
        except CommonwealError as e:
            # What is mirrored stays, and a source that is gone is what this is for.
            trouble = str(e)
        if trouble and trouble != told:
            log.error("%s", trouble)
        told = trouble
        _report(home, consortium, "standby", standby, trouble)
        stopping.wait(_POLL_SECONDS)
    _report(home, consortium, "stopped", standby, told)


def _report(home: Path, consortium: Digest, phase: str, standby: Standby, trouble: str) -> None:
    status = CoordinatorStatus.model_validate(
        {
            "phase": phase,
            "consortium": consortium,
            "pid": os.getpid(),
            "written_at": now(),
            "size": standby.size,
            "why": f"blobs that are missing: {', '.join(standby.missing)}" if standby.missing else "",
            "trouble": trouble,
        }
    )
    save_status(home, status)
