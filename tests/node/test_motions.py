"""``commonweal motion`` and ``commonweal vote`` over a real log, and the coordinator's part in what is voted for."""

import json
import stat
from pathlib import Path

import pytest

from commonweal_coordinator.serving.service import Admission
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_node.institution.amendment import describe_consequences, next_compact, parse_terms
from commonweal_node.institution.motions import parse_choice, parse_duration
from commonweal_protocols.base.errors import BlobError, ConfigError, RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.amendment import without_member
from commonweal_protocols.statements.compact import Compact, Coordinator
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.governance import Amendment, Question, Resolution
from commonweal_protocols.statements.invite import Card, CoordinatorCard, Invite
from commonweal_protocols.statements.statement import Statement
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.note import format_vkey
from commonweal_protocols.tlog.proof import open_cosigned_proof
from tests.kit.deliberation import a_motion, ballot, close, propose
from tests.kit.federation import NAMES, Federation, blob_of, key_of
from tests.kit.terminal import Terminal
from tests.kit.town import DAY, Town

# -- people


def test_a_motion_is_made_voted_on_ended_by_the_coordinator_and_counted(town: Town) -> None:
    motion = town.moves("clinic", "--resolution", "We meet in May.")
    town.does("clinic", "vote", "cast", motion, "yes")
    town.does("school", "vote", "cast", motion, "yes")
    assert "passed if it ended now" in town.does("coop", "vote", "tally", motion)
    listed = town.does("coop", "motion", "list")
    assert listed == f"{motion}  a motion: open, awaiting coop\n"
    town.clerk.step()
    assert town.motion().is_open, "coop may still vote, and time has not come"
    town.does("coop", "vote", "cast", motion, "no", "--reason", "June is better")
    town.clerk.step()
    assert town.does("coop", "vote", "tally", motion, "--explain") == (
        "  yes: 2 (clinic, school)\n"
        "  no: 1 (coop)\n"
        "  abstain: 0 (nobody)\n"
        "  no ballot: 0 (nobody)\n"
        "  wanted 2 yes of 3 members, got 2\n"
        f"motion {motion}: passed\n"
    )
    shown = town.does("school", "motion", "show", motion)
    assert "ballot    coop no: June is better\n" in shown
    assert "outcome   passed\n" in shown
    said = json.loads(town.does("school", "motion", "show", motion, "--json"))
    assert (said["outcome"], said["ballots"]["coop"]["reason"]) == (
        {"result": "passed", "winner": None},
        "June is better",
    )


def test_every_word_leaves_its_receipt(town: Town) -> None:
    motion = town.moves("clinic", "--resolution", "We meet in May.")
    town.does("clinic", "vote", "cast", motion, "yes")
    town.hub.catch_up()
    policy = policy_of(town.hub.f.state.compact)
    for data in town.hub.f.entries[-2:]:
        receipt = town.home("clinic") / "receipts" / f"{leaf_hash(data).hex()}.tlog-proof"
        open_cosigned_proof(receipt.read_bytes(), data, policy)


def test_a_motion_whose_time_has_come_is_ended_by_whoever_likes(town: Town) -> None:
    motion = town.moves("clinic", "--resolution", "We meet in May.", "--closes-in", "2d")
    town.does("clinic", "vote", "cast", motion, "yes")
    refused = town.does("school", "vote", "close", motion, code=4)
    assert "coop, school may still act" in refused
    town.later(1)
    town.does("school", "vote", "close", motion, code=4)
    town.clerk.step()
    assert town.motion().is_open
    town.later(2)
    assert town.does("school", "vote", "close", motion) == f"motion {motion}: failed\n"
    assert town.motion().cutoff == len(town.hub.f.entries) - 1


def test_the_coordinator_ends_a_motion_whose_time_has_come(town: Town) -> None:
    town.moves("clinic", "--resolution", "We meet in May.", "--closes-in", "30m")
    town.later(1)
    town.clerk.step()
    assert not town.motion().is_open
    size = town.hub.sequencer.state.size
    town.clerk.step()
    assert town.hub.sequencer.state.size == size


def test_a_secret_ballot_is_opened_with_what_was_kept_here(town: Town) -> None:
    motion = town.moves("clinic", "--resolution", "We meet in May.", "--secret")
    for name, choice in zip(NAMES, ("yes", "yes", "no"), strict=True):
        assert "sealed" in town.does(name, "vote", "cast", motion, choice)
    town.does("coop", "vote", "cast", motion, "yes")  # thinks better of it
    assert "ballots are still taken" in town.does("coop", "vote", "open", motion, code=4)
    kept = list((town.home("coop") / "ballots").iterdir())
    assert [stat.S_IMODE(p.stat().st_mode) for p in kept] == [0o600, 0o600]
    assert not town.motion().ballots
    town.clerk.step()
    for name in NAMES:
        town.does(name, "vote", "open", motion)
    town.clerk.step()
    outcome = town.motion().outcome
    assert outcome is not None
    assert outcome.steps[0] == "yes: 3 (clinic, coop, school)"


def test_who_has_lost_what_opens_a_ballot_is_told_where_it_was(town: Town) -> None:
    motion = town.moves("clinic", "--resolution", "We meet in May.", "--secret")
    for name in NAMES:
        town.does(name, "vote", "cast", motion, "yes")
    town.clerk.step()
    (path,) = (town.home("coop") / "ballots").iterdir()
    path.unlink()
    assert "wanted what opens a sealed ballot" in town.does("coop", "vote", "open", motion, code=4)


def test_a_question_takes_rankings(town: Town) -> None:
    motion = town.moves("clinic", "--question", "When?", "--alternative", "May", "--alternative", "June")
    for name, choice in zip(NAMES, ("1", "1,0", "0"), strict=True):
        town.does(name, "vote", "cast", motion, choice)
    town.clerk.step()
    assert town.motion().outcome is not None
    assert "June has more than half" in town.does("clinic", "vote", "tally", motion, "--explain")


USAGE: list[tuple[tuple[str, ...], str]] = [
    ((), "wanted one of --resolution, --question, --recall, and an amendment: --terms, --set"),
    (("--successor", "card.json", "--recall", "1"), "wanted one of --resolution"),
    (("--successor", "no-such-card.json"), "no-such-card.json"),
    (("--resolution", "x", "--recall", "1"), "wanted one of --resolution"),
    (("--question", "x"), "wanted --alternative with --question"),
    (("--resolution", "x", "--alternative", "a"), "wanted --alternative with --question"),
    (("--question", "x", "--alternative", "a"), "alternatives: "),
    (("--resolution", "x", "--institution", "coop"), "--institution with --recall only"),
    (("--resolution", "x", "--closes-in", "2 weeks"), "wanted a number and m, h or d, such as 14d, got '2 weeks'"),
    (("--resolution", ""), "text: "),
    (("--resolution", "x", "--remove", "coop"), "wanted one of --resolution"),
]


@pytest.mark.parametrize(("args", "message"), USAGE)
def test_a_motion_that_is_none_is_refused_before_anything_is_said(
    program: Terminal, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    assert program("motion", "new", "--title", "t", "--reasons", "r", *args, "--home", tmp_path) == 2
    assert message in program.err


def test_a_motion_is_named_by_the_beginning_of_its_leaf(town: Town) -> None:
    town.moves("clinic", "--resolution", "x")
    assert "wanted the beginning of one motion's leaf hash" in town.does("coop", "motion", "show", "zz", code=2)
    town.moves("clinic", "--resolution", "y")
    assert "got '', of 2" in town.does("coop", "motion", "show", "", code=2)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("36h", 129_600), ("14d", 14 * DAY)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "1.5h", "14", "14D", "1234567d", "١d", " 1d"])
def test_another_encoding_of_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="duration: wanted"):
        parse_duration(text)


WHICH = Question(kind="question", text="q", alternatives=("a", "b", "c"))
SAID = Resolution(kind="resolution", text="r")


def test_choices_as_people_write_them() -> None:
    assert parse_choice("2,0", WHICH) == (2, 0)
    assert parse_choice("abstain", WHICH) == "abstain"
    assert [parse_choice(x, SAID) for x in ("yes", "no", "abstain")] == ["yes", "no", "abstain"]
    for text, proposal in (("yes", WHICH), ("3", WHICH), ("1,1", WHICH), ("", WHICH), ("1,", WHICH), ("0", SAID)):
        with pytest.raises(ConfigError, match="choice: wanted"):
            parse_choice(text, proposal)


# -- a compact


def test_a_compact_that_was_voted_for_is_carried_into_the_log_by_the_coordinator(town: Town, tmp_path: Path) -> None:
    terms = tmp_path / "terms.toml"
    terms.write_text("round_deadline_seconds = 60\n")
    motion = town.moves("clinic", "--terms", terms)
    assert "round_deadline_seconds: 600 -> 60" in town.program.err
    proposal = town.motion().motion.proposal
    assert isinstance(proposal, Amendment)
    town.clerk.step()
    assert Draft.open_amendment(town.drafts, town.state()) is None, "nothing is voted for yet"
    for name in NAMES:
        town.does(name, "vote", "cast", motion, "no" if name == "coop" else "yes")
    town.clerk.step()
    town.clerk.step()
    draft = Draft.open_amendment(town.drafts, town.state())
    assert draft is not None
    town.hub.sequencer.submit(draft.envelope(town.hub.f.coordinator))
    assert town.state().compact.round_deadline_seconds == 60
    Draft.discard(town.drafts)
    town.restart()
    town.clerk.step()
    assert not town.drafts.exists(), "it is in force, and no draft any more"


def carried(town: Town, motion: str, *voters: str) -> Compact:
    """The compact in force once these have voted yes."""
    for name in voters:
        town.does(name, "vote", "cast", motion, "yes")
    town.clerk.step()
    town.later(15)
    town.clerk.step()
    town.clerk.step()
    draft = Draft.open_amendment(town.drafts, town.state())
    assert draft is not None
    town.hub.sequencer.submit(draft.envelope(town.hub.f.coordinator))
    return town.state().compact


def test_a_member_is_removed_without_a_hand_written_table(town: Town) -> None:
    before = town.state().compact
    motion = town.moves("clinic", "--remove", "coop")
    assert (
        "of 2 members 2 updates make a release, 2 ratify it, and 2 change the compact: that survives 0 lost keys"
        in (town.program.err)
    )
    assert "warning: one lost key, or one no, would end every later amendment" in town.program.err
    compact = carried(town, motion, "clinic", "school")
    assert [m.institution for m in compact.members] == ["clinic", "school"]
    assert compact.recipe == before.recipe
    index = next(iter(town.state().motions.values())).index
    refused = town.does("coop", "motion", "new", "--title", "t", "--reasons", "r", "--resolution", "x", code=1)
    assert f"of coop, ended at entry {town.state().size - 1}: not in version 2, for which the members voted" in refused
    assert f"'a motion', the motion in entry {index}" in refused


def test_a_setting_changes_its_own_term_and_no_other_of_its_table(town: Town) -> None:
    before = town.state().compact
    motion = town.moves("clinic", "--set", "recipe.steps=7", "--set", "quorum.updates=3")
    assert f"recipe.steps: {before.recipe.steps} -> 7" in town.program.err
    compact = carried(town, motion, "clinic", "school", "coop")
    assert compact.recipe == before.recipe.model_copy(update={"steps": 7})
    assert compact.quorum == before.quorum.model_copy(update={"updates": 3})


TIES = {"name": "ties", "density_millis": 200, "weights": "equal"}
SETTINGS: list[tuple[list[str], str, dict[str, object]]] = [
    (["rule.name=ties", "rule.density_millis=200", "rule.weights=equal"], "rule", TIES),
    (["rule.density_millis=200", "rule.weights=equal", 'rule.name="ties"'], "rule", TIES),
    (["encoding.bits=8", "encoding.keep_millis=100"], "encoding", {"bits": 8, "keep_millis": 100}),
    (["recipe.passes_millis=none"], "recipe", {"passes_millis": None}),
]


@pytest.mark.parametrize(("settings", "term", "wanted"), SETTINGS, ids=[" ".join(s[0]) for s in SETTINGS])
def test_settings_are_what_a_table_of_them_would_be(settings: list[str], term: str, wanted: dict[str, object]) -> None:
    f = Federation()
    assert parse_terms(settings, {}) == {term: wanted}
    compact = next_compact(f.state, parse_terms(settings, {}))
    table = getattr(compact, term)
    assert {name: getattr(table, name) for name in wanted} == wanted


@pytest.mark.parametrize("setting", ["quorum.updates", "=3", "quorum..updates=3", "quorum.updates=3\nconsortium=4"])
def test_a_setting_of_another_form_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--set: wanted TERM=VALUE, such as quorum\.updates=3"):
        parse_terms([setting], {})


def test_who_is_no_member_cannot_be_removed_and_a_veto_is_told(town: Town) -> None:
    args = ("motion", "new", "--title", "t", "--reasons", "r")
    assert "--remove: wanted one of clinic, coop, school, got hub" in town.does(
        "clinic", *args, "--remove", "hub", code=2
    )
    current = town.state().compact.model_copy(
        update={"quorum": town.state().compact.quorum.model_copy(update={"amendments": 3})}
    )
    told = list(describe_consequences(current, without_member(current, "coop")))
    assert told[-1] == "warning: wants 3 yes: it cannot pass without one of coop"


def test_who_joins_by_a_card_is_a_member_of_the_next_version(town: Town, tmp_path: Path) -> None:
    Card(institution="library", key=public_hex(key_of("library"))).save(tmp_path / "card.json")
    town.moves(
        "clinic", "--add", tmp_path / "card.json", "--set", "quorum.amendments=3", "--set", "quorum.ratifications=3"
    )
    assert "member.library.key: none -> " in town.program.err
    assert "of 4 members" in town.program.err
    assert "that survives 1 lost key\n" in town.program.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round_deadline = 60\n", "terms: wanted terms of a compact, got round_deadline"),
        ("round_deadline_seconds = 1\n", "terms: round_deadline_seconds: "),
        ('consortium = "four"\n', "the same consortium as before"),
        ('[coordinator]\nname = "heir"\n', "wanted the same coordinator, got coordinator or succeeds; name who is to"),
        ("[succeeds]\nsize = 1\n", "wanted the same coordinator, got coordinator or succeeds"),
    ],
)
def test_terms_that_cannot_be_are_no_motion(town: Town, tmp_path: Path, text: str, message: str) -> None:
    terms = tmp_path / "terms.toml"
    terms.write_text(text)
    code = 1 if "consortium" in text else 2
    args = ("motion", "new", "--title", "t", "--reasons", "r", "--terms", terms)
    assert message in town.does("clinic", *args, code=code)
    assert not town.state().motions


def test_who_is_to_coordinate_next_is_decided_by_ballots_alone(town: Town, tmp_path: Path) -> None:
    cards = []
    for name in ("heir", "spare"):
        coordinator = Coordinator(
            name=name,
            key=public_hex(key_of(name)),
            log=format_vkey(f"log.test/{name}", key_of(f"log of {name}").public_key().public_bytes_raw()),
        )
        reached = Invite.load(town.home("clinic") / "invite.json").model_dump(exclude={"consortium", "name"})
        cards.append(CoordinatorCard(coordinator=coordinator, **reached))
        cards[-1].save(tmp_path / f"{name}.json")
    motion = town.moves("clinic", "--successor", tmp_path / "heir.json", "--successor", tmp_path / "spare.json")
    assert "successor.1.name: none -> heir" in town.program.err
    assert "successor.2.name: none -> spare" in town.program.err
    for name in ("clinic", "school"):
        town.does(name, "vote", "cast", motion, "yes")
    town.does("coop", "vote", "cast", motion, "no", "--reason", "we know neither")
    town.clerk.step()
    town.clerk.step()
    draft = Draft.open_amendment(town.drafts, town.state())
    assert draft is not None
    town.hub.sequencer.submit(draft.envelope(town.hub.f.coordinator))
    assert town.state().compact.successors == tuple(card.coordinator for card in cards)
    assert town.state().compact.coordinator.name == "hub", "who is next does not sequence yet"


def test_whoever_joins_by_a_vote_signs_the_draft_and_then_it_is_carried(tmp_path: Path) -> None:
    f = Federation(witnesses=3)
    joined = f.amended(
        members=f.members(library="library"),
        quorum={"updates": 2, "ratifications": 3, "amendments": 3, "witnesses": 2},
    )
    payload = Statement(None, joined).payload()
    propose(f, Amendment(kind="amendment", compact=f.keep(payload)))
    for name in NAMES:
        f.say(name, ballot(f))
    close(f)
    Draft.store(tmp_path / "drafts", joined)
    draft = Draft(tmp_path / "drafts", f.state)
    with pytest.raises(RuleError, match=r"every key that joins; missing: \['library'\]"):
        draft.envelope(f.coordinator)
    draft.sign(sign_envelope(payload, key_of("library")))
    f.add(draft.envelope(f.coordinator))
    assert f.state.key("library") is not None


def test_a_draft_that_nobody_has_voted_for_gets_nothing_by_the_coordinators_signature(tmp_path: Path) -> None:
    f = Federation(witnesses=3)
    Draft.store(tmp_path / "drafts", f.amended(round_deadline_seconds=60))
    with pytest.raises(RuleError, match="wanted 2 signatures of the members of version 1, got 0"):
        Draft(tmp_path / "drafts", f.state).envelope(f.coordinator)


def test_a_motion_on_a_compact_that_nobody_can_read_is_not_taken(town: Town) -> None:
    admission = Admission(town.hub.sequencer, town.blobs)
    missing = Amendment(kind="amendment", compact=blob_of(b"a compact"))
    with pytest.raises(BlobError, match=r"motion: wanted compact .* in the exchange first, got none"):
        admission.submit(town.hub.f.signed("clinic", a_motion(missing)))
    town.blobs.put_bytes(b"a compact")
    wrong = Amendment(kind="amendment", compact=blob_of(b"a compact").model_copy(update={"size_bytes": 8}))
    with pytest.raises(BlobError, match="motion: wanted a compact of 8 bytes, got 9"):
        admission.submit(town.hub.f.signed("clinic", a_motion(wrong)))


def test_what_was_voted_for_and_is_no_compact_is_left_alone(town: Town) -> None:
    hub = town.hub
    town.blobs.put_bytes(b"no compact")
    hub.say("clinic", a_motion(Amendment(kind="amendment", compact=blob_of(b"no compact"))))
    for name in NAMES:
        hub.say(name, ballot(hub.f))
    town.clerk.step()
    town.clerk.step()
    assert not town.drafts.exists()


def test_a_compact_that_was_voted_down_leaves_an_operators_draft_alone(town: Town) -> None:
    hub, f = town.hub, town.hub.f
    Draft.store(town.drafts, f.amended(round_deadline_seconds=30))
    payload = Statement(None, f.amended(round_deadline_seconds=60)).payload()
    hub.say("clinic", a_motion(Amendment(kind="amendment", compact=town.blobs.put_bytes(payload))))
    for name in NAMES:
        hub.say(name, ballot(hub.f, "no"))
    town.clerk.step()
    town.clerk.step()
    draft = Draft.open_amendment(town.drafts, town.state())
    assert draft is not None
    assert draft.compact.round_deadline_seconds == 30


def test_a_newer_voted_compact_takes_the_place_of_an_operators_draft(town: Town) -> None:
    hub, f = town.hub, town.hub.f
    Draft.store(town.drafts, f.amended(round_deadline_seconds=30))
    payload = Statement(None, f.amended(round_deadline_seconds=60)).payload()
    hub.say("clinic", a_motion(Amendment(kind="amendment", compact=town.blobs.put_bytes(payload))))
    for name in NAMES:
        hub.say(name, ballot(hub.f))
    town.clerk.step()
    town.clerk.step()
    draft = Draft.open_amendment(town.drafts, town.state())
    assert draft is not None
    assert draft.compact.round_deadline_seconds == 60
