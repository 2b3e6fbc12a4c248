"""Merges that drop elements: TIES by size and sign, DARE by chance.

The formulas are in ``commonweal_protocols.statements.rules``. Both are selections of integers and one exact mean;
what is drawn comes from SHAKE-256. No I/O but the reads, no clock.
"""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import block
from commonweal_adapters.exact.weighted_sum import divide_half_even, small_weights, store
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import Chunk, Delta, Rows, chunks_of, for_each
from commonweal_protocols.statements.rules import Dare, Ties

_MICROS = 10**6
_DARE_DOMAIN = "urn:commonweal:dare:v1"
_DARE_BLOCK = 1 << 16
"""How many elements one stream decides on: part of the contract, as the stream's name holds the block's number."""


def ties(
    rule: Ties, start: GridTensors, deltas: Sequence[Delta], *, threads: int | None = None
) -> tuple[GridTensors, tuple[int, ...]]:
    """Trim, elect a sign, average those who agree.

    Args:
        rule: Its parameters.
        start: Every integer in ±``LIMIT``.
        deltas: Memory holds start, result, one whole tensor of one delta and a chunk of each for each thread.
        threads: See :func:`source.for_each`.

    Returns:
        The adapter; and for each delta, in millionths, the share of its elements that counted.

    Raises:
        BlobError: A value or a result is out of range.
    """
    rows = [d.rows for d in deltas]
    weights = np.array(small_weights([d.weight for d in deltas]), np.int64)[:, None]
    least = _thresholds(rule, start, rows, threads)
    out = {name: np.empty(q.shape, np.int32) for name, q in start.items()}
    counted = np.zeros(len(deltas), np.int64)
    lock = threading.Lock()

    def work(chunk: Chunk) -> None:
        values = block(rows, chunk)
        values[np.abs(values) < least[chunk.name][:, None]] = 0
        weighted = values * weights
        elected = np.sign(weighted.sum(axis=0))
        agree = (np.sign(values) == elected) & (elected != 0)
        # 2^25 · 2^24 · 10^4 < 2^63.
        numerator = (weighted * agree).sum(axis=0) * rule.scale_millis
        divisor = np.maximum((weights * agree).sum(axis=0), 1) * 1000
        with lock:
            np.add(counted, np.count_nonzero(agree, axis=1), out=counted)
        store(out, start, chunk, divide_half_even(numerator, divisor))

    for_each(work, chunks_of(start), threads)
    size = sum(q.size for _, q in start.items())
    return GridTensors(out), tuple(int(n) * _MICROS // size for n in counted)


def _thresholds(
    rule: Ties, start: GridTensors, rows: Sequence[Rows], threads: int | None
) -> dict[str, NDArray[np.int32]]:
    """For each tensor, and each delta, the least size that stays: int32 (k,)."""
    found: dict[str, NDArray[np.int32]] = {}

    def work(whole: Chunk) -> None:
        stay = max(1, whole.end * rule.density_millis // 1000)
        # The value at a place in the order does not depend on how equals are ordered.
        found[whole.name] = np.array(
            [np.partition(np.abs(delta.read(*whole)), whole.end - stay)[whole.end - stay] for delta in rows], np.int32
        )

    for_each(work, [Chunk(name, 0, q.size) for name, q in start.items()], threads)
    return found


def dare(
    rule: Dare, start: GridTensors, deltas: Sequence[Delta], round_seed: str, *, threads: int | None = None
) -> GridTensors:
    """Drop elements by chance, scale the rest, average.

    For each delta, tensor and block of 65,536 elements the SHAKE-256 stream of six lines, joined by line feeds
    without one at the end ("urn:commonweal:dare:v1", ``round_seed``, the rule's seed, the institution's name, the
    tensor's name, the block's number from 0), is cut into unsigned 16-bit little-endian words u; the element stays
    where u ≥ ⌊2^16 · p⌋.

    Args:
        rule: Its parameters.
        start: Every integer in ±``LIMIT``.
        deltas: Memory holds start, result, and one block for each thread.
        round_seed: What makes each round draw anew: the digest of the round's start.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: A value or a result is out of range.
    """
    weights = small_weights([d.weight for d in deltas])
    least = (rule.drop_millis << 16) // 1000
    out = {name: np.empty(q.shape, np.int32) for name, q in start.items()}

    def work(chunk: Chunk) -> None:
        size = chunk.end - chunk.begin
        total = np.zeros(size, np.int64)
        for weight, delta in zip(weights, deltas, strict=True):
            lines = (_DARE_DOMAIN, round_seed, rule.seed, delta.institution, chunk.name, chunk.begin // _DARE_BLOCK)
            stream = hashlib.shake_256("\n".join(map(str, lines)).encode()).digest(2 * size)
            stays = np.frombuffer(stream, "<u2") >= least
            total += delta.rows.read(*chunk) * stays * np.int64(weight)
        # 2^25 · 2^24 · 1000 < 2^59.
        total *= 1000
        store(out, start, chunk, divide_half_even(total, sum(weights) * (1000 - rule.drop_millis)))

    for_each(work, chunks_of(start, _DARE_BLOCK), threads)
    return GridTensors(out)
