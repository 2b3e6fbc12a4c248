"""The charter's ``[data]`` table: which stages a community's rows go through, in which order, with which parameters.

A closed model: an unknown key is an error, and what is not in the charter does not happen. No I/O.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Name

Millis = Annotated[int, Field(ge=0, le=1000)]
Characters = Annotated[int, Field(ge=1, le=1 << 20)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"\S")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]

Personal = Literal["email", "phone", "iban", "card", "ip", "national-id"]
NationalId = Literal[
    "br-cpf",
    "es-dni",
    "es-nie",
    "fr-nir",
    "gb-nhs",
    "in-aadhaar",
    "in-pan",
    "it-codice-fiscale",
    "mx-curp",
    "us-ssn",
]


class License(Closed):
    """Keep rows under these licenses, as their source encodes them. A row that names none is dropped."""

    stage: Literal["license"]
    licenses: Annotated[tuple[Label, ...], Field(min_length=1, max_length=20)]


class Length(Closed):
    """Keep rows of so many characters, all their texts together."""

    stage: Literal["length"]
    min_characters: Characters = 1
    max_characters: Characters = 1 << 20

    @model_validator(mode="after")
    def _in_order(self) -> "Length":
        if self.min_characters > self.max_characters:
            raise ValueError(f"max_characters: wanted at least {self.min_characters}, got {self.max_characters}")
        return self


class LanguageFilter(Closed):
    """Keep rows in these languages (ISO 639-1 or -3). One that cannot be told with enough confidence is ``und``."""

    stage: Literal["language"]
    languages: Annotated[tuple[Language, ...], Field(min_length=1, max_length=50)]
    min_confidence_millis: Millis = 0
    keep_undetermined: bool = True


class ExactDuplicates(Closed):
    """Of rows that differ in case, white space and punctuation alone, keep the first."""

    stage: Literal["exact-duplicates"]


class NearDuplicates(Closed):
    """Of rows whose word n-grams overlap (Jaccard) by at least so much, keep the first."""

    stage: Literal["near-duplicates"]
    threshold_millis: Annotated[int, Field(ge=500, le=1000)] = 850
    words: Annotated[int, Field(ge=1, le=16)] = 5


class Scrub(Closed):
    """Put placeholders in the place of personal data.

    ``phone_regions`` (ISO 3166) are those whose numbers are known without their country's code; with it, every
    country's are. ``national_ids`` are the kinds that ``national-id`` looks for.
    """

    stage: Literal["scrub"]
    kinds: Annotated[tuple[Personal, ...], Field(min_length=1, max_length=len(get_args(Personal)))] = get_args(Personal)
    phone_regions: Annotated[tuple[Region, ...], Field(max_length=20)] = ()
    national_ids: Annotated[tuple[NationalId, ...], Field(max_length=len(get_args(NationalId)))] = (
        "in-aadhaar",
        "it-codice-fiscale",
        "mx-curp",
        "us-ssn",
    )


class SplitByGroup(Closed):
    """Hold out so many of a thousand groups, whole ones. ``keep_given``: rows that their source assigns stay there."""

    stage: Literal["split"]
    heldout_millis: Annotated[int, Field(ge=1, le=500)] = 200
    keep_given: bool = False


class Trait(Closed):
    """Something this community wants more of, and by which words it is known.

    A trait is expressed in full where ``enough`` of its phrases and patterns (regular expressions, case ignored) occur;
    half where half of them do. ``extra_copies_millis`` is how many more times such a row is then seen, in thousandths.
    """

    name: Name
    extra_copies_millis: Annotated[int, Field(ge=1, le=8000)] = 1000
    enough: Annotated[int, Field(ge=1, le=20)] = 2
    phrases: Annotated[tuple[Phrase, ...], Field(max_length=200)] = ()
    patterns: Annotated[tuple[Phrase, ...], Field(max_length=50)] = ()

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                matches_nothing = re.compile(pattern).search("") is not None
            except re.error as e:
                raise ValueError(f"wanted a regular expression, got {pattern!r}: {e}") from e
            if matches_nothing:
                raise ValueError(f"wanted a pattern that needs a character, got {pattern!r}, which is found everywhere")
        return patterns

    @model_validator(mode="after")
    def _known_by_something(self) -> "Trait":
        if not self.phrases and not self.patterns:
            raise ValueError(f"trait {self.name}: wanted phrases or patterns, got neither")
        return self


class Traits(Closed):
    """See rows that express the community's traits more often. Each trait is told apart; there is no score over all."""

    stage: Literal["traits"]
    traits: Annotated[tuple[Trait, ...], Field(min_length=1, max_length=20)]
    max_copies: Annotated[int, Field(ge=1, le=9)] = 4
    """Of one row at most, itself included."""

    @model_validator(mode="after")
    def _distinct(self) -> "Traits":
        if len({t.name for t in self.traits}) != len(self.traits):
            raise ValueError("traits: a name is repeated")
        return self


class Revise(Closed):
    """Have the local model criticise and revise answers by the charter's principles (arXiv 2212.08073, section 3).

    Each revised row stands beside the row that it was made from, and says which principle it was made by.
    """

    stage: Literal["revise"]
    principles: Annotated[tuple[Annotated[int, Field(ge=1, le=50)], ...], Field(min_length=1, max_length=50)]
    """By their place in the charter, from 1."""
    max_rows: Annotated[int, Field(ge=1, le=100_000)]
    share_millis: Annotated[int, Field(ge=1, le=1000)] = 100
    """Of the training conversations, in thousandths."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


Stage = (
    License
    | Length
    | LanguageFilter
    | ExactDuplicates
    | NearDuplicates
    | Scrub
    | SplitByGroup
    | Traits
    | Revise
)  # fmt: skip
_AFTER_SPLIT = ("traits", "revise")


class DataPolicy(Closed):
    """The stages, in their order."""

    stages: Annotated[tuple[Annotated[Stage, Field(discriminator="stage")], ...], Field(min_length=1, max_length=9)]

    @model_validator(mode="after")
    def _in_order(self) -> "DataPolicy":
        names = [s.stage for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages: a stage is repeated")
        if "split" not in names:
            raise ValueError("stages: wanted a stage 'split', or nothing would be held out to evaluate with; got none")
        # A copy, or a model's variant, of a held-out row would train on what the community is evaluated with.
        after = tuple(n for n in names[names.index("split") + 1 :])
        if bad := [n for n in after if n not in _AFTER_SPLIT] or [
            n for n in names if n in _AFTER_SPLIT and n not in after
        ]:
            raise ValueError(
                f"stages: wanted all but traits and revise before split, and those two after it, got {bad[0]} on the "
                "other side"
            )
        return self
