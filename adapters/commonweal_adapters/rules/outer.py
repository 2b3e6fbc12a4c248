"""Outer optimisers: the mean delta is their negative gradient, and their state goes from round to round on the grid.

A state is the list of tensors that the rule keeps, each an int32 grid of the adapter's names and shapes like a delta;
before the first round they are zero. Formulas and papers: ``commonweal_protocols.statements.rules``. Every new
tensor is rounded once, half to even. No I/O, no floats but one root of an integer below 2^52, no clock.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.weighted_sum import divide_half_even, store
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.source import Chunk, check_range, chunks_of, for_each
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.rules import FedAdam, FedAvgM, Nesterov

State: TypeAlias = tuple[GridTensors, ...]
_Ints: TypeAlias = NDArray[np.int64]
_MICROS = 10**6


def state_size(rule: FedAvgM | Nesterov | FedAdam) -> int:
    """How many grids a rule keeps: m, and for FedAdam s too."""
    return 2 if isinstance(rule, FedAdam) else 1


def outer_step(
    rule: FedAvgM | Nesterov | FedAdam,
    start: GridTensors,
    mean: GridTensors,
    state: Sequence[GridTensors],
    grid_bits: int,
    *,
    threads: int | None = None,
) -> tuple[GridTensors, State]:
    """Return the adapter after one step, and the state after it.

    Args:
        rule: Its parameters.
        start: Every integer in ±``LIMIT``.
        mean: The weighted mean of the deltas.
        state: What the step before returned; empty before the first.
        grid_bits: A grid step is 2^-grid_bits.
        threads: See :func:`source.for_each`.

    Raises:
        BlobError: A state of another rule, or a result or a new state beyond ±``LIMIT``.
    """
    wanted = state_size(rule)
    if state and len(state) != wanted:
        raise BlobError(f"{rule.name}: wanted a state of {wanted} grids, or none, got {len(state)}")
    before = state or [GridTensors({n: np.zeros(q.shape, np.int32) for n, q in start.items()})] * wanted
    after = [{n: np.empty(q.shape, np.int32) for n, q in start.items()} for _ in range(wanted)]
    out = {n: np.empty(q.shape, np.int32) for n, q in start.items()}
    step = _step_of(rule, grid_bits)

    def work(chunk: Chunk) -> None:
        def read(grid: GridTensors) -> _Ints:
            return grid[chunk.name].reshape(-1)[chunk.begin : chunk.end].astype(np.int64)

        moved, *kept = step(read(mean), *map(read, before))
        for tensors, values in zip(after, kept, strict=True):
            # Limited to ±2^24 as int64, before a cast could wrap.
            check_range(f"{rule.name} state {chunk.name}", values)
            tensors[chunk.name].reshape(-1)[chunk.begin : chunk.end] = values
        store(out, start, chunk, moved)

    for_each(work, chunks_of(start), threads)
    return GridTensors(out), tuple(GridTensors(t) for t in after)


def _step_of(rule: FedAvgM | Nesterov | FedAdam, grid_bits: int) -> Callable[..., tuple[_Ints, ...]]:
    """Return the function (Δ, state…) → (what to add to the start, new state…), all int64 arrays of grid steps."""
    if isinstance(rule, FedAdam):
        rate = round_half_even(rule.rate_micros << grid_bits, _MICROS)
        tau = max(1, round_half_even(rule.tau_micros << grid_bits, _MICROS))

        def adam(delta: _Ints, m: _Ints, s: _Ints) -> tuple[_Ints, ...]:
            m = divide_half_even(rule.momentum_millis * m + (1000 - rule.momentum_millis) * delta, 1000)
            # Below 2^49, so float64's root, cut off, is the integer root.
            squared = (rule.second_millis * s * s + (1000 - rule.second_millis) * delta * delta) // 1000
            s = np.sqrt(squared.astype(np.float64)).astype(np.int64)
            return divide_half_even(rate * m, s + tau), m, s

        return adam

    def momentum(delta: _Ints, m: _Ints) -> tuple[_Ints, ...]:
        m = divide_half_even(rule.momentum_millis * m + 1000 * delta, 1000)
        if isinstance(rule, Nesterov):
            ahead = rule.momentum_millis * m + 1000 * delta
            return divide_half_even(rule.rate_millis * ahead, 1000 * 1000), m
        return divide_half_even(rule.rate_millis * m, 1000), m

    return momentum


def round_half_even(numerator: int, divisor: int) -> int:
    """Divide and round to the nearest integer, ties to the even one."""
    quotient, rest = divmod(numerator, divisor)
    return quotient + (2 * rest + (quotient & 1) > divisor)
