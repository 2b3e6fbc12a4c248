"""A copy of a log's public records in a folder of our own, as any reader of records expects them (see ``records``).

Anyone who keeps one can show the whole history when the log's own host is gone. What is added has been verified by the
caller; here it only becomes durable, and in an order in which the checkpoint never names what is not there yet. Blobs
are the caller's concern.
"""

from collections.abc import Sequence
from pathlib import Path

from commonweal_protocols.base.errors import LogError, StorageError
from commonweal_protocols.base.files import read_if_there, write_atomic
from commonweal_protocols.records.source import MAX_BUNDLE_BYTES, DirectorySource, read_entries
from commonweal_protocols.tlog.merkle import Tree
from commonweal_protocols.tlog.tiles import (
    BUNDLE_ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    bundle_path,
    encode_bundle,
    new_tiles,
    tile_path,
)


class Mirror:
    """One folder, one log, one writer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def extend(self, entries: Sequence[bytes], tree: Tree, note: bytes) -> None:
        """Add a history's newest entries, and then show its checkpoint. The same again is harmless.

        Args:
            entries: The last ones of ``tree``; those before them were added earlier.
            tree: All of it, verified.
            note: The signed checkpoint of this tree, as it was published.

        Raises:
            StorageError: The folder cannot be written, or what was added earlier is not there any more.
        """
        first = tree.size - len(entries)
        held = first // BUNDLE_ENTRIES * BUNDLE_ENTRIES
        tail = [*self._read(held, first), *entries]
        for tile in new_tiles(first, tree.size):
            start = tile.n * TILE_WIDTH
            if tile.level == 0:
                bundle = encode_bundle(tail[start - held : start - held + tile.width])
                self._write(bundle_path(tile.n, tile.width), bundle)
            self._write(tile.path, tree.nodes(TILE_HEIGHT * tile.level, start, start + tile.width))
        write_atomic(self.directory / "checkpoint", note)
        self._prune(first, tree.size)

    def _read(self, start: int, end: int) -> list[bytes]:
        if start == end:
            return []
        try:
            return list(read_entries(DirectorySource(self.directory), start, end))
        except LogError as e:
            raise StorageError(f"{self.directory}: this copy of the records is not whole: {e}; move it away") from e

    def _write(self, path: str, data: bytes) -> None:
        target = self.directory / path
        if read_if_there(target, MAX_BUNDLE_BYTES, "a file of this copy of the records") != data:
            write_atomic(target, data)

    def _prune(self, old_size: int, new_size: int) -> None:
        """Drop the partial bundle and tiles that larger ones stand for now; a log that grows slowly makes many."""
        level = 0
        while (old := old_size >> TILE_HEIGHT * level) > 0:
            n, width = divmod(old, TILE_WIDTH)
            if width and new_size >> TILE_HEIGHT * level > old:
                stale = [tile_path(level, n, width)] + ([bundle_path(n, width)] if level == 0 else [])
                for path in stale:
                    try:
                        (self.directory / path).unlink(missing_ok=True)
                    except OSError as e:
                        raise StorageError(f"{self.directory / path}: cannot be removed: {e.strerror}") from e
            level += 1
