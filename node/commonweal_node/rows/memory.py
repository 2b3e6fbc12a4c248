"""What a stage remembers of earlier rows: in a file of SQLite's own that is gone at the end, whatever ends the process.

Little of it is in memory, however many rows there are. One user at a time.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commonweal_protocols.base.errors import StorageError

_SCHEMA = """
CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE signatures (number INTEGER PRIMARY KEY, signature BLOB NOT NULL);
CREATE TABLE bands (band BLOB, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;
"""
_CACHE_KIB = 16 << 10
"""Pages that SQLite keeps in memory."""


class Memory:
    """Keys, and signatures by their bands."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add(self, key: bytes) -> bool:
        """Remember a key; whether it is new."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def signatures(self, bands: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the signatures that share a band with these, each once."""
        numbers: set[int] = set()
        for band in bands:
            numbers.update(n for (n,) in self._db.execute("SELECT number FROM bands WHERE band = ?", (band,)))
        for number in sorted(numbers):
            (signature,) = self._db.execute("SELECT signature FROM signatures WHERE number = ?", (number,)).fetchone()
            yield signature

    def add_signature(self, signature: bytes, bands: Iterable[bytes]) -> None:
        """Remember a signature under its bands."""
        number = self._db.execute("INSERT INTO signatures (signature) VALUES (?)", (signature,)).lastrowid
        self._db.executemany("INSERT INTO bands VALUES (?, ?)", ((band, number) for band in bands))


@contextmanager
def open_memory() -> Iterator[Memory]:
    """Open an empty memory.

    Raises:
        StorageError: It cannot be written: the disk is full. Also from the body of a ``with``.
    """
    with open_database(None, _SCHEMA) as db:
        # Nothing of it outlives the process, so nothing is ever committed.
        db.execute("BEGIN")
        yield Memory(db)


@contextmanager
def open_database(path: Path | None, schema: str) -> Iterator[sqlite3.Connection]:
    """Open a database that its owner alone may read, each statement a step of its own; without a path a temporary one.

    Raises:
        StorageError: It cannot be read or written, or the disk is full. Also from the body of a ``with``.
    """
    try:
        if path is not None:
            # SQLite would make it readable by others.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # The empty name is SQLite's for a file of its own that it removes at the end.
        db = sqlite3.connect(path or "", isolation_level=None)
        try:
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.executescript(schema)
            yield db
        finally:
            db.close()
    except (sqlite3.Error, OSError) as e:
        raise StorageError(f"{path or 'a temporary index'}: cannot be read or written: {e}") from e
