"""What holds across opinion groups, what divides them, and what each of them stands for. Pure; integers come out.

Of a statement, a group g with A who agree among S who voted on it (passes count) agrees by p_g = (A + 1) / (S + 2): the
mean of a Beta(1, 1) prior after these votes, so a few votes say little, and no group's silence or veto is exactly 0.

* **consensus** is the geometric mean of p_g over the groups. One group that refuses pulls it down, however large the
  others are. It orders statements as the product over groups does, Polis's group-informed consensus (Small et al.
  2021), and unlike that does not fall because there are many groups.
* **spread** is the largest p_g less the least: how far a statement divides.
* **representative** of g is a statement by p_g / p_rest · p_g, where the rest are pooled: more than others, and much.
  The same with those who disagree.

A statement on which any group has cast fewer than :data:`MIN_CAST` votes is left out: its figure would be the prior's,
and so few voters could be recognised.
"""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from commonweal_node.charter.voices.export import Conversation, Statement
from commonweal_node.charter.voices.groups import MIN_GROUP, Grouping, active, find_groups
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.charter import GroupCount
from commonweal_protocols.statements.values import Digest, Natural

MIN_CAST = 5
_REPRESENTATIVE = 5
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
Millis = Annotated[int, Field(ge=0, le=1000)]
Place = Annotated[int, Field(ge=-(10**6), le=10**6)]
"""In thousandths of the distance from the middle to the farthest thing on the map."""


class Held(Closed):
    """A statement, how each group has voted on it, and what that comes to."""

    statement: Natural
    text: str
    groups: tuple[GroupCount, ...]
    agreement_millis: tuple[Millis, ...]
    """p_g of each group, in their order."""
    consensus_millis: Millis
    spread_millis: Millis
    x: Place
    y: Place


class Typical(Closed):
    """A statement that tells a group from the others, and on which side the group is."""

    statement: Natural
    side: Literal["agree", "disagree"]
    share_millis: Millis
    times_others_millis: Natural


class Group(Closed):
    """An opinion group: how many, where, how far they are apart, and what they stand for."""

    group: str
    members: Annotated[int, Field(ge=MIN_GROUP)]
    x: Place
    y: Place
    reach: Natural
    typical: tuple[Typical, ...]


class Voices(Closed):
    """What a deliberation comes to. Only sums over at least :data:`MIN_GROUP` people are in it."""

    export: Digest
    participants: Natural
    placed: Natural
    """Those who voted on enough statements to be in a group."""
    moderated_out: Natural
    """Statements; with those without a text, and those that are not in the export and have votes."""
    about_voters: Natural
    """Statements about who somebody is, and not what they hold."""
    too_few_votes: Natural
    silhouettes_millis: dict[str, int]
    groups: tuple[Group, ...]
    statements: tuple[Held, ...]
    """Those with the greatest consensus first; of equals, the first by number."""

    def divisive(self) -> tuple[Held, ...]:
        """Those that divide the most first; of equals, the first by number."""
        return tuple(sorted(self.statements, key=lambda s: (-s.spread_millis, s.statement)))


def listen(conversation: Conversation) -> Voices:
    """Return the groups of a deliberation, what holds across them and what divides them.

    Statements that the moderators rejected, without a text, or about the voter have no part in anything.

    Raises:
        MalformedError: Too few statements or participants to say anything.
    """
    # An export may hold a statement without a text; nobody could be told what was agreed to.
    told = [s.moderated != -1 and bool(s.text.strip()) for s in conversation.statements]
    kept = [n for n, s in enumerate(conversation.statements) if told[n] and not s.is_meta]
    statements = tuple(conversation.statements[n] for n in kept)
    votes = conversation.votes[:, kept]
    votes = votes[active(votes)] if kept else votes[:0]
    if len(statements) < 2 or len(votes) < MIN_GROUP:
        raise MalformedError(
            f"export: wanted at least 2 accepted statements and {MIN_GROUP} participants who voted on enough of them, "
            f"got {len(statements)} and {len(votes)}"
        )
    # What is left of a row may sort otherwise than the whole did.
    votes = votes[np.lexsort(votes.T[::-1])]
    grouping = find_groups(votes)
    size = int(grouping.labels.max()) + 1
    counts = np.stack([_count(votes[grouping.labels == g]) for g in range(size)])
    enough = np.flatnonzero((counts.sum(axis=2) >= MIN_CAST).all(axis=0))
    held = _held(statements, counts, grouping, enough)
    return Voices(
        export=conversation.digest,
        participants=len(conversation.votes),
        placed=len(votes),
        moderated_out=told.count(False) + len(conversation.unlisted),
        about_voters=told.count(True) - len(kept),
        too_few_votes=len(statements) - len(held),
        silhouettes_millis={str(k): round(1000 * s) for k, s in grouping.silhouettes.items()},
        groups=_groups(statements, counts, grouping, enough),
        statements=tuple(sorted(held, key=lambda s: (-s.consensus_millis, s.statement))),
    )


def _count(votes: npt.NDArray[np.int8]) -> Counts:
    """(statements, 3): agree, disagree, pass."""
    return np.stack([(votes == v).sum(axis=0) for v in (1, -1, 0)], axis=1)


def shares(counts: Counts) -> Shares:
    """Return (… , statements): p_g of those who agree. ``counts`` is (… , statements, 3)."""
    found: Shares = (counts[..., 0] + 1) / (counts.sum(axis=-1) + 2)
    return found


def consensus(agreement: Shares) -> Shares:
    """Return (statements,): the geometric mean over groups of (groups, statements)."""
    found: Shares = np.exp(np.log(agreement).mean(axis=0))
    return found


def _held(statements: tuple[Statement, ...], counts: Counts, grouping: Grouping, enough: Counts) -> list[Held]:
    agreement = shares(counts)
    common, spread = consensus(agreement), agreement.max(axis=0) - agreement.min(axis=0)
    scale = 1000 / max(float(np.linalg.norm(grouping.loadings, axis=1).max()), 1e-12)
    return [
        Held(
            statement=statements[j].statement,
            text=statements[j].text,
            groups=tuple(
                GroupCount(group=_letter(g), agree=int(c[0]), disagree=int(c[1]), passed=int(c[2]))
                for g, c in enumerate(counts[:, j])
            ),
            agreement_millis=tuple(round(1000 * float(a)) for a in agreement[:, j]),
            consensus_millis=round(1000 * float(common[j])),
            spread_millis=round(1000 * float(spread[j])),
            x=round(scale * float(grouping.loadings[j, 0])),
            y=round(scale * float(grouping.loadings[j, 1])),
        )
        for j in (int(n) for n in enough)
    ]


def _groups(statements: tuple[Statement, ...], counts: Counts, grouping: Grouping, enough: Counts) -> tuple[Group, ...]:
    found = []
    middles = [grouping.points[grouping.labels == g] for g in range(len(counts))]
    centres = [p.mean(axis=0) for p in middles]
    reaches = [float(np.sqrt(((p - c) ** 2).sum(axis=1).mean())) for p, c in zip(middles, centres, strict=True)]
    farthest = max(float(np.hypot(*c)) + r for c, r in zip(centres, reaches, strict=True))
    scale = 1000 / max(farthest, 1e-12)
    for g, (points, centre, reach) in enumerate(zip(middles, centres, reaches, strict=True)):
        found.append(
            Group(
                group=_letter(g),
                members=len(points),
                x=round(scale * float(centre[0])),
                y=round(scale * float(centre[1])),
                reach=round(scale * reach),
                typical=_typical(statements, counts, g, enough) if len(counts) > 1 else (),
            )
        )
    return tuple(found)


def _typical(statements: tuple[Statement, ...], counts: Counts, g: int, enough: Counts) -> tuple[Typical, ...]:
    rest = counts.sum(axis=0) - counts[g]
    found: list[tuple[float, Typical]] = []
    for side, mine, others in (
        ("agree", counts[g], rest),
        ("disagree", counts[g][:, [1, 0, 2]], rest[:, [1, 0, 2]]),
    ):
        own, ratio = shares(mine), shares(mine) / shares(others)
        for j in (int(n) for n in enough):
            said = {
                "statement": statements[j].statement,
                "side": side,
                "share_millis": round(1000 * float(own[j])),
                "times_others_millis": round(1000 * float(ratio[j])),
            }
            if ratio[j] > 1:
                found.append((float(ratio[j] * own[j]), Typical.model_validate(said)))
    found.sort(key=lambda f: (-round(f[0], 9), f[1].statement, f[1].side))
    return tuple(t for _, t in found[:_REPRESENTATIVE])


def _letter(g: int) -> str:
    return chr(ord("A") + g)
