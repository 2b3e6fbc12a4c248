"""A replica: a log's tree and the consortium's state, grown together one entry at a time.

The coordinator before it sequences, a node that follows and an auditor that replays all add entries here, so all three
apply the same checks in the same order: encoding, signatures, the fold, and each author's ``seen`` against this very
history. No I/O.
"""

import functools

from commonweal_protocols.base.errors import LogError
from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Closing
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.statements.values import Digest, Seen
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.merkle import Tree
from commonweal_protocols.tlog.note import Verifier, parse_vkey
from commonweal_protocols.tlog.policy import Policy

# Asked for with every entry, and the same for a log's whole life.
_verifier = functools.lru_cache(maxsize=8)(parse_vkey)
_MAX_ROOTS = 256


class Replica:
    """Not thread-safe: its owner holds a lock, or is one thread."""

    def __init__(self) -> None:
        self._tree = Tree()
        self._state: State | None = None
        # Some that were asked for: authors who speak at one time have seen the same.
        self._roots: dict[int, Digest] = {}

    def copy(self) -> "Replica":
        """Return a replica that grows on its own from here."""
        other = Replica()
        other._tree, other._state = self._tree.copy(), self._state
        return other

    @classmethod
    def restore(cls, tree: Tree, state: State) -> "Replica":
        """Return the replica of entries that were verified before: nothing is checked here but that the two fit.

        Raises:
            LogError: The tree and the state are not of one size.
        """
        if tree.size != state.size:
            raise LogError(f"replica: wanted a tree and a state of one size, got {tree.size} and {state.size}")
        other = cls()
        other._tree, other._state = tree, state
        return other

    @property
    def tree(self) -> Tree:
        """The tree, for roots and proofs. It is the replica's own: only the replica adds to it."""
        return self._tree

    @property
    def size(self) -> int:
        """How many entries are in."""
        return self._tree.size

    @property
    def state(self) -> State:
        """The state after the newest entry.

        Raises:
            LogError: There is no entry yet.
        """
        if self._state is None:
            raise LogError("log: wanted a founded consortium, got an empty log")
        return self._state

    @property
    def log(self) -> Verifier:
        """Who signs this log's checkpoints, as the compact says."""
        return _verifier(self.state.compact.coordinator.log)

    @property
    def policy(self) -> Policy:
        """Under which signatures this log's checkpoints are believed, as the compact says."""
        return policy_of(self.state.compact)

    def checkpoint(self) -> Checkpoint:
        """The tree as it stands here; nobody has signed this."""
        return Checkpoint(self.log.name, self.size, self._tree.root(self.size))

    def check(self, data: bytes) -> tuple[Entry, State]:
        """Return the entry and the state after it, without adding it.

        Raises:
            PeerError: It does not belong here; says why.
        """
        entry = open_entry(data)
        return entry, self.judge(entry, self._state)

    def judge(self, entry: Entry, before: State | None) -> State:
        """Return the state after a verified entry that comes after ``before``; nothing is added.

        Raises:
            PeerError: The compact does not allow it there, or it vouches for another history than this one.
        """
        state = fold(before, entry)
        if entry.statement.header is not None:
            for seen in entry.statement.header.seen:
                self.check_seen(seen)
        match entry.statement.predicate:
            case Closing(checkpoint=str(note)):
                # The fold has verified its signatures; which history they are about, only the tree can say.
                shown = policy_of(state.compact).open(note.encode()).checkpoint
                self.check_seen(Seen(origin=shown.origin, size=shown.size, root=shown.root.hex()))
            case Compact(succeeds=Seen() as last):
                self.check_seen(last)
        return state

    def grow(self, entry: Entry, state: State) -> None:
        """Add an entry that :meth:`judge` has let pass, with the state that it gave."""
        self._state = state
        self._tree.append(bytes.fromhex(entry.leaf))

    def check_seen(self, seen: Seen) -> None:
        """Check a checkpoint that somebody saw against this history.

        Raises:
            LogError: This history is shorter than what was seen, or another one.
        """
        carried = self.state.origins.get(seen.origin)
        if carried is None and seen.origin != self.log.name:
            return  # another log's checkpoint: gossip for those who follow that log
        if carried is not None and seen.size > carried:
            raise LogError(
                f"log {seen.origin}: left behind: {seen.size} entries were seen there, {carried} were carried over"
            )
        if seen.size > self.size:
            raise LogError(f"log {seen.origin}: rolled back: {seen.size} entries were seen, {self.size} are here")
        if (root := self._root(seen.size)) != seen.root:
            raise LogError(f"log {seen.origin}: forked: at size {seen.size}, root {seen.root} was seen, {root} is here")

    def _root(self, size: int) -> Digest:
        if (root := self._roots.get(size)) is None:
            if len(self._roots) == _MAX_ROOTS:
                self._roots.clear()
            root = self._roots[size] = self._tree.root(size).hex()
        return root

    def add(self, data: bytes) -> Entry:
        """Check an entry and add it.

        Raises:
            PeerError: It does not belong here; the replica is as it was.
        """
        entry, state = self.check(data)
        self.grow(entry, state)
        return entry

    def admit(self, entry: Entry) -> None:
        """Add an entry whose signatures have been verified (``opening``, for many).

        Raises:
            PeerError: It does not belong here; the replica is as it was.
        """
        self.grow(entry, self.judge(entry, self._state))

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check a verified checkpoint of this log against this history.

        Raises:
            LogError: It is of another history.
        """
        self.check_seen(Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex()))
