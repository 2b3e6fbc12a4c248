"""How deltas are encoded for the wire: the compact's choice, and nothing of its arithmetic. No numpy, no I/O."""

from typing import Annotated, Literal

from pydantic import Field

from commonweal_protocols.base.schema import Closed


class Encoding(Closed):
    """How many bits a kept element takes, and how many elements of each tensor are kept.

    ``bits``: 8 and 4 share one integer scale, in grid steps, among about 64 kept elements; 32 is the integer itself.
    ``keep_millis``: of each 1000 elements of a tensor, the largest so many are sent and the others are 0.
    ``Encoding(bits=32)`` is the plain delta, encoded in this container.
    """

    bits: Literal[4, 8, 32]
    keep_millis: Annotated[int, Field(ge=1, le=1000)] = 1000

    def kept(self, elements: int) -> int:
        """How many elements of a tensor with ``elements`` ≥ 1 are kept: at least one."""
        return -(-elements * self.keep_millis // 1000)


EXACT = Encoding(bits=32)
"""The one that loses nothing."""
