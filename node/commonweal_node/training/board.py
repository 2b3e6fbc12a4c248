"""Who is told of work while it is done."""

from typing import Protocol


class Board(Protocol):
    """Fields of ``NodeStatus``, by name."""

    def set(self, **fields: object) -> None:
        """Change fields."""
