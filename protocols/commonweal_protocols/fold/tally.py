"""Counting ballots: pure functions from choices to an outcome, with every step in words. No I/O, no chance.

Yes or no: a motion passes if the yes reach a number that was fixed beforehand. It is a number of members, not a share
of those who voted, so an absent or withheld ballot can only keep things as they are.

Which of several: instant run-off. Each ballot counts for the first of its alternatives that is still in the race;
anyone who has more than half of the ballots that still count wins; else all that have the fewest leave at once, and it
is counted again. Where everything that is left would leave at once it is a tie, and nobody wins: chance decides
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from commonweal_protocols.statements.values import Name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a motion."""

    result: Literal["passed", "failed", "tied"]
    winner: int | None
    """The place of the alternative that a question has chosen."""
    steps: tuple[str, ...]
    """How it was counted, a sentence each."""


def count(choices: Mapping[Name, str], electorate: Sequence[Name], threshold: int) -> Outcome:
    """Count yes, no and abstain."""
    named = {what: sorted(n for n in electorate if choices.get(n) == what) for what in ("yes", "no", "abstain")}
    silent = sorted(set(electorate) - choices.keys())
    steps = [f"{what}: {len(names)} ({', '.join(names) or 'nobody'})" for what, names in named.items()]
    steps.append(f"no ballot: {len(silent)} ({', '.join(silent) or 'nobody'})")
    passed = len(named["yes"]) >= threshold
    steps.append(f"wanted {threshold} yes of {len(electorate)} members, got {len(named['yes'])}")
    return Outcome("passed" if passed else "failed", None, tuple(steps))


def instant_runoff(
    rankings: Mapping[Name, Sequence[int]], alternatives: Sequence[str], electorate: Sequence[Name], quorum: int
) -> Outcome:
    """Count rankings.

    Args:
        rankings: Each voter's alternatives by place, the best first; some may be left out, none repeated.
        alternatives: What they are called.
        electorate: Who could vote.
        quorum: How many ballots there must be.
    """
    steps = [f"{len(rankings)} of {len(electorate)} members have voted; wanted {quorum}"]
    if len(rankings) < quorum:
        return Outcome("failed", None, tuple(steps))
    left = set(range(len(alternatives)))
    while left:
        tally = dict.fromkeys(sorted(left), 0)
        for ranking in rankings.values():
            first = next((a for a in ranking if a in left), None)
            if first is not None:
                tally[first] += 1
        counted = sum(tally.values())
        steps.append("; ".join(f"{alternatives[a]}: {n}" for a, n in tally.items()) + f"; {counted} ballots count")
        best = max(tally, key=lambda a: tally[a])
        if 2 * tally[best] > counted:
            steps.append(f"{alternatives[best]} has more than half")
            return Outcome("passed", best, tuple(steps))
        fewest = min(tally.values())
        out = {a for a, n in tally.items() if n == fewest}
        if out == left:
            steps.append(f"tied: {', '.join(alternatives[a] for a in sorted(left))}")
            return Outcome("tied", None, tuple(steps))
        steps.append(f"out: {', '.join(alternatives[a] for a in sorted(out))}")
        left -= out
    return Outcome("tied", None, tuple(steps))
