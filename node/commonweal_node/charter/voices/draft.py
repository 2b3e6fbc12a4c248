"""Clauses drafted from what holds across opinion groups. A draft informs; a recorded motion decides. Pure."""

from commonweal_node.charter.voices.consensus import Held, Voices
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.charter import Clause, Deliberated, Dissent, GroupCount

DISSENT_MILLIS = 200
"""A group of which more than a fifth of those who voted disagree has its numbers beside the clause as dissent."""


def draft_clauses(voices: Voices, what: str, top: int) -> tuple[Clause, ...]:
    """Return clauses of the statements with the greatest consensus, each with its numbers and its dissent.

    Args:
        voices: What the deliberation came to.
        what: What it is called; for people.
        top: How many.

    Raises:
        ConfigError: There are not so many statements with enough votes.
    """
    if top > len(voices.statements):
        raise ConfigError(f"--top: wanted at most {len(voices.statements)} (statements with enough votes), got {top}")
    return tuple(_clause(voices, held, what) for held in voices.statements[:top])


def _clause(voices: Voices, held: Held, what: str) -> Clause:
    return Clause(
        id=f"voice-{held.statement}",
        text=held.text,
        provenance=(
            Deliberated(
                kind="deliberation", what=what, export=voices.export, statement=held.statement, groups=held.groups
            ),
        ),
        dissent=tuple(_dissent(c) for c in held.groups if _is_dissent(c)),
    )


def _is_dissent(c: GroupCount) -> bool:
    return 1000 * c.disagree > DISSENT_MILLIS * (c.agree + c.disagree + c.passed)


def _dissent(c: GroupCount) -> Dissent:
    voted = c.agree + c.disagree + c.passed
    return Dissent(
        who=f"opinion group {c.group}",
        reason=f"{c.disagree} of {voted} disagree, {c.agree} agree, {c.passed} pass. Votes do not say why.",
    )
