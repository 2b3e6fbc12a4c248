"""The predicates of a round: its opening, the answers to it, its end, and a release with its ratifications."""

from typing import Annotated

from pydantic import Field, StringConstraints

from commonweal_protocols.base.schema import Closed, is_absent
from commonweal_protocols.statements.compact import Recipe
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.rules import Rule
from commonweal_protocols.statements.secure_terms import MAX_NEIGHBOURS
from commonweal_protocols.statements.values import Blob, Count, Digest, Micronats, Name, Natural, Reason, Seen, Subject


class ForeignRelease(Closed):
    """A ratified release of another consortium, as anyone who names it has verified it: what finds and proves it again.

    ``at`` is the checkpoint of the other log up to which it was audited; the release stood ratified there.
    """

    consortium: Digest
    log: Annotated[str, StringConstraints(min_length=10, max_length=500)]
    """The vkey that signs the other log's checkpoints."""
    at: Seen
    round: Count
    release_leaf: Digest
    adapter: Blob


class Round(Fact):
    """The coordinator opens a round under the current compact."""

    URI = "urn:commonweal:round:v1"
    TITLE = "a round is opened"
    AUTHOR = "the coordinator"
    round: Count
    start: Blob
    """The adapter from which all train: the newest ratified release, or the first round's start."""
    recipe: Recipe
    rule: Rule
    cohort: Annotated[tuple[Name, ...], Field(min_length=1, max_length=400)]
    deadline_seconds: Annotated[int, Field(ge=10, le=30 * 86_400)]

    def subject(self) -> Subject:
        """The adapter from which all train."""
        return Subject(name=f"start of round {self.round}", sha256=self.start.sha256)


class Update(Fact):
    """One institution's contribution: its trained adapter minus the round's start, on the grid.

    In a masked round ``delta`` is the masked vector: its weight times that, plus masks, modulo 2^64. ``partners`` are
    those with whom it is masked: the neighbours whose sealed shares have come.
    """

    URI = "urn:commonweal:update:v1"
    TITLE = "a contribution"
    AUTHOR = "a member"
    round: Count
    round_leaf: Digest
    """The leaf hash of the round entry: what exactly was answered."""
    delta: Blob
    partners: Annotated[tuple[Name, ...], Field(max_length=MAX_NEIGHBOURS)] = ()
    num_examples: Count
    heldout_before_micronats: Micronats
    heldout_after_micronats: Micronats
    data_leaf: Digest | None = None
    """The leaf hash of the author's newest data manifest, where what it trained on has one."""
    improves: bool | None = Field(default=None, exclude_if=is_absent)
    """Whether the round's start is better than every release before it, on the rows that the member chooses on."""
    membership_auc_micros: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """How well an attack tells training rows from others by the trained adapter: the area under its ROC curve, before
    any noise. 500,000 is chance. None: not measured, also for want of rows.
    """
    release: ForeignRelease | None = None
    """Of a member that is a consortium: its release, which the delta brings the round's start to, byte for byte."""

    def subject(self) -> Subject:
        """The delta."""
        return Subject(name=f"delta of round {self.round}", sha256=self.delta.sha256)


class AboutRound(Fact):
    """A fact about one round, by its number and by the leaf hash of the entry that opened it."""

    round: Count
    round_leaf: Digest

    def subject(self) -> Subject:
        """The round's entry."""
        return Subject(name=f"round {self.round}", sha256=self.round_leaf)


class Refusal(AboutRound):
    """An institution declines a round, and says why."""

    URI = "urn:commonweal:refusal:v1"
    TITLE = "an institution declines"
    AUTHOR = "a member"
    reason: Reason


class Rejection(Fact):
    """The coordinator sets a logged update aside, and says why. ``leaf`` is the update's leaf hash."""

    URI = "urn:commonweal:rejection:v1"
    TITLE = "a contribution is set aside"
    AUTHOR = "the coordinator"
    round: Count
    institution: Name
    leaf: Digest
    reason: Reason

    def subject(self) -> Subject:
        """The update's envelope."""
        return Subject(name=f"update of {self.institution}", sha256=self.leaf)


class Incident(AboutRound):
    """The coordinator closes a round that has no release, or one that can no longer be ratified, and says why."""

    URI = "urn:commonweal:incident:v1"
    TITLE = "a round ends without a valid release"
    AUTHOR = "the coordinator"
    reason: Reason


class Input(Closed):
    """One update as it entered a release."""

    institution: Name
    leaf: Digest
    delta: Blob
    weight: Count


class Figures(Closed):
    """What anyone who re-computes a release finds of it, published so that it can be checked against that.

    ``error_micros``: how far the adapter is from the exact merge of the products, as a share of that merge; None where
    that is zero and the adapter is not. ``diversity_micros``: how far apart the deltas lie. ``counted_micros``: how
    much each input counted in the end, in their order: who counts little may be hostile, or a minority. The first two
    need single deltas: in a masked round they are None.
    """

    error_micros: Natural | None
    diversity_micros: Natural | None
    counted_micros: Annotated[tuple[Natural, ...], Field(min_length=1, max_length=400)]


class Release(Fact):
    """An aggregated adapter, and all that went into it: anybody can re-compute the last three fields from the rest.

    ``state_before`` and ``state_after`` are what an outer optimiser keeps between rounds; other rules keep nothing.
    """

    URI = "urn:commonweal:release:v1"
    TITLE = "a shared adapter is published"
    AUTHOR = "the coordinator"
    round: Count
    start: Blob
    rule: Rule
    inputs: Annotated[tuple[Input, ...], Field(min_length=1, max_length=400)]
    state_before: Annotated[tuple[Blob, ...], Field(max_length=4)] = ()
    adapter: Blob
    state_after: Annotated[tuple[Blob, ...], Field(max_length=4)] = ()
    figures: Figures

    def subject(self) -> Subject:
        """The adapter file."""
        return Subject(name=f"release of round {self.round}", sha256=self.adapter.sha256)


class Ratification(Fact):
    """A member re-computed a release, got the same bytes, and ratifies it."""

    URI = "urn:commonweal:ratification:v1"
    TITLE = "a member ratifies a release"
    AUTHOR = "a member"
    round: Count
    release_leaf: Digest
    adapter_sha256: Digest

    def subject(self) -> Subject:
        """The adapter file."""
        return Subject(name=f"release of round {self.round}", sha256=self.adapter_sha256)
