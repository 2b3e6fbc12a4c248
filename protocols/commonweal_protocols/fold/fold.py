"""The fold: a consortium's state is this function over its log, and nothing else.

Coordinator, node and auditor all run :func:`fold`. It is pure (no I/O, no clock, no randomness) and total: every
verified entry either gives the next state or raises :class:`RuleError` saying what the compact wanted. A round moves

    open ──update*/refusal*/rejection*──▶ open ──release──▶ released ──ratification × quorum──▶ ratified ──adoption*
      └─incident─▶ closed ◀─incident, where no quorum is left──┘

and only one round is open at a time; the stages of one that is masked are in ``masked_round``. Keys are judged by the
compact in force at the entry's place, never by a clock. A new version of the compact is in force from its own entry on,
but a round ends under the quorums that it began under.
"""

from dataclasses import replace

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold import charters as publication
from commonweal_protocols.fold import foreign as foreign_rules
from commonweal_protocols.fold import membership
from commonweal_protocols.fold import motions as deliberation
from commonweal_protocols.fold import rounds as round_rules
from commonweal_protocols.fold.authors import check_author
from commonweal_protocols.fold.state import Chain, State
from commonweal_protocols.statements.adoption import Adoption, ForeignAdoption
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.fact import Author
from commonweal_protocols.statements.governance import (
    Ballot,
    Charter,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    SealedBallot,
)
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import Incident, Ratification, Refusal, Rejection, Release, Round, Update
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares, StageEnd
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.statements.values import Name


def fold(state: State | None, entry: Entry) -> State:
    """Return the state after ``entry``.

    Args:
        state: The state before it; None for the first entry.
        entry: Signatures verified (:func:`statement.open_entry`).

    Raises:
        RuleError: The compact does not allow this entry in this state. The state is as it was.
    """
    predicate, header = entry.statement.predicate, entry.statement.header
    if state is None:
        return membership.found(entry)
    if isinstance(predicate, Compact):
        return membership.amend(state, entry, predicate)
    if header is None:
        raise RuleError(f"{predicate.kind()}: wanted a header, got none")
    if isinstance(predicate, Rotation):
        return membership.rotate(state, entry, header, predicate)
    author = check_author(state, entry, header)
    state = _apply(state, entry, _speaker(state, entry, author))
    chains = {**state.chains, author: Chain(header.seq, entry.leaf)}
    if author in state.retired:  # by this very entry
        del chains[author]
    return replace(state, size=state.size + 1, chains=chains)


def _speaker(state: State, entry: Entry, author: str) -> Name:
    """Return the member that speaks, or nothing where the coordinator does.

    Raises:
        RuleError: The entry's kind is not for this author to sign.
    """
    name, is_coordinator = state.institution(author), author == state.compact.coordinator.key
    may: dict[Author, bool] = {
        "a member": name is not None,
        "the coordinator": is_coordinator,
        "a member or the coordinator": name is not None or is_coordinator,
        "several keys": False,
    }
    predicate = entry.statement.predicate
    if not may[predicate.AUTHOR]:
        raise RuleError(f"{predicate.kind()}: wanted {predicate.AUTHOR} as the author, got key {author}")
    return name or ""


def _apply(state: State, entry: Entry, name: Name) -> State:
    predicate: Predicate = entry.statement.predicate
    match predicate:
        case Identity():
            return round_rules.on_identity(state, name, predicate)
        case Round():
            return round_rules.on_round(state, entry.leaf, predicate)
        case Update():
            return round_rules.on_update(state, entry.leaf, name, predicate)
        case Refusal():
            return round_rules.on_refusal(state, name, predicate)
        case Rejection():
            return round_rules.on_rejection(state, predicate)
        case Incident():
            return round_rules.on_incident(state, predicate)
        case Release():
            return round_rules.on_release(state, entry.leaf, predicate)
        case Ratification():
            return round_rules.on_ratification(state, name, predicate)
        case Adoption():
            return round_rules.on_adoption(state, name, predicate)
        case ForeignAdoption():
            return foreign_rules.on_foreign_adoption(state, entry.leaf, name, predicate)
        case DataManifest():
            return round_rules.on_manifest(state, entry.leaf, name, predicate)
        case Charter():
            return publication.on_charter(state, entry.leaf, name, predicate)
        case Motion():
            return deliberation.propose(state, entry.leaf, name, predicate)
        case Ballot():
            return deliberation.cast(state, name, predicate)
        case SealedBallot():
            return deliberation.cast_sealed(state, name, predicate)
        case OpenedBallot():
            return deliberation.cast_opened(state, name, predicate)
        case Closing():
            return deliberation.close(state, predicate)
        case Advertisement() | SealedShares() | Confirmation() | Reveal():
            return round_rules.on_message(state, name, predicate)
        case StageEnd():
            return round_rules.on_stage_end(state, predicate)
        case Exit():
            return membership.leave(state, name, predicate)
        case Compact() | Rotation():
            raise RuleError(f"{predicate.kind()}: has several authors")
