"""The sequencer of one log: entries in, signed checkpoints and proofs out, and no crash may break a promise.

Guarantees: what :meth:`Log.append` has answered is on disk, in a tree whose root is signed, and every later tree begins
with that one. The order of writes is Sunlight's::

    1. stage     the batch's new tiles, in one file, durably
    2. commit    compare-and-swap the signed checkpoint in the lock database
    3. apply     write the tiles, which nobody looks for yet
    4. cosign    have witnesses sign the checkpoint, after they have checked that it extends what they signed before
    5. publish   replace the public checkpoint, drop what is superseded, drop the staged file

A crash before 2 leaves nothing that anybody saw. A crash after 2 is repaired at the next start by the same functions.
Where 4 does not succeed, readers keep the last checkpoint that had its witnesses, nothing more is sequenced, and every
later call tries again. After a failed write beyond 1 this object answers no more: what the store holds is then known
only by opening it anew, which runs the same recovery. The store is cheap and public; the lock database is tiny, private
and must never come from a backup: it is what tells a store that was rolled back from one that is whole. The log does
not look into entries, knows no clock, and has one writer.
"""

# Long because publishing and recovery run the same code, in an order that is read in one place.

import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.storage import STAGING, DiskStorage, InconsistentError, LockDatabase, Storage
from commonweal_protocols.base.errors import ConfigError, MalformedError, PeerError, StorageError, UnavailableError
from commonweal_protocols.tlog.checkpoint import Checkpoint, check_origin, open_checkpoint
from commonweal_protocols.tlog.merkle import EMPTY_ROOT, HASH_BYTES, Frontier, Tree, leaf_hash
from commonweal_protocols.tlog.note import make_verifier, sign_note
from commonweal_protocols.tlog.proof import format_proof
from commonweal_protocols.tlog.tiles import (
    MAX_ENTRY_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    bundle_path,
    encode_bundle,
    new_tiles,
    parse_bundle,
    tile_path,
)

Cosign = Callable[[Checkpoint, bytes, Callable[[int], list[bytes]]], bytes]
"""Gets a checkpoint cosigned: takes it, its note under the log's own key, and the consistency path from any older size;
returns the note with the cosignatures that are wanted, or raises UnavailableError. It may be asked again."""


def no_witness(checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
    """The :data:`Cosign` of a log without witnesses."""
    return note


@dataclass(frozen=True, slots=True)
class Sequenced:
    """An entry's place, and the tlog-proof of it under the newest checkpoint."""

    index: int
    proof: bytes


class Log:
    """A log that is open for writing. Thread-safe; one per lock database.

    After a StorageError that leaves the disk in doubt, every call raises StorageError until the log is opened anew.
    """

    def __init__(
        self, storage: Storage, lock: LockDatabase, origin: str, key: Ed25519PrivateKey, cosign: Cosign = no_witness
    ) -> None:
        """Recover and load; see :meth:`open`, which most callers want."""
        self._storage = storage
        self._lock = lock
        self._key = key
        self._verifier = make_verifier(origin, key.public_key())
        self._mutex = threading.Lock()  # guards everything below
        self._failure: StorageError | None = None  # why this object answers no more
        self._closed = False
        self._cosign = cosign
        self._note = b""  # the newest checkpoint under our own key: what the lock database holds
        self._published = b""  # the newest public one, with its cosignatures
        self._published_size = 0
        self._unpublished: list[str] = []  # the files of a batch that is committed and applied, but not public yet
        self._tree = Tree()
        self._frontier = Frontier()  # the same leaves again, for a second opinion on each root
        self._index: dict[bytes, int] = {}  # leaf hash to index
        self._tail: list[bytes] = []  # the entries of the last bundle while it is partial
        self._recover()

    @classmethod
    def create(
        cls, store: Path | Storage, lock_path: Path, origin: str, key: Ed25519PrivateKey, cosign: Cosign = no_witness
    ) -> Self:
        """Make a new, empty log and open it. Other files in the store are left alone.

        Args:
            store: A folder, or another storage; to be served as it is (but ``staging/``).
            lock_path: The lock database, on a local disk, outside of the store and of every backup.
            origin: The log's name for its whole life.
            key: Signs checkpoints and nothing else.
            cosign: Asks the witnesses.

        Raises:
            ConfigError: The origin cannot name a log.
            StorageError: There is a log already, or it cannot be written.
        """
        try:
            check_origin(origin)
        except MalformedError as e:
            raise ConfigError(str(e)) from e
        storage = DiskStorage(store) if isinstance(store, Path) else store
        storage.begin()
        LockDatabase.create(lock_path, sign_note(Checkpoint(origin, 0, EMPTY_ROOT).text(), origin, key))
        return cls.open(storage, lock_path, origin, key, cosign)

    @classmethod
    def open(
        cls, store: Path | Storage, lock_path: Path, origin: str, key: Ed25519PrivateKey, cosign: Cosign = no_witness
    ) -> Self:
        """Open a log that was created before, and finish what a crash has cut off, as far as witnesses are there.

        Raises:
            InconsistentError: The store or the lock database was rolled back, lost or damaged, or is of another log.
                Nothing is signed then.
            StorageError: It is open elsewhere, or cannot be read or written now.
        """
        lock = LockDatabase(lock_path)
        try:
            return cls(DiskStorage(store) if isinstance(store, Path) else store, lock, origin, key, cosign)
        except BaseException:
            lock.close()
            raise

    @property
    def failure(self) -> StorageError | None:
        """What has stopped this log for good; None while it answers."""
        with self._mutex:
            return self._failure

    @property
    def size(self) -> int:
        """How many entries are published.

        Raises:
            StorageError: An earlier write has failed.
        """
        with self._mutex:
            self._check_failure()
            return self._published_size

    @property
    def sequenced_size(self) -> int:
        """How many entries keep their place, though the last of them may not be public yet.

        Raises:
            StorageError: An earlier write has failed.
        """
        with self._mutex:
            self._check_failure()
            return self._tree.size

    @property
    def checkpoint(self) -> bytes:
        """The published signed checkpoint.

        Raises:
            StorageError: An earlier write has failed.
        """
        with self._mutex:
            self._check_failure()
            return self._published

    def held(self, leaves: Iterable[bytes]) -> set[bytes]:
        """Return those of some leaf hashes whose entries are sequenced.

        They keep their places whatever happens, though they may not be public yet.

        Raises:
            StorageError: An earlier write has failed, or the log is closed.
        """
        with self._mutex:
            self._check_open()
            return {leaf for leaf in leaves if leaf in self._index}

    def find(self, entry: bytes) -> Sequenced | None:
        """Return the place of an entry that is published, or None.

        Raises:
            StorageError: An earlier write has failed, or the log is closed.
        """
        with self._mutex:
            self._check_open()
            index = self._index.get(leaf_hash(entry))
            return None if index is None or index >= self._published_size else self._sequenced(index)

    def append(self, entries: Sequence[bytes]) -> list[Sequenced]:
        """Put a batch into the log, and return each entry's place with its proof. See :meth:`sequence`."""
        indices = self.sequence(entries)
        with self._mutex:
            return [self._sequenced(index) for index in indices]

    def sequence(self, entries: Sequence[bytes]) -> list[int]:
        """Put a batch into the log as one step. What is there already keeps its old index.

        Returns:
            For each entry, in order, its index; all of it is durable and published.

        Raises:
            MalformedError: An entry is too large; nothing is added.
            StorageError: Nothing is added, and the message says whether another try is possible; or it is unknown,
                and the log must be opened anew.
            UnavailableError: Too few witnesses answer. What was waiting for them already blocks the batch, which is
                then not added; else the batch is sequenced (see :meth:`held`) and the same call again publishes it.
        """
        for entry in entries:
            if len(entry) > MAX_ENTRY_BYTES:
                raise MalformedError(f"entry: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(entry)}")
        leaves = [leaf_hash(entry) for entry in entries]
        with self._mutex:
            self._check_open()
            fresh = {leaf: e for leaf, e in zip(leaves, entries, strict=True) if leaf not in self._index}
            # Nothing is built on what no witness has seen, or two histories could grow in the dark.
            self._publish()
            if fresh:
                self._sequence(fresh)
                self._publish()
            return [self._index[leaf] for leaf in leaves]

    def refresh(self) -> None:
        """Have the newest checkpoint cosigned again and published, with the witnesses' times of now.

        Raises:
            StorageError: It cannot be written; the log must be opened anew.
            UnavailableError: Too few witnesses answer; what is public stays.
        """
        with self._mutex:
            self._check_open()
            self._cosign_and_show()

    def close(self) -> None:
        """Let another process have the log. ``size`` and ``checkpoint`` stay readable."""
        with self._mutex:
            if not self._closed:
                self._closed = True
                self._lock.close()

    def _check_failure(self) -> None:
        if self._failure:
            raise StorageError(
                f"log {self._verifier.name}: stopped after: {self._failure}; nothing is taken until it is opened anew"
            )

    def _check_open(self) -> None:
        self._check_failure()
        if self._closed:
            raise StorageError(f"log {self._verifier.name}: is closed")

    def _sequenced(self, index: int) -> Sequenced:
        path = self._tree.inclusion_path(index, self._published_size)
        return Sequenced(index, format_proof(index, path, self._published))

    def _sequence(self, fresh: dict[bytes, bytes]) -> None:
        """Stage, commit, apply. ``fresh`` maps leaf hash to entry, in order."""
        old_size = self._tree.size
        # From here to the end the tree in memory is ahead of the disk. Whatever exception gets out, it must stop us.
        self._failure = StorageError("an append that was cut off")
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
                self._failure = None
                raise StorageError(
                    f"log {self._verifier.name}: a batch of {len(batch)} bytes cannot be staged: {e.strerror}; nothing "
                    "was added and nothing is lost; the same entries may be sent again"
                ) from e
            # Above, a crash loses nothing that anybody was promised. THE COMMIT POINT is the next line. Below it are
            # only actions that the next start repeats.
            self._lock.swap(self._note, note)
            self._apply(checkpoint, batch)
        except StorageError as e:
            if self._failure:
                self._failure = e
            raise
        self._note, self._frontier = note, frontier
        self._tail = tail[len(tail) - checkpoint.size % TILE_WIDTH :]
        for index, leaf in enumerate(fresh, old_size):
            self._index[leaf] = index
        self._failure = None

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

        Logs have died of one flipped bit between hashing and writing. Once signed, it cannot be fixed.
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

    def _apply(self, checkpoint: Checkpoint, batch: bytes) -> None:
        """Write a committed batch's files. Normal operation and recovery both run this, so it may run twice."""
        _, files = _unpack(batch, checkpoint.size)
        self._storage.create(files)
        self._unpublished = list(files)

    def _publish(self) -> None:
        """Have the newest checkpoint cosigned, if it is not public yet, and make it so. May run any number of times."""
        if not self._unpublished:
            return
        self._cosign_and_show()

    def _cosign_and_show(self) -> None:
        checkpoint = self._open_own("the newest checkpoint", self._note)
        note = self._cosign(checkpoint, self._note, lambda old: self._tree.consistency_path(old, checkpoint.size))
        try:
            self._storage.replace("checkpoint", note)
            self._tidy(checkpoint)
        except StorageError as e:
            self._failure = e
            raise
        self._published, self._published_size = note, checkpoint.size

    def _tidy(self, checkpoint: Checkpoint) -> None:
        """Drop what a published checkpoint has made superfluous."""
        for path in self._unpublished:
            if ".p/" not in path:
                # tlog-tiles lets readers expect the full tile from here on. Kept, partial tiles of a log that grows
                # by single entries would be a hundred times the entries.
                self._storage.prune(f"{path}.p")
        self._storage.discard(_staging_path(checkpoint))
        self._unpublished = []

    def _recover(self) -> None:
        note = self._lock.read()
        checkpoint = self._open_own("the lock database", note)
        published = self._storage.read("checkpoint")
        if published is None and checkpoint.size == 0:
            self._storage.replace("checkpoint", note)
            published = note
        if published is None:
            raise InconsistentError(
                f"checkpoint: wanted size {checkpoint.size} in the store, got none: the store is lost"
            )
        public = self._open_own("the published checkpoint", published)
        if public.size > checkpoint.size:
            raise InconsistentError(
                f"lock database: is at size {checkpoint.size}, but {public.size} is published: it was rolled back "
                "(from a backup?); going on would fork the log"
            )
        if public.size == checkpoint.size and public.root != checkpoint.root:
            raise InconsistentError(f"log: the lock database and the store are forked at size {public.size}")
        staging_path = _staging_path(checkpoint)
        batch = self._storage.read(staging_path)
        if batch is not None:
            old_size, _ = _unpack(batch, checkpoint.size)
            if public.size not in (old_size, checkpoint.size):
                raise InconsistentError(
                    f"store: wanted size {old_size} or {checkpoint.size} published, got {public.size}: it was rolled "
                    "back (from a backup?); bring the missing tiles back from a mirror"
                )
            self._apply(checkpoint, batch)
        elif public.size < checkpoint.size:
            raise InconsistentError(
                f"store: size {checkpoint.size} was signed, {public.size} is published and nothing is staged: the "
                "store was rolled back (from a backup?); bring the missing tiles back from a mirror"
            )
        for path in self._storage.staged():
            if path != staging_path:
                self._storage.discard(path)
        self._note, self._published, self._published_size = note, published, public.size
        self._load(checkpoint)
        if public.size == checkpoint.size:
            if batch is not None:
                self._tidy(checkpoint)
        else:
            # Without witnesses the log opens as it was last published; the next append asks them again.
            with suppress(UnavailableError):
                self._publish()

    def _open_own(self, what: str, note: bytes) -> Checkpoint:
        try:
            return open_checkpoint(note, self._verifier)
        except PeerError as e:
            raise InconsistentError(f"{what}: wanted a checkpoint of {self._verifier.name} under this key: {e}") from e

    def _load(self, checkpoint: Checkpoint) -> None:
        """Read every tile, re-hash them to the signed root, and re-hash the last bundle, which the next append extends.

        Older bundles are left to anyone who replays the log.
        """
        for tile in new_tiles(0, checkpoint.size):
            data = self._read_exactly(tile.path, tile.width * HASH_BYTES)
            start = tile.n * TILE_WIDTH
            if tile.level:
                hashes = self._tree.nodes(TILE_HEIGHT * tile.level, start, start + tile.width)
                for at in range(0, len(data), HASH_BYTES):
                    if data[at : at + HASH_BYTES] != hashes[at : at + HASH_BYTES]:
                        below = tile_path(tile.level - 1, start + at // HASH_BYTES)
                        raise InconsistentError(f"{tile.path}: is not the hash of {below}; restore both from a mirror")
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
            raise InconsistentError(
                f"{tile_path(0, n, width)}: does not hash to the signed root of size {checkpoint.size}; "
                "restore it from a mirror"
            )
        path = bundle_path(n, width)
        try:
            entries = parse_bundle(self._read_exactly(path, None), width)
        except MalformedError as e:
            raise InconsistentError(f"{path}: {e}; restore it from a mirror") from e
        if b"".join(map(leaf_hash, entries)) != self._tree.nodes(0, n * TILE_WIDTH, checkpoint.size):
            raise InconsistentError(f"{path}: does not hash to its tile; restore it from a mirror")
        if width < TILE_WIDTH:
            self._tail = entries

    def _read_exactly(self, path: str, size: int | None) -> bytes:
        data = self._storage.read(path)
        if data is None or (size is not None and len(data) != size):
            got = "no such file" if data is None else f"{len(data)}"
            raise InconsistentError(f"{path}: wanted {size or 'its'} bytes, got {got}; restore it from a mirror")
        return data


def _staging_path(checkpoint: Checkpoint) -> str:
    return f"{STAGING}/{checkpoint.size}-{checkpoint.root.hex()}"


def _paths(old_size: int, new_size: int) -> Iterator[str]:
    """The new files of a batch, in their order in the staged file."""
    for tile in new_tiles(old_size, new_size):
        if tile.level == 0:
            yield bundle_path(tile.n, tile.width)
        yield tile.path


def _unpack(batch: bytes, new_size: int) -> tuple[int, dict[str, bytes]]:
    """Return the old size and the files of a staged batch, by path.

    Raises:
        InconsistentError: It is damaged.
    """
    files: dict[str, bytes] = {}
    old_size = int.from_bytes(batch[:8], "big")
    at = 8
    for path in _paths(old_size, new_size):
        start = at + 4
        at = start + int.from_bytes(batch[at:start], "big")
        files[path] = batch[start:at]
    if at != len(batch) or not files:
        raise InconsistentError(
            f"{STAGING}: the batch up to size {new_size} is damaged; restore it, nothing else has it"
        )
    return old_size, files
