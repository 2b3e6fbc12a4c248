"""Logs in which every kind of fact is stated, honestly: one that is not masked, and one of a masked round."""

from commonweal_protocols.fold.charters import publish
from commonweal_protocols.records.provenance import name_release
from commonweal_protocols.statements.charter import CharterRecord, Clause, DataTerms
from commonweal_protocols.statements.compact import Quorum
from commonweal_protocols.statements.governance import (
    Ballot,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    Resolution,
    SealedBallot,
    seal,
)
from commonweal_protocols.statements.rounds import Incident, Refusal, Rejection
from commonweal_protocols.statements.statement import open_entry
from tests.kit.federation import NAMES, Federation, data_manifest, two_rounds
from tests.kit.ring import ring
from tests.kit.secure import masked_round

_CHARTER = CharterRecord(
    community="Valley",
    version=1,
    principles=(Clause(id="ask-first", text="Ask first."),),
    public=("ask-first",),
    objectives={"supervised_millis": 1000},
    data_policy=DataTerms(text="by consent", stages_sha256=None),
)


def nearly_every_kind(reason: str = "no rows this time") -> Federation:
    """All that is not masked, but for what :func:`leave_and_rotate` says. One refusal is for this reason."""
    f = two_rounds()
    f.say("school", data_manifest("school"))
    f.say("coop", f.foreign_adoption(name_release(ring().replica)))
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    r = f.state.rounds[-1]
    f.say("hub", Rejection(round=3, institution="coop", leaf=r.updates["coop"].leaf, reason="the blob is missing"))
    f.say("hub", f.release())
    f.open_round()
    leaf = f.state.rounds[-1].leaf
    f.say("coop", Refusal(round=4, round_leaf=leaf, reason=reason))
    f.say("hub", Incident(round=4, round_leaf=leaf, reason="too few updates"))
    _deliberate(f)
    return f


def leave_and_rotate(f: Federation) -> None:
    """A member leaves, and another changes its key: what fewer, and other keys, sign from then on."""
    f.say("school", Exit(institution="school", reason="it has closed"))
    f.rotate("coop", "coop's next key")


def masked_log() -> Federation:
    """A log of one masked round."""
    f = Federation(quorum=Quorum(updates=3, ratifications=2, amendments=2), terms={"secure": {"threshold_millis": 500}})
    f.announce()
    masked_round(f)
    return f


def _deliberate(f: Federation) -> None:
    """A charter, and two motions from their making to their end: one with open ballots, and one with sealed ones."""
    f.say("clinic", publish(_CHARTER, "clinic", None, bytes(32)))
    for opens_until in (None, 2_000):
        sentence = Resolution(kind="resolution", text="We meet in May.")
        f.say(
            "clinic",
            Motion(title="May", reasons="spring", proposal=sentence, closes_at=1_000, opens_until=opens_until),
        )
        motion, salt = open_entry(f.entries[-1]).leaf, "5a" * 32
        for name in NAMES:
            commitment = seal(motion, name, "no", salt)
            ballot = Ballot(motion=motion, choice="no", reason="too early")
            f.say(name, SealedBallot(motion=motion, commitment=commitment) if opens_until else ballot)
        f.say("hub", Closing(motion=motion, checkpoint=None))
        if opens_until:
            for name in NAMES:
                f.say(name, OpenedBallot(motion=motion, choice="no", salt=salt, reason=None))
            f.say("hub", Closing(motion=motion, checkpoint=None))
