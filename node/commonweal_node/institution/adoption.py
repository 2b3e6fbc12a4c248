"""What a node decides on a release, and on what that rests: this community's own held-out rows, and its charter's bars.

It signs nothing and says nothing: anyone who holds the institution's turn does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.charter.charter import Charter
from commonweal_node.model.blend import BlendWeights
from commonweal_node.probes.probe import Probe
from commonweal_protocols.statements.adoption import Decision, HeldoutLoss, ProbeResult

BASE, SHARED, OWN = BlendWeights(0, 0), BlendWeights(1000, 0), BlendWeights(0, 1000)


class Evaluator(Protocol):
    """The model side, as far as a decision needs it."""

    def heldout(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> int:
        """Return the reported held-out loss under a blend, in micronats for each supervised token."""

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> int:
        """Return what a probe measures under a blend, in millionths."""

    def choose(self, shared: GridTensors, own: GridTensors) -> BlendWeights:
        """Return the best blend on held-out rows that are not the reported ones."""

    def export(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, directory: Path) -> None:
        """Write a blend as a PEFT adapter folder."""


@dataclass(frozen=True, slots=True)
class Deciding:
    """How one community decides. ``probes`` are those on which its charter sets a bar."""

    charter: Charter
    probes: tuple[Probe, ...]
    evaluator: Evaluator
    on_phase: Callable[[str, int, str], None]

    def decide(self, number: int, shared: GridTensors, own: GridTensors) -> tuple[Decision, BlendWeights]:
        """Choose a blend, measure it beside the base, the own adapter and the release alone, and hold it to the bars.

        Args:
            number: The release's round, for anyone who watches.
            shared: The release.
            own: The institution's own adapter.

        Returns:
            The decision, and the blend that serves if it is not a refusal.

        Raises:
            LocalError: Something cannot be measured.
        """
        self.on_phase("evaluating", number, "choosing a blend")
        blend = self.evaluator.choose(shared, own)
        choices = (("base", BASE), ("local", OWN), ("shared", SHARED), ("blend", blend))
        losses = {what: self.evaluator.heldout(shared, own, b, f"release {number}: {what}") for what, b in choices}
        heldout = HeldoutLoss(
            base_micronats=losses["base"],
            local_micronats=losses["local"],
            shared_micronats=losses["shared"],
            blend_micronats=losses["blend"],
        )
        probes = tuple(self._measured(p, number, shared, own, choices) for p in self.probes)
        reason = self.charter.objection(heldout, probes)
        decision = Decision(
            decision="refuse" if reason or blend.shared_millis == 0 else "adopt" if blend == SHARED else "blend",
            shared_millis=0 if reason else blend.shared_millis,
            own_millis=0 if reason else blend.own_millis,
            heldout=heldout,
            probes=probes,
            reason=reason or _why(blend),
        )
        return decision, blend

    def _measured(
        self,
        p: Probe,
        number: int,
        shared: GridTensors,
        own: GridTensors,
        choices: tuple[tuple[str, BlendWeights], ...],
    ) -> ProbeResult:
        found = {
            what: self.evaluator.probe(p, shared, own, b, f"release {number}: probe {p.name}, {what}")
            for what, b in choices
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


def _why(blend: BlendWeights) -> str:
    if blend.shared_millis == 0:
        return "on our held-out rows nothing of the release is better than what we have"
    if blend == SHARED:
        return "best alone on our held-out rows"
    return f"best on our held-out rows with {blend.shared_millis} shared and {blend.own_millis} own, in thousandths"
