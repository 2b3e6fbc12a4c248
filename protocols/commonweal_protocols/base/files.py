"""Small files: read whole and bounded, replaced in one step, and locks between processes.

A file is replaced so that a reader, or a crash, meets the old bytes or the new ones, never a mixture.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commonweal_protocols.base.errors import CommonwealError, StorageError

_PIECE_BYTES = 1 << 16


def read_if_there(
    path: Path,
    max_bytes: int,
    wanted: str,
    *,
    error: type[CommonwealError] = StorageError,
    too_large: type[CommonwealError] | None = None,
) -> bytes | None:
    """Return a file's bytes, or None where there is no such file.

    Args:
        path: The file; a pipe will do.
        max_bytes: No more than one byte beyond these is ever read.
        wanted: What the file is, for the message.
        error: What is raised: :class:`ConfigError` for a file that a person names, say.
        too_large: What is raised for a larger file; None: ``error``. Somebody else's file is their fault.

    Raises:
        error: It cannot be read, or is larger.
    """
    chunks: list[bytes] = []
    left = max_bytes + 1
    try:
        with path.open("rb") as f:
            # A read takes the memory that it asks for: as much as the file says it has, and pieces if it has more.
            piece = os.fstat(f.fileno()).st_size + 1
            while left and (chunk := f.read(min(left, piece))):
                chunks.append(chunk)
                left -= len(chunk)
                piece = _PIECE_BYTES
    except FileNotFoundError:
        return None
    except OSError as e:
        raise error(f"{path}: wanted {wanted}, got a file that cannot be read: {e.strerror}") from e
    if not left:
        raise (too_large or error)(f"{path}: wanted {wanted} of at most {max_bytes} bytes, got more")
    return b"".join(chunks)


def read_bounded(
    path: Path,
    max_bytes: int,
    wanted: str,
    *,
    error: type[CommonwealError] = StorageError,
    too_large: type[CommonwealError] | None = None,
    if_missing: str = "",
) -> bytes:
    """Return the bytes of a file that has to be there; see :func:`read_if_there`.

    Args:
        path: See there.
        max_bytes: See there.
        wanted: See there.
        error: See there.
        too_large: See there.
        if_missing: What to do where there is no such file; for people.

    Raises:
        error: There is none, it cannot be read, or it is larger.
    """
    data = read_if_there(path, max_bytes, wanted, error=error, too_large=too_large)
    if data is None:
        raise error(f"{path}: wanted {wanted}, got no such file" + (f"; {if_missing}" if if_missing else ""))
    return data


@contextmanager
def locked(path: Path, what: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock between processes for the length of the block; the kernel drops it with the process.

    Args:
        path: The lock's own file (mode 0600), made if there is none and never removed.
        what: What the lock guards, for the message.
        on_wait: Called once before waiting for another process; None: another process is an error.

    Raises:
        StorageError: Another process holds it, or there can be no such lock.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                if on_wait is None:
                    raise StorageError(
                        f"{path}: wanted {what} for this process alone, got another at work; wait for it or stop it"
                    ) from e
                on_wait()
                fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
    except OSError as e:
        raise StorageError(f"{path}: wanted a lock on {what}, got none: {e.strerror}") from e
    try:
        yield
    finally:
        os.close(fd)


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
            # Where a link leads there (:func:`show_folder`), the folder goes, and then the link.
            os.replace(path.resolve(), away)
            sync_directory(path.parent)
        if path.is_symlink():
            path.unlink()
            sync_directory(path.parent)
    except OSError as e:
        raise StorageError(f"{path}: wanted to move it to {away}: {e.strerror}") from e


def show_folder(link: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside, and have ``link`` lead to it in one step: a reader finds the old one or the new one, whole.

    The folders lie in ``<link>.versions``, named by what is in their files. The one that was shown before stays
    until the next time, for those who read it; older ones are removed.

    Raises:
        StorageError: The disk is full or the folder cannot be written; the old one is still shown.
    """
    versions = link.with_name(f"{link.name}.versions")
    aside, following = versions / "open", link.with_name(f"{link.name}.next")
    try:
        versions.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        digest = hashlib.sha256()
        for path in sorted(aside.iterdir()):
            with path.open("rb") as f:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(f, "sha256").digest())
                os.fsync(f.fileno())
        shown = versions.resolve() / digest.hexdigest()[:16]
        if shown.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, shown)
        kept = {shown, link.resolve()}
        following.unlink(missing_ok=True)
        following.symlink_to(Path(versions.name) / shown.name, target_is_directory=True)
        if link.is_dir() and not link.is_symlink():
            os.replace(link, versions / "before")  # a folder of an earlier version, which made no links
        os.replace(following, link)
        sync_directory(link.parent)
        for old in versions.iterdir():
            if old.resolve() not in kept:
                shutil.rmtree(old)
    except OSError as e:
        raise StorageError(f"{link}: wanted to show another folder there: {e.strerror or e}") from e


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
