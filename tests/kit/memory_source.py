"""Public records in memory that change as their entries do, and a follower of them."""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import sign_note
from commonweal_protocols.tlog.tiles import BUNDLE_ENTRIES, bundle_path, encode_bundle
from tests.kit.author import Author
from tests.kit.federation import ORIGIN, Federation


@dataclass
class MemorySource:
    """Public records that grow, shrink or change as ``entries`` do; signed by anyone who holds ``key``."""

    entries: list[bytes]
    key: Ed25519PrivateKey
    reads: list[str] = field(default_factory=list)
    origin: str = ORIGIN

    def checkpoint(self) -> Checkpoint:
        tree = Tree()
        for data in self.entries:
            tree.append(leaf_hash(data))
        return Checkpoint(self.origin, tree.size, tree.root(tree.size))

    def seen(self) -> Seen:
        at = self.checkpoint()
        return Seen(origin=at.origin, size=at.size, root=at.root.hex())

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        self.reads.append(path)
        if path == "checkpoint":
            return sign_note(self.checkpoint().text(), self.origin, self.key) if self.entries else None
        for n in range(len(self.entries) // BUNDLE_ENTRIES + 1):
            bundle = self.entries[n * BUNDLE_ENTRIES : (n + 1) * BUNDLE_ENTRIES]
            if bundle and path == bundle_path(n, len(bundle)):
                return encode_bundle(bundle)
        return None


def served(f: Federation) -> MemorySource:
    """The federation's own log, as it grows."""
    return MemorySource(f.entries, f.log_key, origin=f.origin)


def follower(source: MemorySource, f: Federation, home: Path) -> Follower:
    return Follower(source, f.state.consortium, home / "memory.json")


def other_history(f: Federation) -> list[bytes]:
    """As many entries as the federation's log has, its own up to the last one, which another member wrote."""
    replay = Federation()
    for data in f.entries[1:-1]:
        replay.add(data)
    say_unseeing(replay, "school")
    return replay.entries


def say_unseeing(f: Federation, who: str) -> None:
    """An entry that vouches for no checkpoint, so that it fits into any history."""
    chain = f.state.chain(public_hex(f.keys[who]))
    author = Author(f.keys[who], f.state.consortium)
    identity = Identity(institution=who, transport_key="E" * 44)
    f.add(author.sign(identity, seq=chain.seq + 1, prev=chain.leaf or None, seen=()))
