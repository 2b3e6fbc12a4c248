"""Where a log lies: a public folder that is cheap, and a lock database that is the one source of truth.

The folder can be copied, served and restored from a mirror; the database holds the newest signed checkpoint and must
never come from a backup. ``Storage`` and ``LockDatabase`` say what is durable when a call returns; in what order they
are called, and what a crash between two calls means, is ``log``'s concern.
"""

import os
import shutil
import sqlite3
from collections.abc import Mapping, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from commonweal_protocols.base.durable_database import create_database, open_database
from commonweal_protocols.base.errors import LogError, StorageError
from commonweal_protocols.base.files import locked, read_if_there, sync_directory

STAGING = "staging"
"""The private folder below the public one; it is never served."""
_MAX_FILE_BYTES = 256 << 20
"""Far more than a tile, a bundle or a batch; as of an object in a bucket."""


class InconsistentError(StorageError):
    """The store or the lock database is not what was signed last: rolled back, lost, damaged. A person must fix it."""


class UnsyncedError(StorageError):
    """The kernel could not make a write durable.

    Linux says so once and then takes the lost pages for clean, so neither a second sync nor a read tells what the disk
    holds: this process must not go on from what it would find.
    """


class Storage(Protocol):
    """Where the store's files lie. Paths are relative.

    There is one writer at a time, and it never retries after StorageError; ``read`` may be called beside it. Every
    method that writes is durable on return: power may fail right after it. After a StorageError it is unknown whether
    the effect is there; the next opening finds out.
    """

    def begin(self) -> None:
        """Make the place for a new log. Other files in it are left alone.

        Raises:
            StorageError: A log is there already, or it cannot be made.
        """

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None where there is no such file."""

    def stage(self, path: str, data: bytes) -> None:
        """Write a private file, over whatever is there.

        Raises:
            OSError: Nothing is kept that anybody would look at (the disk is full, say); another try is allowed.
            StorageError: See above.
        """

    def staged(self) -> list[str]:
        """Return the paths of all staged files, and of whatever else a crash has left among them."""

    def create(self, files: Mapping[str, bytes]) -> None:
        """Write immutable public files, each whole or not at all. The same bytes again are no error.

        Raises:
            InconsistentError: A file is there with other bytes. It is left as it is.
            StorageError: See above.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Write a public file, whole or not at all, over whatever is there."""

    def prune(self, path: str) -> None:
        """Remove a folder of superseded files, if it is there. The one write that power may undo."""

    def discard(self, path: str) -> None:
        """Remove a staged file, if it is there. Power may undo this too."""


class DiskStorage:
    """A folder on a local disk. Files get mode 0444 (``checkpoint``: 0644) whatever the umask says."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        # Folders whose names this process has made durable. One that merely exists may have been made by a process
        # that was killed before it could.
        self._durable: set[Path] = {directory}

    def begin(self) -> None:
        """See :class:`Storage`."""
        for name in ("checkpoint", "tile"):
            if (self._root / name).exists():
                raise StorageError(f"{self._root / name}: a log is there already; a log is created once")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            sync_directory(self._root.parent)
        except OSError as e:
            raise StorageError(f"{self._root}: cannot be made: {e.strerror}") from e

    def read(self, path: str) -> bytes | None:
        """See :class:`Storage`."""
        return read_if_there(self._root / path, _MAX_FILE_BYTES, "a file of the log")

    def stage(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        target = self._root / path
        self._ensure_directory(target.parent, mode=0o700)
        try:
            _write_file(target, data, 0o600)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        self._sync_directory(target.parent)

    def staged(self) -> list[str]:
        """See :class:`Storage`."""
        try:
            return [f"{STAGING}/{name}" for name in sorted(os.listdir(self._root / STAGING))]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StorageError(f"{self._root / STAGING}: cannot be read: {e.strerror}") from e

    def create(self, files: Mapping[str, bytes]) -> None:
        """See :class:`Storage`."""
        missing: dict[str, bytes] = {}
        for path, data in files.items():
            existing = self.read(path)
            if existing is None:
                missing[path] = data
            elif existing != data:
                raise InconsistentError(
                    f"{self._root / path}: exists with other bytes; a published file never changes: "
                    "fix the disk or restore this file"
                )
        self._put(missing, 0o444)
        # Of what was there before, the bytes were durable before they got their name; the name may not be yet.
        self._sync_names(files.keys() - missing.keys())

    def replace(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        self._put({path: data}, 0o644)

    def prune(self, path: str) -> None:
        """See :class:`Storage`."""
        self._durable.discard(self._root / path)
        try:
            shutil.rmtree(self._root / path)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise StorageError(f"{self._root / path}: cannot be removed: {e.strerror}") from e

    def discard(self, path: str) -> None:
        """See :class:`Storage`."""
        try:
            (self._root / path).unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"{self._root / path}: cannot be removed: {e.strerror}") from e

    def _put(self, files: Mapping[str, bytes], mode: int) -> None:
        # First every file's bytes, then every name: the disk is asked to commit a few times instead of many.
        temporary: dict[str, Path] = {}
        try:
            # Among the staged files, so that what a crash leaves is swept at the next start and is never public.
            self._ensure_directory(self._root / STAGING, mode=0o700)
            for i, (path, data) in enumerate(files.items()):
                temporary[path] = self._root / STAGING / f"writing-{i}"
                temporary[path].unlink(missing_ok=True)
                _write_file(temporary[path], data, mode)
                self._ensure_directory((self._root / path).parent, mode=0o755)
            for path in files:
                os.replace(temporary[path], self._root / path)
        except OSError as e:
            raise StorageError(
                f"{self._root}: {len(files)} files cannot be written: {e.strerror}; "
                "nothing is lost: fix that (free space, say)"
            ) from e
        self._sync_names(files.keys())

    def _sync_names(self, paths: Set[str]) -> None:
        try:
            for parent in sorted({(self._root / path).parent for path in paths}):
                self._ensure_directory(parent, mode=0o755)
                self._sync_directory(parent)
        except OSError as e:
            raise StorageError(f"{self._root}: folders cannot be made: {e.strerror}") from e

    def _ensure_directory(self, path: Path, *, mode: int) -> None:
        if path in self._durable:
            return
        self._ensure_directory(path.parent, mode=0o755)
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        self._sync_directory(path.parent)
        self._durable.add(path)

    def _sync_directory(self, path: Path) -> None:
        try:
            sync_directory(path)
        except OSError as e:
            raise UnsyncedError(f"{path}: cannot be made durable: {e.strerror}; check the disk") from e


def _write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file durably; its name is for the caller to make durable."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(data)
        while view:
            # A short write is how a disk that is filling up begins; the next one says why.
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
        try:
            os.fsync(fd)
        except OSError as e:
            # Never tried again: the kernel may have dropped the pages by now, and would report success.
            raise UnsyncedError(f"{path}: cannot be made durable: {e.strerror}; check the disk") from e
    finally:
        os.close(fd)


class StorageSource:
    """A log's own files as public records (``records.Source``). Thread-safe, as far as the storage's ``read`` is."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """See ``records.Source``."""
        data = self._storage.read(path)
        if data is not None and len(data) > max_bytes:
            raise LogError(f"{path}: wanted at most {max_bytes} bytes, got {len(data)}")
        return data


class LockDatabase:
    """The newest signed checkpoint, in an SQLite file of its own: the log's one source of truth.

    Anyone who opens it holds an flock on the file beside it, so a second coordinator on the same log is told at once.
    The kernel drops the flock with the process. SQLite's own exclusive mode would need no second file, but it stops
    SQLite from reading the file anew, and then the compare-and-swap would be no net for the case that the lock fails.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise InconsistentError(f"{path}: wanted the log's lock database, got no such file; was the log created?")
        with ExitStack() as opening:
            opening.enter_context(locked(path.with_name(path.name + ".flock"), "the log"))
            try:
                self._connection = open_database(path)
                # If an earlier sync has failed, the kernel may show us commits that the disk does not have. This
                # writes and syncs them anew, so that whatever is read from here on is durable.
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except OSError as e:
                raise StorageError(f"{path}: the lock database cannot be opened: {e}") from e
            except sqlite3.Error as e:
                raise _sqlite_error(path, "opened", e) from e
            self._guard = opening.pop_all()

    @staticmethod
    def create(path: Path, note: bytes) -> None:
        """Make the file with a first checkpoint, whole or not at all.

        Raises:
            StorageError: It exists, or cannot be written.
        """
        table = "CREATE TABLE checkpoint (only INTEGER PRIMARY KEY CHECK (only = 0), note BLOB NOT NULL) STRICT"
        try:
            create_database(path, (table, ()), ("INSERT INTO checkpoint VALUES (0, ?)", (note,)))
        except FileExistsError as e:
            raise StorageError(f"{path}: a lock database is there already; a log is created once") from e
        except (OSError, sqlite3.Error) as e:
            raise StorageError(f"{path}: the lock database cannot be made: {e}") from e

    def read(self) -> bytes:
        """Return the newest signed checkpoint.

        Raises:
            InconsistentError: The file is damaged.
            StorageError: It cannot be read.
        """
        try:
            row = self._connection.execute("SELECT note FROM checkpoint").fetchone()
        except sqlite3.Error as e:
            raise _sqlite_error(self._path, "read", e) from e
        if row is None or not isinstance(row[0], bytes):
            raise InconsistentError(f"{self._path}: wanted a checkpoint in the lock database, got none")
        return row[0]

    def swap(self, old: bytes, new: bytes) -> None:
        """Put ``new`` in the place of exactly ``old``, durably.

        Raises:
            InconsistentError: Something else is there.
            StorageError: It is unknown what is there.
        """
        try:
            done = self._connection.execute("UPDATE checkpoint SET note = ? WHERE note = ?", (new, old)).rowcount
        except sqlite3.Error as e:
            raise _sqlite_error(self._path, "written", e) from e
        if done != 1:
            raise InconsistentError(f"{self._path}: another writer has moved the log; stop it, a log has one writer")

    def close(self) -> None:
        """Let another process have the log."""
        self._connection.close()
        self._guard.close()


def _sqlite_error(path: Path, action: str, e: sqlite3.Error) -> StorageError:
    # The low byte is the kind, the one above says at which call: at a write or a sync, it does not matter which.
    code = getattr(e, "sqlite_errorcode", None)
    kind: type[StorageError] = StorageError
    if code is not None and code & 0xFF == sqlite3.SQLITE_IOERR:
        kind = UnsyncedError
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        kind = InconsistentError
    return kind(f"{path}: the lock database cannot be {action}: {e}")
