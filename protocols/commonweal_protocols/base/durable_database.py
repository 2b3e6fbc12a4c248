"""SQLite files of what must never be forgotten: a commit is durable when it returns, and a file is made once.

Callers say in their own words what it means where one of these raises ``sqlite3.Error`` or ``OSError``.
"""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from commonweal_protocols.base.files import sync_directory


def open_database(path: Path, *, wait_seconds: float = 0) -> sqlite3.Connection:
    """Open a file that is there, for threads that take turns; each statement is a commit unless a BEGIN comes first.

    Args:
        path: The file.
        wait_seconds: For how long to wait for another process's commit.

    Raises:
        sqlite3.Error: There is none, or it cannot be opened.
    """
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        timeout=wait_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    # With FULL, a commit to the write-ahead log is durable at once, after one sync. The older rollback journal wants
    # four and EXTRA: with FULL, power failing right after a commit could bring the unlinked journal back, and SQLite
    # would then undo a commit on which somebody's signature already rests.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def create_database(path: Path, *statements: tuple[str, Sequence[bytes]]) -> None:
    """Make a file (0600) by statements with their values, durably, whole or not at all.

    Raises:
        FileExistsError: It is there already.
        OSError: It cannot be written.
        sqlite3.Error: It cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    temporary.touch(0o600)
    with closing(open_database(temporary)) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
        # Closing would do this too, but where it fails there, SQLite says nothing: the rows would stay behind in a file
        # beside the temporary one, and the database be empty.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    try:
        os.link(temporary, path)  # unlike a rename, never over an existing one
    finally:
        temporary.unlink()
    sync_directory(path.parent)
