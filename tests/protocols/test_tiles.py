"""Tiles: the specification's examples, and bundles both ways."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.tlog.tiles import (
    MAX_ENTRY_BYTES,
    Tile,
    bundle_path,
    encode_bundle,
    new_tiles,
    parse_bundle,
    tile_path,
)


@pytest.mark.parametrize(
    ("level", "n", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (0, 1234067, 256, "tile/0/x001/x234/067"),  # the specification's example
        (1, 999, 1, "tile/1/999.p/1"),
        (2, 1000, 255, "tile/2/x001/000.p/255"),
        (63, 0, 256, "tile/63/000"),
    ],
)
def test_tile_paths(level: int, n: int, width: int, path: str) -> None:
    assert tile_path(level, n, width) == path
    assert bundle_path(n, width) == path.replace(f"tile/{level}/", "tile/entries/")


@pytest.mark.parametrize(("level", "n", "width"), [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)])
def test_there_is_no_path_for_what_is_no_tile(level: int, n: int, width: int) -> None:
    with pytest.raises(ValueError, match="tile: wanted"):
        tile_path(level, n, width)


def test_a_tree_of_70000_has_the_tiles_that_the_specification_lists() -> None:
    tiles = list(new_tiles(0, 70_000))
    assert tiles == [
        *(Tile(0, n, 256) for n in range(273)),
        Tile(0, 273, 112),
        Tile(1, 0, 256),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]


def test_a_tree_of_256_has_the_tiles_that_the_specification_lists() -> None:
    assert list(new_tiles(0, 256)) == [Tile(0, 0, 256), Tile(1, 0, 1)]


def by_definition(size: int) -> set[Tile]:
    """All tiles of a tree: level l has floor(size / 256^l) hashes, 256 to a tile, and never an empty tile."""
    tiles, level = set(), 0
    while hashes := size // 256**level:
        tiles |= {Tile(level, n, 256) for n in range(hashes // 256)}
        if hashes % 256:
            tiles.add(Tile(level, hashes // 256, hashes % 256))
        level += 1
    return tiles


SIZES = st.integers(0, 2000) | st.integers(65_000, 66_500)


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES)
def test_new_tiles_are_those_that_the_smaller_tree_lacks(a: int, b: int) -> None:
    old, new = sorted((a, b))
    assert set(new_tiles(old, new)) == by_definition(new) - by_definition(old)


ENTRIES = st.lists(st.binary(max_size=300), min_size=1, max_size=256)


@settings(max_examples=60)
@given(ENTRIES)
def test_every_bundle_comes_back(entries: list[bytes]) -> None:
    assert parse_bundle(encode_bundle(entries), len(entries)) == entries


def test_a_bundle_is_lengths_and_entries() -> None:
    assert encode_bundle([b"ab", b"", b"c" * 258]) == b"\x00\x02ab" + b"\x00\x00" + b"\x01\x02" + b"c" * 258
    largest = b"x" * MAX_ENTRY_BYTES
    assert parse_bundle(b"\xff\xff" + largest, 1) == [largest]


@pytest.mark.parametrize(
    ("data", "count", "why"),
    [
        (b"", 1, "no entry"),
        (b"\x00\x01a", 2, "one entry too few"),
        (b"\x00\x01a\x00\x01b", 1, "one entry too many"),
        (b"\x00\x02a", 1, "an entry is cut off"),
        (b"\x00\x01a\x00", 1, "half a length behind"),
        (b"\x00\x01a\x00", 2, "half a length for an entry"),
        (b"\x00", 1, "half a length"),
    ],
)
def test_a_bundle_with_another_number_of_entries_is_refused(data: bytes, count: int, why: str) -> None:
    with pytest.raises(MalformedError, match="bundle"):
        parse_bundle(data, count)


@pytest.mark.parametrize("entries", [[], [b""] * 257, [b"x" * (MAX_ENTRY_BYTES + 1)]])
def test_what_no_bundle_can_hold_is_refused(entries: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        encode_bundle(entries)
