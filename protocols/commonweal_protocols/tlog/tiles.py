"""Tile and entry-bundle paths and bytes (C2SP tlog-tiles). The path on disk is the path over HTTP. No I/O.

::

    tile/<L>/<N>[.p/<W>]         up to 256 hashes, each of a whole subtree of 256^L leaves
    tile/entries/<N>[.p/<W>]     up to 256 x (uint16 length, big-endian || entry)

A partial tile (``.p/<W>``) holds fewer than 256, is never hashed upwards, and may be gone once the full one exists.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from commonweal_protocols.base.errors import MalformedError

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
BUNDLE_ENTRIES = TILE_WIDTH
MAX_ENTRY_BYTES = 65535
"""What a bundle's uint16 length can say."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: number ``n`` of level ``level``, with ``width`` hashes."""

    level: int
    n: int
    width: int

    @property
    def path(self) -> str:
        """Where it lies."""
        return tile_path(self.level, self.n, self.width)


def _number_path(n: int, width: int) -> str:
    if n < 0 or not 1 <= width <= TILE_WIDTH:
        raise ValueError(f"tile: wanted n >= 0 and a width of 1 to {TILE_WIDTH}, got {n} and {width}")
    groups = [f"{n % 1000:03d}"]
    while n := n // 1000:
        groups.append(f"x{n % 1000:03d}")
    suffix = "" if width == TILE_WIDTH else f".p/{width}"
    return "/".join(reversed(groups)) + suffix


def tile_path(level: int, n: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile of hashes.

    Raises:
        ValueError: There is no such tile (the caller's mistake).
    """
    if not 0 <= level <= 63:
        raise ValueError(f"tile: wanted a level of 0 to 63, got {level}")
    return f"tile/{level}/{_number_path(n, width)}"


def bundle_path(n: int, width: int = BUNDLE_ENTRIES) -> str:
    """Return the path of an entry bundle.

    Raises:
        ValueError: There is no such bundle (the caller's mistake).
    """
    return f"tile/entries/{_number_path(n, width)}"


def new_tiles(old_size: int, new_size: int) -> Iterator[Tile]:
    """Yield the tiles of a tree of ``new_size`` leaves that one of ``old_size`` does not have, level 0 first.

    Each level-0 tile goes with the bundle of the same number and width.
    """
    level = 0
    while (end := new_size >> TILE_HEIGHT * level) > 0:
        start = old_size >> TILE_HEIGHT * level
        for n in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
            width = min(TILE_WIDTH, end - n * TILE_WIDTH)
            if n * TILE_WIDTH + width > start:
                yield Tile(level, n, width)
        level += 1


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return the bundle of 1 to 256 entries.

    Raises:
        MalformedError: No entry, too many, or one that is too large.
    """
    if not 1 <= len(entries) <= BUNDLE_ENTRIES:
        raise MalformedError(f"bundle: wanted 1 to {BUNDLE_ENTRIES} entries, got {len(entries)}")
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise MalformedError(f"entry: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(entry)}")
        parts += (struct.pack(">H", len(entry)), entry)
    return b"".join(parts)


def parse_bundle(data: bytes, count: int) -> list[bytes]:
    """Return the ``count`` entries of a bundle. They are unverified until their leaf hashes are in a verified tree.

    Raises:
        MalformedError: It does not hold exactly ``count`` entries.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + 2
        # A lone byte at the end reads as a length too; then start is past the end, and so is at.
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data) or at > len(data):
            raise MalformedError(f"bundle: entry {len(entries)} is cut off")
        if len(entries) == count:
            raise MalformedError(f"bundle: wanted {count} entries, got more")
        entries.append(data[start:at])
    if len(entries) != count:
        raise MalformedError(f"bundle: wanted {count} entries, got {len(entries)}")
    return entries
