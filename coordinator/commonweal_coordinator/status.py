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
    """The members whose answers to the open round, or whose ratifications of its release, may still come."""
    waiting_since: float | None = None
    """Seconds since the epoch; None where no member is awaited."""
    gives_up_at: float | None = None
    """When the coordinator stops waiting for them."""
    size: int = 0
    ratified: int = 0
    amendment: str = ""
    """What the draft of the compact's next version waits for."""
    trouble: str = ""

    def patience(self, at: float) -> str:
        """Say how long somebody has been awaited at a time, and for how long still; empty where nobody is."""
        if self.waiting_since is None or self.gives_up_at is None:
            return ""
        return f"for {max(0, at - self.waiting_since):.0f} s; gives up in {max(0, self.gives_up_at - at):.0f} s"
