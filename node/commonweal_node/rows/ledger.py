"""What a stage has done, and what it remembers of the rows that it saw: one SQLite file, changed in whole steps.

A shard is done when its line is committed, together with all that the stage remembers of its rows: after a crash at
any point the stage continues behind the last shard that is done, as if there had been no crash. One user at a time.
"""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commonweal_node.rows.shards import Shard
from commonweal_protocols.base.errors import StorageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS done (
    number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, rows INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    reasons TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signatures (number INTEGER PRIMARY KEY, signature BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bands (band BLOB, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
"""
_CACHE_KIB = 32 << 10
"""Pages that SQLite keeps in memory; all else of what a stage remembers lies on disk."""


@dataclass(frozen=True, slots=True)
class Done:
    """One finished shard of a stage: what came of it, and how often each reason was given."""

    shard: Shard
    reasons: Counter[str]


class Memory:
    """What a stage remembers of earlier rows. Nothing of it is kept before the shard's end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add(self, key: bytes) -> bool:
        """Remember a key; whether it is new."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def has(self, key: bytes) -> bool:
        """Whether a key is remembered."""
        return self._db.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def count(self) -> int:
        """How many keys are remembered."""
        (n,) = self._db.execute("SELECT count(*) FROM seen").fetchone()
        return int(n)

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


class Ledger(Memory):
    """A stage's file. What is not committed by :meth:`finish` or :meth:`keep_answer` is forgotten."""

    def finish(self, number: int, done: Done) -> None:
        """Commit a shard and all that was remembered since the one before: the commit point of a stage's work."""
        s = done.shard
        reasons = json.dumps(done.reasons, sort_keys=True)
        self._db.execute("INSERT INTO done VALUES (?, ?, ?, ?, ?)", (number, s.sha256, s.rows, s.size_bytes, reasons))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def done(self) -> list[Done]:
        """Return the finished shards, in order; they are the first ones, without a gap."""
        rows = self._db.execute("SELECT sha256, rows, size_bytes, reasons FROM done ORDER BY number")
        return [
            Done(Shard(sha256=sha256, rows=n, size_bytes=size), Counter(json.loads(reasons)))
            for sha256, n, size, reasons in rows
        ]

    def answer(self, key: bytes) -> str | None:
        """Return an answer that took long to make, if it is kept."""
        found = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def keep_answer(self, key: bytes, answer: str) -> None:
        """Keep an answer at once, so that no crash costs more than one.

        Only for a stage that remembers nothing else before a shard's end: it would be committed, too.
        """
        self._db.execute("INSERT INTO answers VALUES (?, ?)", (key, answer))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")


@contextmanager
def open_ledger(path: Path | None) -> Iterator[Ledger]:
    """Open a stage's ledger; without a path one that is gone afterwards.

    Raises:
        StorageError: It cannot be read or written, or the disk is full. Also from the body of a ``with``.
    """
    # The empty name is SQLite's for a file of its own that it removes at the end.
    name = "" if path is None else str(path)
    try:
        if path is not None:
            # SQLite would make it readable by others.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            db.execute("BEGIN")
            yield Ledger(db)
        finally:
            db.close()
    except (sqlite3.Error, OSError) as e:
        raise StorageError(f"{name or 'a temporary index'}: cannot be read or written: {e}") from e
