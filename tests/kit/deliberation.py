"""Motions and ballots over a federation in memory, from the proposal to the end."""

from commonweal_protocols.statements.governance import (
    Ballot,
    Choice,
    Closing,
    Motion,
    Proposal,
    Recall,
    Resolution,
)
from commonweal_protocols.statements.statement import open_entry
from tests.kit.federation import Federation

DUE, OPENED = 1_000, 2_000
TEXT = Resolution(kind="resolution", text="We publish our held-out losses.")


def a_motion(proposal: Proposal = TEXT, *, secret: bool = False) -> Motion:
    return Motion(
        title="a motion",
        reasons="because",
        proposal=proposal,
        closes_at=DUE,
        opens_until=OPENED if secret else None,
    )


def newest(f: Federation) -> str:
    return open_entry(f.entries[-1]).leaf


def propose(f: Federation, proposal: Proposal = TEXT, *, secret: bool = False, who: str = "clinic") -> str:
    f.say(who, a_motion(proposal, secret=secret))
    return newest(f)


def moved(proposal: Proposal = TEXT, *, secret: bool = False) -> Federation:
    f = Federation(witnesses=3)
    f.announce()
    propose(f, proposal, secret=secret)
    return f


def the_motion(f: Federation) -> str:
    """The newest motion's entry."""
    return list(f.state.motions)[-1]


def ballot(f: Federation, choice: Choice = "yes", reason: str | None = None) -> Ballot:
    return Ballot(motion=the_motion(f), choice=choice, reason=reason)


def closing(f: Federation, at: int | None = None) -> Closing:
    """The end, shown by the newest checkpoint as cosigned at this time; or by everybody having voted."""
    return Closing(motion=the_motion(f), checkpoint=None if at is None else f.cosigned(at))


def close(f: Federation, at: int | None = None) -> None:
    f.say("hub", closing(f, at))


def voted(proposal: Proposal = TEXT, **choices: Choice) -> Federation:
    f = moved(proposal)
    for name, choice in choices.items():
        f.say(name, ballot(f, choice))
    return f


def with_a_release(witnesses: int = 3) -> Federation:
    f = Federation(witnesses=witnesses)
    f.announce()
    f.run_round()
    return f


def recalled(institution: str | None = None, f: Federation | None = None, number: int = 1) -> Federation:
    """A release, or one institution's part in it, is withdrawn by a motion that all agree to."""
    f = f or with_a_release()
    propose(f, Recall(kind="recall", round=number, institution=institution), who=f.names[0])
    for name in f.names:
        f.say(name, ballot(f))
    close(f)
    return f
