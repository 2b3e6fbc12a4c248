"""A masked round with real institutions over a real log: only the network and the model are left out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from commonweal_adapters.files.delta import GridTensors
from commonweal_coordinator.rounds.rounds import RoundDriver, Step
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.service import Admission
from commonweal_node.charter.charter import NO_CHARTER
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.institution.institution import Institution
from commonweal_protocols.fold.state import RoundState
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.compact import Quorum, Recipe
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.values import Blob
from tests.kit.federation import Federation, save_key
from tests.kit.hub import Hub, founded
from tests.kit.institution import Table
from tests.kit.secure import delta_of

FOUR = ("clinic", "coop", "farm", "school")
SECURE = {"neighbours": 100, "threshold_millis": 667}
"""Three of four must stay."""


@dataclass
class Trained(Table):
    """A model side whose training gives what depends on the community alone."""

    name: str = ""

    def train(
        self, start: GridTensors, recipe: Recipe, what: str, frozen: Literal["A", "B"] | None = None
    ) -> GridTensors:
        delta = delta_of(self.name, 5000)
        after = GridTensors({n: (q + delta[n]).astype(np.int32) for n, q in start.items()})
        self.trained.append((start, after))
        return after


@dataclass
class Wire:
    """The way to the coordinator, in the same process."""

    hub: Hub
    blobs: BlobStore

    def submit(self, envelope: bytes) -> bytes:
        return Admission(self.hub.sequencer, self.blobs).submit(envelope)

    def put_blob(self, data: bytes) -> Blob:
        return self.blobs.put_bytes(data)

    def get_blob(self, blob: Blob) -> bytes:
        return self.blobs.read(blob.sha256)


@dataclass
class Member:
    """An institution's home, and everything that a restart makes anew over it."""

    name: str
    home: Path
    hub: Hub
    wire: Wire
    refuse: str = ""

    def __post_init__(self) -> None:
        (self.home / "keys").mkdir(parents=True)
        save_key(self.home / "keys/institution.pem", self.hub.f.keys[self.name])
        self.learner = Trained(name=self.name, num_examples=10 * len(self.name) + ord(self.name[0]))
        self.start()

    def start(self) -> None:
        self.institution = Institution(
            self.name,
            KeyRing(self.home, None),
            home=self.home,
            charter=NO_CHARTER,
            probes=(),
            refuse=self.refuse,
            max_membership_auc_millis=None,
            follower=Follower(DirectorySource(self.hub.public), self.hub.f.state.consortium, self.home / "memory.json"),
            consortium=self.wire,
            learner=self.learner,
            on_phase=lambda *_: None,
        )

    def secrets(self) -> list[Path]:
        folder = self.home / "masking"
        return sorted(folder.iterdir()) if folder.exists() else []


@dataclass
class Masked:
    """A coordinator with rounds, and its members."""

    hub: Hub
    home: Path
    steps: list[Step] = field(default_factory=list)
    now: float = 1000.0
    away: set[str] = field(default_factory=set)
    """Who is silent."""

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.hub.public)
        self.members = {
            name: Member(name, self.home / name, self.hub, Wire(self.hub, self.blobs)) for name in self.hub.f.names
        }
        self.restart()
        for member in self.members.values():
            member.institution.tend()

    def restart(self) -> None:
        self.driver = RoundDriver(
            self.hub.sequencer, self.blobs, 1, lambda _, step, __: self.steps.append(step), lambda: self.now
        )

    @property
    def round(self) -> RoundState:
        return self.hub.sequencer.state.rounds[-1]

    @property
    def stage(self) -> str:
        masking = self.round.masking
        return masking.stage if masking and self.round.is_open else "over"

    def turn(self, *names: str) -> None:
        """Let each member do the one thing that is due of it."""
        for name in names or sorted(self.members.keys() - self.away):
            self.members[name].institution.tend()

    def step(self) -> str:
        self.driver.step()
        return self.steps[-1].act

    def late(self) -> str:
        """A step after the deadline of whatever is awaited."""
        self.step()
        self.now += self.round.round.deadline_seconds + 1
        return self.step()

    def until(self, stage: str) -> None:
        """Go on, without waiting for anybody, until a stage begins; ``over`` is the end of the round."""
        for _ in range(40):
            if self.hub.sequencer.state.rounds and self.stage == stage:
                return
            if self.step() in ("await messages", "collect"):
                size = self.hub.sequencer.state.size
                self.turn()
                if self.hub.sequencer.state.size == size:
                    self.late()
        raise AssertionError(f"the stage {stage} does not begin; {self.steps[-1]}")

    def ratify(self) -> None:
        for name in sorted(self.members.keys() - self.away):
            self.members[name].institution.tend()


@contextmanager
def masked(tmp_path: Path, secure: Mapping[str, int] | None = SECURE, **terms: object) -> Iterator[Masked]:
    """Four institutions, all announced, under a compact that has them mask."""
    f = Federation(
        names=FOUR,
        quorum=Quorum(updates=3, ratifications=3, amendments=3),
        rule=FactorMean(weights="examples"),
        terms={"secure": secure, **terms},
    )
    with founded(tmp_path / "hub", f) as hub:
        yield Masked(hub, tmp_path)
