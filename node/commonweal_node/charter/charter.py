"""A community's charter (TOML), and what this node does about it by itself: decline rounds, refuse releases.

Principles and dissent are for people; the bars bind the daemon, ``[objectives]`` says what training is for, ``[data]``
how rows are curated, and ``probes`` what an evaluation looks at. A charter is the institution's own word: nobody else
sets it, and a refusal states which of its bars was not met. This is the one parser of the file. Pure but for
``load_charter``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from commonweal_node.charter.data_policy import DataPolicy, Revise
from commonweal_node.charter.objective_weights import SUPERVISED, ObjectiveWeights
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.settings import load_toml
from commonweal_protocols.statements.adoption import HeldoutLoss, ProbeResult
from commonweal_protocols.statements.charter import Articles, Bars, CharterRecord, Clause, DataTerms, Text
from commonweal_protocols.statements.rounds import Round
from commonweal_protocols.statements.values import Digest

__all__ = ["NO_CHARTER", "Bars", "Charter", "load_charter"]


class Charter(Articles):
    """One version of a community's constitution, as its file has it."""

    principles: Annotated[tuple[Clause, ...], Field(min_length=1, max_length=50, strict=False)]
    """In the file a text alone may stand for a clause; its id is then ``principle-<place>``, from 1."""
    data_policy: Text
    objectives: ObjectiveWeights = SUPERVISED
    """What training is for, and how much each of it counts."""
    data: DataPolicy | None = None
    """What ``commonweal node data curate`` does with this community's rows."""

    @field_validator("principles", mode="before")
    @classmethod
    def _numbered(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"id": f"principle-{n}", "text": v} if isinstance(v, str) else v for n, v in enumerate(value, start=1)]

    @model_validator(mode="after")
    def _names_its_own_principles(self) -> "Charter":
        for stage in self.data.stages if self.data else ():
            if isinstance(stage, Revise) and (most := max(stage.principles)) > len(self.principles):
                raise ValueError(
                    f"data.stages.revise.principles: wanted at most {len(self.principles)} (the charter's principles), "
                    f"got {most}"
                )
        return self

    def record(self) -> CharterRecord:
        """Return its canonical form, in which the stages of its data policy stand by their digest."""
        stages = digest_of(canonical.encode(self.data.model_dump(mode="json"))) if self.data else None
        return CharterRecord(
            **{name: getattr(self, name) for name in Articles.model_fields},
            objectives=self.objectives.model_dump(),
            data_policy=DataTerms(text=self.data_policy, stages_sha256=stages),
        )

    def digest(self) -> Digest:
        """The digest of its canonical form: the same for every encoding of one charter."""
        return self.record().digest()

    def refusal(self, r: Round) -> str:
        """Return why this community declines a round; empty where it does not."""
        if len(r.cohort) < self.bars.min_cohort:
            return f"charter: wanted a cohort of at least {self.bars.min_cohort}, got {len(r.cohort)}"
        if r.recipe.steps > self.bars.max_steps:
            return f"charter: wanted at most {self.bars.max_steps} steps, got {r.recipe.steps}"
        return ""

    def objection(self, heldout: HeldoutLoss, probes: Sequence[ProbeResult] = ()) -> str:
        """Return why this community refuses a release; empty where it does not.

        Args:
            heldout: The losses on held-out rows.
            probes: The results of every probe on which there is a bar.
        """
        rise = (heldout.blend_micronats - heldout.base_micronats) / 1000
        if rise > self.bars.max_rise_over_base_millis:
            return (
                f"charter: wanted the best blend at most {self.bars.max_rise_over_base_millis} thousandths of a nat"
                f" above the base on held-out rows, got {rise:.0f}"
            )
        found, clauses = {p.probe: p for p in probes}, self.probed_by()
        short = []
        for bar in self.bars.probes:
            p = found[bar.probe]
            if why := bar.shortfall(p.measure, p.base_micros, p.blend_micros):
                short.append(f"clause {', '.join(clauses[p.probe])}: probe {p.probe}: {why} ({p.items} items)")
        return f"charter: {'; '.join(short)}"[:500] if short else ""


NO_CHARTER = Charter(
    community="not stated",
    version=1,
    principles=(Clause(id="principle-1", text="none stated"),),
    data_policy="not stated",
)
"""The widest bars; for a node whose operator has given no charter."""


def load_charter(path: Path | None) -> Charter:
    """Read a charter; without a path, :data:`NO_CHARTER`.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return NO_CHARTER if path is None else load_toml(path, Charter)
