"""Examples packed into rows, and rows into batches. Pure; no torch, no I/O.

The examples of one row share the longest prefix that they have in common (the chat template's system prompt, or the
whole question of a preference pair: arXiv 2410.20305), which is so computed once and not once for each example. A token
sees the prefix and the earlier tokens of its own example, at the positions it would have alone, so packing changes no
number but rounding: no example is contaminated by another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commonweal_node.model.tokens import Tokenised

ROW_TOKENS = 256
"""Of a row in training and evaluation: so long that the shared prefix and the padding are a small part of it, and so
short that attention is a small part of the work."""
PADDING = -1
"""The segment of a padding token."""
PREFIX = 0
"""The segment of the tokens that all examples of a row share."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Packed rows.

    Attributes:
        ids: (R, T) int64 token ids.
        positions: (R, T) int64, each token's position in its own example.
        segments: (R, T) int64: PREFIX, 1 … for each example, or PADDING.
        predictors: (N,) int64 indices into the R · T flattened tokens: whose hidden state predicts each target.
        targets: (N,) int64, the supervised token ids.
        owners: (N,) int64, whose target it is: the example's place in what was packed.
        tokens: How many tokens the rows hold without padding.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    predictors: NDArray[np.int64]
    targets: NDArray[np.int64]
    owners: NDArray[np.int64]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Row:
    """Which examples stand in a row, the length of the prefix that they share, and the tokens that this takes."""

    members: tuple[int, ...]
    prefix: int
    width: int


def pack(examples: Sequence[Tokenised], row_tokens: int, batch_tokens: int) -> list[Batch]:
    """Pack examples into rows of at most ``row_tokens`` and rows into batches of at most ``batch_tokens``.

    An example longer than ``row_tokens`` has a row of its own; a batch always has at least one row. Deterministic:
    longest first, into the first row with room.
    """
    prefix = _common_prefix(examples)
    members: list[list[int]] = []
    used: list[int] = []
    for i in sorted(range(len(examples)), key=lambda i: (-len(examples[i].ids), examples[i].ids)):
        own = len(examples[i].ids) - prefix
        slot = next((k for k, n in enumerate(used) if n + own <= row_tokens), None)
        if slot is None:
            members.append([i])
            used.append(prefix + own)
        else:
            members[slot].append(i)
            used[slot] += own
    rows = [_Row(tuple(m), prefix, n) for m, n in zip(members, used, strict=True)]
    return _batches(examples, rows, batch_tokens)


def pack_pairs(examples: Sequence[Tokenised], batch_tokens: int) -> list[Batch]:
    """Pack the examples two by two, as :func:`pack_together` does: 2k and 2k + 1 are never parted."""
    return pack_together(examples, [2] * (len(examples) // 2), batch_tokens)


def pack_together(examples: Sequence[Tokenised], sizes: Sequence[int], batch_tokens: int) -> list[Batch]:
    """Pack the first ``sizes[0]`` examples into one row with the prefix that they share, the next ones into another.

    A batch always has at least one row, and no more than ``batch_tokens`` where it has several.
    """
    rows, start = [], 0
    for size in sizes:
        some = examples[start : start + size]
        prefix = _common_prefix(some)
        rows.append(_Row(tuple(range(start, start + size)), prefix, sum(len(e.ids) - prefix for e in some) + prefix))
        start += size
    return _batches(examples, rows, batch_tokens)


def _common_prefix(examples: Sequence[Tokenised]) -> int:
    if len(examples) < 2:
        return 0
    # What the least and the greatest have in common, all that lies between them has too.
    least, greatest = min(e.ids for e in examples), max(e.ids for e in examples)
    differing = (i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b)
    shared = next(differing, min(len(least), len(greatest)))
    # A supervised token belongs to its own example, and no example may vanish into the prefix.
    return min(shared, *(e.supervised.index(True) for e in examples))


def _batches(examples: Sequence[Tokenised], rows: Sequence[_Row], batch_tokens: int) -> list[Batch]:
    # Rows of like length stand together, so little is padded.
    order = sorted(rows, key=lambda row: -row.width)
    batches = []
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // order[start].width)
        batches.append(_batch(examples, order[start : start + count]))
        start += count
    return batches


def _batch(examples: Sequence[Tokenised], rows: Sequence[_Row]) -> Batch:
    width = rows[0].width
    ids = np.zeros((len(rows), width), np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, PADDING)
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for r, row in enumerate(rows):
        prefix = row.prefix
        ids[r, :prefix] = examples[row.members[0]].ids[:prefix]
        positions[r, :prefix] = np.arange(prefix)
        segments[r, :prefix] = PREFIX
        at = prefix
        for s, i in enumerate(row.members, start=1):
            example = examples[i]
            n = len(example.ids) - prefix
            ids[r, at : at + n] = example.ids[prefix:]
            positions[r, at : at + n] = np.arange(prefix, prefix + n)
            segments[r, at : at + n] = s
            for k in range(max(prefix, 1), prefix + n):
                if example.supervised[k]:
                    # The first own token is predicted by the shared prefix's last one.
                    predictor = at + k - 1 - prefix if k > prefix else prefix - 1
                    predictors.append(r * width + predictor)
                    targets.append(example.ids[k])
                    owners.append(i)
            at += n
    return Batch(
        ids,
        positions,
        segments,
        np.array(predictors, np.int64),
        np.array(targets, np.int64),
        np.array(owners, np.int64),
        int((segments != PADDING).sum()),
    )


def attention_allowed(batch: Batch) -> NDArray[np.bool_]:
    """(R, T, T): whether token i of a row may see token j: not later, and in its own segment or in the prefix."""
    seg = batch.segments
    width = seg.shape[1]
    own = seg[:, :, None] == seg[:, None, :]
    shared = (seg[:, None, :] == PREFIX) & (seg[:, :, None] != PADDING)
    allowed: NDArray[np.bool_] = np.tril(np.ones((width, width), np.bool_))[None] & (own | shared)
    return allowed
