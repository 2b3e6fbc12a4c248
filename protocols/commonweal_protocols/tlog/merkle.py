"""RFC 6962 Merkle trees: hashes, roots, inclusion and consistency proofs. No I/O.

::

    leaf = SHA-256(0x00 || entry)        node = SHA-256(0x01 || left || right)
    MTH(D[n]) splits at the largest power of two below n        MTH({}) = SHA-256("")

A hash is 32 bytes. A proof has exactly one length for its sizes, which is checked before anything is hashed.
"""

import hashlib
from collections.abc import Sequence

from commonweal_protocols.base.errors import LogError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_PATH = 63
"""Trees stay below 2^63 leaves, so no inclusion path is longer."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of an entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees' hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _check_hashes(what: str, *hashes: bytes) -> None:
    # A hash of another length would move the border between left and right inside node_hash.
    for h in hashes:
        if len(h) != HASH_BYTES:
            raise LogError(f"{what}: wanted hashes of {HASH_BYTES} bytes, got one of {len(h)}")


def _inner_and_border(index: int, size: int) -> tuple[int, int]:
    """Return the path's length up to where it joins the right edge of the tree, and the length from there on.

    On the inner part a sibling may lie on either side; on the border only on the left.
    """
    inner = (index ^ (size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def _climb(node: bytes, index: int, inner: Sequence[bytes], border: Sequence[bytes]) -> bytes:
    for level, sibling in enumerate(inner):
        node = node_hash(sibling, node) if index >> level & 1 else node_hash(node, sibling)
    return _climb_left(node, border)


def _climb_left(node: bytes, left_siblings: Sequence[bytes]) -> bytes:
    for sibling in left_siblings:
        node = node_hash(sibling, node)
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash ``leaf`` is number ``index`` of the tree of ``size`` leaves with ``root``.

    Raises:
        LogError: It is not proven.
    """
    if not 0 <= index < size:
        raise LogError(f"inclusion proof: wanted an index below {size}, got {index}")
    inner, border = _inner_and_border(index, size)
    if len(path) != inner + border:
        raise LogError(f"inclusion proof: wanted {inner + border} hashes for {index} in {size}, got {len(path)}")
    _check_hashes("inclusion proof", leaf, root, *path)
    if _climb(leaf, index, path[:inner], path[inner:]) != root:
        raise LogError(f"inclusion proof: entry {index} of {size} does not lead to root {root.hex()}")


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the tree of ``new_size`` leaves begins with the tree of ``old_size`` leaves.

    Raises:
        LogError: It is not proven.
    """
    what = f"consistency proof {old_size} to {new_size}"
    if not 0 <= old_size <= new_size:
        raise LogError(f"{what}: wanted the old size first")
    _check_hashes(what, old_root, new_root, *path)
    for size, root in ((old_size, old_root), (new_size, new_root)):
        if size == 0 and root != EMPTY_ROOT:
            raise LogError(f"{what}: root {root.hex()} is not the empty tree's")
    if old_size in (0, new_size):
        if path:
            raise LogError(f"{what}: wanted 0 hashes, got {len(path)}")
        if old_size == new_size and old_root != new_root:
            raise LogError(f"{what}: roots {old_root.hex()} and {new_root.hex()} of one size differ: forked")
        return
    # The proof starts at the largest whole subtree that ends the old tree. Where that subtree is the old tree itself
    # (its size is a power of two), its hash is the old root and is not sent.
    shift = (old_size & -old_size).bit_length() - 1
    inner, border = _inner_and_border(old_size - 1, new_size)
    inner -= shift
    sent = 0 if old_size == 1 << shift else 1
    if len(path) != sent + inner + border:
        raise LogError(f"{what}: wanted {sent + inner + border} hashes, got {len(path)}")
    start = path[0] if sent else old_root
    inner_path, border_path = path[sent : sent + inner], path[sent + inner :]
    index = (old_size - 1) >> shift
    in_old = [h for level, h in enumerate(inner_path) if index >> level & 1]
    if _climb_left(_climb_left(start, in_old), border_path) != old_root:
        raise LogError(f"{what}: does not lead to the old root {old_root.hex()}")
    if _climb(start, index, inner_path, border_path) != new_root:
        raise LogError(f"{what}: does not lead to the new root {new_root.hex()}")


class Frontier:
    """A tree of which only the right edge is kept: appends and the root, in O(log n) memory. Not thread-safe."""

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[bytes] = []  # hashes of the whole subtrees, largest first: one per 1-bit of size

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        node, n = leaf, self.size
        while n & 1:
            node = node_hash(self._whole.pop(), node)
            n >>= 1
        self._whole.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over all leaves."""
        if not self._whole:
            return EMPTY_ROOT
        return _climb_left(self._whole[-1], self._whole[-2::-1])

    def copy(self) -> "Frontier":
        """Return a frontier that grows on its own from here."""
        other = Frontier()
        other.size, other._whole = self.size, self._whole.copy()
        return other


class Tree:
    """A whole tree's hashes in memory (64 bytes for each leaf): any past root and any proof. Not thread-safe."""

    def __init__(self) -> None:
        # _levels[k]: the hashes of all whole subtrees of 2^k leaves, side by side.
        self._levels: list[bytearray] = [bytearray()]

    @property
    def size(self) -> int:
        """How many leaves are in."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash.

        Raises:
            LogError: Not 32 bytes.
        """
        _check_hashes("leaf", leaf)
        node, index, level = leaf, self.size, 0
        self._levels[0] += node
        while index & 1:
            node = node_hash(self.node(level, index - 1), node)
            index, level = index >> 1, level + 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node

    def copy(self) -> "Tree":
        """Return a tree that grows on its own from here."""
        other = Tree()
        other._levels = [bytearray(hashes) for hashes in self._levels]
        return other

    def truncate(self, size: int) -> None:
        """Forget every leaf from number ``size`` on.

        Raises:
            LogError: There are fewer.
        """
        self._check_size(size)
        for level, hashes in enumerate(self._levels):
            del hashes[(size >> level) * HASH_BYTES :]

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of the whole subtree number ``index`` of 2^``level`` leaves, which must exist."""
        return bytes(self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def nodes(self, level: int, start: int, end: int) -> bytes:
        """Return the hashes of the whole subtrees ``start`` to ``end`` (exclusive) of 2^``level`` leaves, joined."""
        return bytes(self._levels[level][start * HASH_BYTES : end * HASH_BYTES]) if level < len(self._levels) else b""

    def root(self, size: int) -> bytes:
        """Return the root over the first ``size`` leaves.

        Raises:
            LogError: There are fewer.
        """
        self._check_size(size)
        return self._range_root(0, size) if size else EMPTY_ROOT

    def inclusion_path(self, index: int, size: int) -> list[bytes]:
        """Return the proof that leaf ``index`` is in the first ``size`` leaves, the leaf's sibling first.

        Raises:
            LogError: There is no such leaf or no such size.
        """
        self._check_size(size)
        if not 0 <= index < size:
            raise LogError(f"inclusion proof: wanted an index below {size}, got {index}")
        path = []
        for level in range((size - 1).bit_length()):
            start = (index >> level ^ 1) << level
            # At the right edge a node may have no sibling; it then stands for its parent too.
            if start < size:
                path.append(self._range_root(start, min(start + (1 << level), size)))
        return path

    def consistency_path(self, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof that the first ``new_size`` leaves begin with the first ``old_size``.

        Raises:
            LogError: There are fewer leaves, or the old size is above the new.
        """
        self._check_size(new_size)
        if not 0 <= old_size <= new_size:
            raise LogError(f"consistency proof: wanted an old size of 0 to {new_size}, got {old_size}")
        if old_size in (0, new_size):
            return []
        path, start, end = [], 0, new_size
        while end != old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                path.append(self._range_root(middle, end))
                end = middle
            else:
                path.append(self._range_root(start, middle))
                start = middle
        # From the left end on, [start, end) is the whole old tree: the verifier holds its root already.
        if start:
            path.append(self._range_root(start, end))
        return path[::-1]

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise LogError(f"tree: wanted a size of at most {self.size}, got {size}")

    def _range_root(self, start: int, end: int) -> bytes:
        """The hash of leaves [start, end), a subtree of some tree; whole ones are looked up."""
        n = end - start
        if n & (n - 1) == 0:
            level = n.bit_length() - 1
            return self.node(level, start >> level)
        middle = start + _split(n)
        return node_hash(self._range_root(start, middle), self._range_root(middle, end))


def _split(n: int) -> int:
    """The largest power of two below ``n``, for n > 1."""
    return 1 << (n - 1).bit_length() - 1
