"""Which adapter serves a community: every release, every own checkpoint, its own updates, blends, or the base alone.

Pure: it is given a way to measure, and decides nothing about bars. All candidates are measured on the rows that the
community keeps for choosing; what is told of the one that is chosen is measured on others.

The candidate with the least mean loss is the best. What serves already stays unless the best is better beyond
doubt (:class:`row_losses.Gap`): with many candidates and few rows, some candidate looks better by luck alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import RowLosses, gap
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.adoption import Serving
from commonweal_protocols.statements.values import Natural

BASE, SHARED, OWN = BlendWeights(0, 0), BlendWeights(1000, 0), BlendWeights(0, 1000)
BLENDS = (BlendWeights(500, 500), BlendWeights(700, 700), BlendWeights(1000, 500), BlendWeights(500, 1000))
"""Of the best release and the best own adapter; each costs a pass over the rows."""


class CandidateKey(Closed):
    """Names a candidate, so that a later choice finds it again."""

    serving: Serving
    own_round: Natural = 0
    """Of a blend: after which round its own part was trained."""
    shared_millis: Natural = 0
    own_millis: Natural = 0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An adapter as a blend of two: base + shared_millis/1000 · shared + own_millis/1000 · own."""

    key: CandidateKey
    shared: GridTensors
    own: GridTensors

    @property
    def blend(self) -> BlendWeights:
        """How much of each."""
        return BlendWeights(self.key.shared_millis, self.key.own_millis)

    def uses(self, number: int) -> bool:
        """Whether the release of that round is in it."""
        return self.key.serving.kind in ("release", "blend") and self.key.serving.round == number


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What there is to choose from, by round.

    Attributes:
        start: The adapter from which the first round started; it stands for a part that a candidate does not use.
        releases: The ratified releases that count.
        owns: The community's own adapter, trained on its own rows alone, after each round's worth of steps.
        updates: What it trained from a release for the round after that one.
    """

    start: GridTensors
    releases: Mapping[int, GridTensors] = field(default_factory=dict)
    owns: Mapping[int, GridTensors] = field(default_factory=dict)
    updates: Mapping[int, GridTensors] = field(default_factory=dict)

    def singles(self) -> list[Candidate]:
        """The candidates that are no blends; the base first, so that it wins a tie."""
        made = [self._made("base", 0, self.start, self.start, BASE)]
        made += [self._made("release", n, x, self.start, SHARED) for n, x in sorted(self.releases.items())]
        made += [self._made("own", n, self.start, x, OWN) for n, x in sorted(self.owns.items())]
        made += [self._made("update", n, self.start, x, OWN) for n, x in sorted(self.updates.items())]
        return made

    def blend(self, number: int, own_round: int, weights: BlendWeights) -> Candidate | None:
        """Return a blend, if its parts are here."""
        if number not in self.releases or own_round not in self.owns:
            return None
        return self._made("blend", number, self.releases[number], self.owns[own_round], weights, own_round)

    def find(self, key: CandidateKey) -> Candidate | None:
        """Return the candidate of that name, if what it is made of is here."""
        if key.serving.kind == "blend":
            return self.blend(key.serving.round, key.own_round, BlendWeights(key.shared_millis, key.own_millis))
        return next((c for c in self.singles() if c.key == key), None)

    @staticmethod
    def _made(
        kind: str, number: int, shared: GridTensors, own: GridTensors, weights: BlendWeights, own_round: int = 0
    ) -> Candidate:
        key = CandidateKey(
            serving=Serving.model_validate({"kind": kind, "round": number}),
            own_round=own_round,
            shared_millis=weights.shared_millis,
            own_millis=weights.own_millis,
        )
        return Candidate(key, shared, own)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What was found.

    Attributes:
        serves: What is to serve.
        own: The best of the community's own adapters; None where there is none.
        current: What served before, if it can still.
        improves: Whether the newest release is better than every one before it; None for the first.
        losses: Mean nats for each supervised token of every candidate tried.
    """

    serves: Candidate
    own: Candidate | None
    current: Candidate | None
    improves: bool | None
    losses: tuple[tuple[CandidateKey, float], ...]


def choose(pool: Pool, current: CandidateKey | None, measure: Callable[[Candidate], RowLosses]) -> Choice:
    """Measure every candidate on the choosing rows, and choose.

    Args:
        pool: What there is.
        current: What serves now; None where nothing does.
        measure: Losses on the choosing rows, the same rows in the same order each time.
    """
    found = [(c, measure(c)) for c in pool.singles()]
    releases = [(c, x) for c, x in found if c.key.serving.kind == "release"]
    owns = [(c, x) for c, x in found if c.key.serving.kind == "own"]
    release, own = _least(releases), _least(owns)
    if release is not None and own is not None:
        for weights in BLENDS:
            c = pool.blend(release[0].key.serving.round, own[0].key.serving.round, weights)
            if c is not None:
                found.append((c, measure(c)))
    now = next(((c, x) for c, x in found if c.key == current), None)
    if now is None and current is not None and (kept := pool.find(current)) is not None:
        now = (kept, measure(kept))
        found.append(now)
    best = min(found, key=lambda f: f[1].mean)  # the base is always there
    serves = now if now is not None and not gap(best[1], now[1]).is_better else best
    newest = max(releases, key=lambda r: r[0].key.serving.round, default=None)
    earlier = [x.mean for c, x in releases if newest is not None and c is not newest[0]]
    return Choice(
        serves=serves[0],
        own=own[0] if own else None,
        current=now[0] if now else None,
        improves=newest[1].mean < min(earlier) if newest is not None and earlier else None,
        losses=tuple((c.key, x.mean) for c, x in found),
    )


def _least(found: list[tuple[Candidate, RowLosses]]) -> tuple[Candidate, RowLosses] | None:
    """The first of those with the least mean loss."""
    return min(found, key=lambda f: f[1].mean, default=None)
