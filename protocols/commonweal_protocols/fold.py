"""The fold: a consortium's state is this function over its log, and nothing else.

Coordinator, node and auditor all run :func:`fold`. It is pure (no I/O, no clock, no randomness) and total: every
verified entry either gives the next state or raises :class:`RuleError` saying what the compact wanted. A round moves

    open ──update*/refusal*/rejection*──▶ open ──release──▶ released ──ratification × quorum──▶ ratified ──adoption*
      └────────────────incident──────────▶ closed

and only one round is open at a time. Keys are judged by the compact in force at the entry's place, never by a clock.
A new version of the compact is in force from its own entry on, but a round ends under the quorums that it began under.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from commonweal_protocols.amendment import (
    Retired,
    check_amendment,
    check_signers,
    ended_keys,
    is_expired,
    successors,
    with_key,
)
from commonweal_protocols.errors import MalformedError, RuleError
from commonweal_protocols.predicates import (
    Adoption,
    Compact,
    Digest,
    Identity,
    Incident,
    Input,
    Name,
    PublicKey,
    Ratification,
    Refusal,
    Rejection,
    Release,
    Rotation,
    Round,
    Rule,
    Update,
)
from commonweal_protocols.quorum import policy_of
from commonweal_protocols.state import Chain, LoggedRelease, LoggedUpdate, RoundState, State
from commonweal_protocols.statement import Entry, Header

T = TypeVar("T")


def weights(rule: Rule, updates: tuple[Update, ...]) -> tuple[int, ...]:
    """How much each update counts under a rule, in the order given."""
    return tuple(1 if rule.weights == "equal" else u.num_examples for u in updates)


def release_inputs(r: RoundState) -> tuple[Input, ...]:
    """The one list of inputs that a release of this round may have."""
    accepted = r.accepted()
    shares = weights(r.round.rule, tuple(u.update for _, u in accepted))
    return tuple(
        Input(institution=name, leaf=u.leaf, delta=u.update.delta, weight=w)
        for (name, u), w in zip(accepted, shares, strict=True)
    )


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
        return _found(entry)
    if isinstance(predicate, Compact):
        return _amend(state, entry, predicate)
    if header is None:
        raise RuleError(f"{_kind(entry)}: wanted a header, got none")
    if isinstance(predicate, Rotation):
        return _rotate(state, entry, header, predicate)
    author = _author(state, entry, header)
    institution = state.institution(author)
    match predicate:
        case Identity() | Update() | Refusal() | Ratification() | Adoption():
            if institution is None:
                raise RuleError(f"{_kind(entry)}: wanted a member as the author, got key {author}")
        case Round() | Rejection() | Incident() | Release():
            if author != state.compact.coordinator.key:
                raise RuleError(f"{_kind(entry)}: wanted the coordinator as the author, got key {author}")
    name = institution or ""
    match predicate:
        case Identity():
            state = _identity(state, name, predicate)
        case Round():
            state = _round(state, entry.leaf, predicate)
        case Update():
            state = _update(state, entry.leaf, name, predicate)
        case Refusal():
            state = _refusal(state, name, predicate)
        case Rejection():
            state = _rejection(state, predicate)
        case Incident():
            r = _open(state, "incident", predicate.round, predicate.round_leaf)
            state = _with_round(state, replace(r, incident=predicate.reason))
        case Release():
            state = _release(state, entry.leaf, predicate)
        case Ratification():
            state = _ratification(state, name, predicate)
        case Adoption():
            state = _adoption(state, name, predicate)
    return replace(state, size=state.size + 1, chains={**state.chains, author: Chain(header.seq, entry.leaf)})


def _kind(entry: Entry) -> str:
    return type(entry.statement.predicate).__name__.lower()


def _found(entry: Entry) -> State:
    compact = entry.statement.predicate
    if not isinstance(compact, Compact):
        raise RuleError(f"index 0: wanted the founding compact, got {_kind(entry)}")
    if compact.version != 1:
        raise RuleError(f"index 0: wanted version 1 of a compact, got {compact.version}")
    check_signers(None, compact, entry.signers, 0)
    try:
        policy_of(compact)
    except MalformedError as e:
        raise RuleError(f"compact: {e}") from e
    # Nothing in the founding compact depends on who signed first: the payload alone names the consortium.
    return State(entry.payload_sha256, compact, entry.payload_sha256, 1)


def _amend(state: State, entry: Entry, compact: Compact) -> State:
    current, index = state.compact, state.size
    check_amendment(current, state.compact_sha256, compact, state.retired, index)
    check_signers(current, compact, entry.signers, index)
    ended = ended_keys(current, compact, state.retired, index)
    chains = dict(state.chains)
    for old, new in successors(current, compact).items():
        if old in chains:
            chains[new] = chains[old]
    for key in ended:
        chains.pop(key, None)
    state = replace(
        state,
        compact=compact,
        compact_sha256=entry.payload_sha256,
        size=index + 1,
        chains=chains,
        retired={**state.retired, **ended},
    )
    for r in compact.revocations:
        state = _set_aside(state, state.retired[r.key], compact.version)
    return state


def _set_aside(state: State, key: Retired, version: int) -> State:
    """Undo what a revoked key did while it was suspect, as far as nothing has been decided on the strength of it.

    An answer to the open round is gone, and may be given again under another key. A release that is not ratified yet
    can no longer be, if it was made with a suspect update; else only the suspect ratification is gone. What was
    ratified stays: to withdraw that is for the members to decide.
    """
    if key.suspect_from_index is None or not state.rounds:
        return state
    r, name = state.rounds[-1], key.owner

    def suspect(index: int | None) -> bool:
        return index is not None and key.suspect_from_index is not None and index >= key.suspect_from_index

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
    return _with_round(state, r)


def _without(held: Mapping[Name, T], name: Name) -> dict[Name, T]:
    return {n: v for n, v in held.items() if n != name}


def _rotate(state: State, entry: Entry, header: Header, rotation: Rotation) -> State:
    old = [key for key in entry.signers if key != rotation.key]
    if len(entry.signers) != 2 or len(old) != 1:
        raise RuleError("rotation: wanted two signatures, of the old key and of the new one")
    _check_standing(state, "rotation", old[0])
    _check_place(state, "rotation", old[0], header)
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


def _author(state: State, entry: Entry, header: Header) -> PublicKey:
    """Check the author's standing, and the header against the author's chain; return the one author."""
    kind = _kind(entry)
    if len(entry.signers) != 1:
        raise RuleError(f"{kind}: wanted one author, got {len(entry.signers)} signatures")
    (author,) = entry.signers
    _check_standing(state, kind, author)
    _check_place(state, kind, author, header)
    return author


def _check_standing(state: State, kind: str, author: PublicKey) -> None:
    if (ended := state.retired.get(author)) is not None:
        raise RuleError(
            f"{kind}: wanted a key in force, got {author} of {ended.owner}, ended at entry {ended.at_index}: "
            f"{ended.reason}"
        )
    member = next((m for m in state.compact.members if m.key == author), None)
    if member is not None and is_expired(member, state.size):
        raise RuleError(
            f"{kind}: the key of {member.institution} has expired at index {member.expires_at_index}; wanted a new "
            "one, which the next version of the compact can name"
        )


def _check_place(state: State, kind: str, author: PublicKey, header: Header) -> None:
    if header.consortium != state.consortium:
        raise RuleError(f"{kind}: wanted consortium {state.consortium}, got {header.consortium}")
    chain = state.chain(author)
    who = state.institution(author) or "the coordinator" * (author == state.compact.coordinator.key) or author
    if header.seq != chain.seq + 1:
        raise RuleError(f"{kind}: wanted number {chain.seq + 1} in the chain of {who}, got {header.seq}")
    if header.prev != (chain.leaf or None):
        raise RuleError(f"{kind}: wanted {chain.leaf or None} as the entry of {who} before it, got {header.prev}")


def _with_round(state: State, r: RoundState) -> State:
    rounds = (*state.rounds[: r.round.round - 1], r, *state.rounds[r.round.round :])
    return replace(state, rounds=rounds)


def _open(state: State, kind: str, number: int, leaf: Digest | None) -> RoundState:
    r = state.open_round
    if r is None or r.round.round != number:
        got = f"round {r.round.round} is open" if r else "no round is open"
        raise RuleError(f"{kind}: wanted an open round {number}, but {got}")
    if leaf is not None and leaf != r.leaf:
        raise RuleError(f"{kind}: wanted an answer to the round entry {r.leaf}, got {leaf}")
    return r


def _identity(state: State, name: Name, identity: Identity) -> State:
    if identity.institution != name:
        raise RuleError(f"identity: wanted institution {name} (the author), got {identity.institution}")
    return replace(state, identities={**state.identities, name: identity})


def _round(state: State, leaf: Digest, r: Round) -> State:
    compact = state.compact
    if state.open_round:
        raise RuleError(f"round: wanted round {state.open_round.round.round} closed first")
    if r.round != len(state.rounds) + 1:
        raise RuleError(f"round: wanted number {len(state.rounds) + 1}, got {r.round}")
    if r.start != state.next_start():
        raise RuleError(
            f"round: wanted start {state.next_start().sha256} (the newest ratified release), got {r.start.sha256}"
        )
    if r.rule != compact.rule:
        raise RuleError(f"round: wanted the compact's rule {compact.rule}, got {r.rule}")
    for bound, wanted in compact.recipe:
        if (got := getattr(r.recipe, bound)) > wanted:
            raise RuleError(f"round: wanted recipe.{bound} at most {wanted}, got {got}")
    if r.deadline_seconds > compact.round_deadline_seconds:
        raise RuleError(
            f"round: wanted a deadline of at most {compact.round_deadline_seconds} s, got {r.deadline_seconds}"
        )
    if list(r.cohort) != sorted(set(r.cohort)):
        raise RuleError("round: wanted the cohort sorted and without repeats")
    if unknown := set(r.cohort) - {m.institution for m in compact.members}:
        raise RuleError(f"round: wanted a cohort of members, got {sorted(unknown)}")
    if len(r.cohort) < compact.quorum.updates:
        raise RuleError(f"round: wanted a cohort of at least {compact.quorum.updates}, got {len(r.cohort)}")
    return replace(state, rounds=(*state.rounds, RoundState(leaf, r, compact.quorum)))


def _answering(state: State, kind: str, name: Name, number: int, leaf: Digest) -> RoundState:
    r = _open(state, kind, number, leaf)
    if name not in r.round.cohort:
        raise RuleError(f"{kind}: {name} is not in the cohort of round {number}")
    if name in r.updates or name in r.refusals:
        raise RuleError(f"{kind}: {name} has answered round {number} already")
    return r


def _update(state: State, leaf: Digest, name: Name, update: Update) -> State:
    r = _answering(state, "update", name, update.round, update.round_leaf)
    if update.delta.size_bytes > state.compact.max_update_bytes:
        raise RuleError(
            f"update: wanted a delta of at most {state.compact.max_update_bytes} bytes, got {update.delta.size_bytes}"
        )
    updates, answered_at = {**r.updates, name: LoggedUpdate(leaf, update)}, {**r.answered_at, name: state.size}
    return _with_round(state, replace(r, updates=updates, answered_at=answered_at))


def _refusal(state: State, name: Name, refusal: Refusal) -> State:
    r = _answering(state, "refusal", name, refusal.round, refusal.round_leaf)
    refusals, answered_at = {**r.refusals, name: refusal.reason}, {**r.answered_at, name: state.size}
    return _with_round(state, replace(r, refusals=refusals, answered_at=answered_at))


def _rejection(state: State, rejection: Rejection) -> State:
    r = _open(state, "rejection", rejection.round, None)
    logged = r.updates.get(rejection.institution)
    if logged is None or logged.leaf != rejection.leaf:
        wanted = f"the logged update {logged.leaf}" if logged else "a logged update"
        raise RuleError(f"rejection: wanted {wanted} of {rejection.institution}, got {rejection.leaf}")
    if rejection.institution in r.rejected:
        raise RuleError(f"rejection: the update of {rejection.institution} is set aside already")
    return _with_round(state, replace(r, rejected={**r.rejected, rejection.institution: rejection}))


def _release(state: State, leaf: Digest, release: Release) -> State:
    r = _open(state, "release", release.round, None)
    if release.start != r.round.start or release.rule != r.round.rule:
        raise RuleError(f"release: wanted the start and the rule of round {release.round}")
    wanted = release_inputs(r)
    if release.inputs != wanted:
        missing = sorted({i.institution for i in wanted} - {i.institution for i in release.inputs})
        raise RuleError(
            f"release: wanted every logged update that was not rejected, by institution, with the rule's weights; "
            f"missing: {missing}"
        )
    if len(wanted) < r.quorum.updates:
        raise RuleError(f"release: wanted at least {r.quorum.updates} updates, got {len(wanted)}")
    return _with_round(state, replace(r, release=LoggedRelease(leaf, release, r.quorum.ratifications)))


def _released(state: State, kind: str, number: int, leaf: Digest) -> tuple[RoundState, LoggedRelease]:
    if number > len(state.rounds) or (logged := state.rounds[number - 1].release) is None:
        raise RuleError(f"{kind}: round {number} has no release")
    if logged.leaf != leaf:
        raise RuleError(f"{kind}: wanted the release entry {logged.leaf}, got {leaf}")
    return state.rounds[number - 1], logged


def _ratification(state: State, name: Name, ratification: Ratification) -> State:
    r, logged = _released(state, "ratification", ratification.round, ratification.release_leaf)
    if r.incident is not None:
        raise RuleError(f"ratification: the release of round {ratification.round} is void: {r.incident}")
    if ratification.adapter_sha256 != logged.release.adapter.sha256:
        raise RuleError(
            f"ratification: wanted adapter {logged.release.adapter.sha256}, got {ratification.adapter_sha256}"
        )
    if name in logged.ratified_by:
        raise RuleError(f"ratification: {name} has ratified round {ratification.round} already")
    ratified_by = {**logged.ratified_by, name: state.size}
    return _with_round(state, replace(r, release=replace(logged, ratified_by=ratified_by)))


def _adoption(state: State, name: Name, adoption: Adoption) -> State:
    r, logged = _released(state, "adoption", adoption.round, adoption.release_leaf)
    if not logged.is_ratified:
        raise RuleError(f"adoption: the release of round {adoption.round} is not ratified yet")
    adoptions = {**logged.adoptions, name: adoption}
    return _with_round(state, replace(r, release=replace(logged, adoptions=adoptions)))
