"""``status.json``: what a running coordinator is doing, for people and for ``status``. Never read back to act."""

import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from commonweal_protocols.errors import UnavailableError
from commonweal_protocols.files import write_atomic


class CoordinatorStatus(BaseModel):
    """One moment of a coordinator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Literal["standby", "founding", "succeeding", "running", "stopped"]
    consortium: str
    pid: int
    written_at: float
    """Seconds since the epoch, by this host's clock."""
    step: str = ""
    why: str = ""
    round: int = 0
    awaited: tuple[str, ...] = ()
    size: int = 0
    ratified: int = 0
    amendment: str = ""
    """What the draft of the compact's next version waits for."""
    trouble: str = ""


def save_status(home: Path, status: CoordinatorStatus) -> None:
    """Write ``status.json`` in one step.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    write_atomic(home / "status.json", status.model_dump_json().encode(), durable=False)


def load_status(home: Path) -> CoordinatorStatus:
    """Read ``status.json``.

    Raises:
        UnavailableError: No coordinator has run here, or it is of another version.
    """
    try:
        return CoordinatorStatus.model_validate_json((home / "status.json").read_bytes())
    except (OSError, ValidationError) as e:
        raise UnavailableError(f"{home}/status.json: wanted a coordinator that has run here, got none") from e


def now() -> float:
    """The host's clock, in seconds since the epoch; for people to read, never for a decision."""
    return time.time()
