"""Speaking for a consortium in another one: a model side that trains nothing, and gives what that one has released.

Before anything is given, that consortium's log is audited as a whole and every merge in it computed again, as
``other_consortium`` has it. Anyone who doubts it holds the two logs to each other (``commonweal audit foreign``): start
+ delta is the release, byte for byte. The delegate's own held-out rows measure and choose; that is its word alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import slots
from commonweal_node.config import NodeConfig
from commonweal_node.institution.adoption import Evaluator
from commonweal_node.institution.other_consortium import VerifiedRelease, verify_log
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.probes.probe import Probe
from commonweal_protocols.audit.audit import Progress
from commonweal_protocols.base.errors import ConfigError, LocalError, PeerError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.source import Source
from commonweal_protocols.statements.compact import Compact, Recipe
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import MAX_COUNT, Digest, Name


def check_speaks_for(config: NodeConfig, compact: Compact) -> None:
    """Check that settings and compact agree on whether this node speaks for a consortium, and for which.

    Raises:
        ConfigError: They do not; says what fixes it.
    """
    ours = config.speaks_for.consortium if config.speaks_for else None
    for member in compact.members:
        if member.institution == config.institution and member.consortium != ours:
            raise ConfigError(
                f"[speaks_for]: wanted {_described(ours)}, as node.toml has it, got {_described(member.consortium)} in "
                f"the compact, for {config.institution}; fix node.toml, or have the compact drafted with the card "
                "that commonweal node init made (--speaks-for)"
            )


def _described(consortium: Digest | None) -> str:
    return f"the consortium {consortium}" if consortium else "an institution of its own"


class Delegate:
    """A learner (``institution``) in the name of a consortium; owned by the institution's thread."""

    def __init__(
        self,
        evaluator: Evaluator,
        name: Name,
        consortium: Digest,
        source: Source,
        *,
        ours: Compact,
        home: Path,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Nothing is read yet.

        Args:
            evaluator: The model side, with the delegate's own held-out rows.
            name: The member that speaks.
            consortium: For whom it speaks.
            source: That consortium's public records.
            ours: The compact of the consortium in which it speaks.
            home: The node's; what was verified is kept below it.
            on_progress: Called as entries and releases are verified.
        """
        self._evaluator = evaluator
        self._name = name
        self._consortium = consortium
        self._source = source
        self._ours = ours
        self._home = home
        self._on_progress = on_progress
        self._found: VerifiedRelease | None = None
        self._given: VerifiedRelease | None = None

    @property
    def num_examples(self) -> int:
        """From how many examples the release that was given last was made, as its contributors say."""
        return self._given.num_examples if self._given else 0

    @property
    def manifest(self) -> None:
        """None: these are not the delegate's rows."""

    @property
    def release(self) -> ForeignRelease | None:
        """The release that was given last."""
        return self._given.named if self._given else None

    def membership(self, adapter: GridTensors) -> None:
        """Return None: anyone who trained the adapter may have measured it."""

    def objection(self, state: State, start: GridTensors, frozen: Literal["A", "B"] | None) -> str:
        """Look for something to give, and say why there is nothing; empty if :meth:`train` will give it.

        Raises:
            LocalError: That consortium's records cannot be read, do not hold, or are of another base or shape.
        """
        found = self._found = self._look()
        whose = f"the consortium {self._consortium}"
        if found is None:
            return f"{whose} has no ratified release yet"
        its = f"the newest release of {whose}, that of its round {found.named.round},"
        if (number := _given_to(state, self._name, found.named)) is not None:
            return f"{its} was given to round {number} already"
        if found.num_examples > MAX_COUNT:
            return f"{its} states {found.num_examples} examples; an update can state {MAX_COUNT}"
        if frozen is not None and not self._has_same(frozen, start, found.adapter):
            return f"{its} has another {frozen} than this round freezes: both consortia must freeze the same one"
        return ""

    def _has_same(self, factor: Literal["A", "B"], start: GridTensors, adapter: GridTensors) -> bool:
        spec = self._ours.adapter
        names = (slot.name_a if factor == "A" else slot.name_b for slot in slots(spec))
        return all((start[name] == adapter[name]).all() for name in names)

    def train(
        self, start: GridTensors, recipe: Recipe, what: str, frozen: Literal["A", "B"] | None = None
    ) -> GridTensors:
        """Return the newest ratified release: what :meth:`objection` has found, or else by a look of its own.

        So this member's own adapter, beside the shared one, is the consortium's as well; as long as there is no
        release, it is ``start``.

        Raises:
            LocalError: See :meth:`objection`.
        """
        self._given, self._found = self._found or self._look(), None
        return self._given.adapter if self._given else start

    def _look(self) -> VerifiedRelease | None:
        try:
            log = verify_log(self._home, self._source, self._consortium, self._ours, self._on_progress)
            return log.release() if log.replica.state.ratified() is not None else None
        except PeerError as e:
            # To those who asked, whom we speak for is our side: nothing is signed, and our operator is told why.
            raise LocalError(f"[speaks_for]: {e}") from e

    # -- the delegate's own rows

    def reported(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        return self._evaluator.reported(shared, own, blend, what)

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> int:
        return self._evaluator.probe(probe, shared, own, blend, what)

    def choosing(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        return self._evaluator.choosing(shared, own, blend, what)

    def export(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, directory: Path) -> None:
        self._evaluator.export(shared, own, blend, directory)


def _given_to(state: State, name: Name, named: ForeignRelease) -> int | None:
    """Return the round to which a release was given, if it is what we gave last to one whose release is ratified.

    Also where the members have set it aside or withdrawn it since: nobody presses it on them again.
    """
    for r in reversed(state.rounds):
        if name in r.updates and r.release is not None and r.release.is_ratified:
            last = r.updates[name].update.release
            return r.round.round if last is not None and last.release_leaf == named.release_leaf else None
    return None
