"""Faults that machines have, drawn from a seed and inflicted on the daemons of a federation while its rounds go on."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from commonweal_protocols.fold.state import RoundState, State
from commonweal_protocols.statements.rounds import Incident, Ratification, Round
from tests.kit.log_watch import LogWatch
from tests.kit.processes import Processes

Kind = Literal["killed", "ended", "frozen"]
"""SIGKILL and a new start; SIGTERM and a new start; SIGSTOP, and SIGCONT after a time."""

_MOST_ENTRIES = 6
"""What three members' round adds after its opening: updates, the release, and two ratifications or three."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to which daemon, once a round has so many entries after its opening; frozen for how long."""

    name: str
    kind: Kind
    after_entries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the round of a fault ended."""

    round: int
    fault: Fault
    reason: str
    """Why it has no release; empty if it has one."""
    answered: tuple[str, ...]
    seconds: float
    """From its opening, until its release was ratified or the round closed."""
    fault_ended_at: float


def draw_faults(random: Random, names: Sequence[str], count: int, seconds: tuple[float, float]) -> list[Fault]:
    """Faults of daemons with these names; the coordinator is hit as often as any of them."""
    return [
        Fault(
            name=random.choice(["coordinator", *names]),
            kind=random.choice(get_args(Kind)),
            after_entries=random.randrange(_MOST_ENTRIES),
            seconds=random.uniform(*seconds),
        )
        for _ in range(count)
    ]


def inflict(p: Processes, fault: Fault, watch: LogWatch) -> None:
    """Have it happen to a daemon that runs, and have it run again."""
    match fault.kind:
        case "killed":
            p.kill(fault.name)
            p.start(fault.name)
        case "ended":
            code = p.stop(fault.name)
            assert code == 0, f"{fault.name} ended with {code}: {p.last_words(fault.name)}"
            p.start(fault.name)
        case "frozen":
            until = time.monotonic() + fault.seconds
            p.freeze(fault.name)
            while time.monotonic() < until:
                watch.look()
                time.sleep(0.05)
            p.thaw(fault.name)


def survive(p: Processes, watch: LogWatch, faults: Iterable[Fault]) -> Iterator[Outcome]:
    """Inflict one fault in each round, and wait until it is over; then for one round in which everybody answers.

    Raises:
        AssertionError: A round has no end within its deadlines, a daemon has ended, or one never spoke again.
    """
    state = p.wait("the founding", watch.look)
    deadline = state.compact.round_deadline_seconds
    outcomes: list[Outcome] = []
    for fault in faults:
        number = len(outcomes) + 1

        def due(number: int = number, fault: Fault = fault) -> bool:
            state = watch.look()
            if state is None or len(state.rounds) < number:
                return False
            return is_over(state.rounds[number - 1]) or entries_of(watch, number) > fault.after_entries

        p.wait(f"round {number}", due, seconds=2 * deadline + 60)
        inflict(p, fault, watch)
        ended = time.monotonic()

        def over(number: int = number) -> State | None:
            state = watch.look()
            return state if state and is_over(state.rounds[number - 1]) else None

        state = p.wait(f"round {number} to be over", over, seconds=2 * deadline + 60)
        r = state.rounds[number - 1]
        lasted = over_at(watch, r) - opened_at(watch, number)
        outcomes.append(Outcome(number, fault, r.incident or "", tuple(sorted(r.updates)), lasted, ended))
        yield outcomes[-1]

    def together() -> bool:
        state = watch.look()
        rounds = state.rounds[len(outcomes) :] if state else ()
        return any(r.release and len(r.updates) == len(r.release.ratified_by) == len(p.names) for r in rounds)

    p.wait("a round in which everybody takes part", together, seconds=3 * deadline + 60)
    for outcome in outcomes:
        assert back_after(watch, outcome) is not None, f"{outcome.fault} was the last of it"


def is_over(r: RoundState) -> bool:
    """Whether a round has a release that counts, or a stated reason."""
    return bool(r.incident) or (r.release is not None and r.release.is_ratified)


def _openings(watch: LogWatch) -> list[int]:
    return [i for i, e in enumerate(watch.entries) if isinstance(e.predicate, Round)]


def opened_at(watch: LogWatch, number: int) -> float:
    """When a round was first seen."""
    return watch.entries[_openings(watch)[number - 1]].at


def over_at(watch: LogWatch, r: RoundState) -> float:
    """When the entry was first seen that ended a round: the last of a quorum's ratifications, or an incident."""
    ends = [
        e.at
        for e in watch.entries
        if isinstance(e.predicate, Incident if r.incident else Ratification) and e.predicate.round == r.round.round
    ]
    return ends[0 if r.release is None or r.incident else r.release.quorum - 1]


def entries_of(watch: LogWatch, number: int) -> int:
    """How many entries there are from a round's opening on."""
    return len(watch.entries) - _openings(watch)[number - 1]


def back_after(watch: LogWatch, outcome: Outcome) -> float | None:
    """How long after the fault the daemon was first heard of in the log; None if never."""
    since = outcome.fault_ended_at
    return next((e.at - since for e in watch.entries if e.author == outcome.fault.name and e.at > since), None)
