"""A node that speaks for a consortium in another one: what it gives, what it declines, what both logs bear out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from commonweal_adapters import recompute
from commonweal_adapters.files.delta import GridTensors, read_adapter, read_delta, write_delta
from commonweal_node.charter.charter import NO_CHARTER
from commonweal_node.config import NodeConfig, SpeaksFor
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.institution.adoption import Deciding
from commonweal_node.institution.delegate import Delegate, check_speaks_for
from commonweal_node.institution.foreign_adoption import Adopter
from commonweal_node.institution.institution import Institution
from commonweal_node.institution.other_consortium import verify_release
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.foreign_job import check_foreign
from commonweal_protocols.base.errors import ConfigError, LocalError, UnavailableError
from commonweal_protocols.records.provenance import name_release
from commonweal_protocols.statements.adoption import Adoption
from commonweal_protocols.statements.rounds import Incident, Refusal, Update
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.values import MAX_COUNT, Blob
from commonweal_protocols.tlog.note import sign_note
from tests.kit.deliberation import recalled
from tests.kit.federation import TINY, Federation, key_of, save_key
from tests.kit.institution import OWN, SHARED, Line, Table, finish, said_in
from tests.kit.memory_source import follower, served
from tests.kit.ring import RING, ring, union
from tests.kit.shelf import Shelf, shelf

NAME = "delta"


@dataclass
class Speaker:
    """The node of ``delta``, which speaks for one consortium in another, and everything that a restart makes anew."""

    home: Path
    inner: Federation = field(default_factory=ring)
    terms: dict[str, object] = field(default_factory=dict)
    rows: Table = field(default_factory=lambda: Table(losses={SHARED: 321}))
    progress: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outer = union(self.inner.state.consortium, **self.terms)
        self.outer.announce()
        self.records = shelf(self.inner)
        self.line = Line(self.outer)
        (self.home / "keys").mkdir(parents=True)
        save_key(self.home / "keys/institution.pem", self.outer.keys[NAME])
        self.start()

    def start(self) -> None:
        """As after a restart: new objects, the same folder."""
        compact, whose = self.outer.state.compact, self.inner.state.consortium
        self.delegate = Delegate(
            self.rows,
            NAME,
            whose,
            self.records,
            ours=compact,
            home=self.home,
            on_progress=lambda p: self.progress.append(p.stage),
        )
        self.institution = Institution(
            NAME,
            KeyRing(self.home, None),
            home=self.home,
            charter=NO_CHARTER,
            probes=(),
            refuse="",
            max_membership_auc_millis=None,
            follower=follower(served(self.outer), self.outer, self.home),
            consortium=self.line,
            learner=self.delegate,
            on_phase=lambda *_: None,
        )

    def publish(self) -> None:
        """The inner consortium's records as they are by now."""
        self.records.files = shelf(self.inner).files

    def answer(self, number: int = 1) -> Update | Refusal:
        """What is answered to the round that is open, once it is in the log."""
        predicate = said_in(self.outer.add(self.institution.answer(number)))
        assert isinstance(predicate, Update | Refusal)
        return predicate

    def refused(self, number: int = 1) -> str:
        said = self.answer(number)
        assert isinstance(said, Refusal)
        return said.reason

    def trained(self, update: Update) -> dict[str, np.ndarray]:
        """The adapter that the round's start and this delta make."""
        start = read_adapter(self.outer.blobs[self.outer.state.rounds[-1].round.start.sha256], TINY)
        delta = read_delta(self.outer.blobs[update.delta.sha256], TINY)
        return {name: q + delta[name] for name, q in start.items()}


@pytest.fixture
def node(tmp_path: Path) -> Speaker:
    made = Speaker(tmp_path / "delta")
    made.outer.open_round()
    return made


def adapter_of(f: Federation, blob: Blob) -> GridTensors:
    return read_adapter(f.blobs[blob.sha256], TINY)


def whole_round(node: Speaker, number: int) -> Update | Refusal:
    node.outer.open_round()
    said = node.answer(number)
    for name in ("coop", "school"):
        node.outer.say(name, node.outer.update(name))
    node.outer.say("hub", node.outer.release())
    for name in ("coop", "school"):
        node.outer.say(name, node.outer.ratification())
    return said


# -- what is given


def test_the_answer_is_the_newest_ratified_release_and_both_logs_bear_it_out(tmp_path: Path) -> None:
    node = Speaker(tmp_path / "delta", ring(2))
    node.outer.open_round()
    update = node.answer()
    assert isinstance(update, Update)
    assert update.release == name_release(node.inner.replica)
    assert update.release.round == 2
    theirs = adapter_of(node.inner, update.release.adapter)
    made = node.trained(update)
    assert all((made[name] == q).all() for name, q in theirs.items())
    # Two members, who state 10 examples and one for each letter of their names.
    assert update.num_examples == 10 + len("clinic") + 10 + len("library")
    assert (update.heldout_before_micronats, update.heldout_after_micronats) == (321, 321)
    assert (update.data_leaf, update.membership_auc_micros) == (None, None)
    assert node.rows.trained == []
    assert set(node.progress) == {"entries", "releases"}
    finish(node.outer, *node.outer.names)
    assert examine(shelf(node.outer), recompute=recompute).report.verdict == "pass"
    (check,) = check_foreign(shelf(node.outer), [shelf(node.inner)], recompute)
    assert (check.verdict, check.named.what, check.named.institution) == ("holds", "contribution", NAME)


def test_where_an_encoding_keeps_every_bit_the_release_is_given_byte_for_byte_too(tmp_path: Path) -> None:
    node = Speaker(tmp_path / "delta", terms={"encoding": {"bits": 32, "keep_millis": 1000}})
    node.outer.open_round()
    assert isinstance(node.answer(), Update)
    (check,) = check_foreign(shelf(node.outer), [shelf(node.inner)], recompute)
    assert check.sentence.endswith("start and delta make it, byte for byte")


def test_a_restarted_node_gives_the_same_answer_although_there_is_a_newer_release(node: Speaker) -> None:
    first = node.institution.answer(1)
    node.inner.run_round()
    node.publish()
    for _ in range(2):
        node.start()
        assert node.institution.answer(1) == first
    node.outer.add(first)
    node.start()
    assert node.institution.answer(1) == first, "also once it is in the log"


def test_what_could_not_be_sent_is_sent_later_under_the_name_of_the_release_that_it_is(node: Speaker) -> None:
    node.line.trouble = UnavailableError("the exchange does not answer")
    with pytest.raises(UnavailableError):
        node.institution.answer(1)
    node.line.trouble = None
    node.inner.run_round()
    node.publish()
    update = node.answer()
    assert isinstance(update, Update)
    assert update.release is not None
    assert update.release.round == 1
    (check,) = check_foreign(shelf(node.outer), [shelf(node.inner)], recompute)
    assert check.verdict == "holds"


def test_what_is_looked_at_is_what_is_given_whatever_is_released_meanwhile(node: Speaker) -> None:
    start = adapter_of(node.outer, node.outer.state.next_start())
    assert node.delegate.objection(node.outer.state, start, None) == ""
    first = name_release(node.inner.replica)
    node.inner.run_round()
    node.publish()
    recipe = node.outer.compact.recipe
    node.delegate.train(start, recipe, "round 1")
    assert node.delegate.release == first
    node.delegate.train(start, recipe, "own adapter, round 1")
    assert node.delegate.release == name_release(node.inner.replica)


def test_a_second_look_reads_no_entry_and_no_delta_again(node: Speaker) -> None:
    node.institution.answer(1)
    node.start()
    node.records.reads.clear()
    start = adapter_of(node.outer, node.outer.state.next_start())
    assert node.delegate.objection(node.outer.state, start, None) == ""
    release = name_release(node.inner.replica)
    assert set(node.records.reads) == {"checkpoint", f"blob/{release.adapter.sha256}"}


# -- what is declined


def test_a_consortium_without_a_ratified_release_has_nothing_to_give(tmp_path: Path) -> None:
    inner = ring(0)
    inner.open_round()
    for name in inner.names:
        inner.say(name, inner.update(name))
    inner.say("hub", inner.release())
    node = Speaker(tmp_path / "delta", inner)
    node.outer.open_round()
    whose = inner.state.consortium
    assert node.refused() == f"the consortium {whose} has no ratified release yet"
    assert not list(node.home.rglob("sent/*"))


def test_what_was_given_is_not_given_twice_and_the_next_release_is(node: Speaker) -> None:
    node.answer()
    finish(node.outer, "coop", "school")
    said = whole_round(node, 2)
    assert isinstance(said, Refusal)
    its = f"the newest release of the consortium {node.inner.state.consortium}, that of its round 1,"
    assert said.reason == f"{its} was given to round 1 already"
    assert isinstance(whole_round(node, 3), Refusal), "also after a round without it"
    node.inner.run_round()
    node.publish()
    given = whole_round(node, 4)
    assert isinstance(given, Update)
    assert given.release == name_release(node.inner.replica)


@pytest.mark.parametrize("end", ["closed", "recalled"])
def test_what_stands_in_no_ratified_release_is_given_again(node: Speaker, end: str) -> None:
    first = node.answer()
    assert isinstance(first, Update)
    if end == "closed":
        node.outer.say("hub", Incident(round=1, round_leaf=node.outer.state.rounds[0].leaf, reason="too few"))
    else:
        finish(node.outer, "coop", "school")
        recalled(None, node.outer)
    node.outer.open_round()
    again = node.answer(2)
    assert isinstance(again, Update)
    assert again.release == first.release


def test_what_the_members_have_withdrawn_is_not_pressed_on_them_again(node: Speaker) -> None:
    node.answer()
    finish(node.outer, "coop", "school")
    recalled(NAME, node.outer)
    finish(node.outer, "coop", "school")
    release = node.outer.state.rounds[0].release
    assert release is not None
    assert NAME not in {i.institution for i in release.release.inputs}
    node.outer.open_round()
    assert "was given to round 1 already" in node.refused(2)


def test_a_release_that_states_more_examples_than_an_update_can_is_not_given(tmp_path: Path) -> None:
    inner = ring(0)
    inner.open_round()
    for name in inner.names:
        inner.say(name, inner.update(name).model_copy(update={"num_examples": MAX_COUNT}))
    inner.say("hub", inner.release())
    for name in inner.names:
        inner.say(name, inner.ratification())
    node = Speaker(tmp_path / "delta", inner)
    node.outer.open_round()
    assert f"states {2 * MAX_COUNT} examples; an update can state {MAX_COUNT}" in node.refused()


FROZEN: dict[str, object] = {"rule": {"name": "frozen-a", "weights": "equal"}}


def frozen_ring(seed: int) -> Federation:
    """A consortium with a release of which A is still as this seed makes it."""
    spec = TINY.model_copy(update={"seed": seed})
    start = recompute.recompute_start(spec)
    f = Federation(names=("clinic", "library"), origin=RING, realm="ring ")
    blob = f.keep(start)
    terms = {"adapter": spec.model_dump(mode="json"), "start": blob.model_dump(mode="json"), **FROZEN}
    f = Federation(names=("clinic", "library"), origin=RING, realm="ring ", terms=terms)
    f.keep(start)
    f.open_round()
    for name in f.names:
        full = read_delta(f.delta(name), TINY)
        b_only = {n: np.zeros_like(q) if ".lora_A." in n else q for n, q in full.items()}
        f.say(name, f.update(name, write_delta(GridTensors(b_only), TINY)))
    f.say("hub", f.release())
    for name in f.names:
        f.say(name, f.ratification())
    return f


def test_where_a_is_frozen_only_a_release_with_that_very_a_is_given(tmp_path: Path) -> None:
    same = Speaker(tmp_path / "same", frozen_ring(TINY.seed), FROZEN)
    same.outer.open_round()
    update = same.answer()
    assert isinstance(update, Update)
    delta = read_delta(same.outer.blobs[update.delta.sha256], TINY)
    assert all((q == 0).all() for name, q in delta.items() if ".lora_A." in name)
    other = Speaker(tmp_path / "other", frozen_ring(TINY.seed + 1), FROZEN)
    other.outer.open_round()
    assert other.refused().endswith("has another A than this round freezes: both consortia must freeze the same one")


def test_another_seed_is_no_obstacle_where_nothing_is_frozen(tmp_path: Path) -> None:
    node = Speaker(tmp_path / "delta", frozen_ring(TINY.seed + 1))
    node.outer.open_round()
    assert isinstance(node.answer(), Update)
    (check,) = check_foreign(shelf(node.outer), [shelf(node.inner)], recompute)
    assert check.verdict == "holds"


# -- what nothing is signed on


def nothing_is_signed(node: Speaker, why: str) -> None:
    before = list(node.outer.entries)
    for _ in range(2):
        with pytest.raises(LocalError, match=why):
            node.institution.answer(1)
        node.start()
    assert node.outer.entries == before
    assert not (node.home / "answers").exists()


def without_a_delta(inner: Federation, records: Shelf) -> None:
    del records.files[f"blob/{inner.state.rounds[0].updates['library'].update.delta.sha256}"]


def with_another_merge(inner: Federation, records: Shelf) -> None:
    """All is signed and ratified, but the release is the start that nobody has changed."""
    other = Federation(names=inner.names, origin=RING, realm="ring ", rule=inner.rule)
    other.announce()
    other.open_round()
    for name in other.names:
        other.say(name, other.update(name))
    honest = other.release()
    other.say("hub", honest.model_copy(update={"adapter": honest.start}))
    for name in other.names:
        other.say(name, other.ratification())
    records.files = shelf(other).files


def with_a_forged_checkpoint(inner: Federation, records: Shelf) -> None:
    records.files["checkpoint"] = sign_note(inner.replica.checkpoint().text(), RING, key_of("somebody"))


def with_no_checkpoint(inner: Federation, records: Shelf) -> None:
    del records.files["checkpoint"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            without_a_delta,
            r"\[speaks_for\]: consortium .*: wanted a log that holds, got .*update of round 1 by library",
        ),
        (with_another_merge, r"wanted a log that holds, got .*adapter .* is not the svd of its 2 inputs"),
        (
            with_a_forged_checkpoint,
            r"\[speaks_for\]: consortium .*: wanted a log that holds, got .*wanted a signature of log.test/ring",
        ),
        (with_no_checkpoint, r"\[speaks_for\]: consortium .*: wanted a log that holds, got checkpoint: wanted"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_on_a_log_that_does_not_hold_nothing_is_signed(
    node: Speaker, spoil: Callable[[Federation, Shelf], None], why: str
) -> None:
    spoil(node.inner, node.records)
    nothing_is_signed(node, why)


def test_a_log_that_takes_back_what_was_seen_is_caught_by_the_memory(node: Speaker) -> None:
    node.institution.answer(1)
    for kept in (node.home / "answers").iterdir():
        kept.unlink()
    (node.home / "answers").rmdir()
    node.records.files = shelf(node.inner, node.inner.entries[:-1]).files
    nothing_is_signed(node, "wanted a log that holds, got .*rolled back")


def test_the_log_of_another_consortium_is_not_taken_for_ours(node: Speaker) -> None:
    other = Federation(names=("a", "b"), origin="log.test/third", realm="third ")
    other.run_round()
    node.records.files = shelf(other).files
    nothing_is_signed(node, f"wanted {node.inner.state.consortium}, got {other.state.consortium}")


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"base": {"reference": "path:/other", "sha256": "cd" * 32}}, "base: wanted abab.*, as ours, got cdcd"),
        ({"adapter": {**TINY.model_dump(mode="json"), "alpha": 8}}, r"adapter\.alpha: wanted 4, as ours, got 8"),
    ],
    ids=["base", "adapter"],
)
def test_of_another_base_or_shape_nothing_is_given(tmp_path: Path, terms: dict[str, object], why: str) -> None:
    inner = Federation(names=("clinic", "library"), origin=RING, realm="ring ", terms=terms)
    inner.run_round()
    node = Speaker(tmp_path / "delta", inner)
    node.outer.open_round()
    nothing_is_signed(node, rf"\[speaks_for\]: {why}")


# -- what is decided on the outer release


def test_the_own_adapter_beside_the_shared_one_is_the_consortiums_release(node: Speaker) -> None:
    node.rows.best = OWN
    node.answer()
    finish(node.outer, *node.outer.names)
    node.inner.run_round()
    node.publish()
    whole_round(node, 2)
    assert node.institution.tend() is None, "it ratifies first"
    decided = node.institution.tend()
    assert isinstance(decided, Adoption)
    kept = read_adapter((node.home / "own/round-2.safetensors").read_bytes(), TINY)
    theirs = adapter_of(node.inner, name_release(node.inner.replica).adapter)
    assert all((kept[name] == q).all() for name, q in theirs.items())
    assert node.rows.trained == []


def test_a_consortium_without_a_release_decides_beside_an_adapter_that_changes_nothing(tmp_path: Path) -> None:
    node = Speaker(tmp_path / "delta", ring(0), rows=Table())
    assert isinstance(whole_round(node, 1), Refusal)
    node.institution.tend()
    assert isinstance(node.institution.tend(), Adoption)
    ((_, own, _, _),) = node.rows.exported
    assert all((q == 0).all() for name, q in own.items() if ".lora_B." in name)


def test_from_a_round_within_to_a_release_without_and_back_each_log_bears_out_what_the_other_says(
    tmp_path: Path,
) -> None:
    node = Speaker(tmp_path / "delta")
    node.inner.run_round()
    node.publish()
    node.outer.open_round()
    assert isinstance(node.answer(), Update)
    for name in ("coop", "school"):
        node.outer.say(name, node.outer.update(name))
    node.outer.say("hub", node.outer.release())
    node.institution.tend()
    node.outer.say("coop", node.outer.ratification())
    assert isinstance(node.institution.tend(), Adoption)
    library = Adopter(
        tmp_path / "library",
        Deciding(NO_CHARTER, (), Table(), lambda *_: None),
        lambda said: open_entry(node.inner.say("library", said)).leaf,
    )
    found = verify_release(tmp_path / "library", shelf(node.outer), node.outer.state.consortium, node.inner.compact)
    adopted, _ = library.adopt(found, node.inner.compact)
    assert adopted.decision == "adopt"
    assert adopted.release == name_release(node.outer.replica)
    for here, there, what in ((node.outer, node.inner, "contribution"), (node.inner, node.outer, "adopt")):
        assert examine(shelf(here), recompute=recompute).report.verdict == "pass"
        (check,) = check_foreign(shelf(here), [shelf(there)], recompute)
        assert (check.verdict, check.named.what, check.withdrawn) == ("holds", what, False)


def test_what_the_inner_consortium_recalls_is_not_given(tmp_path: Path) -> None:
    inner = Federation(origin=RING, realm="ring ")
    inner.run_round()
    inner.run_round()
    recalled(None, inner, 2)
    node = Speaker(tmp_path / "delta", inner)
    node.outer.open_round()
    update = node.answer()
    assert isinstance(update, Update)
    assert update.release is not None
    assert update.release.round == 1


# -- settings


WHOSE = "ab" * 32


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (
            None,
            WHOSE,
            f"wanted an institution of its own, as node.toml has it, got the consortium {WHOSE} in the compact",
        ),
        (WHOSE, None, f"wanted the consortium {WHOSE}, as node.toml has it, got an institution of its own"),
        (WHOSE, "cd" * 32, f"wanted the consortium {WHOSE}, as node.toml has it, got the consortium {'cd' * 32}"),
        (WHOSE, WHOSE, ""),
        (None, None, ""),
    ],
)
def test_settings_and_compact_must_agree_on_whom_a_node_speaks_for(
    ours: str | None, theirs: str | None, why: str
) -> None:
    compact = union(theirs or WHOSE).compact
    if theirs is None:
        compact = Federation(names=("coop", NAME)).compact
    speaks_for = SpeaksFor(consortium=ours, records="https://ring.test") if ours else None
    config = NodeConfig(institution=NAME, data=Path("rows.jsonl"), speaks_for=speaks_for)
    if why:
        with pytest.raises(ConfigError, match=why):
            check_speaks_for(config, compact)
    else:
        check_speaks_for(config, compact)
