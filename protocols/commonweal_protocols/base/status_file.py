"""``status.json``: what a running daemon is doing, for people and for ``status``. Never read back to act."""

import time
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.base.files import read_bounded, write_atomic

_NAME = "status.json"
_MAX_BYTES = 1 << 20
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
    path, wanted = home / _NAME, f"the status of a {daemon} that has run here"
    data = read_bounded(path, _MAX_BYTES, wanted, error=UnavailableError)
    try:
        return kind.model_validate_json(data)
    except ValidationError as e:
        raise UnavailableError(
            f"{path}: wanted {wanted}, got another version's status; stop it and run it again"
        ) from e


def now() -> float:
    """The host's clock, in seconds since the epoch; for people to read, never for a decision."""
    return time.time()
