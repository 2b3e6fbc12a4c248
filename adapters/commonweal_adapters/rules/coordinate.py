"""Robust rules that look at one element at a time: trimmed mean and median.

Each sorts the k institutions' values of an element, as integers, so there is nothing to round before the one mean at
the end. The sort is Batcher's network (Batcher 1968, "Sorting networks and their applications") over whole rows: a
comparator is one ``minimum`` and one ``maximum`` over a chunk, with no branch and no order among equals to agree on.
"""

import threading
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import block
from commonweal_adapters.exact.weighted_sum import divide_half_even, store
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import Chunk, Rows, chunks_of, for_each
from commonweal_adapters.rules.mixing import Mixing

Comparator = tuple[int, int]
"""Two rows: the lesser values go to the first, the greater to the second."""


def mean_of_middle(
    start: GridTensors, rows: Sequence[Rows], drop: int, mixing: Mixing | None, *, threads: int | None = None
) -> tuple[GridTensors, tuple[int, ...]]:
    """Return start + the mean of each element's sorted values without the ``drop`` least and the ``drop`` largest.

    Args:
        start: Every integer in ±``LIMIT``.
        rows: The k deltas. Memory holds start, result, and 2k chunks for each thread.
        drop: Fewer than half of k; with (k - 1) // 2 the result is the median.
        mixing: What comes before, if anything does.
        threads: See :func:`source.for_each`.

    Returns:
        The adapter; and for each delta, in millionths, the share of its elements (after mixing) that lay between the
        least and the largest value that counted: little for a delta that was set aside nearly everywhere.

    Raises:
        BlobError: A value or a result is out of range.
    """
    k = len(rows)
    middle = range(drop, k - drop)
    network = prune(sorting_network(k), middle)
    out = {name: np.empty(q.shape, np.int32) for name, q in start.items()}
    inside = np.zeros(k, np.int64)
    lock = threading.Lock()

    def work(chunk: Chunk) -> None:
        values = block(rows, chunk)
        if mixing is not None:
            values = mixing.apply(values)
        by_size = sort_rows(values, network)
        total = np.zeros(values.shape[1], np.int64)
        for i in middle:
            total += by_size[i]
        low, high = by_size[middle[0]], by_size[middle[-1]]
        found = np.count_nonzero((values >= low) & (values <= high), axis=1)
        with lock:
            np.add(inside, found, out=inside)
        store(out, start, chunk, divide_half_even(total, len(middle)))

    for_each(work, chunks_of(start), threads)
    size = sum(q.size for _, q in start.items())
    return GridTensors(out), tuple(int(n) * 10**6 // size for n in inside)


def sorting_network(k: int) -> list[Comparator]:
    """Return Batcher's odd-even merge sort for k rows."""
    network: list[Comparator] = []
    p = 1
    while p < k:
        d = p
        while d >= 1:
            for j in range(d % p, k - d, 2 * d):
                for i in range(j, min(j + d, k - d)):
                    if i // (2 * p) == (i + d) // (2 * p):
                        network.append((i, i + d))
            d //= 2
        p *= 2
    return network


def prune(network: Sequence[Comparator], wanted: Iterable[int]) -> list[Comparator]:
    """Return the comparators without which a wanted row would be another."""
    needed = set(wanted)
    kept = []
    for low, high in reversed(network):
        if low in needed or high in needed:
            kept.append((low, high))
            needed |= {low, high}
    return kept[::-1]


def sort_rows(values: NDArray[np.int32], network: Sequence[Comparator]) -> list[NDArray[np.int32]]:
    """Return the rows after the network's comparators; ``values`` (k, n) is left as it is."""
    rows = list(values.copy())
    spare = np.empty_like(rows[0])
    for low, high in network:
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows
