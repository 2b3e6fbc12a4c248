"""The predicates of governance: charters, motions, ballots and closings, leaving.

Log time is the time as of which a quorum of witnesses says that a checkpoint was the largest (tlog-policy's quorum over
tlog-cosignature timestamps), in seconds since 1970 UTC. Nobody's own clock has a say.
"""

import hashlib
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from commonweal_protocols.base import canonical
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.charter import (
    MAX_SAFETY_ITEMS,
    Addendum,
    Bars,
    Clause,
    DataTerms,
    Objectives,
    Remark,
)
from commonweal_protocols.statements.charter import Text as CharterText
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.values import Blob, Count, Digest, Name, Natural, Reason, Subject

MAX_ALTERNATIVES = 12
Title = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=8000)]
Salt = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Ranking = Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_ALTERNATIVES)], ...], Field(min_length=1)]
"""Alternatives by their place in the motion, the best first; those left out come after all named."""
Choice: TypeAlias = Literal["yes", "no", "abstain"] | Ranking


class Charter(Fact):
    """A member publishes a version of its charter: what is public in clear, and salted digests of the other parts.

    How many items its safety floor has is public always. ``publication`` makes it, and says which may follow which.
    """

    URI = "urn:commonweal:charter:v1"
    TITLE = "an institution publishes its charter"
    AUTHOR = "a member"
    institution: Name
    version: Count
    previous: Digest | None
    """The digest of the one that it published before in this log; None for its first there."""
    safety_items: Annotated[int, Field(ge=0, le=MAX_SAFETY_ITEMS)]
    community: CharterText | None
    bars: Bars | None
    objectives: Objectives | None
    data_policy: DataTerms | None
    dissent: Remark | None
    principles: Annotated[tuple[Clause, ...], Field(max_length=50)]
    safety: Annotated[tuple[Clause, ...], Field(max_length=MAX_SAFETY_ITEMS)]
    addenda: Annotated[tuple[Addendum, ...], Field(max_length=50)]
    sealed: Annotated[tuple[Digest, ...], Field(max_length=125)]
    """Sorted, so that their places tell nothing."""

    @model_validator(mode="after")
    def _consistent(self) -> "Charter":
        ids = [c.id for c in (*self.principles, *self.safety, *self.addenda)]
        if len(set(ids)) != len(ids):
            raise ValueError("clauses: an id is repeated")
        if list(self.sealed) != sorted(set(self.sealed)):
            raise ValueError("sealed: wanted digests sorted and without repeats")
        if len(self.safety) > self.safety_items:
            raise ValueError(f"safety: wanted at most the {self.safety_items} items that it counts")
        return self

    def digest(self) -> Digest:
        """By what the next version, and anyone who imports a clause, names this one."""
        return canonical.digest_of(self.to_canonical())

    def subject(self) -> Subject:
        """This version."""
        return Subject(name=f"charter of {self.institution}", sha256=self.digest())


class Amendment(Closed):
    """That a statement be the compact's next version. A yes counts as its author's signature on that statement."""

    kind: Literal["amendment"]
    compact: Blob
    """The statement's bytes, which lie in the exchange for everybody to read."""


class Recall(Closed):
    """That a release be withdrawn; or one institution's update, and the release be computed again without it."""

    kind: Literal["recall"]
    round: Count
    institution: Name | None


class Resolution(Closed):
    """That a sentence be the consortium's word. It changes nothing but what is on record."""

    kind: Literal["resolution"]
    text: Text


class Question(Closed):
    """Which of several alternatives: ballots are rankings, counted by instant run-off (``voting``)."""

    kind: Literal["question"]
    text: Text
    alternatives: Annotated[tuple[Reason, ...], Field(min_length=2, max_length=MAX_ALTERNATIVES)]

    @model_validator(mode="after")
    def _distinct(self) -> "Question":
        if len(set(self.alternatives)) != len(self.alternatives):
            raise ValueError("alternatives: one is repeated")
        return self


Proposal: TypeAlias = Annotated[Amendment | Recall | Resolution | Question, Field(discriminator="kind")]


class Motion(Fact):
    """A member proposes something. Who may vote, and how many must, is the compact's when the motion is logged.

    It ends when everybody has voted, or at ``closes_at`` in log time. A secret motion is voted on with sealed ballots;
    they are opened from then on, until ``opens_until`` in log time or until all are.
    """

    URI = "urn:commonweal:motion:v1"
    TITLE = "a motion is made"
    AUTHOR = "a member"
    title: Title
    reasons: Text
    proposal: Proposal
    closes_at: Natural
    opens_until: Natural | None
    """None: ballots are open from the first."""

    @model_validator(mode="after")
    def _in_order(self) -> "Motion":
        if self.opens_until is not None and self.opens_until <= self.closes_at:
            raise ValueError("opens_until: wanted a time after closes_at")
        return self

    @property
    def is_secret(self) -> bool:
        """Whether its ballots are sealed first."""
        return self.opens_until is not None

    def subject(self) -> Subject:
        """The proposal."""
        return Subject(name=self.title, sha256=canonical.digest_of(self.proposal.to_canonical()))


class AboutMotion(Fact):
    """A fact about one motion."""

    motion: Digest
    """The leaf hash of the motion's entry."""

    def subject(self) -> Subject:
        """The motion's entry."""
        return Subject(name="motion", sha256=self.motion)


class Ballot(AboutMotion):
    """A member votes. The newest one before the end counts; earlier ones stay on record."""

    URI = "urn:commonweal:ballot:v1"
    TITLE = "a member votes"
    AUTHOR = "a member"
    choice: Choice
    reason: Reason | None
    """For a no this is dissent, and is kept with the outcome."""


class SealedBallot(AboutMotion):
    """A member votes without saying what: ``commitment`` is :func:`seal` of a choice and a salt."""

    URI = "urn:commonweal:sealed-ballot:v1"
    TITLE = "a member votes in secret"
    AUTHOR = "a member"
    commitment: Digest


class OpenedBallot(AboutMotion):
    """A member says what it has sealed. A sealed ballot that is not opened counts as none."""

    URI = "urn:commonweal:opened-ballot:v1"
    TITLE = "a member opens its ballot"
    AUTHOR = "a member"
    choice: Choice
    salt: Salt
    reason: Reason | None


class Closing(AboutMotion):
    """A member or the coordinator says that a stage of a motion is over; what came of it, the fold computes.

    ``checkpoint`` is a note of this very log whose quorum of witnesses says that the time has come: ballots from its
    size on are late. None where everybody has voted.
    """

    URI = "urn:commonweal:closing:v1"
    TITLE = "a motion is ended"
    AUTHOR = "a member or the coordinator"
    checkpoint: Annotated[str, StringConstraints(min_length=1, max_length=20_000)] | None


class Exit(Fact):
    """A member leaves, from its own entry on. What it said and gave stays."""

    URI = "urn:commonweal:exit:v1"
    TITLE = "a member leaves"
    AUTHOR = "a member"
    institution: Name
    reason: Reason

    def subject(self) -> Subject:
        """The institution's name."""
        return Subject(name=self.institution, sha256=hashlib.sha256(self.institution.encode()).hexdigest())


def seal(motion: Digest, voter: Name, choice: Choice, salt: Salt) -> Digest:
    """Return the commitment to a choice. The salt is 32 random bytes: without it, three choices are soon tried.

    The voter's name is in it, so nobody can copy another's sealed ballot and open it in his wake.
    """
    said: canonical.Json = {
        "type": "urn:commonweal:seal:v1",
        "motion": motion,
        "voter": voter,
        "choice": choice if isinstance(choice, str) else list(choice),
        "salt": salt,
    }
    return canonical.digest_of(canonical.encode(said))
