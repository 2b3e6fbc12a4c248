"""Another consortium, as this node needs it: its newest release that holds, from its public records alone.

Nothing of that log is believed before it is audited as a whole, every merge computed again. What was verified once is
kept in HOME/consortia/<consortium>/memory, so the next look reads only what is new, and catches a log that takes
something back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commonweal_adapters import recompute
from commonweal_adapters.files.delta import GridTensors, read_adapter
from commonweal_node.home import NodeHome
from commonweal_protocols.audit.audit import Progress, examine
from commonweal_protocols.audit.memory import load_memory, save_memory
from commonweal_protocols.base.errors import LogError, RuleError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.provenance import count_examples, name_release, ratified_round
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.signature_pool import usable_cores
from commonweal_protocols.records.source import Source, read_blob
from commonweal_protocols.statements.compact import AdapterSpec, Compact
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Digest


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedLog:
    """Another consortium's log, audited as a whole; its adapters fit on our base, in our shape."""

    source: Source
    replica: Replica
    note: bytes
    """The signed and cosigned checkpoint up to which it was verified."""

    def release(self, number: int | None = None) -> "VerifiedRelease":
        """Return its newest ratified release, or that of a round.

        Raises:
            RuleError: There is none.
            BlobError: The adapter is not there.
            LocalError: It cannot be read now.
        """
        r, logged = ratified_round(self.replica, number)
        return VerifiedRelease(
            name_release(self.replica, logged.release.round),
            read_adapter(read_blob(self.source, logged.release.adapter), self.replica.state.compact.adapter),
            count_examples(r, logged),
            self.note,
            self.replica.state,
        )


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedRelease:
    """A release that its own log bears out, and whose merge was computed again."""

    named: ForeignRelease
    adapter: GridTensors
    num_examples: int
    note: bytes
    """The signed and cosigned checkpoint up to which the log was verified."""
    state: State
    """Where that consortium stands there."""


def consortium_folder(home: Path, consortium: Digest) -> Path:
    """Where a node keeps what it has of another consortium."""
    return NodeHome(home).consortia / consortium


def verify_log(
    home: Path,
    source: Source,
    consortium: Digest,
    ours: Compact,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> VerifiedLog:
    """Audit another consortium's log.

    Args:
        home: The node's; the audit's memory is kept below it.
        source: The other log's records.
        consortium: Which one it must be: the digest of its founding compact.
        ours: Our own compact: base and shape must be the same, or the adapter could not be used here.
        on_progress: Called as entries and releases are verified.

    Raises:
        LogError: The log does not hold; says what does not.
        RuleError: Another base or shape than ours.
        LocalError: The records cannot be read now, or the memory cannot be kept.
    """
    path = consortium_folder(home, consortium) / "memory"
    outcome = examine(
        source,
        consortium=consortium,
        memory=load_memory(path),
        recompute=recompute,
        jobs=usable_cores(),
        on_progress=on_progress,
    )
    if outcome.memory is None or outcome.note is None:
        found = "; ".join(f.sentence for f in outcome.report.findings)
        raise LogError(f"consortium {consortium}: wanted a log that holds, got {found}")
    save_memory(path, outcome.memory)
    check_same_shape(ours, outcome.replica.state.compact)
    return VerifiedLog(source, outcome.replica, outcome.note)


def verify_release(
    home: Path,
    source: Source,
    consortium: Digest,
    ours: Compact,
    number: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> VerifiedRelease:
    """Audit another consortium's log, and return its newest ratified release, or that of a round.

    Raises:
        PeerError: See :func:`verify_log` and :meth:`VerifiedLog.release`.
        LocalError: The same.
    """
    return verify_log(home, source, consortium, ours, on_progress).release(number)


def check_same_shape(ours: Compact, theirs: Compact) -> None:
    """Check that another consortium's adapters fit on our base, in our shape; where they began does not matter.

    Raises:
        RuleError: They do not; says in what.
    """
    if theirs.base.sha256 != ours.base.sha256:
        raise RuleError(f"base: wanted {ours.base.sha256}, as ours, got {theirs.base.sha256}")
    for name in AdapterSpec.model_fields.keys() - {"seed"}:
        if (got := getattr(theirs.adapter, name)) != (wanted := getattr(ours.adapter, name)):
            raise RuleError(f"adapter.{name}: wanted {wanted}, as ours, got {got}")
