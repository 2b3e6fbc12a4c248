"""The sequencer of one log: entries in, signed checkpoints and proofs out, and no crash may break a promise.

Guarantees: what :meth:`Log.append` has answered is on disk, in a tree whose root is signed, and every later tree begins
with that one. The order of writes is Sunlight's::

    1. stage     the batch's new tiles, in one file, durably
    2. commit    compare-and-swap the signed checkpoint in the lock database
    3. apply     write the tiles, publish the checkpoint, drop what is superseded, drop the staged file

A crash before 2 leaves nothing that anybody saw. A crash after 2 is repaired at the next start by the same ``_apply``.
The store (``directory``) is cheap and public; the lock database is tiny, private and must never come from a backup: it
is what tells a store that was rolled back from one that is whole. The log does not look into entries, knows no clock
and no witness, and has one writer.
"""

import fcntl
import os
import shutil
import sqlite3
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.checkpoint import Checkpoint, check_origin, open_checkpoint
from commonweal_protocols.errors import ConfigError, MalformedError, PeerError, StorageError
from commonweal_protocols.files import sync_directory
from commonweal_protocols.merkle import EMPTY_ROOT, HASH_BYTES, Frontier, Tree, leaf_hash
from commonweal_protocols.note import make_verifier, sign_note
from commonweal_protocols.proof import format_proof
from commonweal_protocols.tiles import (
    MAX_ENTRY_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    bundle_path,
    encode_bundle,
    new_tiles,
    parse_bundle,
    tile_path,
)

_STAGING = "staging"


class Storage(Protocol):
    """The store's disk. Paths are relative. There is one caller at a time, and it never retries after StorageError.

    Every method that writes is durable on return: power may fail right after it. After a StorageError it is unknown
    whether the effect is there; the next start finds out.
    """

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None where there is no such file."""

    def stage(self, path: str, data: bytes) -> None:
        """Write a private file, over whatever is there.

        Raises:
            OSError: Nothing is kept (the disk is full, say); another try is allowed.
            StorageError: See above.
        """

    def staged(self) -> list[str]:
        """Return the paths of all staged files, and of whatever else a crash has left among them."""

    def create(self, files: Mapping[str, bytes]) -> None:
        """Write immutable public files, each whole or not at all. The same bytes again are no error; others are."""

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

    def read(self, path: str) -> bytes | None:
        """See :class:`Storage`."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"{self._root / path}: cannot be read: {e.strerror}") from e

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
            return [f"{_STAGING}/{name}" for name in sorted(os.listdir(self._root / _STAGING))]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StorageError(f"{self._root / _STAGING}: cannot be read: {e.strerror}") from e

    def create(self, files: Mapping[str, bytes]) -> None:
        """See :class:`Storage`."""
        missing: dict[str, bytes] = {}
        for path, data in files.items():
            existing = self.read(path)
            if existing is None:
                missing[path] = data
            elif existing != data:
                raise StorageError(
                    f"{self._root / path}: exists with other bytes; a published file never changes: "
                    "mend the disk or restore this file"
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
            self._ensure_directory(self._root / _STAGING, mode=0o700)
            for i, (path, data) in enumerate(files.items()):
                temporary[path] = self._root / _STAGING / f"writing-{i}"
                temporary[path].unlink(missing_ok=True)
                _write_file(temporary[path], data, mode)
                self._ensure_directory((self._root / path).parent, mode=0o755)
            for path in files:
                os.replace(temporary[path], self._root / path)
        except OSError as e:
            raise StorageError(
                f"{self._root}: {len(files)} files cannot be written: {e.strerror}; "
                "nothing is lost: mend that (free space, say) and start again"
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
            raise StorageError(f"{path}: cannot be made durable: {e.strerror}; check the disk") from e


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
            raise StorageError(f"{path}: cannot be made durable: {e.strerror}; check the disk") from e
    finally:
        os.close(fd)


class LockDatabase:
    """The newest signed checkpoint, in an SQLite file of its own: the log's one source of truth.

    Whoever opens it holds an flock on the file beside it, so a second coordinator on the same log is told at once. The
    kernel drops the flock with the process. SQLite's own exclusive mode would need no second file, but it stops
    SQLite from reading the file anew, and then the compare-and-swap would be no net for the case that the lock fails.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise StorageError(f"{path}: wanted the log's lock database, got no such file; was the log created?")
        try:
            self._guard = os.open(path.with_name(path.name + ".flock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise StorageError(f"{path}.flock: cannot be opened: {e.strerror}") from e
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._connection = _connect(path)
        except BlockingIOError as e:
            os.close(self._guard)
            raise StorageError(f"{path}: another process has this log open; a log has one writer") from e
        except (OSError, sqlite3.Error) as e:
            os.close(self._guard)
            raise StorageError(f"{path}: the lock database cannot be opened: {e}") from e

    @staticmethod
    def create(path: Path, note: bytes) -> None:
        """Make the file with a first checkpoint, whole or not at all.

        Raises:
            StorageError: It exists, or cannot be written.
        """
        temporary = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            temporary.touch(0o600)
            with closing(_connect(temporary)) as connection:
                connection.execute(
                    "CREATE TABLE checkpoint (only INTEGER PRIMARY KEY CHECK (only = 0), note BLOB NOT NULL) STRICT"
                )
                connection.execute("INSERT INTO checkpoint VALUES (0, ?)", (note,))
            try:
                os.link(temporary, path)  # unlike a rename, never over an existing one
            finally:
                temporary.unlink()
            sync_directory(path.parent)
        except FileExistsError as e:
            raise StorageError(f"{path}: a lock database is there already; a log is created once") from e
        except (OSError, sqlite3.Error) as e:
            raise StorageError(f"{path}: the lock database cannot be made: {e}") from e

    def read(self) -> bytes:
        """Return the newest signed checkpoint.

        Raises:
            StorageError: The file is damaged.
        """
        try:
            row = self._connection.execute("SELECT note FROM checkpoint").fetchone()
        except sqlite3.Error as e:
            raise StorageError(f"{self._path}: the lock database cannot be read: {e}") from e
        if row is None or not isinstance(row[0], bytes):
            raise StorageError(f"{self._path}: wanted a checkpoint in the lock database, got none")
        return row[0]

    def swap(self, old: bytes, new: bytes) -> None:
        """Put ``new`` in the place of exactly ``old``, durably.

        Raises:
            StorageError: Something else is there, or it is unknown what is there.
        """
        try:
            done = self._connection.execute("UPDATE checkpoint SET note = ? WHERE note = ?", (new, old)).rowcount
        except sqlite3.Error as e:
            raise StorageError(f"{self._path}: the lock database cannot be written: {e}") from e
        if done != 1:
            raise StorageError(f"{self._path}: another writer has moved the log; stop it, a log has one writer")

    def close(self) -> None:
        """Let another process have the log."""
        self._connection.close()
        os.close(self._guard)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw", uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    # With FULL, a commit to the write-ahead log is durable at once, after one sync. The older rollback journal wants
    # four and EXTRA: with FULL, power failing right after a commit could bring the unlinked journal back, and SQLite
    # would then undo a checkpoint whose receipts are out.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@dataclass(frozen=True, slots=True)
class Sequenced:
    """An entry's place, and the tlog-proof of it under the newest checkpoint."""

    index: int
    proof: bytes


class Log:
    """A log that is open for writing. Thread-safe; one per lock database.

    After a StorageError that leaves the disk in doubt, every call raises StorageError until the log is opened anew.
    """

    def __init__(self, storage: Storage, lock: LockDatabase, origin: str, key: Ed25519PrivateKey) -> None:
        """Recover and load; see :meth:`open`, which most callers want."""
        self._storage = storage
        self._lock = lock
        self._key = key
        self._verifier = make_verifier(origin, key.public_key())
        self._mutex = threading.Lock()  # guards everything below
        self._trouble = ""  # not empty: why this object answers no more
        self._closed = False
        self._note = b""
        self._tree = Tree()
        self._frontier = Frontier()  # the same leaves again, for a second opinion on each root
        self._index: dict[bytes, int] = {}  # leaf hash to index
        self._tail: list[bytes] = []  # the entries of the last bundle while it is partial
        self._recover()

    @classmethod
    def create(cls, directory: Path, lock_path: Path, origin: str, key: Ed25519PrivateKey) -> Self:
        """Make a new, empty log and open it. Other files in ``directory`` are left alone.

        Args:
            directory: The store, to be served as it is (but ``staging/``).
            lock_path: The lock database, outside of ``directory`` and of every backup.
            origin: The log's name for its whole life.
            key: Signs checkpoints and nothing else.

        Raises:
            ConfigError: The origin cannot name a log.
            StorageError: There is a log already, or it cannot be written.
        """
        try:
            check_origin(origin)
        except MalformedError as e:
            raise ConfigError(str(e)) from e
        for name in ("checkpoint", "tile"):
            if (directory / name).exists():
                raise StorageError(f"{directory / name}: a log is there already; a log is created once")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            sync_directory(directory.parent)
        except OSError as e:
            raise StorageError(f"{directory}: cannot be made: {e.strerror}") from e
        LockDatabase.create(lock_path, sign_note(Checkpoint(origin, 0, EMPTY_ROOT).text(), origin, key))
        return cls.open(directory, lock_path, origin, key)

    @classmethod
    def open(cls, directory: Path, lock_path: Path, origin: str, key: Ed25519PrivateKey) -> Self:
        """Open a log that was created before, and finish what a crash has cut off.

        Raises:
            StorageError: The store or the lock database was rolled back, lost or damaged, is of another log, or is
                open elsewhere. Nothing is signed then.
        """
        lock = LockDatabase(lock_path)
        try:
            return cls(DiskStorage(directory), lock, origin, key)
        except BaseException:
            lock.close()
            raise

    @property
    def size(self) -> int:
        """How many entries are published.

        Raises:
            StorageError: An earlier write has failed.
        """
        with self._mutex:
            self._check_trouble()
            return self._tree.size

    @property
    def checkpoint(self) -> bytes:
        """The published signed checkpoint.

        Raises:
            StorageError: An earlier write has failed.
        """
        with self._mutex:
            self._check_trouble()
            return self._note

    def find(self, entry: bytes) -> Sequenced | None:
        """Return the place of an entry that is in the log, or None.

        Raises:
            StorageError: An earlier write has failed, or the log is closed.
        """
        with self._mutex:
            self._check_open()
            index = self._index.get(leaf_hash(entry))
            return None if index is None else self._sequenced(index)

    def append(self, entries: Sequence[bytes]) -> list[Sequenced]:
        """Put a batch into the log as one step. What is there already keeps its old index.

        Returns:
            For each entry, in order, its place; all of it is durable and published.

        Raises:
            MalformedError: An entry is too large; nothing is added.
            StorageError: Nothing is added, and the message says whether another try is possible; or it is unknown,
                and the log must be opened anew.
        """
        for entry in entries:
            if len(entry) > MAX_ENTRY_BYTES:
                raise MalformedError(f"entry: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(entry)}")
        leaves = [leaf_hash(entry) for entry in entries]
        with self._mutex:
            self._check_open()
            fresh = {leaf: e for leaf, e in zip(leaves, entries, strict=True) if leaf not in self._index}
            if fresh:
                self._sequence(fresh)
            return [self._sequenced(self._index[leaf]) for leaf in leaves]

    def close(self) -> None:
        """Let another process have the log. ``size`` and ``checkpoint`` stay readable."""
        with self._mutex:
            if not self._closed:
                self._closed = True
                self._lock.close()

    def _check_trouble(self) -> None:
        if self._trouble:
            raise StorageError(f"log {self._verifier.name}: stopped after: {self._trouble}; start the coordinator anew")

    def _check_open(self) -> None:
        self._check_trouble()
        if self._closed:
            raise StorageError(f"log {self._verifier.name}: is closed")

    def _sequenced(self, index: int) -> Sequenced:
        return Sequenced(index, format_proof(index, self._tree.inclusion_path(index, self._tree.size), self._note))

    def _sequence(self, fresh: dict[bytes, bytes]) -> None:
        """Stage, commit, apply. ``fresh`` maps leaf hash to entry, in order."""
        old_size = self._tree.size
        # From here to the end the tree in memory is ahead of the disk. Whatever exception gets out, it must stop us.
        self._trouble = "an append that was cut off"
        try:
            for leaf in fresh:
                self._tree.append(leaf)
            checkpoint = Checkpoint(self._verifier.name, self._tree.size, self._tree.root(self._tree.size))
            tail = self._tail + list(fresh.values())
            batch = self._pack(old_size, tail)
            frontier = self._rehash(batch, checkpoint)
            note = sign_note(checkpoint.text(), self._verifier.name, self._key)
            try:
                self._storage.stage(_staging_path(checkpoint), batch)
            except OSError as e:
                self._tree.truncate(old_size)
                self._trouble = ""
                raise StorageError(
                    f"log {self._verifier.name}: a batch of {len(batch)} bytes cannot be staged: {e.strerror}; nothing "
                    "was added and nothing is lost; the same entries may be sent again"
                ) from e
            # Above, a crash loses nothing that anybody was promised. THE COMMIT POINT is the next line. Below it are
            # only actions that the next start repeats.
            self._lock.swap(self._note, note)
            self._apply(checkpoint, note, batch)
        except StorageError as e:
            if self._trouble:
                self._trouble = str(e)
            raise
        self._note, self._frontier = note, frontier
        self._tail = tail[len(tail) - checkpoint.size % TILE_WIDTH :]
        for index, leaf in enumerate(fresh, old_size):
            self._index[leaf] = index
        self._trouble = ""

    def _pack(self, old_size: int, tail: list[bytes]) -> bytes:
        """Return the staged form of a batch: uint64 old size, then each new file with its uint32 length.

        ``tail`` are the entries from the start of the first new bundle on. Paths follow from the sizes (``_paths``), so
        a staged file cannot name another place.
        """
        parts = [struct.pack(">Q", old_size)]
        first = old_size // TILE_WIDTH
        for tile in new_tiles(old_size, self._tree.size):
            files = [self._tree.nodes(TILE_HEIGHT * tile.level, tile.n * TILE_WIDTH, tile.n * TILE_WIDTH + tile.width)]
            if tile.level == 0:
                start = (tile.n - first) * TILE_WIDTH
                files.insert(0, encode_bundle(tail[start : start + tile.width]))
            for data in files:
                parts += (struct.pack(">I", len(data)), data)
        return b"".join(parts)

    def _rehash(self, batch: bytes, checkpoint: Checkpoint) -> Frontier:
        """Check the very bytes that will be published against the root that will be signed; return the new frontier.

        Logs have died of one flipped bit between hashing and writing. Once signed, it cannot be mended.
        """
        frontier = self._frontier.copy()
        old_size, files = _unpack(batch, checkpoint.size)
        for tile in new_tiles(old_size, checkpoint.size):
            if tile.level:
                continue
            entries = parse_bundle(files[bundle_path(tile.n, tile.width)], tile.width)
            leaves = [leaf_hash(entry) for entry in entries]
            if b"".join(leaves) != files[tile.path]:
                raise StorageError(f"{tile.path}: is not the hashes of its bundle before signing; check the memory")
            for leaf in leaves[max(0, old_size - tile.n * TILE_WIDTH) :]:
                frontier.append(leaf)
        if (frontier.size, frontier.root()) != (checkpoint.size, checkpoint.root):
            raise StorageError("root: two computations differ before signing; check the memory")
        return frontier

    def _apply(self, checkpoint: Checkpoint, note: bytes, batch: bytes) -> None:
        """Make a committed batch public. Normal operation and recovery both run this, so it may run twice."""
        _, files = _unpack(batch, checkpoint.size)
        self._storage.create(files)
        self._storage.replace("checkpoint", note)
        for path in files:
            if ".p/" not in path:
                # tlog-tiles lets readers expect the full tile from here on. Kept, partial tiles of a log that grows
                # by single entries would be a hundred times the entries.
                self._storage.prune(f"{path}.p")
        self._storage.discard(_staging_path(checkpoint))

    def _recover(self) -> None:
        note = self._lock.read()
        checkpoint = self._open_own("the lock database", note)
        published = self._storage.read("checkpoint")
        if published is None and checkpoint.size == 0:
            self._storage.replace("checkpoint", note)
            published = note
        if published is None:
            raise StorageError(f"checkpoint: wanted size {checkpoint.size} in the store, got none: the store is lost")
        public = self._open_own("the published checkpoint", published)
        if public.size > checkpoint.size:
            raise StorageError(
                f"lock database: is at size {checkpoint.size}, but {public.size} is published: it was rolled back "
                "(from a backup?); going on would fork the log"
            )
        if public.size == checkpoint.size and public.root != checkpoint.root:
            raise StorageError(f"log: the lock database and the store are forked at size {public.size}")
        staging_path = _staging_path(checkpoint)
        batch = self._storage.read(staging_path)
        if batch is not None:
            old_size, _ = _unpack(batch, checkpoint.size)
            if public.size not in (old_size, checkpoint.size):
                raise StorageError(
                    f"store: wanted size {old_size} or {checkpoint.size} published, got {public.size}: it was rolled "
                    "back (from a backup?); bring the missing tiles back from a mirror"
                )
            self._apply(checkpoint, note, batch)
        elif public.size < checkpoint.size:
            raise StorageError(
                f"store: size {checkpoint.size} was signed, {public.size} is published and nothing is staged: the "
                "store was rolled back (from a backup?); bring the missing tiles back from a mirror"
            )
        for path in self._storage.staged():
            self._storage.discard(path)
        self._note = note
        self._load(checkpoint)

    def _open_own(self, what: str, note: bytes) -> Checkpoint:
        try:
            return open_checkpoint(note, self._verifier)
        except PeerError as e:
            raise StorageError(f"{what}: wanted a checkpoint of {self._verifier.name} under this key: {e}") from e

    def _load(self, checkpoint: Checkpoint) -> None:
        """Read every tile, re-hash them to the signed root, and re-hash the last bundle, where the next append goes on.

        Older bundles are left to whoever replays the log.
        """
        for tile in new_tiles(0, checkpoint.size):
            data = self._read_exactly(tile.path, tile.width * HASH_BYTES)
            start = tile.n * TILE_WIDTH
            if tile.level:
                hashes = self._tree.nodes(TILE_HEIGHT * tile.level, start, start + tile.width)
                for at in range(0, len(data), HASH_BYTES):
                    if data[at : at + HASH_BYTES] != hashes[at : at + HASH_BYTES]:
                        below = tile_path(tile.level - 1, start + at // HASH_BYTES)
                        raise StorageError(f"{tile.path}: is not the hash of {below}; restore both from a mirror")
                continue
            for at in range(0, len(data), HASH_BYTES):
                leaf = data[at : at + HASH_BYTES]
                self._index.setdefault(leaf, self._tree.size)
                self._tree.append(leaf)
                self._frontier.append(leaf)
        if not checkpoint.size:
            return
        n = (checkpoint.size - 1) // TILE_WIDTH
        width = checkpoint.size - n * TILE_WIDTH
        if self._tree.root(checkpoint.size) != checkpoint.root:
            # Full tiles were held against the level above, so it is the last one; or the note is another tree's.
            raise StorageError(
                f"{tile_path(0, n, width)}: does not hash to the signed root of size {checkpoint.size}; "
                "restore it from a mirror"
            )
        path = bundle_path(n, width)
        try:
            entries = parse_bundle(self._read_exactly(path, None), width)
        except MalformedError as e:
            raise StorageError(f"{path}: {e}; restore it from a mirror") from e
        if b"".join(map(leaf_hash, entries)) != self._tree.nodes(0, n * TILE_WIDTH, checkpoint.size):
            raise StorageError(f"{path}: does not hash to its tile; restore it from a mirror")
        if width < TILE_WIDTH:
            self._tail = entries

    def _read_exactly(self, path: str, size: int | None) -> bytes:
        data = self._storage.read(path)
        if data is None or (size is not None and len(data) != size):
            got = "no such file" if data is None else f"{len(data)}"
            raise StorageError(f"{path}: wanted {size or 'its'} bytes, got {got}; restore it from a mirror")
        return data


def _staging_path(checkpoint: Checkpoint) -> str:
    return f"{_STAGING}/{checkpoint.size}-{checkpoint.root.hex()}"


def _paths(old_size: int, new_size: int) -> Iterator[str]:
    """The new files of a batch, in their order in the staged file."""
    for tile in new_tiles(old_size, new_size):
        if tile.level == 0:
            yield bundle_path(tile.n, tile.width)
        yield tile.path


def _unpack(batch: bytes, new_size: int) -> tuple[int, dict[str, bytes]]:
    """Return the old size and the files of a staged batch, by path.

    Raises:
        StorageError: It is damaged.
    """
    files: dict[str, bytes] = {}
    old_size = int.from_bytes(batch[:8], "big")
    at = 8
    for path in _paths(old_size, new_size):
        start = at + 4
        at = start + int.from_bytes(batch[at:start], "big")
        files[path] = batch[start:at]
    if at != len(batch) or not files:
        raise StorageError(f"{_STAGING}: the batch up to size {new_size} is damaged; restore it, nothing else has it")
    return old_size, files
