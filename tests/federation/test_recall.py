"""A release that the members withdraw: what the coordinator makes in its place, and what nodes do that adopted it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweal_adapters.files.delta import GridTensors, write_delta
from commonweal_adapters.recompute import recompute_release
from commonweal_coordinator.rounds.rounds import decide
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import RowLosses
from commonweal_protocols.base.errors import BlobError, RuleError
from commonweal_protocols.statements.adoption import Adoption, Serving
from commonweal_protocols.statements.governance import Exit, Recall
from commonweal_protocols.statements.rounds import Ratification, Release
from tests.kit.deliberation import a_motion, ballot, closing, recalled, with_a_release
from tests.kit.federation import NAMES, TINY, Federation
from tests.kit.hub import founded, identity
from tests.kit.institution import NAME, SHARED, Node, Table
from tests.kit.round_desk import Desk

# -- the coordinator


def test_a_release_without_a_recalled_update_is_the_next_thing_to_do() -> None:
    f = recalled("coop", with_a_release(0))
    step = decide(f.state, target=1, elapsed_seconds=0)
    assert (step.act, step.why) == ("merge again", "round 1: recalled; now of clinic, school alone")
    f.say("hub", f.release())
    assert decide(f.state, target=1, elapsed_seconds=0).act == "await ratification"


def test_a_release_that_is_withdrawn_as_a_whole_is_followed_by_a_round() -> None:
    f = recalled(None, with_a_release(0))
    assert decide(f.state, target=1, elapsed_seconds=0).act == "open"


def test_an_open_round_does_not_keep_a_recalled_release_waiting() -> None:
    f = with_a_release(0)
    f.open_round()
    recalled("coop", f, number=1)
    assert decide(f.state, target=2, elapsed_seconds=0).act == "merge again"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A coordinator whose one release is ratified."""
    with founded(tmp_path / "hub") as hub:
        hub.announce()
        desk = Desk(hub)
        assert desk.step() == "open"
        for name in NAMES:
            desk.update(name)
        assert desk.step() == "merge"
        desk.ratify(*NAMES)
        assert desk.step() == "rest"
        yield desk


def recall_coop(desk: Desk) -> None:
    hub = desk.hub
    proposal = Recall(kind="recall", round=1, institution="coop")
    hub.say("clinic", a_motion(proposal))
    for name in NAMES:
        hub.say(name, ballot(hub.f))
    hub.sequencer.say(closing(hub.f))
    hub.catch_up()


def test_the_coordinator_makes_a_recalled_release_again_of_what_is_left(desk: Desk) -> None:
    recall_coop(desk)
    assert desk.step() == "merge again"
    first, again = (x for x in desk.said() if isinstance(x, Release))
    assert [i.institution for i in first.inputs] == ["clinic", "coop", "school"]
    assert [i.institution for i in again.inputs] == ["clinic", "school"]
    assert recompute_release(TINY, again, desk.blobs.read) == again
    assert desk.step() == "await ratification"
    desk.ratify("clinic", "school")
    assert desk.step() == "rest"


def test_a_release_that_is_made_again_has_its_own_time_to_be_ratified(desk: Desk) -> None:
    desk.now += 100_000
    assert desk.step() == "rest"
    recall_coop(desk)
    assert desk.step() == "merge again"
    assert desk.step() == "await ratification"
    desk.now += 100_000
    assert desk.step() == "open"


def test_a_release_that_cannot_be_made_again_does_not_keep_rounds_waiting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall_coop(desk)

    def impossible(*_: object) -> None:
        raise BlobError("value: out of range")

    monkeypatch.setattr("commonweal_coordinator.rounds.rounds.merge_release", impossible)
    assert desk.step() == "merge again"
    assert desk.step() == "open"


# -- a node


class Writing(Table):
    """A model side that leaves something in the folder, and to which every release is better than those before it."""

    def choosing(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, what: str) -> RowLosses:
        found = super().choosing(shared, own, blend, what)
        number = int(what.rpartition(" ")[2]) if what.startswith("the release of round") and blend == SHARED else 0
        return RowLosses(found.nats - number, found.tokens)

    def export(self, shared: GridTensors, own: GridTensors, blend: BlendWeights, directory: Path) -> None:
        super().export(shared, own, blend, directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / "adapter.safetensors").write_bytes(write_delta(shared, TINY))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that has adopted both of two releases."""
    f = Federation()
    f.announce()
    n = Node(tmp_path, f, Writing())
    for _ in range(2):
        f.open_round()
        for name in NAMES:
            f.say(name, f.update(name))
        f.say("hub", f.release())
        for name in NAMES[1:]:
            f.say(name, f.ratification())
        tend(n)
    return n


def tend(n: Node) -> None:
    """Until nothing is due."""
    before = -1
    while before != len(n.f.entries) + len(n.phases):
        before = len(n.f.entries) + len(n.phases)
        n.tend()


def served(n: Node) -> bytes | None:
    path = n.home / "adopted/adapter.safetensors"
    return path.read_bytes() if path.exists() else None


def leaf_of(f: Federation, number: int) -> str:
    release = f.state.rounds[number - 1].release
    assert release is not None
    return release.leaf


def test_a_recalled_release_is_withdrawn_and_the_one_before_it_adopted_again(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    f, leaf, newest = node.f, leaf_of(node.f, 2), served(node)
    recalled(None, f, number=2)
    node.tend()
    assert served(node) is None
    assert (node.home / "recalled" / leaf / "adapter.safetensors").read_bytes() == newest
    assert "was recalled by the members" in caplog.text
    tend(node)
    assert served(node) not in (None, newest)
    first = f.state.rounds[0].release
    assert first is not None
    assert first.adoptions[NAME].decision == "adopt"
    assert node.said()[-1] is Adoption
    assert node.said().count(Adoption) == 3
    tend(node)
    assert node.said().count(Adoption) == 3, "once"


def test_it_is_withdrawn_also_by_a_node_that_was_away_until_another_stood_in_its_place(node: Node) -> None:
    f, leaf = node.f, leaf_of(node.f, 2)
    recalled("coop", f, number=2)
    f.say("hub", f.release())
    node.start()
    tend(node)
    assert (node.home / "recalled" / leaf).exists()
    assert served(node) is not None, "the release before it, until the new one is valid"
    for name in NAMES[1:]:
        f.say(name, f.ratification())
    tend(node)
    assert NAME in (f.state.ratified() or pytest.fail("none")).adoptions


def test_a_recalled_release_is_ratified_by_no_node(tmp_path: Path) -> None:
    f = Federation()
    n = Node(tmp_path, f, Writing())
    for name in NAMES[1:]:
        f.say(name, identity(name))
    n.tend()
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    f.say("hub", f.release())
    for name in NAMES[1:]:
        f.say(name, f.ratification())
    recalled(None, f)
    tend(n)
    assert Ratification not in n.said()


def test_where_what_serves_is_recalled_the_best_of_the_rest_serves_though_a_release_was_refused_before(
    tmp_path: Path,
) -> None:
    f = Federation()
    f.announce()
    n = Node(tmp_path, f, Writing(best=BlendWeights(0, 1000)))
    for best in (BlendWeights(0, 1000), SHARED):
        n.learner.best = best
        f.open_round()
        for name in NAMES:
            f.say(name, f.update(name))
        f.say("hub", f.release())
        for name in NAMES[1:]:
            f.say(name, f.ratification())
        tend(n)
    n.learner.best = BlendWeights(0, 1000)
    recalled(None, f, number=2)
    tend(n)
    assert served(n) is not None
    assert n.said().count(Adoption) == 3
    first = f.state.rounds[0].release
    assert first is not None
    assert (first.adoptions[NAME].decision, first.adoptions[NAME].serves) == ("refuse", Serving(kind="own", round=1))


def test_a_crash_while_withdrawing_ends_in_the_same(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    recalled(None, node.f, number=2)
    with monkeypatch.context() as patch:
        patch.setattr("commonweal_node.institution.answer_store._remove", _crash)
        with pytest.raises(KeyboardInterrupt):
            node.tend()
    assert served(node) is None
    node.start()
    tend(node)
    assert served(node) is not None
    assert node.said().count(Adoption) == 3


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_node_whose_institution_has_left_says_so(node: Node) -> None:
    node.f.say(NAME, Exit(institution=NAME, reason="no funds"))
    with pytest.raises(RuleError, match=f"{NAME}: has left the consortium, entry {len(node.f.entries) - 1}"):
        node.tend()
