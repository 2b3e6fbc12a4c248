"""One institution over a real log, with a model side that is a table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.charter.charter import NO_CHARTER, Charter
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.institution.institution import Institution
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.probes.probe import Probe
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.adoption import Adoption
from commonweal_protocols.statements.compact import Recipe
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import ForeignRelease, Update
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.values import Blob
from tests.kit.federation import Federation, save_key
from tests.kit.memory_source import follower, served

BASE, SHARED, OWN = BlendWeights(0, 0), BlendWeights(1000, 0), BlendWeights(0, 1000)
NAME = "clinic"


@dataclass
class Table:
    """A Learner without a model: losses from a table, and a training that never gives the same twice."""

    best: BlendWeights = SHARED
    losses: dict[BlendWeights, int] = field(default_factory=dict)
    probed: dict[tuple[str, BlendWeights], int] = field(default_factory=dict)
    trained: list[tuple[GridTensors, GridTensors]] = field(default_factory=list)
    exported: list[tuple[GridTensors, GridTensors, BlendWeights, Path]] = field(default_factory=list)
    while_training: Callable[[], object] = lambda: None
    while_choosing: Callable[[], object] = lambda: None
    num_examples: int = 7
    manifest: DataManifest | None = None
    auc_micros: int | None = 512_345
    frozen: list[str | None] = field(default_factory=list)
    release: ForeignRelease | None = None

    def objection(self, state: State, start: GridTensors, frozen: Literal["A", "B"] | None) -> str:
        return ""

    def train(
        self, start: GridTensors, recipe: Recipe, what: str, frozen: Literal["A", "B"] | None = None
    ) -> GridTensors:
        self.frozen.append(frozen)
        self.while_training()
        step = 1000 * len(self.trained) + recipe.steps
        after = GridTensors({n: np.int32(step) + q for n, q in start.items()})
        self.trained.append((start, after))
        return after

    def membership(self, adapter: GridTensors) -> int | None:
        assert adapter is self.trained[-1][1]
        return self.auc_micros

    def reported(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        return RowLosses(np.full(4, self.losses.get(blend, 150) / 1e4), np.full(4, 100))

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> int:
        return self.probed.get((probe.name, blend), 0)

    def choosing(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        self.while_choosing()
        # The best costs half of what any other does, on every one of four rows.
        nats = 50.0 if blend == self.best else 100.0
        return RowLosses(np.full(4, nats), np.full(4, 100))

    def export(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, directory: Path) -> None:
        self.exported.append((shared, own, blend, directory))


@dataclass
class Line:
    """A Consortium in the same process: it submits into the federation's real replica."""

    f: Federation
    trouble: Exception | None = None
    trouble_after: Exception | None = None
    loses_blobs: bool = False

    def submit(self, envelope: bytes) -> bytes:
        if self.trouble:
            raise self.trouble
        said = open_entry(envelope).statement.predicate
        if isinstance(said, Update) and said.delta.sha256 not in self.f.blobs:
            raise BlobError(f"update: wanted delta {said.delta.sha256} in the exchange first, got none")
        if envelope not in self.f.entries:
            self.f.add(envelope)
        if self.trouble_after:
            raise self.trouble_after
        return self.f.receipt(envelope)

    def put_blob(self, data: bytes) -> Blob:
        if self.trouble:
            raise self.trouble
        blob = self.f.keep(data)
        if self.loses_blobs:
            del self.f.blobs[blob.sha256]
        return blob

    def get_blob(self, blob: Blob) -> bytes:
        return self.f.blobs[blob.sha256]


@dataclass
class Node:
    """One institution's home, and everything that a restart makes anew over it."""

    home: Path
    f: Federation
    learner: Table = field(default_factory=Table)
    charter: Charter = NO_CHARTER
    probes: tuple[Probe, ...] = ()
    refuse: str = ""
    max_membership_auc_millis: int | None = None
    phases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.home / "keys").mkdir(exist_ok=True)
        save_key(self.home / "keys/institution.pem", self.f.keys[NAME])
        self.source = served(self.f)
        self.line = Line(self.f)
        self.start()

    def start(self) -> None:
        """As after a restart: new objects, the same folder."""
        self.institution = Institution(
            NAME,
            KeyRing(self.home, None),
            home=self.home,
            charter=self.charter,
            probes=self.probes,
            refuse=self.refuse,
            max_membership_auc_millis=self.max_membership_auc_millis,
            follower=follower(self.source, self.f, self.home),
            consortium=self.line,
            learner=self.learner,
            on_phase=lambda phase, number, doing: self.phases.append(f"{phase} {number}"),
        )

    def answer(self, number: int = 1) -> bytes:
        return self.institution.answer(number)

    def tend(self) -> Adoption | None:
        return self.institution.tend()

    def said(self) -> list[type[Predicate]]:
        """The kinds of this institution's entries in the log."""
        mine = (public_hex(self.f.keys[NAME]),)
        opened = [open_entry(data) for data in self.f.entries[1:]]
        return [type(e.statement.predicate) for e in opened if e.signers == mine]


def said_in(envelope: bytes) -> Predicate:
    return open_entry(envelope).statement.predicate


def finish(f: Federation, *ratifiers: str, but: str = "") -> None:
    """Everybody's update, ``but`` one member's, and a release that the ratifiers have ratified."""
    for name in f.keys:
        if name not in (but, *f.state.rounds[-1].updates):
            f.say(name, f.update(name))
    f.say("hub", f.release())
    for name in ratifiers:
        f.say(name, f.ratification())
