"""Adapters and deltas as integers on the compact's fixed-point grid: q stands for q · 2^-grid_bits.

Every q of an adapter or a delta lies in ±``LIMIT`` = ±2^24. Up to there each integer is a float32, so going to
floats and back loses nothing; and a weighted sum over a whole consortium stays in int64:
400 members · 10^9 (the largest weight) · 2^24 ≈ 6.7 · 10^18 < 2^63 ≈ 9.2 · 10^18.

A value is rounded once, in :func:`to_grid`, by the institution that trained it. Nothing else here rounds: a float32
file whose values are not on the grid is refused, not fixed. No I/O, no clock, no randomness.
"""

from collections.abc import ItemsView, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.lora_file import check_tensors, read_floats, read_ints, write_tensors
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

LIMIT = 1 << 24
"""The largest q of an adapter, a delta or a release, in grid steps."""


@dataclass(frozen=True, slots=True, eq=False)
class GridTensors:
    """An adapter or a delta on the grid: tensor names → int32 arrays, which nobody writes to.

    What was read from a file is a view of the file's bytes and keeps them in memory.
    """

    values: Mapping[str, NDArray[np.int32]]

    def items(self) -> ItemsView[str, NDArray[np.int32]]:
        """Names and arrays, in the order in which they were given."""
        return self.values.items()

    def __getitem__(self, name: str) -> NDArray[np.int32]:
        return self.values[name]


def to_grid(tensors: Mapping[str, NDArray[np.float32]], grid_bits: int) -> GridTensors:
    """Round float32 tensors to the grid, half to even: the one rounding between training and the log.

    Raises:
        BlobError: A value is not finite, or beyond ±2^(24 - grid_bits); or an array is not float32.
    """
    scale = np.float32(2.0**grid_bits)
    values: dict[str, NDArray[np.int32]] = {}
    for name, x in tensors.items():
        if x.dtype != np.float32:
            raise BlobError(f"tensor {name}: wanted float32, got {x.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            # Exact: a power of two only moves the exponent. What overflows is out of range all the same.
            scaled = np.multiply(x, scale)
            np.rint(scaled, out=scaled)
            # Written so that NaN, which is neither above nor below, is refused.
            if not (scaled.min() >= -LIMIT and scaled.max() <= LIMIT):
                _refuse(name, x, ~(np.abs(scaled) <= LIMIT), grid_bits)
        values[name] = scaled.astype(np.int32)
    return GridTensors(values)


def from_grid(grid: GridTensors, grid_bits: int) -> dict[str, NDArray[np.float32]]:
    """Return the float32 tensors that integers in ±``LIMIT`` stand for: exact, new arrays, no negative zero."""
    return {name: _floats(q, grid_bits) for name, q in grid.items()}


def read_adapter(data: bytes, spec: AdapterSpec) -> GridTensors:
    """Read a float32 adapter file.

    Raises:
        BlobError: Not the spec's tensors, or a value that is not exactly q · 2^-grid_bits with q in ±2^24, in its
            one encoding: NaN, an infinity, a subnormal and a negative zero are none.
    """
    scale = np.float32(2.0**spec.grid_bits)
    values: dict[str, NDArray[np.int32]] = {}
    for name, x in read_floats(data, spec).items():
        with np.errstate(over="ignore", invalid="ignore"):
            q = (x * scale).astype(np.int32)
        # Bits are compared, not values: what a cast makes of NaN or of 1e30 differs between machines, and a thread
        # that flushes subnormals to zero would otherwise take for 0 what another refuses.
        odd = _floats(q, spec.grid_bits).view(np.int32) != x.view(np.int32)
        if odd.any() or not _in_range(q):
            _refuse(name, x, odd | (q < -LIMIT) | (q > LIMIT), spec.grid_bits)
        values[name] = q
    return GridTensors(values)


def write_adapter(grid: GridTensors, spec: AdapterSpec) -> bytes:
    """Return the float32 file of an adapter, which PEFT reads under the names that it has.

    Raises:
        BlobError: Not the spec's tensors, or an integer beyond ±``LIMIT``.
    """
    _check(grid, spec, "adapter")
    return write_tensors(from_grid(grid, spec.grid_bits), spec)


def read_delta(data: bytes, spec: AdapterSpec) -> GridTensors:
    """Read an int32 delta file.

    Raises:
        BlobError: Not the spec's tensors, or an integer beyond ±``LIMIT``.
    """
    delta = GridTensors(read_ints(data, spec))
    _check_range(delta, "delta")
    return delta


def write_delta(grid: GridTensors, spec: AdapterSpec) -> bytes:
    """Return the int32 file of a delta.

    Raises:
        BlobError: Not the spec's tensors, or an integer beyond ±``LIMIT``.
    """
    _check(grid, spec, "delta")
    return write_tensors(grid.values, spec)


def make_delta(start: GridTensors, trained: GridTensors, spec: AdapterSpec) -> GridTensors:
    """Return ``trained`` - ``start``, exact.

    Raises:
        BlobError: Not the spec's tensors, or a difference beyond ±``LIMIT``.
    """
    _check(start, spec, "start")
    _check(trained, spec, "trained adapter")
    # Both lie in ±2^24, so int32 holds every difference.
    delta = GridTensors({name: trained[name] - q for name, q in start.items()})
    _check_range(delta, "delta")
    return delta


def apply_delta(start: GridTensors, delta: GridTensors, spec: AdapterSpec) -> GridTensors:
    """Return ``start`` + ``delta``, exact: what :func:`make_delta` was made of.

    Raises:
        BlobError: Not the spec's tensors, or a sum beyond ±``LIMIT``.
    """
    _check(start, spec, "start")
    _check(delta, spec, "delta")
    trained = GridTensors({name: q + delta[name] for name, q in start.items()})
    _check_range(trained, "trained adapter")
    return trained


def _floats(q: NDArray[np.int32], grid_bits: int) -> NDArray[np.float32]:
    floats = q.astype(np.float32)
    floats *= np.float32(2.0**-grid_bits)
    return floats


def _in_range(q: NDArray[np.int32]) -> bool:
    # Not through abs, to which the least int32 is negative.
    return bool(q.min() >= -LIMIT and q.max() <= LIMIT)


def _check(grid: GridTensors, spec: AdapterSpec, what: str) -> None:
    for name, q in grid.items():
        if q.dtype != np.int32:
            raise BlobError(f"{what} tensor {name}: wanted int32, got {q.dtype}")
    check_tensors(grid.values, spec)
    _check_range(grid, what)


def _check_range(grid: GridTensors, what: str) -> None:
    for name, q in grid.items():
        if not _in_range(q):
            worst = max(int(q.max()), -int(q.min()))
            raise BlobError(f"{what} tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {worst}")


def _refuse(name: str, x: NDArray[np.float32], odd: NDArray[np.bool_], grid_bits: int) -> NoReturn:
    """Raise, naming the first odd value."""
    at = np.unravel_index(int(np.argmax(odd)), x.shape)
    raise BlobError(
        f"tensor {name}: wanted multiples of 2^-{grid_bits} up to ±2^{24 - grid_bits}, "
        f"got {float(x[at])!r} at {[int(i) for i in at]}"
    )
