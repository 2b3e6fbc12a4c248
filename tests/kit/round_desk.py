"""A hub with rounds: members submit, time is set by hand, and the driver steps."""

from dataclasses import dataclass, field

from commonweal_coordinator.rounds.rounds import RoundDriver, Step, Wait
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.statement import open_entry
from tests.kit.hub import Hub


@dataclass
class Desk:
    """A hub with rounds: members submit, time passes when the test says so, and the driver steps."""

    hub: Hub
    target: int = 1
    now: float = 1000.0
    steps: list[Step] = field(default_factory=list)
    waits: list[Wait | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.hub.public)
        self.restart()

    def restart(self) -> None:
        """The driver anew, as after a kill: only the log and the blobs are left."""
        self.driver = RoundDriver(
            self.hub.sequencer,
            self.blobs,
            self.target,
            self._on_step,
            lambda: self.now,
        )

    def _on_step(self, _: State, step: Step, wait: Wait | None) -> None:
        self.steps.append(step)
        self.waits.append(wait)

    def step(self) -> str:
        self.driver.step()
        self.hub.catch_up()
        return self.steps[-1].act

    def update(self, name: str, delta: bytes | None = None) -> None:
        update = self.hub.f.update(name, delta)
        self.blobs.put_bytes(self.hub.f.blobs[update.delta.sha256])
        self.hub.say(name, update)

    def ratify(self, *names: str) -> None:
        for name in names:
            self.hub.say(name, self.hub.f.ratification())

    def said(self) -> list[object]:
        """What the coordinator has stated, and nobody else under its key."""
        source, size = DirectorySource(self.hub.public), self.hub.sequencer.state.size
        opened = [open_entry(data) for data in read_entries(source, 0, size)]
        key = public_hex(self.hub.f.coordinator)
        return [e.statement.predicate for e in opened if e.signers == (key,)]
