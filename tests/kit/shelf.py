"""Public records in memory: what a coordinator would serve, or one that holds its log key and other entries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import LogError
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import sign_note
from commonweal_protocols.tlog.tiles import BUNDLE_ENTRIES, bundle_path, encode_bundle
from tests.kit.federation import Federation


def tree_of(entries: Sequence[bytes]) -> Tree:
    tree = Tree()
    for data in entries:
        tree.append(leaf_hash(data))
    return tree


@dataclass
class Shelf:
    """A source that notes what was read from it."""

    files: dict[str, bytes]
    reads: list[str] = field(default_factory=list)
    before_read: Callable[[str], None] = lambda _: None

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        self.before_read(path)
        self.reads.append(path)
        data = self.files.get(path)
        if data is not None and len(data) > max_bytes:
            raise LogError(f"{path}: wanted at most {max_bytes} bytes, got more")
        return data


def note_of(f: Federation, entries: Sequence[bytes], size: int | None = None) -> bytes:
    """The checkpoint that the log's key signs over these entries."""
    n = len(entries) if size is None else size
    return sign_note(Checkpoint(f.origin, n, tree_of(entries).root(n)).text(), f.origin, f.log_key)


def shelf(f: Federation, entries: Sequence[bytes] | None = None, note: bytes | None = None) -> Shelf:
    """Publish a federation's records, or others under its log key."""
    entries = f.entries if entries is None else entries
    files = {f"blob/{digest_of(data)}": data for data in f.blobs.values()}
    for n, first in enumerate(range(0, len(entries), BUNDLE_ENTRIES)):
        part = entries[first : first + BUNDLE_ENTRIES]
        files[bundle_path(n, len(part))] = encode_bundle(part)
    files["checkpoint"] = note_of(f, entries) if note is None else note
    return Shelf(files)


def beginning(f: Federation, size: int) -> Federation:
    """Another federation whose history begins as ``f``'s does: what it says next forks the log."""
    g = Federation(quorum=f.quorum, rule=f.rule)
    for data in f.entries[1:size]:
        g.add(data)
    g.blobs.update(f.blobs)
    return g
