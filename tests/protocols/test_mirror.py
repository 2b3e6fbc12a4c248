"""A copy of the records: what is in it replays, in whatever steps it grew, and the old is never lost on the way."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.records.mirror import Mirror
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, bundle_path, new_tiles
from tests.kit.federation import Federation, two_rounds
from tests.kit.shelf import note_of


def grown(directory: Path, sizes: list[int]) -> tuple[list[bytes], Tree]:
    """A copy that grew in these steps."""
    entries, tree, mirror = [b"entry %d" % i for i in range(max(sizes))], Tree(), Mirror(directory)
    for size in sizes:
        first = tree.size
        for data in entries[first:size]:
            tree.append(leaf_hash(data))
        mirror.extend(entries[first:size], tree, b"of %d" % size)
    return entries, tree


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=4).map(sorted))
def test_in_whatever_steps_a_copy_grows_it_holds_every_entry_and_every_tile(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    entries, tree = grown(directory, sizes)
    source = DirectorySource(directory)
    assert list(read_entries(source, 0, tree.size)) == entries
    assert read_checkpoint(source) == b"of %d" % tree.size
    for tile in new_tiles(0, tree.size):
        start = tile.n * TILE_WIDTH
        wanted = tree.nodes(TILE_HEIGHT * tile.level, start, start + tile.width)
        assert source.read(tile.path, max_bytes=1 << 20) == wanted
    partial = list(directory.rglob("*.p/*"))
    assert len(partial) <= 2 + len(list((directory / "tile").iterdir())), "one partial bundle, one tile of each level"


def test_a_copy_replays_to_the_state_of_the_log(tmp_path: Path) -> None:
    f = two_rounds()
    tree = f.replica.tree
    Mirror(tmp_path).extend(f.entries, tree, note_of(f, f.entries))
    assert replay(DirectorySource(tmp_path)).state == f.state


def test_what_was_damaged_is_written_anew_and_what_is_gone_is_said(tmp_path: Path) -> None:
    f = two_rounds()
    mirror, note = Mirror(tmp_path), note_of(f, f.entries)
    mirror.extend(f.entries, f.replica.tree, note)
    bundle = tmp_path / bundle_path(0, len(f.entries))
    bundle.write_bytes(b"rot")
    mirror.extend(f.entries, f.replica.tree, note)
    assert replay(DirectorySource(tmp_path)).size == len(f.entries)
    bundle.unlink()
    f.say("hub", f.next_round())
    with pytest.raises(StorageError, match=r"this copy of the records is not whole: .*; move it away"):
        mirror.extend(f.entries[-1:], f.replica.tree, note)
    assert read_checkpoint(DirectorySource(tmp_path)) == note, "the old checkpoint stays until all is there"


def test_a_crash_before_the_checkpoint_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    f = Federation()
    Mirror(tmp_path).extend(f.entries, f.replica.tree, note_of(f, f.entries))
    before = (tmp_path / "checkpoint").read_bytes()
    f.announce()
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").mkdir()  # nothing can take its place
    with pytest.raises(StorageError):
        Mirror(tmp_path).extend(f.entries[1:], f.replica.tree, b"newer")
    (tmp_path / "checkpoint").rmdir()
    (tmp_path / "checkpoint").write_bytes(before)
    assert replay(DirectorySource(tmp_path)).size == 1
