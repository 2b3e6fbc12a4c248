"""The predicates of adoption: what an institution decides on a release for itself, and what that rests on.

Of its own consortium's releases, or of another's: nobody else has a say in that.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from commonweal_protocols.base.schema import Closed, is_absent
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Count, Digest, Micronats, Name, Natural, Reason, Subject


class HeldoutLoss(Closed):
    """A community's held-out loss under each choice, which was made on other rows than these.

    ``local`` is the best of the community's own adapters, ``shared`` this release, ``blend`` the best of all.
    """

    base_micronats: Micronats
    local_micronats: Micronats
    shared_micronats: Micronats
    blend_micronats: Micronats


Measure: TypeAlias = Literal["accuracy", "distance"]
"""What a probe's results are: the share of items on which the right option is the likeliest, the more the better; or
the mean Jensen-Shannon distance (the root of the divergence in bits) from how people answer, the less the better.
"""
Share: TypeAlias = Annotated[int, Field(ge=0, le=10**6)]
MAX_BARRED_PROBES = 20


class ProbeResult(Closed):
    """What a probe measures under each choice, in millionths; ``local`` is the institution's own adapter alone."""

    probe: Name
    measure: Measure
    items: Count
    base_micros: Share
    local_micros: Share
    shared_micros: Share
    blend_micros: Share


class Decision(Closed):
    """What is decided, after the institution's own evaluation, and what that found.

    The adapted model is base + ``shared_millis``/1000 · release + ``own_millis``/1000 · own adapter.
    """

    decision: Literal["adopt", "blend", "refuse"]
    shared_millis: Annotated[int, Field(ge=0, le=2000)]
    own_millis: Annotated[int, Field(ge=0, le=2000)]
    heldout: HeldoutLoss
    probes: Annotated[tuple[ProbeResult, ...], Field(max_length=MAX_BARRED_PROBES)] = ()
    """Of the probes on which the charter sets a bar: what else the decision rests on."""
    reason: Reason

    @model_validator(mode="after")
    def _each_probe_once(self) -> "Decision":
        if len({p.probe for p in self.probes}) != len(self.probes):
            raise ValueError("probes: a probe is there twice")
        return self


class Serving(Closed):
    """What serves a community: the base, its own adapter, a release, its own update of a release, or a blend."""

    kind: Literal["base", "own", "release", "update", "blend"]
    round: Natural
    """Of the release; or after which round, or for which, it was trained; 0 for the base."""


class Adoption(Fact, Decision):
    """A node's own decision on a ratified release of its consortium.

    ``decision`` is on this release: a refusal says that it is not in what serves, and takes nothing away.
    """

    URI = "urn:commonweal:adoption:v1"
    TITLE = "an institution decides for itself"
    AUTHOR = "a member"
    round: Count
    release_leaf: Digest
    serves: Serving | None = Field(default=None, exclude_if=is_absent)
    """What serves from now on; None in entries that do not say."""
    improves: bool | None = Field(default=None, exclude_if=is_absent)
    """Whether this release is better than every one before it, on the rows that the institution chooses on."""

    def subject(self) -> Subject:
        """The release's entry."""
        return Subject(name=f"release of round {self.round}", sha256=self.release_leaf)


class ForeignAdoption(Fact, Decision):
    """A node's own decision on a release of another consortium, with all that proves where it comes from."""

    URI = "urn:commonweal:foreign-adoption:v1"
    TITLE = "an institution decides on another consortium's release"
    AUTHOR = "a member"
    release: ForeignRelease

    def subject(self) -> Subject:
        """The release's entry in the other log."""
        return Subject(name=f"foreign release of round {self.release.round}", sha256=self.release.release_leaf)
