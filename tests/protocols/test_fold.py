"""The fold: what the compact allows in which state, and nothing else."""

import math
from collections.abc import Callable

import pytest

from commonweal_protocols.base.errors import PeerError, RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.rounds import release_inputs
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.compact import Quorum
from commonweal_protocols.statements.envelope import format_envelope, sign
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import Incident, Input, Refusal, Rejection
from commonweal_protocols.statements.rules import FactorMean, FedAvgM, MinimaxFair
from commonweal_protocols.statements.statement import Header, Statement, open_entry
from commonweal_protocols.statements.values import Blob, Seen
from tests.kit.author import Author
from tests.kit.federation import NAMES, Federation, key_of, two_rounds


def announced() -> Federation:
    f = Federation()
    f.announce()
    return f


def opened() -> Federation:
    f = announced()
    f.open_round()
    return f


def updated() -> Federation:
    f = opened()
    for name in NAMES:
        f.say(name, f.update(name))
    return f


def released() -> Federation:
    f = updated()
    f.say("hub", f.release())
    return f


def left_to_ratify(*leavers: str, ratified: tuple[str, ...] = ()) -> Federation:
    """A release that these members have ratified, and then those have left."""
    f = released()
    for name in ratified:
        f.say(name, f.ratification())
    for name in leavers:
        f.say(name, Exit(institution=name, reason="no funds"))
    return f


def closed_for_want_of_members() -> Federation:
    f = left_to_ratify("school", "clinic")
    f.say("hub", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="too few are left"))
    return f


def test_two_replays_stand_in_the_same_state() -> None:
    f = two_rounds()
    again = Replica()
    for data in f.entries:
        again.add(data)
    assert again.state == f.state
    assert again.checkpoint() == f.replica.checkpoint()


def test_two_rounds_end_with_two_ratified_releases_and_every_decision() -> None:
    state = two_rounds().state
    assert [r.release is not None and r.release.is_ratified for r in state.rounds] == [True, True]
    newest = state.ratified()
    assert newest is not None
    assert newest.ratified_by.keys() == set(NAMES)
    assert {n: a.decision for n, a in newest.adoptions.items()} == dict.fromkeys(NAMES, "blend")


def test_round_2_starts_from_the_release_of_round_1() -> None:
    state = two_rounds().state
    first, second = state.rounds
    assert first.round.start == state.compact.start
    assert first.release is not None
    assert second.round.start == first.release.release.adapter


@pytest.mark.parametrize("signers", [NAMES[:2], NAMES[:1]])
def test_a_compact_without_every_member_founds_nothing(signers: tuple[str, ...]) -> None:
    f = Federation()
    with pytest.raises(RuleError, match="missing"):
        fold(None, open_entry(f.founding(signers)))


def test_a_compact_with_a_stranger_among_its_signers_founds_nothing() -> None:
    f = Federation()
    payload = Statement(None, f.compact).payload()
    data = format_envelope(payload, [sign(payload, f.keys[n]) for n in NAMES] + [sign(payload, key_of("x"))])
    with pytest.raises(RuleError, match="and no other"):
        fold(None, open_entry(data))


def test_a_log_begins_with_a_compact() -> None:
    f = Federation()
    data = f.signed("clinic", Identity(institution="clinic", transport_key="A" * 44))
    with pytest.raises(RuleError, match="wanted the founding compact, got identity"):
        fold(None, open_entry(data))


def test_the_consortium_is_named_by_what_was_signed_and_not_by_who_signed_first() -> None:
    f = Federation()
    assert f.state.consortium == open_entry(f.founding(NAMES[::-1])).payload_sha256


CASES: list[tuple[str, Callable[[], Federation], str, Callable[[Federation], Predicate], str]] = [
    ("a second compact", announced, "clinic", lambda f: f.compact, "header"),
    ("a member opens a round", announced, "clinic", lambda f: f.next_round(), "wanted the coordinator"),
    ("the coordinator contributes", opened, "hub", lambda f: f.update("clinic"), "wanted a member"),
    (
        "another name than the author's",
        announced,
        "clinic",
        lambda f: Identity(institution="school", transport_key="A" * 44),
        "wanted institution clinic",
    ),
    ("a round while one is open", opened, "hub", lambda f: f.next_round(), "wanted round 1 closed first"),
    (
        "a round number is skipped",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"round": 2}),
        "wanted number 1, got 2",
    ),
    (
        "a round from another start",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"start": Blob(sha256="0" * 64, size_bytes=1)}),
        "wanted start",
    ),
    (
        "a round from an unratified release",
        released,
        "hub",
        lambda f: f.next_round().model_copy(update={"start": f.release().adapter}),
        "wanted start",
    ),
    (
        "a round with another rule",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"rule": FactorMean(weights="examples")}),
        "wanted the compact's rule",
    ),
    (
        "a recipe beyond the compact's bound",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"recipe": f.compact.recipe.model_copy(update={"steps": 11})}),
        r"recipe\.steps at most 10, got 11",
    ),
    (
        "a deadline beyond the compact's",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"deadline_seconds": 601}),
        "deadline of at most 600",
    ),
    (
        "a stranger in the cohort",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"cohort": ("clinic", "coop", "x")}),
        "wanted a cohort of members",
    ),
    (
        "an unsorted cohort",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"cohort": ("school", "clinic")}),
        "sorted",
    ),
    (
        "a cohort below the quorum",
        announced,
        "hub",
        lambda f: f.next_round().model_copy(update={"cohort": ("clinic",)}),
        "at least 2, got 1",
    ),
    (
        "an update for another round",
        opened,
        "clinic",
        lambda f: f.update("clinic").model_copy(update={"round": 2}),
        "wanted an open round 2",
    ),
    (
        "an answer to another round entry",
        opened,
        "clinic",
        lambda f: f.update("clinic").model_copy(update={"round_leaf": "0" * 64}),
        "wanted an answer to the round entry",
    ),
    ("a second update", updated, "clinic", lambda f: f.update("clinic"), "has answered round 1 already"),
    (
        "a refusal after an update",
        updated,
        "clinic",
        lambda f: Refusal(round=1, round_leaf=f.state.rounds[0].leaf, reason="no"),
        "has answered round 1 already",
    ),
    (
        "an oversized delta",
        opened,
        "clinic",
        lambda f: f.update("clinic").model_copy(update={"delta": Blob(sha256="0" * 64, size_bytes=(1 << 20) + 1)}),
        "at most 1048576 bytes, got 1048577",
    ),
    ("an update after the release", released, "clinic", lambda f: f.update("clinic"), "no round is open"),
    (
        "a rejection of what is not logged",
        opened,
        "hub",
        lambda f: Rejection(round=1, institution="clinic", leaf="0" * 64, reason="x"),
        "wanted a logged update of clinic",
    ),
    (
        "a rejection of another institution's update",
        updated,
        "hub",
        lambda f: Rejection(round=1, institution="clinic", leaf=f.state.rounds[0].updates["school"].leaf, reason="x"),
        "wanted the logged update",
    ),
    (
        "a release that drops an update",
        updated,
        "hub",
        lambda f: f.release().model_copy(update={"inputs": f.release().inputs[1:]}),
        r"missing: \['clinic'\]",
    ),
    (
        "a release in another order",
        updated,
        "hub",
        lambda f: f.release().model_copy(update={"inputs": f.release().inputs[::-1]}),
        "by institution",
    ),
    (
        "a release with other weights",
        updated,
        "hub",
        lambda f: f.release().model_copy(
            update={"inputs": tuple(i.model_copy(update={"weight": 2}) for i in f.release().inputs)}
        ),
        "the rule's weights",
    ),
    (
        "a release from another start",
        updated,
        "hub",
        lambda f: f.release().model_copy(update={"start": Blob(sha256="0" * 64, size_bytes=1)}),
        "wanted the start",
    ),
    (
        "a ratification of other bytes",
        released,
        "clinic",
        lambda f: f.ratification().model_copy(update={"adapter_sha256": "0" * 64}),
        "wanted adapter",
    ),
    (
        "a ratification of another entry",
        released,
        "clinic",
        lambda f: f.ratification().model_copy(update={"release_leaf": "0" * 64}),
        "wanted the release entry",
    ),
    ("an adoption before ratification", released, "clinic", lambda f: f.adoption(), "not ratified yet"),
    (
        "a round closed under another entry",
        opened,
        "hub",
        lambda f: Incident(round=1, round_leaf="0" * 64, reason="x"),
        "wanted an answer to the round entry",
    ),
    (
        "an incident after the release",
        released,
        "hub",
        lambda f: Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="x"),
        "no round is open",
    ),
    (
        "an incident while just enough are left to ratify",
        lambda: left_to_ratify("school"),
        "hub",
        lambda f: Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="x"),
        "no round is open",
    ),
    (
        "an incident of another round's number",
        lambda: left_to_ratify("school", "clinic"),
        "hub",
        lambda f: Incident(round=2, round_leaf=f.state.rounds[0].leaf, reason="x"),
        "no round is open",
    ),
    (
        "an incident after the quorum has ratified and all but one have left",
        lambda: left_to_ratify("school", "clinic", ratified=("school", "clinic")),
        "hub",
        lambda f: Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="x"),
        "no round is open",
    ),
    (
        "a second incident of the same release",
        lambda: closed_for_want_of_members(),
        "hub",
        lambda f: Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="x"),
        "no round is open",
    ),
    (
        "a ratification of what was closed since too few are left",
        lambda: closed_for_want_of_members(),
        "coop",
        lambda f: f.ratification(),
        "the release of round 1 is void: too few are left",
    ),
]


@pytest.mark.parametrize(("why", "before", "who", "what", "message"), CASES, ids=[c[0] for c in CASES])
def test_what_the_compact_does_not_allow_is_refused_and_changes_nothing(
    why: str,
    before: Callable[[], Federation],
    who: str,
    what: Callable[[Federation], Predicate],
    message: str,
) -> None:
    f = before()
    state = f.state
    with pytest.raises(PeerError, match=message):
        f.say(who, what(f))
    assert f.state is state


def test_a_release_below_the_quorum_is_refused() -> None:
    f = Federation(quorum=Quorum(updates=3, ratifications=2, amendments=2))
    f.announce()
    f.open_round()
    for name in NAMES[:2]:
        f.say(name, f.update(name))
    with pytest.raises(RuleError, match="at least 3 updates, got 2"):
        f.say("hub", f.release())


def test_a_rejected_update_is_not_in_the_release() -> None:
    f = updated()
    leaf = f.state.rounds[0].updates["coop"].leaf
    f.say("hub", Rejection(round=1, institution="coop", leaf=leaf, reason="not finite"))
    f.say("hub", f.release())
    logged = f.state.rounds[0].release
    assert logged is not None
    assert [i.institution for i in logged.release.inputs] == ["clinic", "school"]


def test_after_an_incident_the_next_round_starts_from_the_same_adapter() -> None:
    f = opened()
    f.say("hub", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="nobody answered"))
    f.open_round()
    assert f.state.rounds[1].round.start == f.compact.start


def _chain(f: Federation, **changes: object) -> bytes:
    chain = f.state.chain(public_hex(f.keys["clinic"]))
    header: dict[str, object] = {
        "consortium": f.state.consortium,
        "seq": chain.seq + 1,
        "prev": chain.leaf,
        "seen": (),
        **changes,
    }
    return Author(f.keys["clinic"], str(header["consortium"])).sign(
        Identity(institution="clinic", transport_key="B" * 44),
        seq=header["seq"],  # type: ignore[arg-type]
        prev=header["prev"],  # type: ignore[arg-type]
        seen=header["seen"],  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changes", "message", "why"),
    [
        ({"seq": 2}, "wanted number 1 in the chain of clinic, got 2", "an entry was dropped"),
        ({"seq": 0}, "wanted number 1 in the chain of clinic, got 0", "an entry is replayed"),
        ({"prev": "0" * 64}, "as the entry of clinic before it", "another entry before it"),
        ({"prev": None}, "as the entry of clinic before it", "no entry before it"),
        ({"consortium": "0" * 64}, "wanted consortium", "said in another consortium"),
        (
            {"seen": (Seen(origin="log.test/three", size=99, root="0" * 64),)},
            "rolled back: 99 entries were seen, 4 are here",
            "a longer log was seen",
        ),
        (
            {"seen": (Seen(origin="log.test/three", size=2, root="0" * 64),)},
            "forked: at size 2",
            "another history was seen",
        ),
    ],
)
def test_an_author_s_chain_holds(changes: dict[str, object], message: str, why: str) -> None:
    f = announced()
    with pytest.raises(PeerError, match=message):
        f.add(_chain(f, **changes))
    f.add(_chain(f))  # the very same statement in its right place is taken


def test_two_authors_of_one_statement_are_refused() -> None:
    f = announced()
    header = Header(consortium=f.state.consortium, seq=1, prev=None, seen=())
    payload = Statement(header, Identity(institution="clinic", transport_key="B" * 44)).payload()
    data = format_envelope(payload, [sign(payload, f.keys["clinic"]), sign(payload, f.keys["school"])])
    with pytest.raises(RuleError, match="wanted one author, got 2"):
        f.add(data)


def test_weights_follow_the_rule() -> None:
    for weights, wanted in (("equal", (1, 1, 1)), ("examples", tuple(10 + len(n) for n in sorted(NAMES)))):
        f = Federation(rule=FactorMean(weights=weights))  # type: ignore[arg-type]
        f.announce()
        f.open_round()
        for name in NAMES:
            f.say(name, f.update(name))
        assert tuple(i.weight for i in release_inputs(f.state, f.state.rounds[0])) == wanted


def test_who_fares_worse_weighs_more_under_minimax_by_all_rounds_until_then() -> None:
    f = Federation(rule=FactorMean(weights=MinimaxFair(eta_millis=1000, most_millis=5000)))
    f.announce()
    inputs: tuple[Input, ...] = ()
    for losses in ((1, 2, 3), (2, 2, 3)):
        f.open_round()
        for name, loss in zip(sorted(NAMES), losses, strict=True):
            update = f.update(name).model_copy(update={"heldout_before_micronats": loss * 250_000})
            f.say(name, update)
        inputs = release_inputs(f.state, f.state.rounds[-1])
        f.say("hub", f.release())
        for name in NAMES:
            f.say(name, f.ratification())
    # exp(Σ loss - the least Σ) in micros: Σ = 0.75, 1 and 1.5 nats.
    assert [i.weight for i in inputs] == [math.floor(1e6 * math.exp(x)) for x in (0, 0.25, 0.75)]


def test_a_round_that_would_overspend_a_privacy_budget_is_not_opened() -> None:
    f = announced()
    # 2 · 10^6 · 100² / 200² = 500,000 micro-rho for an update: two of them, and not three.
    terms = {"clip_steps": 100, "sigma_steps": 200, "budget_micro_rho": 1_200_000}
    f.add(f.amendment(f.amended(privacy=terms), *NAMES))
    f.run_round()
    f.open_round()
    for name in NAMES[:2]:
        f.say(name, f.update(name))
    f.say("hub", f.release())
    with pytest.raises(RuleError, match="clinic, school would spend more than the privacy budget allows"):
        f.open_round()
    assert [f.state.spent_micro_rho(n) for n in NAMES] == [1_000_000, 1_000_000, 500_000]


def test_what_an_optimiser_keeps_goes_from_release_to_release() -> None:
    f = Federation(rule=FedAvgM(weights="equal", momentum_millis=500))
    f.announce()
    f.run_round()
    kept = f.state.kept()
    assert len(kept) == 1
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    with pytest.raises(RuleError, match="wanted the state that was kept with the start of round 2"):
        f.say("hub", f.release().model_copy(update={"state_before": ()}))
    f.say("hub", f.release())
    assert f.state.rounds[1].release is not None
    assert f.state.rounds[1].release.release.state_before == kept


def test_another_rule_begins_with_nothing_kept() -> None:
    f = Federation(rule=FedAvgM(weights="equal", momentum_millis=500))
    f.announce()
    f.run_round()
    f.add(f.amendment(f.amended(rule={"name": "median", "weights": "equal"}), *NAMES))
    assert f.state.kept() == ()
    f.compact = f.state.compact
    f.run_round()
    assert f.state.ratified() is not None


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"quorum": {"updates": 4, "ratifications": 2, "amendments": 2}}, "wanted at most 3"),
        ({"quorum": {"updates": 2, "ratifications": 1, "amendments": 2}}, "ratifications: wanted more than half of 3"),
        ({"quorum": {"updates": 2, "ratifications": 2, "amendments": 1}}, "amendments: wanted more than half of 3"),
        ({"previous": "a" * 64}, "none for version 1"),
        ({"rule": {"name": "share-a", "weights": "equal"}}, "keeps each B at home"),
        ({"rule": {"name": "multi-krum", "weights": "equal", "hostile": 1}}, "fewer than half of the 2 updates"),
        ({"version": 2}, "the digest of the version before"),
        ({"coordinator": {"name": "coop", "key": "ab" * 32, "log": "x" * 20}}, "a name that no member has"),
        ({"coordinator": {"name": "hub", "key": public_hex(key_of("clinic")), "log": "x" * 20}}, "repeated"),
    ],
)
def test_a_compact_that_cannot_work_is_refused(update: dict[str, object], message: str) -> None:
    compact = Federation().compact
    with pytest.raises(ValueError, match=message):
        type(compact).model_validate_json(__import__("json").dumps({**compact.model_dump(mode="json"), **update}))
