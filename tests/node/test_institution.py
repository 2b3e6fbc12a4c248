"""What an institution says and when, over a real log, with a model side that is a table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from commonweal_adapters.files.delta import GridTensors, read_adapter, read_delta
from commonweal_adapters.files.feedback import encode_with_feedback, no_residual
from commonweal_node.charter.charter import NO_CHARTER, Bars, Charter
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.institution.answer_store import Answers
from commonweal_node.model.blend import BlendWeights
from commonweal_node.probes.probe import Item, Probe
from commonweal_node.rows.row import Message
from commonweal_protocols.audit.vocabulary import describe_training
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import (
    BlobError,
    LogError,
    RuleError,
    SignatureError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.adoption import Adoption, HeldoutLoss, ProbeResult, Serving
from commonweal_protocols.statements.charter import Clause, ProbeBar
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.envelope import format_envelope, sign
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.rounds import Incident, Ratification, Refusal, Update
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.statement import Statement, open_entry
from commonweal_protocols.tlog.merkle import leaf_hash
from tests.kit.federation import TINY, Federation, blob_of, data_manifest, key_of
from tests.kit.institution import BASE, NAME, OWN, SHARED, Node, Table, finish, said_in
from tests.kit.memory_source import MemorySource, other_history


@pytest.fixture
def f() -> Federation:
    """Three announced institutions and an open round."""
    made = Federation()
    made.announce()
    made.open_round()
    return made


@pytest.fixture
def node(f: Federation, tmp_path: Path) -> Node:
    return Node(tmp_path, f)


# -- answers


def test_an_update_is_the_trained_adapter_minus_the_start_and_says_what_was_measured(f: Federation, node: Node) -> None:
    node.learner.losses = {SHARED: 321}
    r = f.state.rounds[0]
    update = said_in(f.add(node.answer()))
    assert isinstance(update, Update)
    assert (update.round, update.round_leaf, update.num_examples) == (1, r.leaf, 7)
    assert (update.heldout_before_micronats, update.heldout_after_micronats) == (321, 321)
    delta = safetensors.numpy.load(f.blobs[update.delta.sha256])
    start = safetensors.numpy.load(f.blobs[r.round.start.sha256])
    assert delta.keys() == start.keys()
    # The table's first training adds the recipe's steps to every value.
    assert all((q == f.compact.recipe.steps).all() for q in delta.values())


def test_an_update_says_how_well_an_attack_does_on_its_adapter(f: Federation, node: Node) -> None:
    update = said_in(f.add(node.answer()))
    assert isinstance(update, Update)
    assert update.membership_auc_micros == 512_345
    assert "membership AUC 0.512" in describe_training(update)


@pytest.mark.parametrize(
    ("auc", "most", "wanted"),
    [
        (800_000, 800, ""),
        (800_001, 800, "an attack's AUC of at most 0.800 before sending, got 0.800"),
        (990_000, 800, "an attack's AUC of at most 0.800 before sending, got 0.990"),
        (None, 800, "an attack's AUC of at most 0.800 before sending, got none: there are too few rows"),
        (990_000, None, ""),
        (None, None, ""),
    ],
)
def test_an_adapter_that_tells_too_much_of_its_rows_is_not_sent(
    f: Federation, node: Node, auc: int | None, most: int | None, wanted: str
) -> None:
    node.learner.auc_micros, node.max_membership_auc_millis = auc, most
    node.start()
    stored = set(f.blobs)
    said = said_in(f.add(node.answer()))
    assert isinstance(said, Refusal if wanted else Update)
    if isinstance(said, Refusal):
        assert wanted in said.reason
        assert set(f.blobs) == stored
        assert not list(node.home.rglob("outgoing/*"))


def test_what_the_rows_went_through_is_logged_before_the_answer_that_names_it(f: Federation, node: Node) -> None:
    node.learner.manifest = data_manifest(NAME)
    update = said_in(f.add(node.answer()))
    assert isinstance(update, Update)
    assert node.said() == [Identity, DataManifest, Update]
    assert update.data_leaf == f.state.manifests[NAME].leaf
    assert f.state.manifests[NAME].manifest == node.learner.manifest


def test_a_manifest_is_said_once_and_again_when_the_rows_are_others(f: Federation, node: Node) -> None:
    assert node.tend() is None
    assert DataManifest not in node.said()
    node.learner.manifest = data_manifest(NAME)
    for _ in range(3):
        node.tend()
        node.start()
    assert node.said().count(DataManifest) == 1
    node.learner.manifest = data_manifest(NAME, train_rows=9)
    for _ in range(3):
        node.tend()
    assert node.said().count(DataManifest) == 2
    assert f.state.manifests[NAME].manifest.left.train_rows == 9


def test_a_manifest_that_was_logged_as_the_line_broke_is_not_said_again(f: Federation, node: Node) -> None:
    node.learner.manifest = data_manifest(NAME)
    node.line.trouble_after = UnavailableError("the line breaks")
    with pytest.raises(UnavailableError):
        node.answer()
    node.line.trouble_after = None
    assert isinstance(said_in(f.add(node.answer())), Update)
    assert node.said().count(DataManifest) == 1


def under(node: Node, **terms: object) -> None:
    """Put terms in force, and open a new round under them."""
    f = node.f
    f.say("hub", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="to begin again"))
    f.add(f.amendment(f.amended(**terms), "coop", "school"))
    f.open_round()


def trained_delta(node: Node) -> GridTensors:
    start, trained = node.learner.trained[-1]
    return GridTensors({name: trained[name] - q for name, q in start.items()})


def test_what_is_left_out_of_one_update_goes_into_the_next(node: Node) -> None:
    encoding = Encoding(bits=4, keep_millis=300)
    under(node, encoding=encoding.model_dump())
    residual = no_residual(TINY)
    for number in (2, 3):
        update = said_in(node.f.add(node.answer(number)))
        assert isinstance(update, Update)
        wanted, residual = encode_with_feedback(trained_delta(node), residual, TINY, encoding)
        assert node.f.blobs[update.delta.sha256] == wanted
        node.f.say("school", node.f.update("school"))
        node.f.say("hub", Incident(round=number, round_leaf=node.f.state.rounds[-1].leaf, reason="once more"))
        node.f.open_round()


def test_noise_is_drawn_once_however_often_an_answer_is_made(node: Node) -> None:
    under(node, privacy={"clip_steps": 1000, "sigma_steps": 5000, "budget_micro_rho": 10**6})
    node.line.trouble = UnavailableError("the exchange does not answer")
    with pytest.raises(UnavailableError):
        node.answer(2)
    node.line.trouble = None
    (kept,) = (node.home / "outgoing").iterdir()
    data = kept.read_bytes()
    node.start()
    update = said_in(node.answer(2))
    assert isinstance(update, Update)
    assert node.f.blobs[update.delta.sha256] == data
    noised = read_delta(data, TINY)
    delta = trained_delta(node)
    spread = np.concatenate([(noised[n] - np.clip(q, -1000, 1000)).reshape(-1) for n, q in delta.items()])
    assert 2500 < spread.std() < 10_000


def test_the_same_invitation_gets_the_same_bytes_also_after_a_restart(f: Federation, node: Node) -> None:
    first = node.answer()
    assert node.answer() == first
    node.start()
    assert node.answer() == first
    f.add(first)
    node.start()
    assert node.answer() == first, "also once it is in the log"
    # The table never trains the same twice, so equal bytes can only come from the disk.
    assert len(node.learner.trained) == 1


def test_an_invitation_that_comes_late_gets_the_same_bytes_although_the_chain_went_on(
    f: Federation, node: Node
) -> None:
    for name in f.keys:
        f.say(name, f.update(name))
    f.say("hub", f.release())
    for name in ("school", "coop"):
        f.say(name, f.ratification())
    f.open_round()
    first = node.answer(2)
    f.add(first)
    node.tend()
    assert node.said()[-2:] == [Update, Ratification]
    for _ in range(2):
        assert node.answer(2) == first
        node.start()
    assert len(node.learner.trained) == 1


def test_a_round_that_is_answered_in_the_log_is_not_answered_again_by_a_home_that_forgot(
    f: Federation, node: Node
) -> None:
    f.add(node.answer())
    for kept in (node.home / "answers").iterdir():
        kept.unlink()
    node.start()
    with pytest.raises(RuleError, match="round 1: wanted the answer that the log has already, got none on this disk"):
        node.answer()
    assert len(node.learner.trained) == 1


def test_an_answer_is_on_the_disk_before_it_is_said(f: Federation, node: Node) -> None:
    leaf = f.state.rounds[0].leaf
    first = node.answer()
    assert (node.home / "answers" / f"{leaf}.dsse").read_bytes() == first


def test_an_answer_that_cannot_be_kept_is_not_said(f: Federation, node: Node) -> None:
    (node.home / "answers").write_text("a file where a folder is wanted")
    with pytest.raises(StorageError, match="answers"):
        node.answer()
    (node.home / "answers").unlink()
    assert isinstance(said_in(f.add(node.answer())), Update)


def test_a_training_that_was_cut_off_or_could_not_be_sent_is_answered_next_time(f: Federation, node: Node) -> None:
    def stopping() -> None:
        raise UnavailableError("training: the node is stopping")

    node.learner.while_training = stopping
    with pytest.raises(UnavailableError, match="stopping"):
        node.answer()
    node.learner.while_training = lambda: None
    node.line.trouble = UnavailableError("no line")
    with pytest.raises(UnavailableError, match="no line"):
        node.answer()
    node.line.trouble = None
    assert len(list(node.home.glob("answers/*"))) == 1, "signed, so that what was trained is not trained again"
    node.start()
    f.add(node.answer())
    assert len(node.learner.trained) == 1


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_coordinator_that_lacks_the_delta_of_our_answer_gets_it_again(
    f: Federation, node: Node, logged: bool, restarted: bool
) -> None:
    envelope = node.answer()
    if logged:
        f.add(envelope)
    node.tend()
    update = said_in(envelope)
    assert isinstance(update, Update)
    delta = f.blobs.pop(update.delta.sha256)
    node.tend()
    assert update.delta.sha256 not in f.blobs, "under one coordinator it is sent once"
    if restarted:
        node.start()
    else:
        node.institution.offer_again()
    node.tend()
    assert f.blobs[update.delta.sha256] == delta


def test_a_successor_without_any_blob_has_start_release_and_deltas_from_the_members(f: Federation, node: Node) -> None:
    node.tend()
    finish(f, *f.keys)
    node.tend()
    release = f.state.rounds[0].release
    update = f.state.rounds[0].updates[NAME].update
    assert release is not None
    wanted = {f.state.compact.start.sha256, release.release.adapter.sha256, update.delta.sha256}
    f.blobs.clear()
    node.institution.offer_again()
    node.tend()
    assert f.blobs.keys() == wanted
    for sha256, data in f.blobs.items():
        assert digest_of(data) == sha256


def no_round(f: Federation) -> None:
    del f.entries[-1]
    again = Federation()
    for data in f.entries[1:]:
        again.add(data)
    f.replica = again.replica


def closed(f: Federation) -> None:
    r = f.state.rounds[0]
    f.say("hub", Incident(round=1, round_leaf=r.leaf, reason="too few updates"))


def released(f: Federation) -> None:
    for name in ("school", "coop"):
        f.say(name, f.update(name))
    f.say("hub", f.release())


NOT_OPEN: list[tuple[str, Callable[[Federation], None], int]] = [
    ("none was ever opened", no_round, 1),
    ("another number is open", lambda f: None, 2),
    ("it was closed by an incident", closed, 1),
    ("it has a release already", released, 1),
]


@pytest.mark.parametrize(("why", "prepare", "number"), NOT_OPEN, ids=[n[0] for n in NOT_OPEN])
def test_a_round_that_is_not_open_in_the_log_is_not_answered(
    f: Federation, tmp_path: Path, why: str, prepare: Callable[[Federation], None], number: int
) -> None:
    prepare(f)
    node = Node(tmp_path, f)
    with pytest.raises(RuleError, match=f"round {number}: wanted it open in the log"):
        node.answer(number)
    assert node.learner.trained == []
    assert not (node.home / "answers").exists()


REFUSALS: list[tuple[str, Bars, str, str]] = [
    ("few", Bars(min_cohort=4), "", "charter: wanted a cohort of at least 4, got 3"),
    ("long", Bars(max_steps=9), "", "charter: wanted at most 9 steps, got 10"),
    ("the operator says no", Bars(), "harvest: our machines are needed", "harvest: our machines are needed"),
    ("the operator speaks first", Bars(min_cohort=4), "harvest", "harvest"),
]


@pytest.mark.parametrize(("why", "bars", "refuse", "reason"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_a_refusal_is_signed_with_its_reason_and_nothing_is_trained(
    f: Federation, tmp_path: Path, why: str, bars: Bars, refuse: str, reason: str
) -> None:
    node = Node(tmp_path, f, charter=NO_CHARTER.model_copy(update={"bars": bars}), refuse=refuse)
    envelope = node.answer()
    r = f.state.rounds[0]
    assert said_in(envelope) == Refusal(round=1, round_leaf=r.leaf, reason=reason)
    f.add(envelope)
    assert f.state.rounds[0].refusals == {NAME: reason}
    assert node.learner.trained == []
    # What was said once stays said, even if the operator has changed his mind since.
    node.refuse, node.charter = "", NO_CHARTER
    node.start()
    assert node.answer() == envelope


# -- tending


def test_an_institution_announces_itself_once(tmp_path: Path) -> None:
    f = Federation()
    node = Node(tmp_path, f)
    for _ in range(3):
        assert node.tend() is None
    assert node.said() == [Identity]
    node.start()
    node.tend()
    assert node.said() == [Identity]
    assert f.state.identities[NAME] == Identity(institution=NAME)


def test_an_open_round_is_answered_as_the_log_is_followed_and_once_only(f: Federation, node: Node) -> None:
    for _ in range(3):
        assert node.tend() is None
        node.start()
    assert node.said() == [Identity, Update]
    assert len(node.learner.trained) == 1
    assert node.institution.answer(1) == f.entries[-1]
    assert node.phases[-1] == "waiting 1"


def test_an_answer_is_submitted_with_its_delta_and_its_receipt_is_kept(f: Federation, node: Node) -> None:
    node.tend()
    update = said_in(f.entries[-1])
    assert isinstance(update, Update)
    assert update.delta.sha256 in f.blobs
    receipt = node.home / "receipts" / f"{leaf_hash(f.entries[-1]).hex()}.tlog-proof"
    assert receipt.read_bytes() == f.receipt(f.entries[-1])


def test_a_node_that_is_set_to_refuse_answers_with_the_refusal(f: Federation, tmp_path: Path) -> None:
    node = Node(tmp_path, f, refuse="harvest")
    node.tend()
    assert said_in(f.entries[-1]) == Refusal(round=1, round_leaf=f.state.rounds[0].leaf, reason="harvest")
    assert node.learner.trained == []


def test_an_answer_that_was_lost_on_the_way_is_submitted_again_before_anything_else(f: Federation, node: Node) -> None:
    def line_breaks() -> None:
        node.line.trouble = UnavailableError("no line")

    node.learner.while_training = line_breaks
    with pytest.raises(UnavailableError, match="no line"):
        node.tend()
    node.line.trouble = None
    node.start()
    KeyRing(node.home, None).make_next()
    node.tend()
    assert node.said() == [Identity, Update]
    assert len(node.learner.trained) == 1
    assert node.tend() is None
    assert isinstance(said_in(f.entries[-1]), Rotation)


def test_an_answer_whose_reply_was_lost_is_one_entry(f: Federation, node: Node) -> None:
    node.line.trouble_after = UnavailableError("the reply is lost")
    with pytest.raises(UnavailableError, match="the reply is lost"):
        node.tend()
    node.line.trouble_after = None
    node.start()
    node.tend()
    assert node.said() == [Identity, Update]
    assert len(node.learner.trained) == 1


def test_a_round_that_ended_while_this_node_trained_is_nobodys_trouble(f: Federation, node: Node) -> None:
    def others_go_on() -> None:
        node.learner.while_training = lambda: None
        finish(f, but=NAME)

    node.learner.while_training = others_go_on
    assert node.tend() is None
    assert node.said() == [Identity]
    assert node.tend() is None
    assert node.said() == [Identity, Ratification], "it goes on with what is due now"


def test_a_delta_that_the_coordinator_has_lost_is_put_there_again(f: Federation, node: Node) -> None:
    def exchange_forgets() -> None:
        node.line.loses_blobs = True

    node.learner.while_training = exchange_forgets
    with pytest.raises(BlobError, match="wanted delta"):
        node.tend()
    node.line.loses_blobs = False
    node.tend()
    assert node.said() == [Identity, Update]
    assert len(node.learner.trained) == 1


def test_others_wait_for_an_answer_and_nobody_for_a_decision(f: Federation, node: Node) -> None:
    node.tend()
    finish(f)
    node.tend()
    f.say("school", f.ratification())
    f.open_round()
    for _ in range(2):
        node.tend()
    assert node.said() == [Identity, Update, Ratification, Update, Adoption]


def test_an_answer_says_whether_its_start_is_better_than_every_release_before_where_the_compact_wants_to_know_it(
    tmp_path: Path,
) -> None:
    f = Federation(terms={"stop_after": 1})
    f.announce()
    node = Node(tmp_path, f)
    said = []
    for number in range(1, 5):
        node.learner.best = BASE if number == 4 else SHARED
        f.open_round()
        update = said_in(f.add(node.answer(number)))
        assert isinstance(update, Update)
        said.append(update.improves)
        finish(f, *f.keys)
    assert said == [None, None, False, False], "the table has every release at the same loss: that is no better"
    assert said_in(f.entries[5]) is not None


def test_a_decision_is_left_for_an_answer_that_others_wait_for_and_taken_up_again(f: Federation, node: Node) -> None:
    node.tend()
    finish(f, "school")
    node.tend()
    asked: list[str] = []

    def meanwhile() -> None:
        asked.append("")
        if len(asked) == 2:
            f.open_round()

    node.learner.while_choosing = meanwhile
    assert node.tend() is None
    assert len(asked) == 2, "no third measurement was made"
    node.tend()
    assert node.said() == [Identity, Update, Ratification, Update]
    assert node.tend() is not None
    assert node.said()[-1] is Adoption


def test_a_decision_is_left_for_a_ratification_that_others_wait_for(f: Federation, node: Node) -> None:
    node.tend()
    finish(f, "school")
    node.tend()
    f.open_round()
    node.tend()

    def meanwhile() -> None:
        node.learner.while_choosing = lambda: None
        finish(f)

    node.learner.while_choosing = meanwhile
    assert node.tend() is None
    node.tend()
    assert node.said() == [Identity, Update, Ratification, Update, Ratification]


def test_a_decision_waits_for_as_long_as_the_caller_says(f: Federation, node: Node) -> None:
    node.tend()
    finish(f, "school")
    node.tend()
    for _ in range(2):
        assert node.institution.tend(may_decide=False) is None
    assert node.said() == [Identity, Update, Ratification]
    assert node.institution.tend(may_decide=True) is not None


def test_a_release_is_ratified_first_and_decided_upon_only_once_the_quorum_stands_by_it(
    f: Federation, node: Node
) -> None:
    f.add(node.answer())
    finish(f)
    assert node.tend() is None
    assert node.said() == [Identity, Update, Ratification]
    assert node.tend() is None, "one of two: not ratified yet"
    assert len(node.said()) == 3
    f.say("school", f.ratification())
    adoption = node.tend()
    assert adoption is not None
    assert node.said() == [Identity, Update, Ratification, Adoption]
    for _ in range(2):
        assert node.tend() is None
        node.start()
    assert len(node.said()) == 4
    assert f.state.rounds[0].release is not None
    assert f.state.rounds[0].release.adoptions == {NAME: adoption}
    assert node.phases[-2:] == ["waiting 1", "evaluating 1"]
    assert "ratifying 1" in node.phases


def test_a_release_that_is_not_the_merge_of_its_inputs_is_not_ratified(f: Federation, node: Node) -> None:
    for name in f.keys:
        f.say(name, f.update(name))
    honest = f.release()
    # The start is a well-formed adapter on the grid; it is just not the merge.
    f.say("hub", honest.model_copy(update={"adapter": blob_of(f.blobs[honest.start.sha256])}))
    before = list(f.entries)
    for _ in range(2):
        with pytest.raises(RuleError) as caught:
            node.tend()
        assert f"wanted the factor-mean of its inputs ({honest.adapter.sha256}" in str(caught.value)
        assert f"got {honest.start.sha256}, " in str(caught.value)
        assert str(caught.value).endswith("; not ratified")
    assert f.entries == before
    # Not even if the others stand by it.
    for name in ("school", "coop"):
        f.say(name, f.ratification())
    with pytest.raises(RuleError, match="not ratified"):
        node.tend()
    assert node.said()[-1] is Update


def test_after_a_release_that_is_not_the_merge_life_goes_on_with_the_next(f: Federation, node: Node) -> None:
    for name in f.keys:
        f.say(name, f.update(name))
    honest = f.release()
    f.say("hub", honest.model_copy(update={"adapter": blob_of(f.blobs[honest.start.sha256])}))
    with pytest.raises(RuleError, match="not ratified"):
        node.tend()
    f.open_round()  # of the two who are asked nobody ratified it: the next round starts where that one did
    assert f.state.rounds[1].round.start == f.state.rounds[0].round.start
    assert node.tend() is None
    assert node.said()[-1] is Update
    finish(f, "school", "coop")
    assert node.tend() is None
    assert node.said()[-1] is Ratification
    assert node.tend() is not None, "and is decided upon"
    with pytest.raises(RuleError, match="release of round 1: wanted the factor-mean"):
        node.tend()  # nothing else is due, so that is shown


def test_a_late_ratification_does_not_wait_for_the_round_that_is_open_by_now(f: Federation, node: Node) -> None:
    finish(f, "school", "coop")
    f.open_round()
    for _ in range(3):
        node.tend()
    assert node.said()[-3:] == [Ratification, Update, Adoption]


def test_an_answer_that_was_signed_is_logged_before_anything_else(f: Federation, node: Node) -> None:
    finish(f, "school", "coop")
    f.open_round()
    envelope = node.answer(2)
    node.start()
    assert node.tend() is None
    assert f.entries[-1] == envelope, "a ratification is due, and waits"
    node.tend()
    assert node.said()[-2:] == [Update, Ratification]


def test_an_answer_whose_round_was_closed_without_it_blocks_nothing(f: Federation, node: Node) -> None:
    f.say("school", f.update("school"))
    node.answer()
    f.say("coop", f.update("coop"))
    f.say("hub", f.release())
    node.tend()
    assert node.said() == [Identity, Ratification]


def test_a_kept_answer_that_no_longer_fits_the_chain_blocks_nothing_and_is_made_anew(f: Federation, node: Node) -> None:
    finish(f, "school", "coop")
    f.open_round()
    node.answer(2)
    # Said under the same key from a home that was brought back from a backup.
    f.say(NAME, Identity(institution=NAME, transport_key="A" * 44))
    node.tend()
    assert node.said()[-2:] == [Identity, Ratification]
    f.add(node.answer(2))
    assert node.said()[-1] is Update


# -- decisions

LOSSES = {BASE: 400, OWN: 300, SHARED: 200}
BOTH = "best on our choosing rows: the release of round 1 and our own adapter after round 1"
NOTHING = "nothing of this release is better on our choosing rows than what serves"
DECISIONS: list[tuple[BlendWeights, str, str, str]] = [
    (SHARED, "adopt", "release", "best on our choosing rows: the release of round 1"),
    (BlendWeights(500, 500), "blend", "blend", f"{BOTH}, with 500 and 500 thousandths"),
    (BlendWeights(1000, 500), "blend", "blend", f"{BOTH}, with 1000 and 500 thousandths"),
    (OWN, "refuse", "own", f"{NOTHING}: our own adapter after round 1"),
    (BASE, "refuse", "base", f"{NOTHING}: the base alone"),
]


@pytest.mark.parametrize(("best", "decision", "kind", "reason"), DECISIONS)
def test_the_best_of_all_serves_whatever_is_said_of_the_release(
    f: Federation, node: Node, best: BlendWeights, decision: str, kind: str, reason: str
) -> None:
    node.learner.best, node.learner.losses = best, LOSSES
    finish(f, *f.keys)
    adoption = node.tend()
    r = f.state.rounds[0]
    assert r.release is not None
    assert adoption == Adoption(
        round=1,
        release_leaf=r.release.leaf,
        decision=decision,  # type: ignore[arg-type]
        shared_millis=best.shared_millis,
        own_millis=best.own_millis,
        heldout=HeldoutLoss(
            base_micronats=400, local_micronats=300, shared_micronats=200, blend_micronats=LOSSES.get(best, 150)
        ),
        reason=reason,
        serves=Serving(kind=kind, round=0 if kind == "base" else 1),  # type: ignore[arg-type]
    )
    assert [(e[2], e[3]) for e in node.learner.exported] == [(best, node.home / "adopted")]


def test_what_is_exported_is_the_release_and_the_own_adapter(f: Federation, node: Node) -> None:
    node.learner.best = BlendWeights(700, 700)
    f.add(node.answer())
    finish(f, *f.keys)
    node.tend()
    ((shared, own, _, _),) = node.learner.exported
    r = f.state.rounds[0]
    assert r.release is not None
    wanted = read_adapter(f.blobs[r.release.release.adapter.sha256], TINY)
    assert all((shared[n] == q).all() for n, q in wanted.items())
    # In round 1 what was trained for the round is the own adapter too: it is not trained a second time.
    ((_, trained),) = node.learner.trained
    assert all((own[n] == q).all() for n, q in trained.items())


OBJECTIONS: list[tuple[int, int, bool]] = [
    # thousandths of a nat that are borne; how many micronats the blend is above the base; whether it is refused
    (0, 0, False),
    (0, 1, True),
    (5, 5000, False),
    (5, 5001, True),
]


@pytest.mark.parametrize(("bar", "rise", "refused"), OBJECTIONS)
def test_a_charter_that_objects_refuses_with_zero_weights(
    f: Federation, tmp_path: Path, bar: int, rise: int, refused: bool
) -> None:
    charter = NO_CHARTER.model_copy(update={"bars": Bars(max_rise_over_base_millis=bar)})
    best = BlendWeights(700, 700)
    node = Node(tmp_path, f, Table(best, {BASE: 10_000, best: 10_000 + rise}), charter)
    finish(f, *f.keys)
    adoption = node.tend()
    assert adoption is not None
    if refused:
        assert (adoption.decision, adoption.shared_millis, adoption.own_millis) == ("refuse", 0, 0)
        assert adoption.reason.startswith(f"charter: wanted the best blend at most {bar} thousandths of a nat")
        assert adoption.serves == Serving(kind="own", round=1), "a refusal takes nothing away"
        assert [e[2] for e in node.learner.exported] == [OWN]
    else:
        assert (adoption.decision, adoption.shared_millis, adoption.own_millis) == ("blend", 700, 700)


SEED = Probe("seed", "accuracy", (Item("seed, line 1", (Message("user", "may I?"),), ("yes", "no"), (1.0, 0.0)),) * 4)
MIX = BlendWeights(700, 700)


def held_to(node: Node, **bar: int) -> None:
    """A charter whose one clause is held by one probe, which measures 3/4 of the base and 1/4 of everything else."""
    clause = Clause(id="ask-first", text="Ask first.", probes=("seed",))
    node.charter = Charter(
        **{**NO_CHARTER.__dict__, "principles": (clause,), "bars": Bars(probes=(ProbeBar(probe="seed", **bar),))}
    )
    node.probes = (SEED,)
    node.learner.best = MIX
    node.learner.probed = {("seed", b): 250_000 for b in (OWN, SHARED, MIX)} | {("seed", BASE): 750_000}
    node.start()


def test_a_blend_below_a_bar_on_a_probe_is_refused_and_the_entry_says_by_which_clause_and_result(
    f: Federation, node: Node
) -> None:
    held_to(node, max_worse_than_base_millis=499)
    finish(f, *f.keys)
    adoption = node.tend()
    assert adoption is not None
    assert (adoption.decision, adoption.shared_millis, adoption.own_millis) == ("refuse", 0, 0)
    assert adoption.reason == (
        "charter: clause ask-first: probe seed: "
        "wanted at most 499 thousandths worse than the base's 750, got 250 (4 items)"
    )
    assert adoption.probes == (
        ProbeResult(
            probe="seed",
            measure="accuracy",
            items=4,
            base_micros=750_000,
            local_micros=250_000,
            shared_micros=250_000,
            blend_micros=250_000,
        ),
    )
    r = f.state.rounds[0]
    assert r.release is not None
    assert r.release.adoptions[NAME] == adoption, "as it stands in the log"
    assert adoption.serves == Serving(kind="own", round=1)
    assert [e[2] for e in node.learner.exported] == [OWN]


def test_a_blend_at_a_bar_on_a_probe_serves_and_the_release_can_be_evaluated_later(f: Federation, node: Node) -> None:
    held_to(node, max_worse_than_base_millis=500)
    finish(f, *f.keys)
    adoption = node.tend()
    assert adoption is not None
    assert (adoption.decision, adoption.shared_millis, len(adoption.probes)) == ("blend", 700, 1)
    r = f.state.rounds[0]
    assert r.release is not None
    wanted = read_adapter(f.blobs[r.release.release.adapter.sha256], TINY)
    kept = Answers(node.home, TINY).load_shared()
    assert kept is not None
    assert all((kept[n] == q).all() for n, q in wanted.items())


def test_the_own_adapter_is_trained_once_for_each_round_from_the_one_before(f: Federation, node: Node) -> None:
    f.add(node.answer())
    finish(f, *f.keys)
    node.tend()
    f.open_round()
    f.add(node.answer(2))
    finish(f, *f.keys)
    # A crash after training and before the decision: the own adapter is on the disk and is not trained again.
    node.line.trouble = UnavailableError("no line")
    with pytest.raises(UnavailableError):
        node.tend()
    node.line.trouble = None
    node.start()
    assert node.tend() is not None
    (_, first), _, (own_start, own_after) = node.learner.trained
    assert all((own_start[n] == q).all() for n, q in first.items())
    kept = Answers(node.home, TINY).load_own(2)
    assert kept is not None
    assert all((kept[n] == q).all() for n, q in own_after.items())


def rounds(f: Federation, node: Node, count: int) -> list[Adoption]:
    """Rounds to their end, with this node in them; its decisions."""
    made = []
    for number in range(len(f.state.rounds), len(f.state.rounds) + count):
        if not f.state.open_round:
            f.open_round()
        f.add(node.answer(len(f.state.rounds)))
        finish(f, *f.keys)
        adoption = node.tend()
        assert adoption is not None, number
        made.append(adoption)
    return made


def test_what_serves_goes_on_where_a_later_release_is_not_better_beyond_doubt(f: Federation, node: Node) -> None:
    first, second = rounds(f, node, 2)
    assert (first.decision, first.serves) == ("adopt", Serving(kind="release", round=1))
    assert second.decision == "refuse"
    assert second.serves == Serving(kind="release", round=1), "the table has both releases at the same loss"
    assert second.improves is False
    shared = node.learner.exported[-1][0]
    wanted = node.institution._adapter(f.state, f.state.rounds[0].release.release.adapter)  # type: ignore[union-attr]
    assert all((shared[n] == q).all() for n, q in wanted.items())


def test_a_community_stops_to_train_alone_once_two_checkpoints_were_no_better(f: Federation, node: Node) -> None:
    rounds(f, node, 5)
    # The table gives every own adapter the same loss, so the first is the best, and the third ends it.
    alone = [start for start, _ in node.learner.trained]
    assert len(alone) == 5 + 2
    assert Answers(node.home, TINY).rounds_of("own") == [1, 3]


def test_what_lies_on_the_disk_does_not_grow_with_the_rounds(f: Federation, node: Node) -> None:
    rounds(f, node, 4)
    answers = Answers(node.home, TINY)
    assert answers.rounds_of("update") == []
    assert answers.rounds_of("own") == [1, 3]


def test_what_serves_is_kept_with_the_release_that_it_is_from(f: Federation, node: Node) -> None:
    rounds(f, node, 1)
    kept = Answers(node.home, TINY).serving()
    assert kept is not None
    assert f.state.rounds[0].release is not None
    assert kept.release_leaf == f.state.rounds[0].release.leaf


# -- a coordinator that lies


def test_a_coordinator_that_forks_or_rolls_back_gets_no_more_signatures(f: Federation, node: Node) -> None:
    finish(f, "school", "coop")
    node.tend()
    f.open_round()

    def stopping() -> None:
        raise UnavailableError("training: the node is stopping")

    node.learner.while_training = stopping
    with pytest.raises(UnavailableError):
        node.tend()  # it has seen the open round, and has not answered it
    node.learner.while_training = lambda: None
    trained = len(node.learner.trained)
    true, key = f.entries, f.log_key
    asked = {
        "rolled back": (true[:-2], key, LogError),
        "forked": (other_history(f), key, LogError),
        "signed by another": (true, f.coordinator, SignatureError),
        "withheld": ([], key, LogError),
    }
    before = list(true)
    for entries, signer, error in asked.values():
        node.source.entries, node.source.key = entries, signer
        for _ in range(2):  # running, and after a restart
            with pytest.raises(error):
                node.answer(2)
            with pytest.raises(error):
                node.tend()
            node.start()
    assert len(node.learner.trained) == trained
    assert not (node.home / "answers").exists()
    assert f.entries == before
    node.source.entries, node.source.key = true, key
    f.add(node.answer(2))


def test_a_log_of_another_consortium_gets_no_signature(f: Federation, tmp_path: Path) -> None:
    node = Node(tmp_path, f)
    other = Federation(rule=FactorMean(weights="examples"))
    other.open_round()
    node.source = MemorySource(other.entries, other.log_key)
    node.start()
    with pytest.raises(RuleError, match=f"consortium: wanted {f.state.consortium}, got {other.state.consortium}"):
        node.answer()
    assert node.learner.trained == []


def test_every_statement_vouches_for_the_newest_checkpoint_that_was_verified(f: Federation, node: Node) -> None:
    founding = open_entry(f.entries[0]).statement.payload()
    f.say("school", f.update("school"))
    header = open_entry(node.answer()).statement.header
    assert header is not None
    assert header.seen == (node.source.seen(),)
    assert header.consortium == digest_of(founding)


def test_nobody_trains_a_where_the_rule_freezes_it(node: Node) -> None:
    under(node, rule={"name": "frozen-a", "weights": "equal"})
    node.answer(2)
    assert node.learner.frozen == ["A"]


# -- keys


def test_a_next_key_is_logged_by_both_and_takes_the_place_of_the_old_one(node: Node) -> None:
    ring = KeyRing(node.home, None)
    following = ring.make_next()
    node.tend()
    rotation = open_entry(node.f.entries[-1])
    assert isinstance(rotation.statement.predicate, Rotation)
    assert sorted(rotation.signers) == sorted([public_hex(ring.present), public_hex(following)])
    assert not (node.home / "keys/institution.next.pem").exists()
    assert public_hex(KeyRing(node.home, None).present) == public_hex(following) == node.f.state.key(NAME)
    node.f.keys[NAME] = following
    update = said_in(node.answer())
    assert isinstance(update, Update)
    node.f.add(node.answer())


def test_a_crash_between_the_log_and_the_file_loses_no_key(node: Node) -> None:
    following = KeyRing(node.home, None).make_next()
    node.line.trouble_after = UnavailableError("the answer is lost")
    with pytest.raises(UnavailableError, match="the answer is lost"):
        node.tend()
    node.line.trouble_after = None
    node.start()
    assert public_hex(KeyRing(node.home, None).present) != public_hex(following)
    node.tend()
    assert public_hex(KeyRing(node.home, None).present) == public_hex(following) == node.f.state.key(NAME)
    assert sum(isinstance(said_in(e), Rotation) for e in node.f.entries) == 1


def test_an_answer_that_is_on_its_way_is_logged_before_the_key_changes(node: Node) -> None:
    answer = node.answer()
    KeyRing(node.home, None).make_next()
    node.tend()
    assert node.f.entries[-1] == answer
    node.tend()
    assert isinstance(said_in(node.f.entries[-1]), Rotation)


def test_a_node_whose_key_somebody_else_has_rotated_says_so_and_signs_nothing(node: Node) -> None:
    node.f.rotate(NAME, "thief")
    before = len(node.f.entries)
    wanted = f"wanted [0-9a-f]+ as the key of clinic in the log, got {public_hex(key_of('thief'))}"
    with pytest.raises(RuleError, match=wanted):
        node.tend()
    assert len(node.f.entries) == before


def test_a_node_whose_institution_was_removed_is_told_by_which_entry(node: Node) -> None:
    node.f.add(node.f.amendment(node.f.amended(members=node.f.members(clinic=None)), "coop", "school"))
    before = len(node.f.entries)
    wanted = f"clinic is no member any more: its key ended at entry {before - 1}: not in version 2$"
    with pytest.raises(RuleError, match=wanted):
        node.tend()
    assert len(node.f.entries) == before


def test_a_key_that_the_members_have_named_is_taken_without_a_rotation(node: Node) -> None:
    following = KeyRing(node.home, None).make_next()
    members = [m | {"key": public_hex(following)} if m["institution"] == NAME else m for m in node.f.members()]
    payload = Statement(None, node.f.amended(members=members)).payload()
    keys = [key_of("coop"), key_of("school"), following]
    node.f.add(format_envelope(payload, [sign(payload, key) for key in keys]))
    node.tend()
    assert public_hex(KeyRing(node.home, None).present) == public_hex(following)
    assert not isinstance(said_in(node.f.entries[-1]), Rotation)
