"""Where a merge reads deltas from: a slice of a tensor at a time, from memory or from a file.

A rule looks at all institutions' values of a few thousand elements, then at the next few thousand. So a merge's memory
does not grow with the adapters: ``CHUNK`` elements of each delta for each thread. Values are limited to ±``LIMIT`` as
they are read. The only I/O of this package's arithmetic is here: one temporary file of its own.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

CHUNK = 1 << 15
"""How many elements of a tensor are looked at together. With it, the sums of one chunk stay in a core's own cache."""

_ITEM_BYTES = 4

T = TypeVar("T")


class Rows(Protocol):
    """A delta that can be read in slices, by several threads at once, and as often as a rule wants to."""

    def read(self, name: str, begin: int, end: int) -> NDArray[np.int32]:
        """Return elements ``begin`` to ``end`` of a tensor in C order: int32 (end - begin,), which nobody writes to.

        Raises:
            BlobError: An integer beyond ±``LIMIT``.
        """
        ...


class Delta(NamedTuple):
    """One institution's part in a merge."""

    institution: str
    """Its name: unique in a merge, and what decides where two are equal."""
    weight: int
    """1 to 10^9; what the compact's weights make of the institution's updates."""
    rows: Rows


class Held:
    """A delta in memory."""

    def __init__(self, grid: GridTensors) -> None:
        self._grid = grid

    def read(self, name: str, begin: int, end: int) -> NDArray[np.int32]:
        values = self._grid[name].reshape(-1)[begin:end]
        check_range(name, values)
        return values


class DeltaFile:
    """A delta on disk. Only the slices that are asked for are ever in memory."""

    def __init__(self, file: BinaryIO, places: Mapping[str, int]) -> None:
        """Take over nothing: the caller closes ``file``, whose tensors begin at ``places``, int32 little-endian."""
        self._file = file
        self._places = places

    def read(self, name: str, begin: int, end: int) -> NDArray[np.int32]:
        # A position with each read: threads share the file.
        data = os.pread(self._file.fileno(), (end - begin) * _ITEM_BYTES, self._places[name] + begin * _ITEM_BYTES)
        if len(data) != (end - begin) * _ITEM_BYTES:
            raise BlobError(f"tensor {name}: wanted {end} elements, got fewer: the file was cut off while it was read")
        values = np.frombuffer(data, "<i4").astype(np.int32, copy=False)
        check_range(name, values)
        return values


class Spool:
    """A temporary file that keeps verified deltas, so that many can be merged in little memory."""

    def __init__(self, spec: AdapterSpec) -> None:
        self._spec = spec
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()

    def keep(self, delta: GridTensors) -> DeltaFile:
        """Write a delta to the end; it can be read until the spool is closed.

        Raises:
            OSError: The disk for temporary files is full.
        """
        places = {}
        for name in tensor_shapes(self._spec):
            places[name] = self._file.tell()
            self._file.write(np.ascontiguousarray(delta[name], "<i4").data)
        self._file.flush()
        return DeltaFile(self._file, places)

    def close(self) -> None:
        """Give the disk's room back."""
        self._file.close()


class Chunk(NamedTuple):
    """Elements ``begin`` to ``end`` of a tensor, in C order."""

    name: str
    begin: int
    end: int


def chunks_of(tensors: GridTensors, size: int | None = None) -> list[Chunk]:
    """Cut tensors into chunks of at most ``size`` elements, or of ``CHUNK``, in their own order."""
    step = size or CHUNK
    return [
        Chunk(name, begin, min(begin + step, q.size)) for name, q in tensors.items() for begin in range(0, q.size, step)
    ]


def for_each(work: Callable[[T], None], parts: Sequence[T], threads: int | None = None) -> None:
    """Do the work for each part, on several threads. numpy lets others run while it computes.

    Args:
        work: Touches nothing that the work on another part touches.
        parts: In any order: it changes no bit.
        threads: How many; None: one for each processor.
    """
    count = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        # list: an error in a thread is raised here.
        list(pool.map(work, parts))


def check_range(name: str, values: NDArray[np.int32] | NDArray[np.int64]) -> None:
    """Hold values to ±``LIMIT``.

    Raises:
        BlobError: One lies beyond.
    """
    # Not through abs, to which the least int32 is negative.
    low, high = int(values.min()), int(values.max())
    if low < -LIMIT or high > LIMIT:
        raise BlobError(f"tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {max(high, -low)}")
