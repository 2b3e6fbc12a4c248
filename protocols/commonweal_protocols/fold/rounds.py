"""The fold's part that is about rounds: what may be said of one in which stage. Pure."""

from dataclasses import replace

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.foreign import check_source
from commonweal_protocols.fold.masked_round import Context, Masking
from commonweal_protocols.fold.state import LoggedManifest, LoggedRelease, LoggedUpdate, RoundState, State
from commonweal_protocols.fold.weights import Voice, weigh
from commonweal_protocols.statements.adoption import Adoption
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.privacy_budget import allows
from commonweal_protocols.statements.rounds import (
    Incident,
    Input,
    Ratification,
    Refusal,
    Rejection,
    Release,
    Round,
    Update,
)
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares, StageEnd
from commonweal_protocols.statements.secure_terms import FEWEST_INPUTS
from commonweal_protocols.statements.values import Digest, Name


def release_inputs(state: State, r: RoundState) -> tuple[Input, ...]:
    """The one list of inputs that a release of this round may have, with the weights that the rule gives them."""
    accepted = r.accepted()
    if not accepted:
        return ()
    shares = weigh(r.round.rule.weights, [_voice(state, r, name, u.update) for name, u in accepted])
    return tuple(
        Input(institution=name, leaf=u.leaf, delta=u.update.delta, weight=w)
        for (name, u), w in zip(accepted, shares, strict=True)
    )


def with_round(state: State, r: RoundState) -> State:
    """Return the state with another form of one round."""
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


def _voice(state: State, r: RoundState, name: Name, update: Update) -> Voice:
    """What an institution's own entries say that its weight may rest on: up to this round, whatever came later."""
    known = (x.updates.get(name) for x in state.rounds[: r.round.round])
    losses = tuple(u.update.heldout_before_micronats for u in known if u is not None)
    return Voice(update.num_examples, losses)


def on_identity(state: State, name: Name, identity: Identity) -> State:
    """A member announces itself, or anew.

    Raises:
        RuleError: It speaks for another.
    """
    if identity.institution != name:
        raise RuleError(f"identity: wanted institution {name} (the author), got {identity.institution}")
    return replace(state, identities={**state.identities, name: identity})


def on_manifest(state: State, leaf: Digest, name: Name, manifest: DataManifest) -> State:
    """A member states what its rows went through. The newest statement counts.

    Raises:
        RuleError: It speaks for another.
    """
    if manifest.institution != name:
        raise RuleError(f"data manifest: wanted institution {name} (the author), got {manifest.institution}")
    return replace(state, manifests={**state.manifests, name: LoggedManifest(leaf, manifest)})


def on_round(state: State, leaf: Digest, r: Round) -> State:
    """The coordinator opens a round, within the compact's bounds.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
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
        got = getattr(r.recipe, bound)
        # Where the compact states no number of passes, a round may; where it does, a round must.
        if wanted is not None and (got is None or got > wanted):
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
    if compact.privacy is not None:
        spent = [n for n in r.cohort if not allows(compact.privacy, state.spent_micro_rho(n))]
        if spent:
            raise RuleError(f"round: {', '.join(spent)} would spend more than the privacy budget allows")
    if state.is_burst_over():
        raise RuleError(
            f"round: wanted none after {compact.stop_after} whose start most members found no better than those "
            "before, until the compact changes or a member states other rows"
        )
    opened = RoundState(
        leaf, r, compact.quorum, compact.privacy, compact.encoding, basis=state.basis(), state_before=state.kept()
    )
    if compact.secure is not None:
        if len(r.cohort) < FEWEST_INPUTS:
            raise RuleError(f"round: wanted a cohort of at least {FEWEST_INPUTS} to mask in, got {len(r.cohort)}")
        context = Context(state.consortium, leaf)
        opened = replace(opened, masking=Masking(context, compact.secure, r.cohort, compact.adapter.masked_bytes))
    return replace(state, rounds=(*state.rounds, opened))


def _answering(state: State, kind: str, name: Name, number: int, leaf: Digest) -> RoundState:
    r = _open(state, kind, number, leaf)
    if name not in r.round.cohort:
        raise RuleError(f"{kind}: {name} is not in the cohort of round {number}")
    if name in r.updates or name in r.refusals:
        raise RuleError(f"{kind}: {name} has answered round {number} already")
    return r


def on_update(state: State, leaf: Digest, name: Name, update: Update) -> State:
    """A member contributes to the open round.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    r = _answering(state, "update", name, update.round, update.round_leaf)
    if update.delta.size_bytes > state.compact.max_update_bytes:
        raise RuleError(
            f"update: wanted a delta of at most {state.compact.max_update_bytes} bytes, got {update.delta.size_bytes}"
        )
    if update.data_leaf is not None:
        stated = state.manifests.get(name)
        if stated is None or stated.leaf != update.data_leaf:
            wanted = (
                f"{stated.leaf} (the newest data manifest of {name})" if stated else f"none: {name} has stated none"
            )
            raise RuleError(f"update: wanted as its data {wanted}, got {update.data_leaf}")
    check_source(state, name, update)
    if r.masking is not None:
        r.masking.check_input(name, update, r.updates)
    elif update.partners:
        raise RuleError(f"update: wanted no partners in a round that is not masked, got {list(update.partners)}")
    updates, answered_at = {**r.updates, name: LoggedUpdate(leaf, update)}, {**r.answered_at, name: state.size}
    return with_round(state, replace(r, updates=updates, answered_at=answered_at))


def on_refusal(state: State, name: Name, refusal: Refusal) -> State:
    """A member declines the open round.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    r = _answering(state, "refusal", name, refusal.round, refusal.round_leaf)
    refusals, answered_at = {**r.refusals, name: refusal.reason}, {**r.answered_at, name: state.size}
    return with_round(state, replace(r, refusals=refusals, answered_at=answered_at))


def _masking(state: State, kind: str, number: int, leaf: Digest) -> tuple[RoundState, Masking]:
    r = _open(state, kind, number, leaf)
    if r.masking is None:
        raise RuleError(f"{kind}: round {number} is not masked")
    return r, r.masking


def on_message(state: State, name: Name, said: Advertisement | SealedShares | Confirmation | Reveal) -> State:
    """A member says what is due of it in the present stage of the open round, which is masked.

    Raises:
        RuleError: Not in this state, or not what is due.
    """
    r, masking = _masking(state, "message", said.round, said.round_leaf)
    if name in r.refusals:
        raise RuleError(f"message: {name} has declined round {said.round}")
    match said:
        case Advertisement():
            masking = masking.advertise(name, said)
        case SealedShares():
            masking = masking.seal(name, said)
        case Confirmation():
            masking = masking.confirm(name, said)
        case Reveal():
            masking = masking.reveal(name, said)
    return with_round(state, replace(r, masking=masking))


def on_stage_end(state: State, said: StageEnd) -> State:
    """The coordinator ends a stage of the open round, which is masked.

    Raises:
        RuleError: Not in this state, too few have spoken, or others than it says.
    """
    r, masking = _masking(state, "stage end", said.round, said.round_leaf)
    masking = masking.end_stage(said.stage, said.speakers, r.updates, r.quorum.updates)
    return with_round(state, replace(r, masking=masking))


def on_rejection(state: State, rejection: Rejection) -> State:
    """The coordinator sets a logged update aside.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    r = _open(state, "rejection", rejection.round, None)
    if r.masking is not None:
        raise RuleError("rejection: the updates of this round are masked, and nobody can see what is wrong with one")
    logged = r.updates.get(rejection.institution)
    if logged is None or logged.leaf != rejection.leaf:
        wanted = f"the logged update {logged.leaf}" if logged else "a logged update"
        raise RuleError(f"rejection: wanted {wanted} of {rejection.institution}, got {rejection.leaf}")
    if rejection.institution in r.rejected:
        raise RuleError(f"rejection: the update of {rejection.institution} is set aside already")
    return with_round(state, replace(r, rejected={**r.rejected, rejection.institution: rejection}))


def on_release(state: State, leaf: Digest, release: Release) -> State:
    """The coordinator publishes the merge of all that was accepted, or makes a recalled release again.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    again = release.round <= len(state.rounds) and state.rounds[release.round - 1].wants_release_again
    r = state.rounds[release.round - 1] if again else _open(state, "release", release.round, None)
    if release.start != r.round.start or release.rule != r.round.rule:
        raise RuleError(f"release: wanted the start and the rule of round {release.round}")
    if release.state_before != r.state_before:
        raise RuleError(f"release: wanted the state that was kept with the start of round {release.round}")
    wanted = release_inputs(state, r)
    if release.inputs != wanted:
        missing = sorted({i.institution for i in wanted} - {i.institution for i in release.inputs})
        raise RuleError(
            f"release: wanted every logged update that was not rejected, by institution, with the rule's weights; "
            f"missing: {missing}"
        )
    if len(wanted) < r.quorum.updates:
        raise RuleError(f"release: wanted at least {r.quorum.updates} updates, got {len(wanted)}")
    if r.masking is not None and r.masking.stage != "reveal":
        raise RuleError(f"release: wanted the end of the stage {r.masking.stage} first")
    if r.masking is not None and (hidden := r.masking.hidden()):
        raise RuleError(f"release: wanted enough shares of everybody's secret, got too few of {hidden[0]}")
    return with_round(state, replace(r, release=LoggedRelease(leaf, release, r.quorum.ratifications)))


def _released(state: State, kind: str, number: int, leaf: Digest) -> tuple[RoundState, LoggedRelease]:
    if number > len(state.rounds) or (logged := state.rounds[number - 1].release) is None:
        raise RuleError(f"{kind}: round {number} has no release")
    if logged.leaf != leaf:
        raise RuleError(f"{kind}: wanted the release entry {logged.leaf}, got {leaf}")
    return state.rounds[number - 1], logged


def on_ratification(state: State, name: Name, ratification: Ratification) -> State:
    """A member ratifies a release.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    r, logged = _released(state, "ratification", ratification.round, ratification.release_leaf)
    if logged.recalled_by is not None:
        raise RuleError(f"ratification: the release of round {ratification.round} was recalled by {logged.recalled_by}")
    if r.incident is not None:
        raise RuleError(f"ratification: the release of round {ratification.round} is void: {r.incident}")
    if ratification.adapter_sha256 != logged.release.adapter.sha256:
        raise RuleError(
            f"ratification: wanted adapter {logged.release.adapter.sha256}, got {ratification.adapter_sha256}"
        )
    if name in logged.ratified_by:
        raise RuleError(f"ratification: {name} has ratified round {ratification.round} already")
    ratified_by = {**logged.ratified_by, name: state.size}
    return with_round(state, replace(r, release=replace(logged, ratified_by=ratified_by)))


def on_adoption(state: State, name: Name, adoption: Adoption) -> State:
    """A member decides for itself on a ratified release.

    Raises:
        RuleError: Not in this state, or not by the compact.
    """
    r, logged = _released(state, "adoption", adoption.round, adoption.release_leaf)
    if not logged.is_ratified:
        raise RuleError(f"adoption: the release of round {adoption.round} is not ratified yet")
    adoptions = {**logged.adoptions, name: adoption}
    return with_round(state, replace(r, release=replace(logged, adoptions=adoptions)))


def on_incident(state: State, incident: Incident) -> State:
    """The coordinator closes the open round; or the newest one, if its release can no longer be ratified.

    Raises:
        RuleError: Not in this state.
    """
    last = state.rounds[-1] if state.rounds else None
    named = (incident.round, incident.round_leaf)
    if last is not None and (last.round.round, last.leaf) == named and state.is_out_of_reach(last):
        r = last
    else:
        r = _open(state, "incident", incident.round, incident.round_leaf)
    return with_round(state, replace(r, incident=incident.reason))
