"""A hub with rounds, whose engine carries nothing: members submit, time is set by hand, and the driver steps."""

from dataclasses import dataclass, field

from commonweal_coordinator.rounds.rounds import RoundDriver, Step
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.statement import open_entry
from tests.kit.hub import Hub


@dataclass
class Engine:
    """Carries nothing, and remembers what it was told."""

    started: list[tuple[int, int, int]] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    stopped: list[int] = field(default_factory=list)
    available: bool = True

    def start_run(self, round_number: int, cohort_size: int, deadline_seconds: int) -> int:
        if not self.available:
            raise UnavailableError("engine: does not answer")
        self.started.append((round_number, cohort_size, deadline_seconds))
        self.running.add(len(self.started))
        return len(self.started)

    def is_running(self, run_id: int) -> bool:
        return run_id in self.running

    def stop_run(self, run_id: int) -> None:
        self.running.remove(run_id)
        self.stopped.append(run_id)


@dataclass
class Desk:
    """A hub with rounds: members submit, time passes when the test says so, and the driver steps."""

    hub: Hub
    target: int = 1
    now: float = 1000.0
    engine: Engine = field(default_factory=Engine)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.hub.public)
        self.restart()

    def restart(self) -> None:
        """The driver anew, as after a kill: only the log and the blobs are left."""
        self.driver = RoundDriver(
            self.hub.sequencer,
            self.blobs,
            self.engine,
            self.target,
            lambda _, step: self.steps.append(step),
            lambda: self.now,
        )

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
