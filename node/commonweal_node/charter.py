"""A community's charter (TOML), and what this node does about it by itself: decline rounds, refuse releases.

Principles, data policy and dissent are for people; the bars bind the daemon, and ``[data]`` says how rows are curated.
A charter is the institution's own word: nobody else sets it, and a refusal states which of its bars was not met. Pure
but for ``load_charter``.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from commonweal_node.curation.policy import DataPolicy, Revise
from commonweal_node.objective_weights import SUPERVISED, ObjectiveWeights
from commonweal_protocols import canonical
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.predicates import Closed, HeldoutLoss, Round
from commonweal_protocols.settings import load_toml

Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Bars(Closed):
    """What the daemon holds rounds and releases to."""

    min_cohort: Annotated[int, Field(ge=1, le=400)] = 1
    """Rounds with fewer institutions are declined: a delta merged with too few others is not hidden among them."""
    max_steps: Annotated[int, Field(ge=1, le=10**6)] = 10**6
    """Rounds that train for more steps are declined."""
    max_rise_over_base_millis: Annotated[int, Field(ge=0, le=10**6)] = 0
    """A release is refused if its best blend is worse than the base by more, in thousandths of a nat for each token."""


class Charter(Closed):
    """One version of a community's constitution."""

    community: Text
    version: Annotated[int, Field(ge=1)]
    principles: Annotated[tuple[Text, ...], Field(min_length=1, max_length=50)]
    data_policy: Text
    dissent: Annotated[str, StringConstraints(max_length=2000)] = ""
    bars: Bars = Bars()
    objectives: ObjectiveWeights = SUPERVISED
    """What training is for, and how much each of it counts."""
    data: DataPolicy | None = None
    """What ``commonweal node data curate`` does with this community's rows."""

    @model_validator(mode="after")
    def _names_its_own_principles(self) -> "Charter":
        for stage in self.data.stages if self.data else ():
            if isinstance(stage, Revise) and (most := max(stage.principles)) > len(self.principles):
                raise ValueError(
                    f"data.stages.revise.principles: wanted at most {len(self.principles)} (the charter's principles), "
                    f"got {most}"
                )
        return self

    def digest(self) -> str:
        """The SHA-256 of its canonical JSON: the same for every spelling of one charter."""
        return digest_of(canonical.encode(self.model_dump(mode="json")))

    def refusal(self, r: Round) -> str:
        """Return why this community declines a round; empty where it does not."""
        if len(r.cohort) < self.bars.min_cohort:
            return f"charter: wanted a cohort of at least {self.bars.min_cohort}, got {len(r.cohort)}"
        if r.recipe.steps > self.bars.max_steps:
            return f"charter: wanted at most {self.bars.max_steps} steps, got {r.recipe.steps}"
        return ""

    def objection(self, heldout: HeldoutLoss) -> str:
        """Return why this community refuses a release; empty where it does not."""
        rise = (heldout.blend_micronats - heldout.base_micronats) / 1000
        if rise > self.bars.max_rise_over_base_millis:
            return (
                f"charter: wanted the best blend at most {self.bars.max_rise_over_base_millis} thousandths of a nat"
                f" above the base on held-out rows, got {rise:.0f}"
            )
        return ""


NO_CHARTER = Charter(community="not stated", version=1, principles=("none stated",), data_policy="not stated")
"""The widest bars; for a node whose operator has given no charter."""


def load_charter(path: Path | None) -> Charter:
    """Read a charter; without a path, :data:`NO_CHARTER`.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return NO_CHARTER if path is None else load_toml(path, Charter)
