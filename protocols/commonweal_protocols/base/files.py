"""Small files replaced in one step: a reader, or a crash, meets the old bytes or the new ones, never a mixture."""

import os
import tempfile
from pathlib import Path

from commonweal_protocols.base.errors import StorageError


def sync_directory(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_away(path: Path, away: Path) -> None:
    """Move a folder, if it is there, to a place below the one that it lies in: in one step, and durably.

    Raises:
        StorageError: It cannot be moved.
    """
    try:
        away.parent.mkdir(exist_ok=True)
        if path.exists():
            os.replace(path, away)
            sync_directory(path.parent)
    except OSError as e:
        raise StorageError(f"{path}: wanted to move it to {away}: {e.strerror}") from e


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` as one step, creating folders on the way.

    Durable on return, unless the caller can do without (``durable=False``: a status that is written anew anyhow).

    Raises:
        StorageError: The disk is full or the folder cannot be written; the old file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as f:
                os.fchmod(fd, mode)
                f.write(data)
                if durable:
                    f.flush()
                    os.fsync(fd)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
        if durable:
            sync_directory(path.parent)
    except OSError as e:
        raise StorageError(f"{path}: cannot be written ({len(data)} bytes): {e.strerror}") from e
