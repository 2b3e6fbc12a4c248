"""``status.json``: what a running daemon is doing, for people and for ``status``. Never read back to act."""

import time
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.base.files import write_atomic

_NAME = "status.json"
S = TypeVar("S", bound=BaseModel)


def save_status(home: Path, status: BaseModel) -> None:
    """Write a daemon's status in one step.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    write_atomic(home / _NAME, status.model_dump_json().encode(), durable=False)


def load_status(home: Path, kind: type[S], daemon: str) -> S:
    """Read a daemon's status; ``daemon`` is what it is called in an error.

    Raises:
        UnavailableError: No such daemon has run here, or it is of another version.
    """
    try:
        return kind.model_validate_json((home / _NAME).read_bytes())
    except (OSError, ValidationError) as e:
        raise UnavailableError(f"{home / _NAME}: wanted a {daemon} that has run here, got none") from e


def now() -> float:
    """The host's clock, in seconds since the epoch; for people to read, never for a decision."""
    return time.time()
