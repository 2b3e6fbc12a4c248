"""A community's charter in its canonical form: clauses, where each comes from, who dissents; and how two differ. Pure.

A charter is read in **parts**, each under a name of its own: its clauses by their ids, and the terms of :data:`TERMS`.
What is compared, published or sealed is a part. Weights and bars are integers with their unit in the name, so a charter
has one encoding (``canonical``) and one digest.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json, digest_of
from commonweal_protocols.base.schema import SORTED, Closed
from commonweal_protocols.statements.adoption import MAX_BARRED_PROBES, Measure
from commonweal_protocols.statements.values import Count, Digest, Name, Natural

Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Remark = Annotated[str, StringConstraints(max_length=2000)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Millis = Annotated[int, Field(ge=0, le=1000)]
# strict=False, below: a file's principles are looked at before they are parsed, and are lists then. Items stay strict.
TERMS = ("community", "bars", "objectives", "data-policy", "dissent")
"""The parts that are no clauses."""
MAX_SAFETY_ITEMS = 20
"""The floor is what all must satisfy; a long one is a rulebook that somebody else has written."""


# -- where a clause comes from


class Authored(Closed):
    """Somebody has written it."""

    kind: Literal["author"]
    who: Label


class Voted(Closed):
    """A community has voted on it. ``motion`` is the leaf hash of the motion's entry, where a log has it."""

    kind: Literal["vote"]
    what: Label
    yes: Natural
    no: Natural
    abstain: Natural = 0
    motion: Digest | None = None


class GroupCount(Closed):
    """How the members of one opinion group have voted on a statement."""

    group: Annotated[str, StringConstraints(pattern=r"^[A-Z]$")]
    agree: Natural
    disagree: Natural
    passed: Natural


class Deliberated(Closed):
    """A statement of a deliberation, and how each opinion group has voted on it; ``export`` is the digest of its files.

    A group with too few members to stay unknown is not in it.
    """

    kind: Literal["deliberation"]
    what: Label
    export: Digest
    statement: Natural
    groups: Annotated[tuple[GroupCount, ...], Field(max_length=26, strict=False)]


class Imported(Closed):
    """It was another charter's clause. ``consortium`` and ``institution`` say in which log that charter stands."""

    kind: Literal["import"]
    charter: Digest
    clause: Name
    consortium: Digest | None = None
    institution: Name | None = None


Provenance: TypeAlias = Annotated[Authored | Voted | Deliberated | Imported, Field(discriminator="kind")]


# -- what a charter says


class Dissent(Closed):
    """Somebody does not agree, and why."""

    who: Label
    reason: Text


class Clause(Closed):
    """One thing that a community holds to. ``probes`` are the evaluations that show whether a model does."""

    id: Name
    text: Text
    probes: Annotated[tuple[Name, ...], Field(max_length=20, strict=False)] = ()
    provenance: Annotated[tuple[Provenance, ...], Field(max_length=16, strict=False)] = ()
    """The newest last: an imported clause keeps what it came with."""
    dissent: Annotated[tuple[Dissent, ...], Field(max_length=26, strict=False)] = ()


class Addendum(Clause):
    """A clause for one role of the model: a tutor's, a receptionist's."""

    role: Label


class ProbeBar(Closed):
    """What a probe must show of a blend before it may serve: one of the three or more, in thousandths.

    ``max_worse_than_base_millis`` is of either measure: how much of it adapting the base may cost.
    """

    probe: Name
    min_accuracy_millis: Millis | None = None
    max_distance_millis: Millis | None = None
    max_worse_than_base_millis: Millis | None = None

    @model_validator(mode="after")
    def _bars_something(self) -> "ProbeBar":
        least, most = self.min_accuracy_millis, self.max_distance_millis
        if least is None and most is None and self.max_worse_than_base_millis is None:
            raise ValueError(
                f"{self.probe}: wanted min_accuracy_millis, max_distance_millis or max_worse_than_base_millis, got none"
            )
        if least is not None and most is not None:
            raise ValueError(f"{self.probe}: wanted an accuracy or a distance, got both: a probe has one measure")
        return self

    def fits(self, measure: Measure) -> bool:
        """Whether this bar can be held against a probe of that measure."""
        return (self.max_distance_millis if measure == "accuracy" else self.min_accuracy_millis) is None

    def shortfall(self, measure: Measure, base_micros: int, got_micros: int) -> str:
        """Return what was wanted of a result and what it is, if that is not enough; else nothing."""
        least, most, bearable = self.min_accuracy_millis, self.max_distance_millis, self.max_worse_than_base_millis
        got = f"got {got_micros / 1000:g}"
        if not self.fits(measure):
            return f"wanted {'a distance' if measure == 'accuracy' else 'an accuracy'}, got the {measure}"
        if least is not None and got_micros < 1000 * least:
            return f"wanted an accuracy of at least {least} thousandths, {got}"
        if most is not None and got_micros > 1000 * most:
            return f"wanted a distance of at most {most} thousandths, {got}"
        worse = base_micros - got_micros if measure == "accuracy" else got_micros - base_micros
        if bearable is not None and worse > 1000 * bearable:
            return f"wanted at most {bearable} thousandths worse than the base's {base_micros / 1000:g}, {got}"
        return ""


class Bars(Closed):
    """What a node's daemon holds rounds and releases to."""

    min_cohort: Annotated[int, Field(ge=1, le=400)] = 1
    """Rounds with fewer institutions are declined: a delta merged with too few others is not hidden among them."""
    max_steps: Annotated[int, Field(ge=1, le=10**6)] = 10**6
    """Rounds that train for more steps are declined."""
    max_rise_over_base_millis: Annotated[int, Field(ge=0, le=10**6)] = 0
    """A release is refused if its best blend is worse than the base by more, in thousandths of a nat for each token."""
    probes: Annotated[tuple[ProbeBar, ...], Field(max_length=MAX_BARRED_PROBES)] = ()
    """A release is refused if its best blend falls short of one; each is of a probe that a clause names."""


class DataTerms(Closed):
    """What a community says of its data, and the digest of the stages that its node puts rows through."""

    text: Text
    stages_sha256: Digest | None


Objectives: TypeAlias = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,40}$")], Annotated[int, Field(ge=0, le=10**6)]],
    Field(min_length=1, max_length=40),
    SORTED,
]
"""Named weights and parameters of training, with their unit in the name."""


class Articles(Closed):
    """What a charter says in every form of it."""

    community: Text
    version: Count
    previous: Digest | None = None
    """The digest of the charter that was the version before."""
    principles: Annotated[tuple[Clause, ...], Field(min_length=1, max_length=50)]
    safety: Annotated[tuple[Clause, ...], Field(max_length=MAX_SAFETY_ITEMS)] = ()
    """The floor: what no answer may do, whatever the principles say."""
    addenda: Annotated[tuple[Addendum, ...], Field(max_length=50)] = ()
    dissent: Remark = ""
    """Of those who do not agree with the whole."""
    bars: Bars = Bars()
    public: Annotated[tuple[Name, ...], Field(max_length=130)] = ()
    """The parts that are published in clear, by name; of the others a salted digest is."""

    @model_validator(mode="after")
    def _named_once(self) -> "Articles":
        ids = [c.id for c in self.clauses()]
        if repeated := sorted({i for i in ids if ids.count(i) > 1} | (set(ids) & set(TERMS))):
            raise ValueError(f"clauses: wanted ids that nothing else in the charter has, got {repeated[0]} again")
        if unknown := sorted(set(self.public) - set(ids) - set(TERMS)):
            raise ValueError(f"public: wanted ids of clauses, or {', '.join(TERMS)}; got {unknown[0]}")
        if len(set(self.public)) != len(self.public):
            raise ValueError("public: a part is named twice")
        barred = [b.probe for b in self.bars.probes]
        if repeated := sorted({p for p in barred if barred.count(p) > 1}):
            raise ValueError(f"bars.probes: wanted one bar on each probe, got {repeated[0]} again")
        if unknown := sorted(set(barred) - self.probed_by().keys()):
            raise ValueError(f"bars.probes: wanted probes that a clause names, got {unknown[0]}")
        return self

    def clauses(self) -> Iterator[Clause]:
        """All clauses: principles, the safety floor, addenda."""
        yield from self.principles
        yield from self.safety
        yield from self.addenda

    def probed_by(self) -> dict[Name, tuple[Name, ...]]:
        """Return for each probe that the charter names the clauses that it is to show, in the charter's order."""
        found: dict[Name, tuple[Name, ...]] = {}
        for c in self.clauses():
            for probe in c.probes:
                found[probe] = (*found.get(probe, ()), c.id)
        return found


class CharterRecord(Articles):
    """One version of a charter, whole: what its digest is of. It leaves the community only as far as that wants."""

    objectives: Objectives
    data_policy: DataTerms

    def digest(self) -> Digest:
        """The SHA-256 of its canonical JSON: the same for every encoding of one charter."""
        return digest_of(canonical.encode(self.model_dump(mode="json")))

    def parts(self) -> dict[str, Json]:
        """Return each part under its name: the terms, then the clauses in their order."""
        terms: dict[str, Json] = {
            "community": self.community,
            "bars": self.bars.model_dump(mode="json"),
            "objectives": {**self.objectives},
            "data-policy": self.data_policy.model_dump(mode="json"),
            "dissent": self.dissent,
        }
        return {
            **terms,
            **{c.id: _in_kind("principle", c) for c in self.principles},
            **{c.id: _in_kind("safety", c) for c in self.safety},
            **{c.id: _in_kind("addendum", c) for c in self.addenda},
        }


def _in_kind(kind: str, clause: Clause) -> Json:
    return {"kind": kind, **clause.model_dump(mode="json")}


# -- how two differ


class Change(NamedTuple):
    """What became of one part; None where it is not in that version."""

    part: str
    before: Json
    after: Json


def diff(before: dict[str, Json], after: dict[str, Json]) -> tuple[Change, ...]:
    """Return what differs between two charters' parts: those of the old one in its order, then new ones.

    A change of the clauses' order alone is one of the part ``order``, since data policies name principles by place.
    """
    changes = [Change(n, v, after.get(n)) for n, v in before.items() if after.get(n) != v]
    changes += [Change(n, None, v) for n, v in after.items() if n not in before]
    old: list[Json] = [n for n in before if n in after]
    new: list[Json] = [n for n in after if n in before]
    if old != new:
        changes.append(Change("order", old, new))
    return tuple(changes)


def describe(change: Change) -> list[str]:
    """Return a change for people to read: a line for each thing that differs in it."""
    if change.before is None:
        return [f"+ {change.part}: {_said(change.after)}"]
    if change.after is None:
        return [f"- {change.part}: {_said(change.before)}"]
    if isinstance(change.before, dict) and isinstance(change.after, dict):
        old, new = change.before, change.after
        return [
            f"~ {change.part}: {name}: {_short(old.get(name))} -> {_short(new.get(name))}"
            for name in [*old, *(n for n in new if n not in old)]
            if old.get(name) != new.get(name)
        ]
    return [f"~ {change.part}: {_short(change.before)} -> {_short(change.after)}"]


def _said(value: Json) -> str:
    """A clause by its text, a term by all of it."""
    return str(value["text"]) if isinstance(value, dict) and "text" in value else _short(value)


def _short(value: Json) -> str:
    return value if isinstance(value, str) else canonical.encode(value).decode()
