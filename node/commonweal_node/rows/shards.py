"""Shards: rows on disk in files of bounded size, each named by the SHA-256 of its bytes. Readable by their owner alone.

A shard is whole or absent, and durable once it has its name. What is read is checked against the name, so a disk that
changed a row is noticed before the row is used.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from commonweal_node.rows.row import MAX_LINE_BYTES, Row, format_row, parse_row
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import sync_directory
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Digest, Natural

SHARD_BYTES = 8 << 20
"""A shard is closed once it is as large. It is also the unit of work that a crash can cost."""
_OPEN = ".open"
"""The one file of a folder that is being written; what a crash leaves of it is written over."""


class Shard(Closed):
    """One file of rows."""

    sha256: Digest
    rows: Natural
    size_bytes: Natural


def make_private(folder: Path) -> None:
    """Create a folder that its owner alone may enter.

    Raises:
        StorageError: It cannot be created, or others may enter it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    except OSError as e:
        raise StorageError(f"{folder}: cannot be created: {e.strerror}") from e
    if mode & 0o077:
        raise StorageError(f"{folder}: wanted mode 0700, got {mode:04o}; run: chmod 700 {folder}")


def write_shards(folder: Path, lines: Iterable[bytes], max_bytes: int = SHARD_BYTES) -> Iterator[Shard]:
    """Write rows' lines and yield each shard once it is durable; no shard for no rows.

    Args:
        folder: Where they go; it has one writer at a time.
        lines: Any number, as ``format_row`` makes them; one is in memory at a time.
        max_bytes: A shard is closed once it is as large.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    left = iter(lines)
    for line in left:
        yield _write_shard(folder, line, left, max_bytes)


def write_shard(folder: Path, rows: Iterable[Row]) -> Shard:
    """Write all rows as one shard, which may be empty.

    Raises:
        StorageError: See :func:`write_shards`.
    """
    return _write_shard(folder, b"", map(format_row, rows), None)


def _write_shard(folder: Path, first: bytes, lines: Iterator[bytes], max_bytes: int | None) -> Shard:
    digest, size, count, line = hashlib.sha256(), 0, 0, first
    path = folder / _OPEN
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as f:
            while True:
                if line:
                    f.write(line)
                    digest.update(line)
                    size += len(line)
                    count += 1
                if max_bytes is not None and size >= max_bytes:
                    break
                if (following := next(lines, None)) is None:
                    break
                line = following
            f.flush()
            os.fsync(f.fileno())
        os.rename(path, folder / _name(digest.hexdigest()))
        sync_directory(folder)
    except OSError as e:
        raise StorageError(f"{folder}: a shard cannot be written: {e.strerror}") from e
    return Shard(sha256=digest.hexdigest(), rows=count, size_bytes=size)


def read_shard(folder: Path, shard: Shard) -> Iterator[Row]:
    """Yield a shard's rows.

    Raises:
        StorageError: It cannot be read, or its bytes are not what its name says; only the end can tell, so what was
            made of the rows is kept only after it.
    """
    path = folder / _name(shard.sha256)
    digest, number = hashlib.sha256(), 0
    try:
        with path.open("rb") as f:
            while line := f.readline(MAX_LINE_BYTES + 1):
                digest.update(line)
                number += 1
                yield parse_row(line, f"{path}, line {number}")
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}") from e
    if digest.hexdigest() != shard.sha256:
        raise StorageError(f"{path}: wanted the bytes of its name, got others: the disk has changed it; add it again")


def has_shard(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file is there with the size it should have."""
    try:
        return (folder / _name(shard.sha256)).stat().st_size == shard.size_bytes
    except FileNotFoundError:
        return False


def _name(sha256: str) -> str:
    return f"{sha256}.jsonl"
