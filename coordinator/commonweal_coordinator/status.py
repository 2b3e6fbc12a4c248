"""What a running coordinator is doing, as ``status.json`` says it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


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
