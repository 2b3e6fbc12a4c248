"""What a running node is doing, as ``status.json`` says it."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.status_file import now, save_status
from commonweal_protocols.statements.adoption import HeldoutLoss

log = logging.getLogger(__name__)

Phase = Literal["starting", "waiting", "training", "evaluating", "sending", "ratifying", "stopped"]
_PHASES = frozenset(get_args(Phase))
_IDLE: frozenset[Phase] = frozenset({"starting", "waiting"})
_PATIENCE_SECONDS = 60.0


class NodeStatus(BaseModel):
    """One moment of a node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: str
    pid: int
    written_at: float
    """Seconds since the epoch, by this host's clock."""
    phase: Phase
    round: int = 0
    doing: str = ""
    step: int = 0
    steps: int = 0
    losses: dict[str, float] = {}
    """The newest step's, in nats, by the name of the objective."""
    tokens_per_second: float | None = None
    steps_per_second: float | None = None
    eta_seconds: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    decision: str = ""
    serves: str = ""
    """What serves, in words."""
    over_alone: tuple[float, float, float] | None = None
    """Its loss minus that of the best of our own adapters, in nats for each token, and the 95 % interval: less than 0
    is better. On held-out rows that no choice was made on."""
    heldout: HeldoutLoss | None = None
    membership_auc: float | None = None
    """Of the newest adapter that was trained here; 0.5 is chance. See ``membership``."""
    trouble: str = ""


def describe_gap(mean: float, low: float, high: float) -> str:
    """Return a difference of two losses in words, with its interval."""
    verdict = "better" if high < 0 else "worse" if low > 0 else "cannot tell"
    return f"{mean:+.3f} nats for each token [{low:+.3f}, {high:+.3f}]: {verdict}"


class StatusBoard:
    """The newest status, merged from whatever thread knows something; written at most a few times a second.

    A round that waits for this node while nothing is done here for it is trouble, also where nobody knows of any.
    """

    def __init__(self, home: Path, institution: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._lock = threading.Lock()
        self._written = 0.0
        self._trouble = ""  # what was said; the status may say more
        self._awaited = 0
        self._idle_since: float | None = None  # while awaited and idle
        self._status = NodeStatus(institution=institution, pid=os.getpid(), written_at=now(), phase="starting")

    def set(self, **fields: object) -> None:
        """Change fields; a change of phase or trouble is written at once."""
        with self._lock:
            at = now()
            merged = self._status.model_dump() | {"trouble": self._trouble} | fields | {"written_at": at}
            status = NodeStatus.model_validate(merged)
            self._trouble = status.trouble
            status = status.model_copy(update={"trouble": self._trouble or self._idleness(status)})
            urgent = status.phase != self._status.phase or status.trouble != self._status.trouble
            self._status = status
            if not urgent and at - self._written < 0.2:
                return
            self._written = at
            try:
                save_status(self._home, status)
            except StorageError as e:
                log.error("%s", e)

    def phase(self, phase: str, round_number: int, doing: str) -> None:
        """Say what is being done now."""
        if phase not in _PHASES:
            raise ValueError(phase)
        self.set(phase=phase, round=round_number, doing=doing, step=0, steps=0, losses={}, eta_seconds=None)

    def await_answer(self, round_number: int) -> None:
        """Say which open round waits for this node; 0 for none."""
        with self._lock:
            self._awaited = round_number
        self.set()

    def look(self) -> None:
        """See whether a round waits in vain; for a thread that nothing holds up."""
        with self._lock:
            is_news = not self._trouble and self._idleness(self._status) != self._status.trouble
        if is_news:
            self.set()

    def _idleness(self, status: NodeStatus) -> str:
        """What is wrong where a round has waited too long for a node that does nothing; empty if nothing is."""
        if not self._awaited or status.phase not in _IDLE:
            self._idle_since = None
            return ""
        if self._idle_since is None:
            self._idle_since = self._clock()
        if self._clock() - self._idle_since <= _PATIENCE_SECONDS:
            return ""
        return (
            f"round {self._awaited} waits for this node, which for over a minute has been "
            f"{status.phase}: {status.doing or 'nothing is known of why'}"
        )

    @property
    def trouble(self) -> str:
        """What is in the way, as it was last said."""
        return self._trouble

    @property
    def newest(self) -> NodeStatus:
        """What is going on now."""
        return self._status

    @property
    def sent_bytes(self) -> int:
        """How much was sent so far."""
        return self._status.sent_bytes

    @property
    def received_bytes(self) -> int:
        """How much was received so far."""
        return self._status.received_bytes
