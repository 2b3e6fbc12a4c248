"""What a node decides on a release, and on what that rests: this community's own held-out rows, and its charter's bars.

It signs nothing and says nothing: the institution does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.charter.charter import Charter
from commonweal_node.institution.choice import BASE, OWN, SHARED, Candidate, CandidateKey, Choice, Pool, choose
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import Gap, RowLosses, gap
from commonweal_node.probes.probe import Probe
from commonweal_protocols.statements.adoption import Decision, HeldoutLoss, ProbeResult


class Evaluator(Protocol):
    """The model side, as far as a decision needs it."""

    def reported(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        """Return the losses under a blend on the held-out rows that are told of, and that no choice is made on."""

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> int:
        """Return what a probe measures under a blend, in millionths."""

    def choosing(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        """Return the losses under a blend on the held-out rows that are not the reported ones."""

    def export(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, directory: Path) -> None:
        """Write a blend as a PEFT adapter folder."""


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """A decision on a release, what serves from then on, and what the choice rests on.

    ``over_alone`` is what serves against the best of the community's own adapters, on the reported rows.
    """

    decision: Decision
    serves: Candidate
    choice: Choice
    over_alone: Gap


@dataclass(frozen=True, slots=True)
class Deciding:
    """How one community decides. ``probes`` are those on which its charter sets a bar."""

    charter: Charter
    probes: tuple[Probe, ...]
    evaluator: Evaluator
    on_phase: Callable[[str, int, str], None]
    between: Callable[[], None] = lambda: None
    """Called between measurements; what it raises ends the decision, which is then cheap to take up again."""

    def decide(self, number: int, pool: Pool, current: CandidateKey | None = None) -> Decided:
        """Choose among all candidates, measure what was chosen beside others, and hold it to the bars.

        Args:
            number: The release's round; it is in the pool.
            pool: What there is to choose from.
            current: What serves now; None where nothing does.

        Raises:
            LocalError: Something cannot be measured.
        """
        self.on_phase("evaluating", number, "choosing what serves")
        found = choose(pool, current, self._choosing)
        serves, this = found.serves, pool.releases[number]
        own = found.own.own if found.own else pool.start
        told = (
            ("base", pool.start, pool.start, BASE),
            ("local", pool.start, own, OWN if found.own else BASE),
            ("shared", this, pool.start, SHARED),
            ("blend", serves.shared, serves.own, serves.blend),
        )
        losses = {what: self._reported(a, b, w, f"release {number}: {what}") for what, a, b, w in told}
        heldout = HeldoutLoss(
            base_micronats=losses["base"].micronats,
            local_micronats=losses["local"].micronats,
            shared_micronats=losses["shared"].micronats,
            blend_micronats=losses["blend"].micronats,
        )
        probes = tuple(self._measured(p, number, told) for p in self.probes)
        reason = self.charter.objection(heldout, probes)
        if reason and serves.key.serving.kind in ("release", "blend"):
            serves = found.current or found.own or pool.singles()[0]
        used = not reason and serves.uses(number)
        decision = Decision(
            decision="refuse" if not used else "adopt" if serves.key.serving.kind == "release" else "blend",
            shared_millis=serves.key.shared_millis if used else 0,
            own_millis=serves.key.own_millis if not reason and (used or serves.key.serving.kind == "own") else 0,
            heldout=heldout,
            probes=probes,
            reason=reason or _why(serves, number),
        )
        gained = self._reported(serves.shared, serves.own, serves.blend, f"release {number}: what serves")
        return Decided(decision, serves, found, gap(gained, losses["local"]))

    def _reported(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        self.between()
        return self.evaluator.reported(shared, own, blend, what)

    def _choosing(self, candidate: Candidate) -> RowLosses:
        self.between()
        return self.evaluator.choosing(candidate.shared, candidate.own, candidate.blend, name_of(candidate.key))

    def _measured(
        self, p: Probe, number: int, told: tuple[tuple[str, GridTensors, GridTensors, BlendWeights], ...]
    ) -> ProbeResult:
        found = {
            what: self.evaluator.probe(p, a, b, w, f"release {number}: probe {p.name}, {what}")
            for what, a, b, w in told
        }
        return ProbeResult(
            probe=p.name,
            measure=p.measure,
            items=len(p.items),
            base_micros=found["base"],
            local_micros=found["local"],
            shared_micros=found["shared"],
            blend_micros=found["blend"],
        )


def name_of(key: CandidateKey) -> str:
    """Return what a candidate is, in words."""
    number = key.serving.round
    match key.serving.kind:
        case "base":
            return "the base alone"
        case "own":
            return f"our own adapter after round {number}"
        case "release":
            return f"the release of round {number}"
        case "update":
            return f"our own update of round {number}"
        case "blend":
            return (
                f"the release of round {number} and our own adapter after round {key.own_round}, with "
                f"{key.shared_millis} and {key.own_millis} thousandths"
            )


def _why(serves: Candidate, number: int) -> str:
    if serves.uses(number):
        return f"best on our choosing rows: {name_of(serves.key)}"
    return f"nothing of this release is better on our choosing rows than what serves: {name_of(serves.key)}"
