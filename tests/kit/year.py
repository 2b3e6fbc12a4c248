"""A year of a consortium of seven, in memory, and of the one that two of them found when they leave it."""

from dataclasses import dataclass, field
from functools import cache

from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.compact import Compact, Fork, Quorum
from commonweal_protocols.statements.governance import (
    Amendment,
    Ballot,
    Choice,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    Proposal,
    Question,
    Recall,
    Resolution,
    SealedBallot,
    seal,
)
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.rounds import Incident, Refusal
from commonweal_protocols.statements.statement import Statement, open_entry
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.note import format_vkey
from tests.kit.federation import Federation, key_of

SEVEN = ("bakery", "clinic", "coop", "farm", "library", "museum", "school")
SECOND_LOG = "log.test/second"
FORK_LOG = "log.test/fork"
SALT = "5a" * 32
DISSENT = "a prayer book is no outlier: our community is in it"


@dataclass
class Year:
    """The consortium and the one that left it; ``clock`` is what witnesses say the time is, in days."""

    federation: Federation
    fork: Federation | None = None
    clock: int = 0
    motions: dict[str, str] = field(default_factory=dict)
    """Each motion's entry by its title."""

    def leaf(self) -> str:
        return open_entry(self.federation.entries[-1]).leaf

    def vote(
        self,
        who: str,
        title: str,
        proposal: Proposal,
        choices: dict[str, Choice],
        dissent: str = "",
        secret: bool = False,
    ) -> None:
        """A motion from its making to its end: by everybody's ballot, or by time where somebody is silent."""
        f, due = self.federation, self.clock + 14
        motion = Motion(
            title=title,
            reasons="see the minutes",
            proposal=proposal,
            closes_at=due,
            opens_until=due + 7 if secret else None,
        )
        f.say(who, motion)
        leaf = self.motions[title] = self.leaf()
        for name, choice in choices.items():
            if secret:
                f.say(name, SealedBallot(motion=leaf, commitment=seal(leaf, name, choice, SALT)))
            else:
                f.say(name, Ballot(motion=leaf, choice=choice, reason=dissent or None if choice == "no" else None))
        everybody = len(choices) == len(f.state.motions[leaf].electorate)
        self.clock = due
        f.say("hub", Closing(motion=leaf, checkpoint=None if everybody else f.cosigned(due)))
        if secret:
            for name, choice in choices.items():
                f.say(name, OpenedBallot(motion=leaf, choice=choice, salt=SALT, reason=None))
            f.say("hub", Closing(motion=leaf, checkpoint=None))

    def adopt_compact(self, title: str, compact: Compact, *joining: str) -> None:
        """A version that is put to the vote, and carried into the log by the coordinator."""
        f = self.federation
        payload = Statement(None, compact).payload()
        names = [m.institution for m in f.state.compact.members]
        choices: dict[str, Choice] = dict.fromkeys(names, "yes")
        self.vote(names[0], title, Amendment(kind="amendment", compact=f.keep(payload)), choices)
        f.add(f.amendment(compact, "coordinator", *joining))
        for name in joining:
            f.keys[name] = key_of(name)

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.federation.run_round()
            self.clock += 7


def _votes(no: tuple[str, ...] = (), silent: tuple[str, ...] = (), names: tuple[str, ...] = SEVEN) -> dict[str, Choice]:
    return {name: "no" if name in no else "yes" for name in names if name not in silent}


def _capture(year: Year) -> None:
    """The coordinator closes a round that all have answered; it is replaced, and its log continues elsewhere."""
    f = year.federation
    f.open_round()
    for name in f.state.rounds[-1].round.cohort:
        f.say(name, f.update(name))
    f.say("hub", Incident(round=len(f.state.rounds), round_leaf=f.state.rounds[-1].leaf, reason="upkeep"))
    last = f.replica.checkpoint()
    heir = {
        "name": "second-hub",
        "key": public_hex(key_of("second coordinator")),
        "log": format_vkey(SECOND_LOG, key_of("second log").public_key().public_bytes_raw()),
    }
    succeeds = Seen(origin=last.origin, size=last.size, root=last.root.hex())
    compact = f.amended(coordinator=heir, succeeds=succeeds.model_dump())
    # No motion: the one who would have to log its ballots is the one to be replaced.
    f.add(f.amendment(compact, *(m.institution for m in f.state.compact.members)))
    f.coordinator, f.log_key = key_of("second coordinator"), key_of("second log")


def _fork(f: Federation) -> Federation:
    """Two found a consortium of their own, from the newest ratified release."""
    at, release = f.replica.checkpoint(), f.state.ratified()
    assert release is not None
    other = Federation(
        names=("bakery", "farm"),
        origin=FORK_LOG,
        terms={
            "consortium": "bread-and-corn",
            "start": release.release.adapter.model_dump(),
            "forked_from": Fork(
                consortium=f.state.consortium,
                log=f.state.compact.coordinator.log,
                at=Seen(origin=at.origin, size=at.size, root=at.root.hex()),
                release_leaf=release.leaf,
            ).model_dump(),
        },
        blobs=dict(f.blobs),
    )
    other.announce()
    other.run_round()
    return other


def _second_half(year: Year) -> None:
    f = year.federation
    year.rounds(4)
    f.say("museum", Exit(institution="museum", reason="the building is closed"))
    year.rounds(1)
    year.fork = _fork(f)
    year.rounds(1)
    names = tuple(m.institution for m in f.state.compact.members)
    number = len(f.state.rounds)
    recall = Recall(kind="recall", round=number, institution="coop")
    year.vote("school", "Without the update of coop", recall, _votes(names=names))
    f.say("hub", f.release())
    for name in names:
        f.say(name, f.ratification())
    year.rounds(1)


@cache
def a_year() -> Year:
    """Founding, 20 rounds, an admission, a rule change, a dispute, a capture, an exit, a fork and a recall."""
    quorum = Quorum(updates=3, ratifications=4, amendments=4)
    f = Federation(names=SEVEN, witnesses=3, quorum=quorum)
    year = Year(f)
    f.announce()
    year.rounds(4)
    wider = {"updates": 3, "ratifications": 5, "amendments": 5, "witnesses": 2}
    year.adopt_compact("Admit the theatre", f.amended(members=f.members(theatre="theatre"), quorum=wider), "theatre")
    f.say("theatre", Identity(institution="theatre", transport_key="A" * 44))
    year.rounds(3)
    weights = {"name": "factor-mean", "weights": "examples"}
    year.adopt_compact("Weights by examples", f.amended(rule=weights))
    year.rounds(2)
    text = Resolution(kind="resolution", text="Religious texts are left out of our training rows.")
    year.vote(
        "coop", "No religious texts", text, _votes(("farm", "theatre"), ("museum",), (*SEVEN, "theatre")), DISSENT
    )
    f.open_round()
    r = f.state.rounds[-1]
    f.say("farm", Refusal(round=r.round.round, round_leaf=r.leaf, reason="not without our texts"))
    for name in ("bakery", "clinic", "coop"):
        f.say(name, f.update(name))
    f.say("hub", f.release())
    for name in (*SEVEN[:5], "theatre"):
        f.say(name, f.ratification())
    which = Question(kind="question", text="Where do we meet?", alternatives=("clinic", "farm", "school"))
    rankings: dict[str, Choice] = {name: (1, 0) if name < "l" else (2, 1) for name in (*SEVEN, "theatre")}
    year.vote("library", "The yearly meeting", which, {**rankings, "theatre": (0, 1)}, secret=True)
    year.rounds(2)
    _capture(year)
    _second_half(year)
    return year
