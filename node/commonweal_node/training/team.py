"""The processes that train one update together, as a training sees them; alone, a process is a team of one.

Process 0 is the node: it alone has keys, talks to the coordinator, writes files and prints. The others, its workers,
compute their share of each step and nothing else. Every method is called by all processes in the same order, by one
thread of each at a time.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


class Team(Protocol):
    """What a training asks of the processes that share it.

    A method that asks the others raises UnavailableError where one has ended or does not answer; then the team is
    broken for good, and all of its processes must be started again.
    """

    rank: int
    """Which process this is, from 0."""
    size: int
    """How many there are."""
    local_size: int
    """How many of them are on this host, and share its memory."""
    device: str
    """Where this process computes, as torch names it."""

    def takes(self, part: int) -> bool:
        """Whether the part with this number, from 0, is this process's; each part is exactly one process's."""

    def check(self) -> None:
        """Raise UnavailableError if the team is broken; asks nobody."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up each value over all processes, in float64; the same bits in every process. Zeros change no value."""

    def sum_gradients(self, parameters: "Sequence[nn.Parameter]") -> None:
        """Add up each parameter's gradient over all processes, in float32; the same bits in every process."""

    def lead(self, action: Callable[[], T]) -> T | None:
        """Run ``action`` in process 0 alone, and give its result there; None elsewhere.

        Raises:
            UnavailableError: In a worker, that ``action`` raised in process 0, where what it raised passes through.
        """

    def agree(self, what: str, digest: bytes, fix: str) -> None:
        """Hold the 32 bytes of all processes to be the same.

        Raises:
            ConfigError: In every process: they are not. It names those that differ from process 0, and says ``fix``.
        """

    def spread(self, data: bytes, seconds: float | None = None) -> bytes:
        """Return process 0's ``data`` in every process, however long that one takes to send it.

        Args:
            data: Of process 0; that of the others is not looked at.
            seconds: How long process 0 waits for the others to take it; None: as long as a worker waits for it.
        """

    def spread_arrays(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """Overwrite the workers' arrays with the values of process 0's, which have the same shapes; bit for bit."""

    def leave(self) -> None:
        """Part from the others, who may be gone; nothing else may be called afterwards."""


class Alone:
    """One process: nothing is shared, asked or copied."""

    rank, size, local_size = 0, 1, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def takes(self, part: int) -> bool:
        return True

    def check(self) -> None:
        """See :class:`Team`."""

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum_gradients(self, parameters: "Sequence[nn.Parameter]") -> None:
        """See :class:`Team`."""

    def lead(self, action: Callable[[], T]) -> T | None:
        return action()

    def agree(self, what: str, digest: bytes, fix: str) -> None:
        """See :class:`Team`."""

    def spread(self, data: bytes, seconds: float | None = None) -> bytes:
        return data

    def spread_arrays(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """See :class:`Team`."""

    def leave(self) -> None:
        """See :class:`Team`."""


ALONE = Alone()
"""A process that no launcher has started: it computes on the CPU."""
