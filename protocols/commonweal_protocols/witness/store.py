"""What a witness has cosigned: the newest checkpoint of each log, in one SQLite file that outlives a kill -9.

A file that is missing is an error, never a fresh start: a witness that forgets cosigns forks. A file that is *older*
than it was (a restored backup) looks like any other: nothing here can tell, so it must not be in a backup. No network,
no clock.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.durable_database import create_database, open_database
from commonweal_protocols.base.errors import StorageError

_BUSY_SECONDS = 5.0
# Only these leave the file as it was for sure, and may be better at the next try.
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})


@dataclass(frozen=True, slots=True)
class Stored:
    """The newest checkpoint that was cosigned for an origin.

    ``at`` is the cosignature's time in seconds since the epoch; ``note`` has the log's verified lines and the
    witness's.
    """

    origin: str
    size: int
    root: bytes
    at: int
    note: bytes


class Slot:
    """One origin's place in the store, while nobody else can write to it."""

    def __init__(self, connection: sqlite3.Connection, origin: str) -> None:
        self._connection = connection
        self._origin = origin
        self._old: Stored | None = None

    def read(self) -> Stored | None:
        """Return what is stored; None if nothing was cosigned yet."""
        self._old = _select(self._connection, digest_of(self._origin.encode()))
        return self._old

    def write(self, new: Stored) -> None:
        """Put ``new`` in the place of exactly what :meth:`read` returned. Durable when the block ends, not before.

        Raises:
            StorageError: Something else is there.
        """
        row = (new.origin, new.size, new.root, new.at, new.note)
        key = bytes.fromhex(digest_of(new.origin.encode()))
        if self._old is None:
            done = self._connection.execute("INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?)", (key, *row)).rowcount
        else:
            # The lock already excludes others: this is the net for the case that a file system's locks do not work.
            done = self._connection.execute(
                "UPDATE latest SET origin = ?, size = ?, root = ?, at = ?, note = ?"
                " WHERE key = ? AND size = ? AND root = ?",
                (*row, key, self._old.size, self._old.root),
            ).rowcount
        if done != 1:
            raise StorageError(f"witness store: another writer has moved {new.origin}; nothing is cosigned")


class WitnessStore:
    """The store, open. Threads and processes take turns: each read-check-write is one step among them all."""

    def __init__(self, path: Path) -> None:
        """Open a store that :meth:`create` made.

        Raises:
            StorageError: There is none, or it cannot be read.
        """
        self._path = path
        self._mutex = threading.Lock()
        self._broken = ""
        if not path.is_file():
            raise StorageError(
                f"{path}: wanted the witness's store, got no such file; a witness that lost it needs a new key and name"
            )
        try:
            self._connection = open_database(path, wait_seconds=_BUSY_SECONDS)
            self._connection.execute("SELECT count(*) FROM latest")
        except sqlite3.Error as e:
            raise StorageError(f"{path}: the witness's store cannot be opened: {e}") from e

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty store, whole or not at all.

        Raises:
            StorageError: It exists, or cannot be written.
        """
        table = (
            "CREATE TABLE latest (key BLOB PRIMARY KEY, origin TEXT NOT NULL, size INTEGER NOT NULL,"
            " root BLOB NOT NULL, at INTEGER NOT NULL, note BLOB NOT NULL) STRICT"
        )
        try:
            create_database(path, (table, ()))
        except FileExistsError as e:
            raise StorageError(f"{path}: a witness's store is there already; it is never recreated") from e
        except (OSError, sqlite3.Error) as e:
            raise StorageError(f"{path}: the witness's store cannot be made: {e}") from e

    @contextmanager
    def locked(self, origin: str) -> Iterator[Slot]:
        """Give one origin's place for a read and a write as one step. At the end of the block it is durable.

        A block that raises, or does not write, leaves the store as it was.

        Raises:
            StorageError: At the end: it could not be made durable. Nothing may be released then.
        """
        with self._mutex:
            self._check()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield Slot(self._connection, origin)
                    self._commit()
                except BaseException:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as e:
                raise self._fail(e) from e

    def read(self, origin_hash: str) -> Stored | None:
        """Return what is stored under SHA-256 of an origin, as hex; None if nothing is, or it is no such hash.

        Raises:
            StorageError: The store cannot be read.
        """
        with self._mutex:
            self._check()
            try:
                return _select(self._connection, origin_hash)
            except sqlite3.Error as e:
                raise self._fail(e) from e

    def close(self) -> None:
        """Close the file. Nothing is pending: each step was durable when it ended."""
        with self._mutex:
            self._broken = "closed"
            self._connection.close()

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _check(self) -> None:
        if self._broken:
            raise StorageError(f"{self._path}: the witness's store is not usable: {self._broken}")

    def _fail(self, error: sqlite3.Error) -> StorageError:
        # After a failed sync the kernel may call the next one a success though the bytes are gone: only a fresh start,
        # which reads the file, knows what is there.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
            self._broken = f"{error}; fix the disk and start again"
        return StorageError(f"{self._path}: the witness's store failed, nothing is cosigned: {error}")


def _select(connection: sqlite3.Connection, origin_hash: str) -> Stored | None:
    row = connection.execute(
        "SELECT origin, size, root, at, note FROM latest WHERE key = ?", (bytes.fromhex(origin_hash),)
    ).fetchone()
    return Stored(*row) if row else None
