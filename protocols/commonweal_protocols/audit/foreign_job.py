"""Holding what a log says of other consortia's releases to those consortia's own records.

Each log is replayed and verified by itself; none is believed about another. A contribution of a member that is a
consortium is also computed again: the round's start and its delta must make that consortium's release, byte for byte.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from commonweal_protocols.audit.report import ForeignReport, report_foreign
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, LogError, PeerError, RuleError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.provenance import check_release, count_examples, is_withdrawn, ratified_round
from commonweal_protocols.records.replay import replay, replay_keeping
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_blob
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.values import Digest, Name


class Recompute(Protocol):
    """The arithmetic of adapters, which an auditor may do without (``commonweal_adapters.recompute`` offers it)."""

    def recompute_trained(self, spec: AdapterSpec, start: bytes, delta: bytes) -> bytes:
        """Return the bytes of the adapter from which a delta was made.

        Raises:
            BlobError: The two are not of the spec, or their sum is out of range.
        """


class ForeignCheck(Closed):
    """Whether what an entry says of another consortium's release is so."""

    named: ForeignReport
    verdict: Literal["holds", "fails", "not checked"]
    sentence: str
    """Why it fails or was not checked; else what the other log bears out."""
    withdrawn: bool
    """Whether the other consortium has recalled the release since."""
    in_both: tuple[Name, ...]
    """Names that members of both have. Of a contribution: who may have a voice in it twice."""


@dataclass(frozen=True, slots=True)
class _Other:
    """Another consortium's verified log: all of it, and as it was when entries here named its releases."""

    whole: Replica
    at: Mapping[int, Replica]


def check_foreign(
    source: Source, others: Iterable[Source], recompute: Recompute | None = None
) -> tuple[ForeignCheck, ...]:
    """Check every release of another consortium that a log names, in the order of its entries.

    Args:
        source: The log's records.
        others: Other consortia's records. What nobody's records are given for is "not checked".
        recompute: The arithmetic of adapters; None leaves the bytes of contributions unchecked.

    Raises:
        ConfigError: Two of ``others`` are of one consortium, or one is of none that is named.
        PeerError: A log does not hold by itself.
        LocalError: Records cannot be read now.
    """
    here = replay(source)
    named = report_foreign(here.state)
    logs: dict[Digest, _Other] = {}
    for other in others:
        whole, at = replay_keeping(other, {n.release.at.size for n in named})
        consortium = whole.state.consortium
        if consortium in logs or all(n.release.consortium != consortium for n in named):
            raise ConfigError(
                f"audit foreign: wanted the records of each consortium that is named, once, got {consortium}; named: "
                f"{', '.join(sorted({n.release.consortium for n in named})) or 'none'}"
            )
        logs[consortium] = _Other(whole, at)
    return tuple(_check(n, here.state, source, logs.get(n.release.consortium), recompute) for n in named)


def _check(
    named: ForeignReport, here: State, source: Source, other: _Other | None, recompute: Recompute | None
) -> ForeignCheck:
    release = named.release
    if other is None:
        why = f"no records of the consortium {release.consortium} were given (--other)"
        return ForeignCheck(named=named, verdict="not checked", sentence=why, withdrawn=False, in_both=())
    replica = other.at.get(release.at.size, other.whole)
    theirs = replica.state.compact
    verdict: Literal["holds", "fails"] = "holds"
    try:
        if replica.size != release.at.size:
            raise LogError(f"log {replica.log.name}: wanted at least {release.at.size} entries, got {replica.size}")
        check_release(release, replica)
        if theirs.base.sha256 != here.compact.base.sha256:
            raise RuleError(f"base: wanted {here.compact.base.sha256}, as here, got {theirs.base.sha256}")
        sentence = f"ratified in {release.at.origin} when it had {release.at.size} entries"
        if named.what == "contribution":
            sentence += _check_contribution(named, here, source, replica, recompute)
    except PeerError as e:
        verdict, sentence = "fails", str(e)
    members = ({m.institution for m in compact.members} for compact in (here.compact, theirs))
    return ForeignCheck(
        named=named,
        verdict=verdict,
        sentence=sentence,
        withdrawn=is_withdrawn(release, other.whole.state),
        in_both=tuple(sorted(set.intersection(*members))),
    )


def _check_contribution(
    named: ForeignReport, here: State, source: Source, replica: Replica, recompute: Recompute | None
) -> str:
    """Check that a delta is nothing but the way to the release; returns what is to be said of it."""
    (r,) = (r for r in here.rounds if r.answered_at.get(named.institution) == named.index)
    update = r.updates[named.institution].update
    wanted = count_examples(*ratified_round(replica, named.release.round))
    if update.num_examples != wanted:
        raise RuleError(f"num_examples: wanted {wanted}, as its contributors say, got {update.num_examples}")
    if recompute is None:
        return "; the bytes were not recomputed"
    start, delta = read_blob(source, r.round.start), read_blob(source, update.delta)
    got = digest_of(recompute.recompute_trained(here.compact.adapter, start, delta))
    if got != named.release.adapter.sha256:
        raise RuleError(f"contribution: wanted start + delta to be {named.release.adapter.sha256}, got {got}")
    return "; start and delta make it, byte for byte"
