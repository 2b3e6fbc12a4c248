"""The fold's part that is about motions: who may say what when, and what follows from the count. Pure.

    open ──ballot*──▶ closed ──(what the outcome does)
    open ──sealed ballot*──▶ opening ──opened ballot*──▶ closed              where ballots are secret

A closing ends a stage when everybody has acted, or when a quorum of witnesses says that the motion's time has come.
Nothing is decided by anyone who closes: the outcome is a function of the ballots before that.
"""

from dataclasses import replace

from commonweal_protocols.base.errors import PeerError, RuleError
from commonweal_protocols.fold.rounds import with_round
from commonweal_protocols.fold.state import Cast, MotionState, RoundState, Sealed, State
from commonweal_protocols.fold.tally import Outcome, count, instant_runoff
from commonweal_protocols.statements.governance import (
    Amendment,
    Ballot,
    Choice,
    Closing,
    Motion,
    OpenedBallot,
    Question,
    Recall,
    SealedBallot,
    seal,
)
from commonweal_protocols.statements.rounds import Rejection
from commonweal_protocols.statements.values import Digest, Name, PublicKey
from commonweal_protocols.statements.witness_quorum import policy_of

MAX_OPEN_MOTIONS = 4
"""For each member, so that nobody can drown the others."""


def propose(state: State, leaf: Digest, name: Name, motion: Motion) -> State:
    """A member makes a motion.

    Raises:
        RuleError: It has too many open ones, or what it proposes cannot be.
    """
    mine = sum(m.is_open and m.author == name for m in state.motions.values())
    if mine >= MAX_OPEN_MOTIONS:
        raise RuleError(f"motion: wanted at most {MAX_OPEN_MOTIONS} open ones of {name}, got one more")
    if isinstance(motion.proposal, Recall):
        _check_recall(state, motion.proposal)
    electorate = tuple(sorted(m.institution for m in state.compact.members))
    made = MotionState(state.size, name, motion, electorate, state.compact.quorum.amendments)
    return replace(state, motions={**state.motions, leaf: made})


def cast(state: State, name: Name, ballot: Ballot) -> State:
    """A member votes, or votes again.

    Raises:
        RuleError: The motion is not open to this member for such a ballot.
    """
    m = _at(state, "ballot", ballot.motion, "open", name)
    if m.motion.is_secret:
        raise RuleError("ballot: the motion is secret; wanted a sealed ballot")
    return _with(state, ballot.motion, _kept(state, m, name, ballot.choice, ballot.reason))


def cast_sealed(state: State, name: Name, ballot: SealedBallot) -> State:
    """A member votes in secret, or again.

    Raises:
        RuleError: The motion is not open to this member for such a ballot.
    """
    m = _at(state, "sealed ballot", ballot.motion, "open", name)
    if not m.motion.is_secret:
        raise RuleError("sealed ballot: the motion is not secret; wanted an open ballot")
    sealed = (*m.sealed.get(name, ()), Sealed(state.size, ballot.commitment))
    return _with(state, ballot.motion, replace(m, sealed={**m.sealed, name: sealed}))


def cast_opened(state: State, name: Name, ballot: OpenedBallot) -> State:
    """A member opens what it has sealed.

    Raises:
        RuleError: It is not time, nothing was sealed in time, or this is not what was sealed.
    """
    m = _at(state, "opened ballot", ballot.motion, "opening", name)
    if name in m.ballots:
        raise RuleError(f"opened ballot: {name} has opened its ballot already")
    in_time = sealed_in_time(m)
    if name not in in_time:
        raise RuleError(f"opened ballot: {name} has sealed none in time")
    if seal(ballot.motion, name, ballot.choice, ballot.salt) != in_time[name]:
        raise RuleError("opened ballot: wanted the choice and the salt that were sealed last, got others")
    return _with(state, ballot.motion, _kept(state, m, name, ballot.choice, ballot.reason))


def close(state: State, closing: Closing) -> State:
    """End a stage of a motion, and do what the outcome says.

    Raises:
        RuleError: Not everybody has acted, and it is not shown that the time has come.
    """
    m = state.motions.get(closing.motion)
    if m is None or not m.is_open:
        raise RuleError(f"closing: wanted an open motion, got {closing.motion}")
    cutoff = None
    if closing.checkpoint is not None:
        cutoff = _shown_at(state, m, closing.checkpoint)
    elif silent := awaited(state, m):
        raise RuleError(f"closing: wanted a checkpoint that shows the time, since {', '.join(silent)} may still act")
    if m.motion.is_secret and m.stage == "open":
        return _with(state, closing.motion, replace(m, stage="opening", cutoff=cutoff))
    outcome = _outcome(m, cutoff)
    state = _with(state, closing.motion, replace(m, stage="closed", cutoff=cutoff, outcome=outcome))
    if outcome.result == "passed" and isinstance(m.motion.proposal, Recall):
        state = _recall(state, closing.motion, m.motion.proposal)
    return state


def awaited(state: State, m: MotionState) -> tuple[Name, ...]:
    """Return the members who have not acted yet in the present stage of an open motion, and may."""
    if m.stage == "opening":
        # Only those who sealed one in time have something to open.
        may, have = set(sealed_in_time(m)), set(m.ballots)
    else:
        may, have = set(m.electorate), set(m.sealed if m.motion.is_secret else m.ballots)
    return tuple(sorted((may & {x.institution for x in state.compact.members}) - have))


def due_at(m: MotionState) -> int:
    """Return the log time at which the present stage of an open motion ends at the latest."""
    return m.motion.opens_until if m.stage == "opening" and m.motion.opens_until is not None else m.motion.closes_at


def due_closing(state: State, motion: Digest, note: bytes) -> Closing | None:
    """Return what ends the present stage of an open motion, if it may end now.

    Args:
        state: The state as it is.
        motion: The motion's entry.
        note: The newest signed checkpoint, as its witnesses have cosigned it.
    """
    m = state.motions[motion]
    if not awaited(state, m):
        return Closing(motion=motion, checkpoint=None)
    try:
        _shown_at(state, m, note.decode("utf-8", "replace"))
    except RuleError:
        return None
    return Closing(motion=motion, checkpoint=note.decode())


def standing(m: MotionState) -> Outcome:
    """Return the outcome; of a motion that is not over, what it would be if it ended here."""
    return m.outcome or _outcome(m, m.cutoff)


def sealed_in_time(m: MotionState) -> dict[Name, Digest]:
    """Return each voter's newest commitment of those that were in time, once sealing is over."""
    newest: dict[Name, Digest] = {}
    for name, sealed in m.sealed.items():
        in_time = [s.commitment for s in sealed if m.cutoff is None or s.index < m.cutoff]
        if in_time:
            newest[name] = in_time[-1]
    return newest


def approving(state: State, compact_sha256: Digest) -> frozenset[PublicKey]:
    """Return the keys whose owners have voted yes, in a motion that passed, on this statement as the next version."""
    keys = {m.institution: m.key for m in state.compact.members}
    found: set[PublicKey] = set()
    for m in state.motions.values():
        proposal = m.motion.proposal
        if not isinstance(proposal, Amendment) or proposal.compact.sha256 != compact_sha256:
            continue
        if m.outcome is not None and m.outcome.result == "passed":
            found |= {keys[n] for n, choice in _counted(m, m.cutoff).items() if choice == "yes" and n in keys}
    return frozenset(found)


def _at(state: State, kind: str, leaf: Digest, stage: str, name: Name) -> MotionState:
    m = state.motions.get(leaf)
    if m is None:
        raise RuleError(f"{kind}: wanted a logged motion, got {leaf}")
    if m.stage != stage:
        raise RuleError(f"{kind}: the motion {m.motion.title!r} is {m.stage}, wanted {stage}")
    if name not in m.electorate:
        raise RuleError(f"{kind}: {name} was no member when the motion was made")
    return m


def _kept(state: State, m: MotionState, name: Name, choice: Choice, reason: str | None) -> MotionState:
    if isinstance(m.motion.proposal, Question):
        ranked = choice if not isinstance(choice, str) else ()
        most = len(m.motion.proposal.alternatives)
        if len(set(ranked)) != len(ranked) or not all(a < most for a in ranked) or choice in ("yes", "no"):
            raise RuleError(f"ballot: wanted a ranking of the {most} alternatives, each once at most, or abstain")
    elif not isinstance(choice, str):
        raise RuleError("ballot: wanted yes, no or abstain, got a ranking")
    ballots = (*m.ballots.get(name, ()), Cast(state.size, choice, reason))
    return replace(m, ballots={**m.ballots, name: ballots})


def _with(state: State, leaf: Digest, m: MotionState) -> State:
    return replace(state, motions={**state.motions, leaf: m})


def _shown_at(state: State, m: MotionState, note: str) -> int:
    """Return the size of a checkpoint by which the time has come. That it is of this history, ``replica`` checks."""
    try:
        cosigned = policy_of(state.compact).open(note.encode())
    except PeerError as e:
        raise RuleError(f"closing: wanted a cosigned checkpoint of this log: {e}") from e
    size = cosigned.checkpoint.size
    if not m.index < size <= state.size:
        raise RuleError(f"closing: wanted a checkpoint of size {m.index + 1} to {state.size}, got {size}")
    if cosigned.quorum_at is None:
        raise RuleError("closing: the compact has no quorum of witnesses, so no time is shown; everybody must act")
    if cosigned.quorum_at < (wanted := due_at(m)):
        raise RuleError(f"closing: wanted log time {wanted} or later, got {cosigned.quorum_at}")
    return size


def _counted(m: MotionState, cutoff: int | None) -> dict[Name, Choice]:
    """Each voter's newest ballot in time; of a secret motion, what was opened in time."""
    counted: dict[Name, Choice] = {}
    for name, casts in m.ballots.items():
        in_time = [c.choice for c in casts if cutoff is None or c.index < cutoff]
        if in_time:
            counted[name] = in_time[-1]
    return counted


def _outcome(m: MotionState, cutoff: int | None) -> Outcome:
    choices = _counted(m, cutoff)
    if isinstance(m.motion.proposal, Question):
        rankings = {n: c for n, c in choices.items() if not isinstance(c, str)}
        return instant_runoff(rankings, m.motion.proposal.alternatives, m.electorate, m.threshold)
    return count({n: c for n, c in choices.items() if isinstance(c, str)}, m.electorate, m.threshold)


def _check_recall(state: State, recall: Recall) -> None:
    if recall.round > len(state.rounds) or (logged := state.rounds[recall.round - 1].release) is None:
        raise RuleError(f"recall: round {recall.round} has no release")
    if recall.institution is None and logged.recalled_by is not None:
        raise RuleError(f"recall: the release of round {recall.round} was recalled by {logged.recalled_by} already")
    if recall.institution is not None and not _has_part(state.rounds[recall.round - 1], recall.institution):
        raise RuleError(f"recall: {recall.institution} has no part in the release of round {recall.round}")
    if recall.institution is not None and state.rounds[recall.round - 1].masking is not None:
        raise RuleError(f"recall: round {recall.round} was masked: its release can be recalled as a whole only")


def _has_part(r: RoundState, institution: Name) -> bool:
    return r.release is not None and institution not in r.rejected and institution in r.updates


def _recall(state: State, motion: Digest, recall: Recall) -> State:
    """Withdraw a release; of one institution's update, so that the release is to be computed again without it.

    Where another motion has done so meanwhile there is nothing left to do: this one must be able to end all the same.
    """
    r = state.rounds[recall.round - 1]
    if r.release is None or (recall.institution is not None and not _has_part(r, recall.institution)):
        return state
    if r.release.recalled_by is None:
        r = replace(r, release=replace(r.release, recalled_by=motion))
    if recall.institution is not None:
        leaf = r.updates[recall.institution].leaf
        why = f"recalled by motion {motion}"
        set_aside = Rejection(round=recall.round, institution=recall.institution, leaf=leaf, reason=why)
        r = replace(r, rejected={**r.rejected, recall.institution: set_aside})
    return with_round(state, r)
