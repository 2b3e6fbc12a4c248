"""Blobs on disk, each under the SHA-256 of its bytes: written once, checked, then never changed.

::

    blob/<sha256>             complete: digest checked, durable, mode 0444; what the public records serve
    .partial/<key>/<sha256>   what a member has sent so far of a blob that is not complete; nobody reads it

A name under ``blob/`` never holds other bytes than its digest says, whatever crashes. An unfinished upload survives a
broken connection, a full disk and a restart, and continues where it stopped. Each member has few unfinished uploads,
each of them no larger than declared, in a folder of its own: no member can spoil or crowd out another's. The digest is
taken of what lies on the disk, not of what went by, so that it also covers what earlier attempts left.

What it does not do: decide who may upload (``exchange``), or delete complete blobs, which records may name for ever.
How many complete blobs a member may add is therefore bounded only by the reserve of free space.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from commonweal_protocols.base.canonical import parse_digest
from commonweal_protocols.base.errors import BlobError, RuleError, StorageError, UnavailableError
from commonweal_protocols.base.files import sync_directory, write_atomic
from commonweal_protocols.statements.values import Blob, Digest, PublicKey

MAX_PARTIALS = 4
"""Unfinished uploads for each member key."""
STALE_SECONDS = 3600.0
"""An unfinished upload that has been idle for longer gives its place to a new one."""
_STRIPES = 64


class BlobStore:
    """One folder of blobs. Thread-safe; one process at a time.

    Args:
        directory: The public folder; created if need be.
        min_free_bytes: Nothing is stored that would leave less than this on the disk.
        write: ``os.write``, or a faulty one.
    """

    def __init__(
        self, directory: Path, *, min_free_bytes: int = 0, write: Callable[[int, memoryview], int] = os.write
    ) -> None:
        self._blobs = directory / "blob"
        self._partials = directory / ".partial"
        self._min_free_bytes = min_free_bytes
        self._write = write
        # A blob's stripe is held while its partials or its final name change; _places while a member's are counted.
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))
        self._places = threading.Lock()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"{self._blobs}: cannot be made: {e.strerror}") from e

    # -- complete blobs

    def path(self, sha256: Digest) -> Path:
        """Return where a blob lies, or would lie. The one place where a peer's text becomes a path.

        Raises:
            MalformedError: Not 64 lower-case hex digits.
        """
        parse_digest(sha256)
        return self._blobs / sha256

    def has(self, sha256: Digest) -> bool:
        """Whether the blob is complete.

        Raises:
            MalformedError: Not 64 lower-case hex digits.
        """
        return self.path(sha256).is_file()

    def open(self, sha256: Digest) -> BinaryIO:
        """Open a complete blob for reading; the caller closes it.

        Raises:
            BlobError: It is not here.
            StorageError: It cannot be read.
        """
        path = self.path(sha256)
        try:
            return path.open("rb")
        except FileNotFoundError as e:
            raise BlobError(f"blob {sha256}: not here") from e
        except OSError as e:
            raise StorageError(f"{path}: cannot be read: {e.strerror}") from e

    def read(self, sha256: Digest) -> bytes:
        """Return a complete blob's bytes, their digest checked again.

        Raises:
            BlobError: It is not here.
            StorageError: It cannot be read, or the disk has changed it.
        """
        with self.open(sha256) as f:
            try:
                data = f.read()
            except OSError as e:
                raise StorageError(f"{f.name}: cannot be read: {e.strerror}") from e
        if (got := hashlib.sha256(data).hexdigest()) != sha256:
            raise StorageError(
                f"{self.path(sha256)}: wanted digest {sha256}, got {got}; the disk has changed it;"
                " restore it from a mirror"
            )
        return data

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes of our own, durably; the same bytes again is harmless.

        Raises:
            StorageError: The disk is full.
        """
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        if not self.has(blob.sha256):
            self._require_space(self.path(blob.sha256), len(data))
            write_atomic(self.path(blob.sha256), data, mode=0o444)
        return blob

    # -- uploads

    def received_bytes(self, sha256: Digest) -> int:
        """Return how much is here of a blob: all of it, or the longest unfinished upload, or 0.

        Raises:
            MalformedError: Not 64 lower-case hex digits.
        """
        parse_digest(sha256)
        found = [_size(self.path(sha256)), *(_size(p) for p in self._partials.glob(f"*/{sha256}"))]
        return max(n or 0 for n in found)

    def begin(self, owner: PublicKey, blob: Blob) -> int:
        """Take a place for an upload, or find the one that ``owner`` has begun; returns the bytes held so far.

        Args:
            owner: The member's key; the caller has verified its permit for ``blob``.
            blob: Digest and size as permitted.

        Raises:
            BlobError: A complete blob of this digest has another size.
            RuleError: The member has too many unfinished uploads.
            StorageError: There is no room for the rest of it.
        """
        partial = self._partial(owner, blob.sha256)
        with self._stripe(blob.sha256):
            if self._is_complete(blob):
                return blob.size_bytes
            received = _size(partial)
            self._require_space(partial, blob.size_bytes - (received or 0))
            if received is None:
                with self._places:
                    self._take_place(partial)
            return received or 0

    def append(self, owner: PublicKey, blob: Blob, offset: int, data: bytes) -> int:
        """Add bytes to an upload; returns the bytes held now.

        Bytes that are here already are skipped, so that two uploads of one blob by one member help each other. Fewer
        bytes held than ``offset + len(data)`` means that the upload was taken away meanwhile: begin again.

        Raises:
            BlobError: More bytes than declared; nothing of ``data`` is kept.
            StorageError: The disk is full. What was held stays, and the upload can go on later.
        """
        if (end := offset + len(data)) > blob.size_bytes:
            raise BlobError(f"blob {blob.sha256}: wanted {blob.size_bytes} bytes, got {end} or more")
        partial = self._partial(owner, blob.sha256)
        with self._stripe(blob.sha256):
            if self._is_complete(blob):
                return blob.size_bytes
            received = _size(partial) or 0
            if not offset <= received < end:
                return received
            self._require_space(partial, end - received)
            rest = memoryview(data)[received - offset :]
            try:
                fd = os.open(partial, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
                try:
                    while rest:
                        rest = rest[self._write(fd, rest) :]
                finally:
                    os.close(fd)
            except FileNotFoundError:
                return 0
            except OSError as e:
                raise StorageError(
                    f"{partial}: cannot be written: {e.strerror}; needed {len(rest)} bytes, {self._free()} are free"
                ) from e
            return end

    def finish(self, owner: PublicKey, blob: Blob) -> None:
        """Check a fully received upload and give it its name, durably.

        Raises:
            BlobError: Its bytes are not what its name says; the upload is deleted.
            StorageError: It cannot be made durable.
            UnavailableError: The upload was taken away meanwhile: begin again.
        """
        partial = self._partial(owner, blob.sha256)
        with self._stripe(blob.sha256):
            if self._is_complete(blob):
                return
            try:
                with partial.open("rb") as f:
                    os.fsync(f.fileno())
                    got, size = hashlib.file_digest(f, "sha256").hexdigest(), f.tell()
                    if (got, size) != (blob.sha256, blob.size_bytes):
                        partial.unlink()
                        raise BlobError(
                            f"blob: wanted {blob.size_bytes} bytes of digest {blob.sha256}, got {size} of {got};"
                            " send it again from the start"
                        )
                    os.fchmod(f.fileno(), 0o444)
                # The commit point: before it the upload is unfinished, after it the blob is here for everybody.
                os.rename(partial, self.path(blob.sha256))
                sync_directory(self._blobs)
                # What other members had begun of the same blob is of no use any more.
                for other in self._partials.glob(f"*/{blob.sha256}"):
                    other.unlink(missing_ok=True)
            except FileNotFoundError as e:
                raise UnavailableError(f"{partial}: taken away meanwhile") from e
            except OSError as e:
                raise StorageError(f"{partial}: cannot be finished: {e.strerror}") from e

    def _partial(self, owner: PublicKey, sha256: Digest) -> Path:
        parse_digest(owner)
        parse_digest(sha256)
        return self._partials / owner / sha256

    def _stripe(self, sha256: Digest) -> threading.Lock:
        return self._stripes[int(sha256[:8], 16) % _STRIPES]

    def _is_complete(self, blob: Blob) -> bool:
        size = _size(self.path(blob.sha256))
        if size is not None and size != blob.size_bytes:
            raise BlobError(
                f"blob {blob.sha256}: wanted the size {size} of the blob that is here, got {blob.size_bytes}"
            )
        return size is not None

    def _take_place(self, partial: Path) -> None:
        """Make an empty partial, in the place of the member's stalest one where it has no place left."""
        try:
            self._partials.mkdir(mode=0o700, exist_ok=True)
            partial.parent.mkdir(mode=0o700, exist_ok=True)
            # An upload may finish, and so vanish from the folder, while this looks at it.
            found = [(p.stat().st_mtime, p) for p in partial.parent.iterdir()]
            if len(found) >= MAX_PARTIALS:
                written_at, stalest = min(found)
                if (idle := time.time() - written_at) < STALE_SECONDS:
                    raise RuleError(
                        f"blob {partial.name}: wanted at most {MAX_PARTIALS} unfinished uploads for each member, got"
                        f" one more; finish one, or wait {STALE_SECONDS - idle:.0f} s for the stalest to give way"
                    )
                stalest.unlink(missing_ok=True)
            partial.touch(mode=0o600)
        except FileNotFoundError as e:
            raise UnavailableError(f"{partial.parent}: changed meanwhile; try again") from e
        except OSError as e:
            raise StorageError(f"{partial}: cannot be made: {e.strerror}") from e

    def _free(self) -> int:
        stat = os.statvfs(self._blobs)
        return stat.f_bavail * stat.f_frsize

    def _require_space(self, path: Path, needed: int) -> None:
        if (free := self._free()) - needed < self._min_free_bytes:
            raise StorageError(
                f"{path}: wanted {needed} bytes beside a reserve of {self._min_free_bytes}, got {free} bytes free;"
                " make room, then the upload can go on"
            )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
