"""Adopting another consortium's release: verified as a whole, judged by our own rows and charter, kept with proof."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commonweal_adapters.files.delta import read_adapter
from commonweal_node.charter.charter import NO_CHARTER
from commonweal_node.institution.adoption import Deciding
from commonweal_node.institution.answer_store import Answers
from commonweal_node.institution.foreign_adoption import Adopter, adopted_from, own_adapter, withdraw
from commonweal_node.institution.other_consortium import consortium_folder, verify_release
from commonweal_node.model.blend import BlendWeights
from commonweal_protocols.audit.foreign_job import check_foreign
from commonweal_protocols.base.errors import LogError, RuleError
from commonweal_protocols.records.provenance import name_release
from commonweal_protocols.statements.adoption import ForeignAdoption
from commonweal_protocols.statements.statement import open_entry
from tests.kit.deliberation import recalled
from tests.kit.federation import TINY, Federation, two_rounds
from tests.kit.institution import BASE, Table
from tests.kit.ring import RING, ring
from tests.kit.shelf import shelf

BLEND = BlendWeights(500, 500)


@dataclass
class Home:
    """School's node in a consortium, with a model side that is a table."""

    path: Path
    f: Federation = field(default_factory=two_rounds)
    learner: Table = field(default_factory=lambda: Table(best=BLEND))

    def adopter(self) -> Adopter:
        deciding = Deciding(NO_CHARTER, (), self.learner, lambda *_: None)
        return Adopter(self.path, deciding, lambda said: open_entry(self.f.say("school", said)).leaf)

    def adopt(self, other: Federation) -> ForeignAdoption:
        ours = self.f.state.compact
        found = verify_release(self.path, shelf(other), other.state.consortium, ours)
        return self.adopter().adopt(found, ours)[0]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_newest_release_is_judged_beside_our_own_adapter_and_logged_with_where_it_is_proved(home: Home) -> None:
    other = ring(2)
    own = read_adapter(home.f.blobs[home.f.state.next_start().sha256], TINY)
    Answers(home.path, TINY).save_own(2, own)
    adoption = home.adopt(other)
    assert (adoption.decision, adoption.shared_millis, adoption.own_millis) == ("blend", 500, 500)
    assert adoption.release == name_release(other.replica)
    assert adoption.release.round == 2
    ((shared, kept, weights, where),) = home.learner.exported
    theirs = read_adapter(other.blobs[adoption.release.adapter.sha256], TINY)
    assert all((shared[n] == q).all() for n, q in theirs.items())
    assert all((kept[n] == q).all() for n, q in own.items())
    folder = consortium_folder(home.path, other.state.consortium)
    assert (weights, where) == (BLEND, folder / "adopted")
    logged = home.f.state.foreign["school"][-1]
    assert logged.adoption == adoption
    known = adopted_from(home.path, other.state.consortium)
    assert known is not None
    assert (known.release, known.entry) == (adoption.release, logged.leaf)
    assert (folder / "checkpoint").read_bytes() == shelf(other).files["checkpoint"]
    (check,) = check_foreign(shelf(home.f), [shelf(other)])
    assert check.verdict == "holds"


def test_before_any_round_of_ours_the_own_adapter_changes_nothing(home: Home) -> None:
    own = own_adapter(home.path, TINY)
    assert all((q == 0).all() for name, q in own.items() if ".lora_B." in name)
    assert home.adopt(ring()).decision == "blend"


def test_what_a_charter_objects_to_is_refused_logged_and_kept_nowhere(home: Home) -> None:
    home.learner.losses = {BASE: 1_000_000, BLEND: 1_001_000}
    other = ring()
    adoption = home.adopt(other)
    assert (adoption.decision, adoption.shared_millis) == ("refuse", 0)
    assert home.f.state.foreign["school"][-1].adoption == adoption
    assert home.learner.exported == []
    assert adopted_from(home.path, other.state.consortium) is None


def test_nothing_of_a_log_that_does_not_hold_is_evaluated(home: Home) -> None:
    other, ours = ring(), home.f.state.compact
    broken = shelf(other)
    adapter = name_release(other.replica).adapter.sha256
    del broken.files[f"blob/{adapter}"]
    with pytest.raises(LogError, match=f"wanted a log that holds, got .*{adapter}"):
        verify_release(home.path, broken, other.state.consortium, ours)
    with pytest.raises(LogError, match=r"wanted a log that holds, got .*consortium: wanted 0000"):
        verify_release(home.path, shelf(other), "0" * 64, ours)


def test_a_log_that_takes_something_back_is_caught_the_next_time(home: Home) -> None:
    other, ours = ring(), home.f.state.compact
    verify_release(home.path, shelf(other), other.state.consortium, ours)
    with pytest.raises(LogError, match="wanted a log that holds, got"):
        verify_release(home.path, shelf(other, other.entries[:-1]), other.state.consortium, ours)


def test_the_next_look_reads_only_what_is_new(home: Home) -> None:
    other, ours = ring(), home.f.state.compact
    records = shelf(other)
    verify_release(home.path, records, other.state.consortium, ours)
    records.reads.clear()
    found = verify_release(home.path, records, other.state.consortium, ours)
    assert not [path for path in records.reads if path.startswith("tile/")]
    assert found.named == name_release(other.replica)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"base": {"reference": "path:/other", "sha256": "cd" * 32}}, "base: wanted"),
        ({"adapter": {**TINY.model_dump(mode="json"), "alpha": 8}}, "adapter.alpha: wanted 4, as ours, got 8"),
    ],
)
def test_an_adapter_for_another_base_or_of_another_scale_is_not_ours_to_use(
    home: Home, terms: dict[str, object], why: str
) -> None:
    other = Federation(origin=RING, realm="ring ", terms=terms)
    other.run_round()
    with pytest.raises(RuleError, match=why):
        verify_release(home.path, shelf(other), other.state.consortium, home.f.state.compact)


def test_what_is_recalled_there_is_put_away_here_and_the_one_before_is_judged(home: Home) -> None:
    other = Federation(origin=RING, realm="ring ")
    other.run_round()
    other.run_round()
    adopted = home.adopt(other)
    folder = consortium_folder(home.path, other.state.consortium)
    (folder / "adopted").mkdir()
    ours = home.f.state.compact
    same = verify_release(home.path, shelf(other), other.state.consortium, ours)
    assert withdraw(home.path, same) is None
    recalled(None, other, 2)
    found = verify_release(home.path, shelf(other), other.state.consortium, ours)
    assert withdraw(home.path, found) == folder / "recalled" / adopted.release.release_leaf
    assert not (folder / "adopted").exists()
    assert adopted_from(home.path, other.state.consortium) is None
    assert found.named.round == 1
    assert withdraw(home.path, found) is None
    assert home.adopter().adopt(found, ours)[0].release.round == 1
