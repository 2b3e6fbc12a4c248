"""The fold's part that is about who belongs and who decides: founding, versions of the compact, keys, leaving. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from commonweal_protocols.base.errors import MalformedError, RuleError
from commonweal_protocols.fold.amendment import (
    Retired,
    check_amendment,
    check_signers,
    ended_keys,
    successors,
    with_key,
    without_member,
)
from commonweal_protocols.fold.authors import check_place, check_standing
from commonweal_protocols.fold.motions import approving
from commonweal_protocols.fold.rounds import with_round
from commonweal_protocols.fold.state import Chain, State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.members import Rotation
from commonweal_protocols.statements.statement import Entry, Header
from commonweal_protocols.statements.values import Name
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.note import parse_vkey

T = TypeVar("T")
LEFT = "left the consortium"
"""Why a key has ended whose owner is a member no more, by its own word."""


def found(entry: Entry) -> State:
    """Return the state that the first entry makes.

    Raises:
        RuleError: It is not a first compact, signed by every member.
    """
    compact = entry.statement.predicate
    if not isinstance(compact, Compact):
        raise RuleError(f"index 0: wanted the founding compact, got {compact.kind()}")
    if compact.version != 1:
        raise RuleError(f"index 0: wanted version 1 of a compact, got {compact.version}")
    check_signers(None, compact, entry.signers, 0)
    try:
        policy_of(compact)
    except MalformedError as e:
        raise RuleError(f"compact: {e}") from e
    # Nothing in the founding compact depends on who signed first: the payload alone names the consortium.
    return State(entry.payload_sha256, compact, entry.payload_sha256, 1)


def amend(state: State, entry: Entry, compact: Compact) -> State:
    """Put the next version of the compact in force.

    Raises:
        RuleError: It may not follow the one in force, or too few stand by it.
    """
    current, index = state.compact, state.size
    check_amendment(current, state.compact_sha256, compact, state.retired, index)
    check_signers(current, compact, entry.signers, index, approving(state, entry.payload_sha256))
    ended = ended_keys(current, compact, state.retired, index)
    chains = dict(state.chains)
    for old, new in successors(current, compact).items():
        if old in chains:
            chains[new] = chains[old]
    for key in ended:
        chains.pop(key, None)
    origins = dict(state.origins)
    if compact.succeeds is not None:
        origins[parse_vkey(current.coordinator.log).name] = index
    state = replace(
        state,
        compact=compact,
        compact_sha256=entry.payload_sha256,
        size=index + 1,
        chains=chains,
        retired={**state.retired, **ended},
        origins=origins,
    )
    for r in compact.revocations:
        state = _set_aside(state, state.retired[r.key], compact.version)
    return state


def _set_aside(state: State, key: Retired, version: int) -> State:
    """Undo what a revoked key did while it was suspect, as far as nothing has been decided on the strength of it.

    An answer to the open round is gone, and may be given again under another key; a masked round that is open, with
    the key's owner in it, is closed. A release that is not ratified yet can no longer be, if it was made with a suspect
    update; else only the suspect ratification is gone. What was ratified stays: to withdraw that is for the members to
    decide.
    """
    if key.suspect_from_index is None or not state.rounds:
        return state
    r, name = state.rounds[-1], key.owner

    def suspect(index: int | None) -> bool:
        return index is not None and key.suspect_from_index is not None and index >= key.suspect_from_index

    if r.is_open and r.masking is not None and name in r.masking.advertised:
        # The masks of all hang together, and anyone who has that key may have said what is in them.
        why = f"masked together with {name}, whose key version {version} revoked"
        return with_round(state, replace(r, incident=why))
    answer = suspect(r.answered_at.get(name))
    if answer and r.is_open:
        r = replace(
            r,
            updates=_without(r.updates, name),
            refusals=_without(r.refusals, name),
            rejected=_without(r.rejected, name),
            answered_at=_without(r.answered_at, name),
        )
    if (release := r.release) is not None and not release.is_ratified:
        if answer and any(i.institution == name for i in release.release.inputs):
            r = replace(r, incident=f"made with an update under a key of {name} that version {version} revoked")
        if suspect(release.ratified_by.get(name)):
            r = replace(r, release=replace(release, ratified_by=_without(release.ratified_by, name)))
    return with_round(state, r)


def _without(held: Mapping[Name, T], name: Name) -> dict[Name, T]:
    return {n: v for n, v in held.items() if n != name}


def rotate(state: State, entry: Entry, header: Header, rotation: Rotation) -> State:
    """Put a new key in the place of its owner's.

    Raises:
        RuleError: Not signed by both keys, not in the author's place, or the new key is or was in use.
    """
    old = [key for key in entry.signers if key != rotation.key]
    if len(entry.signers) != 2 or len(old) != 1:
        raise RuleError("rotation: wanted two signatures, of the old key and of the new one")
    check_standing(state, "rotation", old[0])
    check_place(state, "rotation", old[0], header)
    owner = state.compact.coordinator.name if old[0] == state.compact.coordinator.key else state.institution(old[0])
    if owner is None:
        raise RuleError(f"rotation: wanted the key of a member or the coordinator, got {old[0]}")
    if rotation.name != owner:
        raise RuleError(f"rotation: wanted name {owner} (the author), got {rotation.name}")
    if (ended := state.retired.get(rotation.key)) is not None:
        raise RuleError(f"rotation: key {rotation.key} has ended ({ended.reason}); wanted one that was never used")
    if rotation.key == state.compact.coordinator.key or state.institution(rotation.key) is not None:
        raise RuleError(f"rotation: key {rotation.key} is in use; wanted one of {owner} alone")
    chains = {**state.chains, rotation.key: Chain(header.seq, entry.leaf)}
    chains.pop(old[0], None)
    return replace(
        state,
        compact=with_key(state.compact, owner, rotation.key),
        size=state.size + 1,
        chains=chains,
        retired={**state.retired, old[0]: Retired(owner, state.size, None, "rotated")},
    )


def leave(state: State, name: Name, exit_: Exit) -> State:
    """Let a member go. Quorums that the others could no longer reach become all of them.

    Raises:
        RuleError: It speaks for another, or is the last.
    """
    if exit_.institution != name:
        raise RuleError(f"exit: wanted institution {name} (the author), got {exit_.institution}")
    if len(state.compact.members) == 1:
        raise RuleError(f"exit: {name} is the last member; a consortium ends when nobody continues with it")
    key = state.key(name)
    if key is None:
        return state
    retired = {**state.retired, key: Retired(name, state.size, None, LEFT)}
    return replace(state, compact=without_member(state.compact, name), retired=retired)
