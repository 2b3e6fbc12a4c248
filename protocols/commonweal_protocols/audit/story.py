"""A consortium's history in plain words: a sentence or more for each entry, made of the entry and the states around it.

Nothing is told but what the fold has computed, so a sentence is as good as its entry: who wants to doubt it looks at
that, and at the proof that it is in the log. Names and reasons are other people's words. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from commonweal_protocols.audit.vocabulary import (
    RESULTS,
    describe_choice,
    describe_deed,
    describe_foreign,
    describe_manifest,
    describe_probe,
    describe_proposal,
    describe_training,
)
from commonweal_protocols.fold.amendment import describe_changes
from commonweal_protocols.fold.state import MotionState, State
from commonweal_protocols.statements.adoption import Adoption, Decision, ForeignAdoption
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.governance import (
    Amendment,
    Ballot,
    Charter,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    Question,
    Recall,
    SealedBallot,
)
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.rounds import (
    Incident,
    Ratification,
    Refusal,
    Rejection,
    Release,
    Round,
    Update,
)
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares, StageEnd
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.note import parse_vkey


class Told(NamedTuple):
    """A sentence, what it is about in a word, and whether it is what happens in every round."""

    kind: str
    sentence: str
    is_routine: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence that the entry at ``index`` bears out."""

    index: int
    leaf: Digest
    kind: str
    sentence: str
    is_routine: bool


def tell(history: Iterable[tuple[Entry, State]]) -> Iterator[Claim]:
    """Yield what happened, in the order of the log.

    Args:
        history: Every entry from the first on, with the state after it.
    """
    before: State | None = None
    for index, (entry, after) in enumerate(history):
        told = _founding(after) if before is None else _told(entry, before, after)
        for t in told:
            yield Claim(index, entry.leaf, t.kind, t.sentence, t.is_routine)
        before = after


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"


def _founding(after: State) -> Iterator[Told]:
    compact = after.compact
    members = _names(m.institution for m in compact.members)
    yield Told(
        "founding",
        f"{len(compact.members)} institutions found the consortium {compact.consortium}: {members}. "
        f"{compact.coordinator.name} coordinates.",
    )
    if (fork := compact.forked_from) is not None:
        yield Told(
            "fork",
            f"It continues from the first {fork.at.size} entries of the log {fork.at.origin}, of the consortium "
            f"{fork.consortium[:16]}…, and starts from {_started(fork.release_leaf)}.",
        )


def _started(release_leaf: Digest | None) -> str:
    return f"its release in the entry {release_leaf[:16]}…" if release_leaf else "the same beginning"


def _told(entry: Entry, before: State, after: State) -> Iterator[Told]:
    predicate = entry.statement.predicate
    author = entry.signers[0]
    who = before.institution(author) or before.compact.coordinator.name
    match predicate:
        case Compact():
            yield from _version(before, after)
        case Rotation():
            yield Told("key", f"{predicate.name} puts a new key in the place of its own: {predicate.reason}.")
        case Identity():
            yield Told("announcement", f"{who} announces itself.", is_routine=who in before.identities)
        case DataManifest():
            yield Told("data", f"{who} states what its rows went through: {describe_manifest(predicate)}.")
        case ForeignAdoption():
            whose = describe_foreign(predicate.release)
            yield Told("adoption", f"{who} {_decided(predicate, whose)}")
        case Charter():
            yield Told(
                "charter",
                f"{who} publishes version {predicate.version} of its charter: {len(predicate.principles)} principles "
                f"in clear, {predicate.safety_items} items of a safety floor, {len(predicate.sealed)} parts unsaid.",
            )
        case Exit():
            yield Told("exit", f"{who} leaves: {predicate.reason}. {len(after.compact.members)} members are left.")
        case Motion() | Ballot() | SealedBallot() | OpenedBallot() | Closing():
            yield from _deliberation(predicate, who, before, after)
        case Advertisement() | SealedShares() | Confirmation() | Reveal() | StageEnd():
            yield Told("masking", f"{who} {_masking(predicate)}.", is_routine=True)
        case _:
            yield from _round(predicate, who, before, after)


# -- the compact


def _version(before: State, after: State) -> Iterator[Told]:
    old, new = before.compact, after.compact
    by = next(
        (m.motion.title for m in reversed(list(before.motions.values())) if _is_for(m, after.compact_sha256)), None
    )
    how = f"by the motion “{by}”" if by is not None else "by its members' signatures"
    was, now = ({m.institution for m in c.members} for c in (old, new))
    for name in sorted(now - was):
        yield Told("admission", f"{name} is admitted, {how}.")
    for name in sorted(was - now):
        yield Told("removal", f"{name} is a member no more, {how}.")
    if new.succeeds is not None:
        yield Told(
            "succession",
            f"{new.coordinator.name} takes the place of {old.coordinator.name} as the coordinator, {how}. The log "
            f"{new.succeeds.origin} ends with {new.succeeds.size} entries; all of them are carried over into "
            f"{parse_vkey(new.coordinator.log).name}.",
        )
    for r in new.revocations:
        owner = after.retired[r.key].owner
        yield Told("key", f"A key of {owner} is revoked from entry {r.from_index} on, {how}: {r.reason}.")
    changes = [line for line in describe_changes(old, new) if not line.startswith(_TOLD_ELSEWHERE)]
    yield Told("amendment", f"Version {new.version} of the compact is in force, {how}. {'; '.join(changes)}".strip())


_TOLD_ELSEWHERE = ("version: ", "member.", "coordinator.", "revoked: ")


def _is_for(m: MotionState, compact_sha256: Digest) -> bool:
    passed = m.outcome is not None and m.outcome.result == "passed"
    return passed and isinstance(m.motion.proposal, Amendment) and m.motion.proposal.compact.sha256 == compact_sha256


# -- motions


def _deliberation(
    said: Motion | Ballot | SealedBallot | OpenedBallot | Closing, who: str, before: State, after: State
) -> Iterator[Told]:
    if isinstance(said, Motion):
        secret = "Ballots are secret. " * said.is_secret
        yield Told("motion", f"{who} moves “{said.title}”, {describe_proposal(said.proposal)}. {secret}{said.reasons}")
        return
    m = after.motions[said.motion]
    title = m.motion.title
    match said:
        case SealedBallot():
            yield Told("ballot", f"{who} votes in secret on “{title}”.", is_routine=True)
        case Ballot() | OpenedBallot():
            choice = describe_choice(m.motion.proposal, said.choice)
            again = "again " * (len(m.ballots[who]) > 1)
            late = isinstance(said, OpenedBallot)
            told = f"{who} {'had voted' if late else 'votes'} {again}on “{title}”: {choice}"
            if said.reason is not None:
                yield Told("dissent" if choice == "no" else "ballot", f"{told}, saying: {said.reason}")
            else:
                yield Told("ballot", f"{told}.", is_routine=True)
        case Closing() if m.outcome is None:
            yield Told("closing", f"The ballots on “{title}” are all in, and are to be opened.", is_routine=True)
        case Closing():
            yield from _outcome(before.motions[said.motion], m, after)


def _outcome(was: MotionState, m: MotionState, after: State) -> Iterator[Told]:
    if m.outcome is None:
        return
    proposal, title = m.motion.proposal, m.motion.title
    chosen = ""
    if isinstance(proposal, Question) and m.outcome.winner is not None:
        chosen = f": {proposal.alternatives[m.outcome.winner]}"
    ended = "all have voted" if m.cutoff is None else f"its time has come, with {m.cutoff} entries in the log"
    yield Told("outcome", f"“{title}” is {RESULTS[m.outcome.result]}{chosen} ({ended}): {'; '.join(m.outcome.steps)}.")
    if isinstance(proposal, Recall) and m.outcome.result == "passed":
        r = after.rounds[proposal.round - 1]
        again = (
            "It is to be computed again without that." if r.wants_release_again else "The one before it counts again."
        )
        yield Told("recall", f"The release of round {proposal.round} is withdrawn. {again}")


# -- rounds


def _round(
    said: Round | Update | Refusal | Rejection | Incident | Release | Ratification | Adoption,
    who: str,
    before: State,
    after: State,
) -> Iterator[Told]:
    n = said.round
    match said:
        case Round():
            yield Told("round", f"{who} opens round {n} with {_names(said.cohort)}.")
        case Update():
            yield Told("update", f"{who} contributes to round {n}, {describe_training(said)}.", is_routine=True)
        case Refusal():
            yield Told("refusal", f"{who} declines round {n}: {said.reason}")
        case Rejection():
            yield Told("rejection", f"The contribution of {said.institution} to round {n} is set aside: {said.reason}")
        case Incident():
            given = _names(sorted(before.rounds[n - 1].updates))
            what = "a release" if before.rounds[n - 1].release is None else "a valid release"
            yield Told("incident", f"{who} closes round {n} without {what}: {said.reason}. Contributed had: {given}.")
        case Release():
            again = " again" * (before.rounds[n - 1].release is not None)
            inputs = _names(i.institution for i in said.inputs)
            yield Told("release", f"The adapter of round {n} is published{again}, made of what {inputs} contributed.")
        case Ratification():
            yield from _ratification(n, who, before, after)
        case Adoption():
            told = f"{who} {_decided(said, f'the release of round {n}')}"
            yield Told("adoption", told, is_routine=said.decision != "refuse")


def _decided(said: Decision, release: str) -> str:
    held = f"; checked against {'; '.join(map(describe_probe, said.probes))}" if said.probes else ""
    return f"{describe_deed(said.decision, release)}: {said.reason}{held}"


def _masking(said: Advertisement | SealedShares | Confirmation | Reveal | StageEnd) -> str:
    n = said.round
    match said:
        case Advertisement():
            return f"takes part in the masked round {n}"
        case SealedShares():
            return f"leaves sealed shares of its secrets of round {n} with {len(said.shares)} holders"
        case Confirmation():
            return f"confirms that {_names(said.survivors)} have given masked contributions to round {n}"
        case Reveal():
            return f"reveals {len(said.shares)} shares, so that the masks of round {n} come off the sum"
        case StageEnd():
            return f"ends the stage “{said.stage}” of round {n}; {_names(said.speakers)} go on"


def _ratification(number: int, who: str, before: State, after: State) -> Iterator[Told]:
    yield Told("ratification", f"{who} has recomputed the release of round {number} and ratifies it.", is_routine=True)
    was, now = before.rounds[number - 1].release, after.rounds[number - 1].release
    if was is not None and now is not None and now.is_ratified and not was.is_ratified:
        yield Told("ratified", f"The release of round {number} is valid: {_names(now.ratified_by)} stand by it.")
