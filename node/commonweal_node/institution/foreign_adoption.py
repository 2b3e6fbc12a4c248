"""Adopting another consortium's release: evaluated here like one of our own, and kept with where it comes from.

::

    consortia/<consortium>/adopted/          the blend, as a PEFT folder, beside what serves of our own consortium
    consortia/<consortium>/provenance.json   which release that is, and the entry in our log that says so
    consortia/<consortium>/checkpoint        the other log's signed checkpoint, up to which it was verified
    consortia/<consortium>/recalled/<leaf>/  what was adopted, and then withdrawn there
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from commonweal_adapters.files.delta import GridTensors, read_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.institution.adoption import Deciding
from commonweal_node.institution.answer_store import Answers
from commonweal_node.institution.other_consortium import VerifiedRelease, consortium_folder
from commonweal_node.model.blend import BlendWeights
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import put_away, read_if_there, write_atomic
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.records.provenance import is_withdrawn
from commonweal_protocols.statements.adoption import ForeignAdoption
from commonweal_protocols.statements.compact import AdapterSpec, Compact
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_PROVENANCE = "provenance.json"


class Provenance(Closed):
    """Where what lies in ``adopted/`` comes from."""

    release: ForeignRelease
    entry: Digest
    """The leaf hash of our own entry that states the decision; its proof is in ``receipts/``."""


@dataclass(frozen=True, slots=True)
class Adopter:
    """What an adoption needs of this node. ``say`` has a statement logged, and returns its entry's leaf hash."""

    home: Path
    deciding: Deciding
    say: Callable[[ForeignAdoption], Digest]

    def adopt(self, found: VerifiedRelease, ours: Compact) -> tuple[ForeignAdoption, Digest]:
        """Decide, keep what serves from then on if it is no refusal, and have the decision logged.

        Raises:
            PeerError: The log does not take it.
            LocalError: Something cannot be measured, kept, or said.
        """
        own, folder = own_adapter(self.home, ours.adapter), consortium_folder(self.home, found.named.consortium)
        adoption, blend = self._decide(found, own)
        if adoption.decision != "refuse":
            self.deciding.evaluator.export(found.adapter, own, blend, folder / "adopted")
        entry = self.say(adoption)
        write_atomic(folder / "checkpoint", found.note)
        if adoption.decision != "refuse":
            write_atomic(folder / _PROVENANCE, Provenance(release=found.named, entry=entry).to_canonical())
        return adoption, entry

    def decide(self, found: VerifiedRelease, ours: Compact) -> ForeignAdoption:
        """Evaluate a release beside our own adapter, and hold it to the charter's bars; nothing is kept or said.

        Raises:
            LocalError: Something cannot be measured.
        """
        return self._decide(found, own_adapter(self.home, ours.adapter))[0]

    def _decide(self, found: VerifiedRelease, own: GridTensors) -> tuple[ForeignAdoption, BlendWeights]:
        decision, blend = self.deciding.decide(found.named.round, found.adapter, own)
        return ForeignAdoption(release=found.named, **dict(decision)), blend


def own_adapter(home: Path, spec: AdapterSpec) -> GridTensors:
    """Return this community's newest own adapter; where it has none yet, one that changes nothing.

    Raises:
        StorageError: It cannot be read.
    """
    own = Answers(home, spec).newest_own()
    return read_adapter(recompute_start(spec), spec) if own is None else own


def adopted_from(home: Path, consortium: Digest) -> Provenance | None:
    """Return where that comes from which was adopted of a consortium, or None.

    Raises:
        StorageError: It cannot be read.
    """
    path = consortium_folder(home, consortium) / _PROVENANCE
    data = read_if_there(path, MAX_ENTRY_BYTES, "where the adopted release comes from")
    try:
        return None if data is None else Provenance.model_validate_json(data)
    except ValidationError as e:
        raise StorageError(f"{path}: wanted where the adopted release comes from, got {e}") from e


def withdraw(home: Path, found: VerifiedRelease) -> Path | None:
    """Move what was adopted away if its consortium has recalled it; returns where it lies, None where that is not so.

    Raises:
        StorageError: It cannot be moved.
    """
    folder, adopted = consortium_folder(home, found.named.consortium), adopted_from(home, found.named.consortium)
    if adopted is None or not is_withdrawn(adopted.release, found.state):
        return None
    away = folder / "recalled" / adopted.release.release_leaf
    put_away(folder / "adopted", away)
    try:
        # Last: after a crash before this, all of it is done again.
        (folder / _PROVENANCE).unlink()
    except OSError as e:
        raise StorageError(f"{folder / _PROVENANCE}: cannot be removed: {e.strerror}") from e
    return away
