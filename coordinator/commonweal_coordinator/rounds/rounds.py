"""Rounds: what the coordinator does next follows from the log's state alone.

:func:`decide` is the whole policy, one pure table; :class:`RoundDriver` carries out one step at a time and every step
ends in a log entry. A coordinator that was killed replays the log and finds itself in the same row. Nobody is invited:
members follow the log, see that a round is open, and submit their answers to it.
The one thing outside the log is the deadline's start: it counts from when this daemon opened or re-found the round.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from commonweal_adapters.recompute import check_delta, merge_release, recompute_start
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_protocols.base.errors import BlobError, RuleError, StorageError
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.fold.rounds import release_inputs
from commonweal_protocols.fold.state import LoggedRelease, RoundState, State
from commonweal_protocols.statements.rounds import Incident, Rejection, Release, Round
from commonweal_protocols.statements.secure_messages import Stage, StageEnd
from commonweal_protocols.statements.values import Digest, Name

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 2
"""After a round without a release; doubles with each in a row. Members that all refuse would fill the log else."""
_EIGHTHS: Mapping[Stage, int] = {"advertise": 1, "seal": 1, "mask": 4, "reveal": 2}
"""Of a masked round's deadline, what each stage may take: training is in the third, and the last is two messages."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next, and why."""

    act: Literal[
        "open", "collect", "await messages", "end stage", "merge", "merge again", "close", "await ratification", "rest"
    ]
    why: str


def decide(state: State, *, target: int, elapsed_seconds: float, impossible: Collection[Digest] = ()) -> Step:
    """Return the next step.

    Args:
        state: The log's state.
        target: How many ratified releases are wanted.
        elapsed_seconds: Since this daemon first saw the newest round in its present stage (open, released, or over; in
            a masked round that is open, each of its stages).
        impossible: Round entries whose recalled release could not be recomputed.
    """
    if (again := _recalled(state, impossible)) is not None:
        left = ", ".join(name for name, _ in again.accepted())
        return Step("merge again", f"round {again.round.round}: recalled; now of {left} alone")
    last = state.rounds[-1] if state.rounds else None
    overdue = last is not None and elapsed_seconds > last.round.deadline_seconds
    if last is not None and last.is_open and last.masking is not None:
        return _masked(last, last.masking, state.awaited(last), elapsed_seconds)
    if last is not None and last.is_open:
        accepted, awaited, quorum = len(last.accepted()), state.awaited(last), last.quorum.updates
        if awaited and not overdue:
            return Step("collect", f"awaiting {', '.join(awaited)}")
        if accepted >= quorum:
            return Step("merge", f"{accepted} of {len(last.round.cohort)} updates")
        return Step("close", _shortfall(last, quorum))
    ratified = sum(r.release is not None and r.release.is_ratified for r in state.rounds)
    if ratified >= target:
        return Step("rest", f"{ratified} of {target} releases ratified")
    if last is not None and last.release is not None and state.is_out_of_reach(last):
        return Step("close", _out_of_reach(state, last.release))
    if last is not None and last.release is not None and last.is_pending and not overdue:
        return Step("await ratification", f"awaiting {', '.join(state.may_ratify(last.release))}")
    failed = 0
    while failed < len(state.rounds) and state.rounds[-1 - failed].incident is not None:
        failed += 1
    if last is not None and failed:
        pause = min(_PAUSE_SECONDS << min(failed - 1, 32), last.round.deadline_seconds)
        if elapsed_seconds <= pause:
            return Step("rest", f"round {last.round.round} was closed; the next one opens {pause} s after that")
    if state.is_burst_over():
        return Step("rest", "most members found the newest start no better than those before; the best so far serves")
    if silent := sorted({m.institution for m in state.compact.members} - set(state.identities)):
        return Step("rest", f"not yet announced: {', '.join(silent)}")
    return Step("open", f"round {len(state.rounds) + 1}")


@dataclass(frozen=True, slots=True)
class Wait:
    """For whom, how long already, and how long in all: after that, the next step is another one without them."""

    names: tuple[Name, ...]
    elapsed_seconds: float
    most_seconds: int


def wait_of(state: State, step: Step, *, elapsed_seconds: float) -> Wait | None:
    """Return what a step that :func:`decide` has returned waits for; None if it waits for no member, or has no end."""
    if step.act not in ("collect", "await messages", "await ratification"):
        return None
    r = state.rounds[-1]
    names = state.awaited(r) if r.release is None else state.may_ratify(r.release)
    return Wait(names, elapsed_seconds, stage_seconds(r) if r.is_open else r.round.deadline_seconds)


def stage_seconds(r: RoundState) -> int:
    """How long answers are awaited: a round's deadline, of which a stage of a masked round has its share."""
    return r.round.deadline_seconds * (8 if r.masking is None else _EIGHTHS[r.masking.stage]) // 8


def _masked(r: RoundState, masking: Masking, awaited: Collection[str], elapsed_seconds: float) -> Step:
    """The rows of an open round that is masked."""
    stage, overdue = masking.stage, elapsed_seconds > stage_seconds(r)
    if stage == "reveal" and not masking.hidden():
        return Step("merge", f"{len(masking.reveals)} of {len(masking.survivors)} reveals, which are enough")
    if awaited and not overdue:
        return Step("collect" if stage == "mask" else "await messages", f"{stage}: awaiting {', '.join(awaited)}")
    if stage == "reveal":
        silent, short = ", ".join(awaited), ", ".join(masking.hidden())
        return Step("close", f"reveal: no answer from {silent}; too few shares of {short}"[:500])
    if (got := len(masking.speakers(r.updates))) >= r.quorum.updates:
        return Step("end stage", f"{stage}: {got} of {len(r.round.cohort)}")
    return Step("close", f"{stage}: wanted {r.quorum.updates}, got {got}; {_absences(r)}"[:500])


def _recalled(state: State, impossible: Collection[Digest]) -> RoundState | None:
    """The first round whose release is to be recomputed without an update that the members have recalled."""
    return next((r for r in state.rounds if r.wants_release_again and r.leaf not in impossible), None)


def _shortfall(r: RoundState, quorum: int) -> str:
    return f"wanted {quorum} updates, got {len(r.accepted())}; {_absences(r)}"[:500]


def _out_of_reach(state: State, release: LoggedRelease) -> str:
    able = state.may_ratify(release)
    left = f"{len(able)} more can come, from {', '.join(able)}" if able else "no more can come"
    return f"wanted {release.quorum} ratifications, got {len(release.ratified_by)}; {left}"[:500]


def _absences(r: RoundState) -> str:
    """Why those who are missing are."""
    parts = [f"{name} refused: {why}" for name, why in sorted(r.refusals.items())]
    parts += [f"{name} was rejected: {x.reason}" for name, x in sorted(r.rejected.items())]
    if r.unanswered():
        parts.append(f"no answer from {', '.join(r.unanswered())}")
    return "; ".join(parts)


class RoundDriver:
    """Carries out the steps; owned by one thread."""

    def __init__(
        self,
        sequencer: Sequencer,
        blobs: BlobStore,
        target: int,
        on_step: Callable[[State, Step, Wait | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sequencer = sequencer
        self._blobs = blobs
        self._target = target
        self._on_step = on_step
        self._stage: tuple[int, bool, bool, Digest | None, Stage | None] = (0, False, False, None, None)
        self._clock = clock
        self._since = clock()
        self._checked: set[str] = set()
        self._impossible: set[Digest] = set()

    def step(self) -> None:
        """Look at the state and do the one next thing.

        Raises:
            StorageError: Something could not be made durable.
        """
        # Whatever counts towards the decision has been checked, also what came in while something else was.
        while self._set_aside_bad_updates(state := self._sequencer.state):
            pass
        last = state.rounds[-1] if state.rounds else None
        release, masking = (last.release, last.masking) if last else (None, None)
        leaf, masked = release.leaf if release else None, masking.stage if masking else None
        closed = last is not None and last.incident is not None
        stage = (len(state.rounds), state.open_round is not None, closed, leaf, masked)
        if stage != self._stage:
            self._stage, self._since = stage, self._clock()
        elapsed = self._clock() - self._since
        step = decide(state, target=self._target, elapsed_seconds=elapsed, impossible=self._impossible)
        self._on_step(state, step, wait_of(state, step, elapsed_seconds=elapsed))
        match step.act:
            case "open":
                self._open(state)
            case "end stage":
                self._end_stage(state)
            case "merge":
                self._merge(state)
            case "merge again":
                self._merge_again(state)
            case "close":
                self._close(state, step.why)
            case "collect" | "await messages" | "await ratification" | "rest":
                pass

    def _open(self, state: State) -> None:
        compact = state.compact
        if not state.rounds:
            self._blobs.put_bytes(recompute_start(compact.adapter))
        self._sequencer.say(
            Round(
                round=len(state.rounds) + 1,
                start=state.next_start(),
                recipe=compact.recipe,
                rule=compact.rule,
                cohort=tuple(sorted(m.institution for m in compact.members)),
                deadline_seconds=compact.round_deadline_seconds,
            )
        )

    def _set_aside_bad_updates(self, state: State) -> bool:
        """Reject logged updates whose bytes are not what they must be, before they count towards a quorum.

        Returns:
            Whether any was.
        """
        r, found = state.open_round, False
        if r is not None and r.masking is not None:
            return False  # nothing can be seen in a masked vector
        for name, logged in r.accepted() if r else ():
            if logged.leaf in self._checked or r is None:
                continue
            delta = logged.update.delta
            try:
                check_delta(self._read(delta.sha256), state.compact.adapter, r.encoding)
            except BlobError as e:
                log.warning("update of %s: %s", name, e)
                self._sequencer.say(
                    Rejection(round=r.round.round, institution=name, leaf=logged.leaf, reason=str(e)[:500])
                )
                found = True
            self._checked.add(logged.leaf)
        return found

    def _read(self, sha256: Digest) -> bytes:
        """Read a blob that the log names. It was here when it was logged: if it is not now, that is nobody's fault."""
        try:
            return self._blobs.read(sha256)
        except BlobError as e:
            raise StorageError(f"{e}, though the log names it; restore it from a mirror") from e

    def _end_stage(self, state: State) -> None:
        r = state.open_round
        if r is None or r.masking is None or r.masking.stage == "reveal":
            return
        speakers = r.masking.speakers(r.updates)
        end = StageEnd(round=r.round.round, round_leaf=r.leaf, stage=r.masking.stage, speakers=speakers)
        self._say_of(state, end, f"round {r.round.round}: somebody spoke as the stage was to end; ending it with them")

    def _merge(self, state: State) -> None:
        r = state.open_round
        if r is None:
            return
        try:
            release = self._made(state, r)
        except BlobError as e:
            self._close(state, f"the merge is not possible: {e}"[:500])
            return
        self._say_of(
            state, release, f"round {r.round.round}: an update came in during the merge; merging again with it"
        )

    def _say_of(self, state: State, said: StageEnd | Release | Incident, overtaken: str) -> None:
        """Say what follows from the rounds and the members as they were seen; where they are others now, nothing."""
        try:
            self._sequencer.say(said)
        except RuleError:
            now = self._sequencer.state
            if (now.rounds, now.compact) == (state.rounds, state.compact):
                raise
            log.info("%s", overtaken)

    def _merge_again(self, state: State) -> None:
        r = _recalled(state, self._impossible)
        if r is None:
            return
        try:
            self._sequencer.say(self._made(state, r))
        except BlobError as e:
            # The round is long over, so there is nothing to close: the release before it stays in its place.
            log.error("round %d: its release cannot be recomputed: %s", r.round.round, e)
            self._impossible.add(r.leaf)

    def _made(self, state: State, r: RoundState) -> Release:
        """Merge a round's accepted updates, and store what comes of it."""
        inputs, spec = release_inputs(state, r), state.compact.adapter
        made = merge_release(spec, r.round.start, r.round.rule, inputs, r.state_before, self._read, r.masking)
        return Release(
            round=r.round.round,
            start=r.round.start,
            rule=r.round.rule,
            inputs=inputs,
            state_before=r.state_before,
            adapter=self._blobs.put_bytes(made.adapter),
            state_after=tuple(self._blobs.put_bytes(data) for data in made.state),
            figures=made.figures,
        )

    def _close(self, state: State, why: str) -> None:
        r = state.rounds[-1]
        said = Incident(round=r.round.round, round_leaf=r.leaf, reason=why)
        self._say_of(state, said, f"round {r.round.round}: its release can be ratified after all")
