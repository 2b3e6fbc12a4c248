"""``commonweal adapter recompute``: a release recomputed from public records, and what it would be without a member."""

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, computed_field

from commonweal_adapters.files.delta import read_adapter
from commonweal_adapters.files.peft_files import save_adapter
from commonweal_adapters.recompute import merge_release, recompute_without
from commonweal_adapters.rules.plural import distance_micros
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.report import Report
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import Source, read_blob
from commonweal_protocols.statements.rounds import Release
from commonweal_protocols.statements.values import Blob, Digest, Name


class RecomputeReport(Report):
    """A release recomputed; and where somebody was left out, how far that moves it.

    Distances are L2 norms over all elements in millionths of an adapter's unit.
    """

    round: int
    rule: str
    institutions: tuple[Name, ...]
    logged_sha256: Digest
    recomputed_sha256: Digest
    round_micros: int = Field(title="the round moved the adapter by")
    """From the start to the release."""
    error_micros: int | None = Field(title="error against the exact merge")
    """How far the adapter recomputed is from the exact merge; None where that is 0 and the adapter is not.

    Of a masked round this and the next are None: they need single deltas.
    """
    diversity_micros: int | None = Field(title="diversity of the deltas")
    counted_micros: tuple[int, ...] = Field(title="each counted")
    """How much each institution counted in the end, in their order."""
    without: Name | None = None
    without_sha256: Digest | None = None
    moved_micros: int | None = Field(None, title="leaving it out moves it by")
    """From the published release to what it would be."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """Whether the published adapter is the merge of its inputs."""
        return self.logged_sha256 == self.recomputed_sha256


def recompute_release(source: Source, number: int | None, without: Name | None, out: Path | None) -> RecomputeReport:
    """Replay a log, and merge one release's inputs again.

    Args:
        source: The public records.
        number: Of the round; None: the newest with a release.
        without: An institution to leave out, if any. The others keep their logged weights.
        out: Where to write the adapter as a PEFT folder, if anywhere: where somebody is left out, the one without.

    Raises:
        PeerError: The log does not hold, or a blob is not what its name says; or the rule wants more than are left.
        ConfigError: There is no such release, or no such institution in it.
        LocalError: The records cannot be read, or the folder cannot be written.
    """
    state = replay(source).state
    release, compact = _release(state, number), state.compact
    names = tuple(i.institution for i in release.inputs)
    if without is not None and without not in names:
        raise ConfigError(f"--without: wanted one of {', '.join(names)}, got {without}")
    masking = state.rounds[release.round - 1].masking
    if without is not None and masking is not None:
        raise ConfigError(f"--without: round {release.round} was masked, and nobody knows what {without} gave alone")
    fetch, spec = _fetch(source, release), compact.adapter
    made = merge_release(spec, release.start, release.rule, release.inputs, release.state_before, fetch, masking)
    data = made.adapter
    start = read_adapter(fetch(release.start.sha256), spec)
    report = RecomputeReport(
        round=release.round,
        rule=release.rule.name,
        institutions=names,
        logged_sha256=release.adapter.sha256,
        recomputed_sha256=digest_of(data),
        round_micros=distance_micros(read_adapter(data, spec), start, spec.grid_bits),
        error_micros=made.figures.error_micros,
        diversity_micros=made.figures.diversity_micros,
        counted_micros=made.figures.counted_micros,
    )
    if without is not None:
        data, moved = recompute_without(spec, release, without, fetch)
        report = report.model_copy(
            update={"without": without, "without_sha256": digest_of(data), "moved_micros": moved}
        )
    if out is not None:
        save_adapter(out, spec, read_adapter(data, spec), compact.base.reference)
    return report


def _release(state: State, number: int | None) -> Release:
    released = {r.round.round: r.release.release for r in state.rounds if r.release}
    if not released:
        raise ConfigError("recompute: this log has no release yet")
    if number is not None and number not in released:
        raise ConfigError(f"--round: wanted one with a release ({', '.join(map(str, released))}), got {number}")
    return released[number or max(released)]


def _fetch(source: Source, release: Release) -> Callable[[Digest], bytes]:
    blobs: dict[Digest, Blob] = {
        b.sha256: b for b in (release.start, release.adapter, *release.state_before, *(i.delta for i in release.inputs))
    }
    return lambda sha256: read_blob(source, blobs[sha256])
