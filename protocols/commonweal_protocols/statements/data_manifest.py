"""The manifest of a curation: what was done to a community's rows, in counts and keyed digests, and not a word of them.

Every digest of rows or of the charter in it is an HMAC-SHA256 under a key that stays on the node: anyone who sees the
manifest cannot try texts against it, however short they are. Digests are of all rows of a stage, never of one. Reasons
and parameters are words of the program or of the charter; of what a trait is known by, only the number is told. Pure.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.schema import SORTED, Closed
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.values import Digest, Name, Natural, Subject

MAX_MANIFEST_BYTES = 40_000
"""So that its envelope is small enough for a log entry."""

KeyedDigest: TypeAlias = Digest
"""HMAC-SHA256 under the node's curation key, over the SHA-256 (hex, a line end each) of each file that is meant.

A stage's rows are meant as one file, whether a node keeps it or not.
"""
Label: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Plain: TypeAlias = bool | Natural | Label
_Key: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,40}$")]
_Record: TypeAlias = Annotated[dict[_Key, Plain], Field(max_length=20), SORTED]
_Several = Field(max_length=100)
Parameter: TypeAlias = (
    Plain
    | Annotated[tuple[Natural, ...], _Several]
    | Annotated[tuple[Label, ...], _Several]
    | Annotated[tuple[_Record, ...], _Several]
)
Parameters: TypeAlias = Annotated[dict[_Key, Parameter], Field(max_length=20), SORTED]


class Taken(Closed):
    """What went in."""

    sources: Natural
    conversations: Natural
    texts: Natural
    preferences: Natural
    rows: KeyedDigest


class ReasonCount(Closed):
    """A reason for what became of rows, and of how many."""

    reason: Label
    rows: Natural


class StageRecord(Closed):
    """One stage: its parameters, what came of how many rows, and how often each reason was given."""

    stage: Label
    parameters: Parameters
    by: Annotated[str, StringConstraints(max_length=200)]
    rows_in: Natural
    rows_out: Natural
    reasons: Annotated[tuple[ReasonCount, ...], Field(max_length=400)]
    """Sorted by their words."""
    rows: KeyedDigest

    @model_validator(mode="after")
    def _each_once(self) -> "StageRecord":
        given = [r.reason for r in self.reasons]
        if given != sorted(set(given)):
            raise ValueError("reasons: wanted them sorted and without repeats")
        return self


class Left(Closed):
    """What came out. A row that is seen three times counts three times."""

    train_rows: Natural
    heldout_rows: Natural
    train_groups: Natural
    heldout_groups: Natural
    conversations: Natural
    texts: Natural
    preferences: Natural
    synthetic: Natural
    characters: Natural
    rows: KeyedDigest


class DataManifest(Fact):
    """A whole curation, as its institution states it."""

    URI = "urn:commonweal:data-manifest:v1"
    TITLE = "an institution states what its rows went through"
    AUTHOR = "a member"
    institution: Name
    charter_version: Annotated[int, Field(ge=1, le=10**9)]
    charter: KeyedDigest
    """Of the charter's canonical JSON: of what is not published in it, nobody may try texts either."""
    digests: Literal["hmac-sha256"] = "hmac-sha256"
    key: Digest
    """The SHA-256 of the curation key, 32 random bytes, to tell under which one the digests are."""
    taken: Taken
    stages: Annotated[tuple[StageRecord, ...], Field(min_length=1, max_length=20)]
    left: Left

    def subject(self) -> Subject:
        """The rows that came out, by their keyed digest as it is written."""
        return Subject(name="curated rows", sha256=digest_of(self.left.rows.encode()))

    def to_bytes(self) -> bytes:
        """Return its canonical JSON.

        Raises:
            MalformedError: It is larger than a manifest may be.
        """
        data = self.to_canonical()
        if len(data) > MAX_MANIFEST_BYTES:
            raise MalformedError(f"manifest: wanted at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
        return data
