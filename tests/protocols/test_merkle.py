"""RFC 6962 trees: Certificate Transparency's vectors, and a second implementation written from the RFC's recursion."""

import hashlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import LogError
from commonweal_protocols.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The test tree of Certificate Transparency, from its C++ and Go repositories.
CT_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LIMIT = 70
LEAVES = [leaf_hash(f"entry {i}".encode()) for i in range(LIMIT)]


def split(n: int) -> int:
    """RFC 6962: the largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(leaves: list[bytes]) -> bytes:
    """MTH(D[n]) of RFC 6962, section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def rfc_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*rfc_path(m, leaves[:k]), mth(leaves[k:])]
    return [*rfc_path(m - k, leaves[k:]), mth(leaves[:k])]


def rfc_proof(m: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF(m, D[n], b) of section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*rfc_proof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*rfc_proof(m - k, leaves[k:], False), mth(leaves[:k])]


def tree_of(leaves: list[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


TREE = tree_of(LEAVES)
ROOTS = [mth(LEAVES[:n]) for n in range(LIMIT + 1)]


def changed(data: bytes, at: int, rng: random.Random) -> bytes:
    """``data`` with another byte at ``at``."""
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def forged(path: list[bytes], rng: random.Random) -> list[list[bytes]]:
    """Every way to change one hash of a path in one byte, to drop, double or add one, or to swap two."""
    flipped = [[*path[:i], changed(h, rng.randrange(32), rng), *path[i + 1 :]] for i, h in enumerate(path)]
    dropped = [path[:i] + path[i + 1 :] for i in range(len(path))]
    doubled = [[*path[: i + 1], *path[i:]] for i in range(len(path))]
    swapped = [[*path[:i], path[i + 1], path[i], *path[i + 2 :]] for i in range(len(path) - 1)]
    return [*flipped, *dropped, *doubled, *swapped, [*path, EMPTY_ROOT], [EMPTY_ROOT, *path]]


def refuses_inclusion(*cases: tuple[bytes, int, int, list[bytes], bytes]) -> int:
    """Check that no case is taken; return how many there were."""
    for leaf, index, size, path, root in cases:
        # pytest.raises would take most of the time.
        try:
            verify_inclusion(leaf, index, size, path, root)
        except LogError:
            continue
        pytest.fail(f"taken: leaf {index} of {size}, {len(path)} hashes")
    return len(cases)


def refuses_consistency(*cases: tuple[int, bytes, int, bytes, list[bytes]]) -> int:
    """Check that no case is taken; return how many there were."""
    for old_size, old_root, new_size, new_root, path in cases:
        try:
            verify_consistency(old_size, old_root, new_size, new_root, path)
        except LogError:
            continue
        pytest.fail(f"taken: {old_size} to {new_size}, {len(path)} hashes")
    return len(cases)


def test_the_roots_of_the_certificate_transparency_tree() -> None:
    tree, frontier = Tree(), Frontier()
    assert tree.root(0) == frontier.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for entry, root in zip(CT_ENTRIES, CT_ROOTS, strict=True):
        tree.append(leaf_hash(bytes.fromhex(entry)))
        frontier.append(leaf_hash(bytes.fromhex(entry)))
        assert tree.root(tree.size).hex() == frontier.root().hex() == root


def test_leaves_and_nodes_cannot_be_taken_for_each_other() -> None:
    left, right = LEAVES[0], LEAVES[1]
    assert leaf_hash(left + right) != node_hash(left, right)
    assert node_hash(left, right) == hashlib.sha256(b"\x01" + left + right).digest()


def test_every_root_and_every_proof_is_the_rfcs() -> None:
    for n in range(LIMIT + 1):
        assert TREE.root(n) == ROOTS[n]
        for i in range(n):
            assert TREE.inclusion_path(i, n) == rfc_path(i, LEAVES[:n])
        for m in range(1, n + 1):
            assert TREE.consistency_path(m, n) == rfc_proof(m, LEAVES[:n])


def test_every_inclusion_proof_holds_and_every_forged_one_is_refused() -> None:
    rng, proofs, forgeries = random.Random(1), 0, 0
    for n in range(1, LIMIT + 1):
        for i in range(n):
            leaf, path, root = LEAVES[i], TREE.inclusion_path(i, n), ROOTS[n]
            verify_inclusion(leaf, i, n, path, root)
            proofs += 1
            forgeries += refuses_inclusion(
                (LEAVES[(i + 1) % LIMIT], i, n, path, root),
                (changed(leaf, rng.randrange(32), rng), i, n, path, root),
                (leaf, i, n, path, ROOTS[n - 1]),
                (leaf, i, n, path, changed(root, rng.randrange(32), rng)),
                *((leaf, j, n, path, root) for j in (-1, i - 1, i + 1, i + n)),
                *((leaf, i, n, p, root) for p in forged(path, rng) if p != path),
            )
    assert proofs == LIMIT * (LIMIT + 1) // 2 == 2_485
    assert forgeries > 70_000


def test_every_consistency_proof_holds_and_every_forged_one_is_refused() -> None:
    rng, proofs, forgeries = random.Random(2), 0, 0
    for m, n in itertools.combinations_with_replacement(range(LIMIT + 1), 2):
        path, old, new = TREE.consistency_path(m, n), ROOTS[m], ROOTS[n]
        verify_consistency(m, old, n, new, path)
        proofs += 1
        wrong = [
            (m, changed(old, rng.randrange(32), rng), n, new, path),
            (m, EMPTY_ROOT if m else LEAVES[0], n, new, path),
            *((m, old, n, new, p) for p in forged(path, rng) if p != path),
        ]
        if m or not n:  # else there is nothing to hold the new root against: everything begins with nothing
            wrong.append((m, old, n, changed(new, rng.randrange(32), rng), path))
        if m < n:
            wrong += [(n, new, m, old, path), (m + 1, old, n, new, path)]
        forgeries += refuses_consistency(*wrong)
    assert proofs == (LIMIT + 1) * (LIMIT + 2) // 2 == 2_556
    assert forgeries > 70_000


def test_every_byte_of_a_proof_counts() -> None:
    rng = random.Random(3)
    for n in (*range(1, 17), 64, 70):
        for i, at in itertools.product(range(n), range(32)):
            path = TREE.inclusion_path(i, n)
            refuses_inclusion(
                (changed(LEAVES[i], at, rng), i, n, path, ROOTS[n]),
                (LEAVES[i], i, n, path, changed(ROOTS[n], at, rng)),
                *(
                    (LEAVES[i], i, n, [*path[:k], changed(h, at, rng), *path[k + 1 :]], ROOTS[n])
                    for k, h in enumerate(path)
                ),
            )
            m, path = i + 1, TREE.consistency_path(i + 1, n)
            refuses_consistency(
                (m, changed(ROOTS[m], at, rng), n, ROOTS[n], path),
                (m, ROOTS[m], n, changed(ROOTS[n], at, rng), path),
                *(
                    (m, ROOTS[m], n, ROOTS[n], [*path[:k], changed(h, at, rng), *path[k + 1 :]])
                    for k, h in enumerate(path)
                ),
            )


def test_a_fork_has_no_consistency_proof() -> None:
    other = tree_of([*LEAVES[:20], leaf_hash(b"another history"), *LEAVES[21:]])
    for m in range(21, LIMIT):
        for path in (TREE.consistency_path(m, LIMIT), other.consistency_path(m, LIMIT)):
            with pytest.raises(LogError):
                verify_consistency(m, ROOTS[m], LIMIT, other.root(LIMIT), path)
    with pytest.raises(LogError, match="forked"):
        verify_consistency(LIMIT, ROOTS[LIMIT], LIMIT, other.root(LIMIT), [])


def test_hashes_of_another_length_are_refused() -> None:
    # Moving one byte over the border inside node_hash(left, right) would leave the hash as it is.
    path = TREE.inclusion_path(1, 2)
    with pytest.raises(LogError, match="32 bytes"):
        verify_inclusion(path[0] + LEAVES[1][:1], 1, 2, [LEAVES[1][1:]], ROOTS[2])
    with pytest.raises(LogError, match="32 bytes"):
        TREE.append(b"short")


def test_a_forged_index_behind_the_right_edge_is_refused() -> None:
    # The path of the last leaf of 5 is one hash; as "leaf 5 of 6" it would have to be two.
    with pytest.raises(LogError, match="wanted 2 hashes"):
        verify_inclusion(LEAVES[4], 5, 6, TREE.inclusion_path(4, 5), ROOTS[5])


def test_a_truncated_tree_grows_as_if_nothing_had_been() -> None:
    for keep in range(LIMIT):
        tree = tree_of(LEAVES)
        tree.truncate(keep)
        assert tree.size == keep
        for leaf in LEAVES[keep:]:
            tree.append(leaf)
        assert [tree.root(n) for n in range(LIMIT + 1)] == ROOTS


def test_a_copied_frontier_grows_on_its_own() -> None:
    first = Frontier()
    for leaf in LEAVES[:7]:
        first.append(leaf)
    second = first.copy()
    second.append(LEAVES[7])
    assert (first.root(), second.root()) == (ROOTS[7], ROOTS[8])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3), (0, LIMIT + 1)])
def test_a_tree_proves_nothing_that_it_does_not_have(index: int, size: int) -> None:
    with pytest.raises(LogError):
        TREE.inclusion_path(index, size)


@pytest.mark.parametrize(("old", "new"), [(3, 2), (-1, 2), (1, LIMIT + 1)])
def test_a_tree_proves_no_size_that_it_does_not_have(old: int, new: int) -> None:
    with pytest.raises(LogError):
        TREE.consistency_path(old, new)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_larger_trees_agree_with_the_recursion(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 700))
    leaves = [i.to_bytes(32, "big") for i in range(n)]
    tree = tree_of(leaves)
    i, m = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n))
    assert tree.root(n) == mth(leaves)
    assert tree.inclusion_path(i, n) == rfc_path(i, leaves)
    assert tree.consistency_path(m, n) == rfc_proof(m, leaves)
    verify_inclusion(leaves[i], i, n, tree.inclusion_path(i, n), tree.root(n))
    verify_consistency(m, tree.root(m), n, tree.root(n), tree.consistency_path(m, n))
