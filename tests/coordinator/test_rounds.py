"""Rounds: the policy as a table, and the driver over a real log."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy

from commonweal_adapters import recompute
from commonweal_adapters.files.delta import LIMIT, GridTensors, write_delta
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_coordinator.rounds import rounds
from commonweal_coordinator.rounds.rounds import RoundDriver, Step, Wait, decide
from commonweal_protocols.audit.audit import audit
from commonweal_protocols.base.errors import RuleError, StorageError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.compact import AdapterSpec, Quorum
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.rounds import Incident, Input, Refusal, Rejection, Release, Round
from commonweal_protocols.statements.rules import FactorMean
from tests.kit.federation import NAMES, TINY, Federation, data_manifest
from tests.kit.hub import founded
from tests.kit.round_desk import Desk

# -- the policy


def at(*does: Callable[[Federation], object]) -> Callable[[], State]:
    """A state after these things were done, one after the other."""

    def build() -> State:
        f = Federation()
        f.announce()
        for do in does:
            do(f)
        return f.state

    return build


def opens(f: Federation) -> None:
    f.open_round()


def updates(*names: str) -> Callable[[Federation], None]:
    def update(f: Federation) -> None:
        for name in names:
            f.say(name, f.update(name))

    return update


def refuses(name: str, reason: str = "harvest") -> Callable[[Federation], None]:
    def refuse(f: Federation) -> None:
        r = f.state.rounds[-1]
        f.say(name, Refusal(round=r.round.round, round_leaf=r.leaf, reason=reason))

    return refuse


def rejects(name: str) -> Callable[[Federation], None]:
    def reject(f: Federation) -> None:
        r = f.state.rounds[-1]
        f.say("hub", Rejection(round=r.round.round, institution=name, leaf=r.updates[name].leaf, reason="not a delta"))

    return reject


def leaves(name: str) -> Callable[[Federation], None]:
    def leave(f: Federation) -> None:
        f.say(name, Exit(institution=name, reason="no funds"))

    return leave


def loses_key(name: str, another: str | None) -> Callable[[Federation], None]:
    """The others give a member another key, or leave it out."""

    def change(f: Federation) -> None:
        compact = f.amended(members=f.members(**{name: another}))
        f.add(f.amendment(compact, *(n for n in NAMES if n != name), *([another] if another else [])))

    return change


def expires(*names: str) -> Callable[[Federation], None]:
    """Members' keys end with the version that says so."""

    def change(f: Federation) -> None:
        at = f.state.size + 1
        members = [m | {"expires_at_index": at} if m["institution"] in names else m for m in f.members()]
        f.add(f.amendment(f.amended(members=members), *NAMES))

    return change


def closes(f: Federation) -> None:
    r = f.state.rounds[-1]
    f.say("hub", Incident(round=r.round.round, round_leaf=r.leaf, reason="too few"))


def releases(f: Federation) -> None:
    f.say("hub", f.release())


def ratifies(*names: str) -> Callable[[Federation], None]:
    def ratify(f: Federation) -> None:
        for name in names:
            f.say(name, f.ratification())

    return ratify


def silent(*announced: str) -> Callable[[], State]:
    def build() -> State:
        f = Federation()
        whole = Federation()
        whole.announce()
        for data in whole.entries[1 : 1 + len(announced)]:
            f.add(data)
        return f.state

    return build


ALL = updates(*NAMES)
FAILED = (opens, closes)
DONE = (opens, ALL, releases, ratifies("clinic", "school"))
DEADLINE = 600

DECISIONS: list[tuple[Callable[[], State], int, float, str, str, str]] = [
    # state, target, elapsed, act, its words, why
    (silent(), 1, 0, "rest", "not yet announced: clinic, coop, school", "nobody could be invited"),
    (silent("clinic", "school"), 1, 9e9, "rest", "not yet announced: coop", "a cohort is all members, however long"),
    (at(), 1, 0, "open", "round 1", "all are there"),
    (at(), 0, 0, "rest", "0 of 0 releases ratified", "no release is wanted"),
    (at(opens), 1, 0, "collect", "awaiting clinic, coop, school", "nobody has answered"),
    (at(opens), 0, 0, "collect", "awaiting clinic, coop, school", "an open round is ended before there is rest"),
    (
        at(opens, updates("coop")),
        1,
        0,
        "collect",
        "awaiting clinic, school",
        "two are missing, though they may yet come",
    ),
    (at(opens, updates("coop", "clinic")), 1, 0, "collect", "awaiting school", "a quorum does not end the waiting"),
    (at(opens, updates("coop", "clinic")), 1, DEADLINE, "collect", "awaiting school", "the deadline itself is in time"),
    (at(opens, updates("coop", "clinic")), 1, DEADLINE + 0.1, "merge", "2 of 3 updates", "overdue, with a quorum"),
    (at(opens, ALL), 1, 0, "merge", "3 of 3 updates", "all have answered"),
    (
        at(opens, updates("coop", "clinic"), refuses("school")),
        1,
        0,
        "merge",
        "2 of 3 updates",
        "a refusal is an answer",
    ),
    (
        at(opens, ALL, rejects("coop")),
        1,
        0,
        "merge",
        "2 of 3 updates",
        "what was rejected is neither awaited nor merged",
    ),
    (
        at(opens, updates("coop")),
        1,
        DEADLINE + 0.1,
        "close",
        "wanted 2 updates, got 1; no answer from clinic, school",
        "overdue, below the quorum",
    ),
    (
        at(opens, updates("coop"), refuses("school"), refuses("clinic", "no power")),
        1,
        0,
        "close",
        "wanted 2 updates, got 1; clinic refused: no power; school refused: harvest",
        "no more can come, so nobody waits for the deadline",
    ),
    (
        at(opens, ALL, rejects("coop"), rejects("clinic")),
        1,
        0,
        "close",
        "wanted 2 updates, got 1; clinic was rejected: not a delta; coop was rejected: not a delta",
        "rejections took the quorum away",
    ),
    (
        at(opens, updates("coop", "clinic"), leaves("school")),
        1,
        0,
        "merge",
        "2 of 3 updates",
        "nobody waits for who has left",
    ),
    (
        at(opens, updates("coop", "school"), leaves("school")),
        1,
        0,
        "collect",
        "awaiting clinic",
        "who has left is not awaited, the others still are",
    ),
    (
        at(opens, ALL, leaves("school")),
        1,
        0,
        "merge",
        "3 of 3 updates",
        "what was logged before its author left is merged",
    ),
    (
        at(opens, updates("coop"), leaves("school"), refuses("clinic")),
        1,
        0,
        "close",
        "wanted 2 updates, got 1; clinic refused: harvest; no answer from school",
        "an exit that makes the quorum unreachable closes the round at once",
    ),
    (
        at(opens, updates("coop", "clinic"), loses_key("school", None)),
        1,
        0,
        "merge",
        "2 of 3 updates",
        "nobody waits for who was removed",
    ),
    (
        at(opens, updates("coop", "clinic"), expires("school")),
        1,
        0,
        "merge",
        "2 of 3 updates",
        "an expired key can answer nothing",
    ),
    (
        at(opens, updates("coop", "clinic"), loses_key("school", "school-2")),
        1,
        0,
        "collect",
        "awaiting school",
        "anyone who has a new key can still answer with it",
    ),
    (
        at(*FAILED),
        1,
        2,
        "rest",
        "round 1 was closed; the next one opens 2 s after that",
        "a pause, or the log fills up",
    ),
    (at(*FAILED), 1, 2.1, "open", "round 2", "another try"),
    (at(*FAILED * 2), 1, 4, "rest", "round 2 was closed; the next one opens 4 s after that", "twice in a row"),
    (at(*FAILED * 2), 1, 4.1, "open", "round 3", "after twice the pause"),
    (
        at(*FAILED * 10),
        1,
        600,
        "rest",
        "round 10 was closed; the next one opens 600 s after that",
        "at most a deadline",
    ),
    (at(*FAILED * 2, *DONE, *FAILED), 2, 2.1, "open", "round 5", "a release in between counts the pause anew"),
    (at(opens, ALL, releases), 1, 0, "await ratification", "awaiting clinic, coop, school", "nobody has ratified"),
    (
        at(opens, ALL, releases, ratifies("coop")),
        1,
        DEADLINE,
        "await ratification",
        "awaiting clinic, school",
        "one of two is no quorum",
    ),
    (
        at(opens, ALL, releases, ratifies("coop")),
        1,
        DEADLINE + 0.1,
        "open",
        "round 2",
        "without them, from the old start",
    ),
    (
        at(opens, ALL, releases, expires("school")),
        1,
        0,
        "await ratification",
        "awaiting clinic, coop",
        "an expired key can ratify nothing",
    ),
    (
        at(opens, ALL, releases, ratifies("school"), leaves("school"), leaves("clinic")),
        1,
        0,
        "await ratification",
        "awaiting coop",
        "what was ratified before its author left still counts",
    ),
    (
        at(opens, ALL, releases, leaves("school"), leaves("clinic")),
        1,
        0,
        "close",
        "wanted 2 ratifications, got 0; 1 more can come, from coop",
        "exits that leave too few to ratify close the round at once",
    ),
    (
        at(opens, ALL, releases, ratifies("coop"), expires("school", "clinic")),
        1,
        0,
        "close",
        "wanted 2 ratifications, got 1; no more can come",
        "keys that expire do too",
    ),
    (
        at(opens, ALL, releases, ratifies("coop"), expires("school", "clinic"), closes),
        1,
        2,
        "rest",
        "round 1 was closed; the next one opens 2 s after that",
        "a release that is void makes a pause as well",
    ),
    (at(*DONE), 1, 0, "rest", "1 of 1 releases ratified", "the quorum is enough"),
    (at(*DONE), 2, 0, "open", "round 2", "more are wanted"),
    (at(*DONE, *DONE), 2, 0, "rest", "2 of 2 releases ratified", "and now they are there"),
]


@pytest.mark.parametrize(
    ("state", "target", "elapsed", "act", "words", "why"), DECISIONS, ids=[row[-1] for row in DECISIONS]
)
def test_the_next_step_follows_from_the_state(
    state: Callable[[], State], target: int, elapsed: float, act: str, words: str, why: str
) -> None:
    assert decide(state(), target=target, elapsed_seconds=elapsed) == Step(act, words)  # type: ignore[arg-type]


def test_the_longest_reasons_still_fit_an_incident() -> None:
    state = at(opens, *(refuses(n, "x" * 500) for n in NAMES))()
    step = decide(state, target=1, elapsed_seconds=0)
    assert step.act == "close"
    assert Incident(round=1, round_leaf="0" * 64, reason=step.why).reason.startswith("wanted 2 updates, got 0; clinic")


# -- the end of a burst


def burst(f: Federation, *bits: tuple[bool | None, ...]) -> Federation:
    """Rounds to their ratified release; each member says of its start what the bits of that round are."""
    for said in bits:
        f.open_round()
        for name, improves in zip(NAMES, said, strict=True):
            f.say(name, f.update(name).model_copy(update={"improves": improves}))
        f.say("hub", f.release())
        for name in NAMES:
            f.say(name, f.ratification())
    return f


FIRST, BETTER, WORSE, TIED = (None, None, None), (True, True, False), (False, False, True), (True, False, None)


def stopping(stop_after: int | None) -> Federation:
    f = Federation(terms={} if stop_after is None else {"stop_after": stop_after})
    f.announce()
    return f


@pytest.mark.parametrize(
    ("stop_after", "rounds", "act"),
    [
        (1, [FIRST, FIRST, BETTER], "open"),
        (1, [FIRST, FIRST, BETTER, WORSE], "rest"),
        (1, [FIRST, FIRST, TIED], "open"),
        (2, [FIRST, FIRST, WORSE], "open"),
        (2, [FIRST, FIRST, WORSE, BETTER, WORSE], "open"),
        (2, [FIRST, FIRST, WORSE, WORSE], "rest"),
        (None, [FIRST, FIRST, WORSE, WORSE, WORSE], "open"),
    ],
)
def test_rounds_stop_at_the_first_start_that_most_members_find_no_better(
    stop_after: int | None, rounds: list[tuple[bool | None, ...]], act: str
) -> None:
    f = burst(stopping(stop_after), *rounds)
    step = decide(f.state, target=99, elapsed_seconds=0)
    assert step.act == act
    if act == "rest":
        assert step.why.startswith("most members found the newest start no better")
        with pytest.raises(RuleError, match="round: wanted none after"):
            f.open_round()


def test_a_changed_compact_or_other_rows_open_the_next_burst() -> None:
    f = burst(stopping(1), FIRST, FIRST, WORSE)
    assert f.state.is_burst_over()
    f.say("clinic", data_manifest("clinic"))
    assert not f.state.is_burst_over()
    assert decide(f.state, target=99, elapsed_seconds=0).act == "open"
    burst(f, WORSE)
    assert f.state.is_burst_over()
    f.add(f.amendment(f.amended(round_deadline_seconds=500), *NAMES))
    assert decide(f.state, target=99, elapsed_seconds=0).act == "open"


# -- the driver


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with founded(tmp_path / "hub") as hub:
        hub.announce()
        yield Desk(hub)


def mean(start: bytes, weighted: list[tuple[int, bytes]]) -> dict[str, np.ndarray]:
    """factor-mean once more, one number at a time, in fractions."""
    scale, total = 1 << TINY.grid_bits, sum(w for w, _ in weighted)
    deltas = [(w, safetensors.numpy.load(d)) for w, d in weighted]
    merged = {}
    for name, x in safetensors.numpy.load(start).items():
        out = np.empty(x.shape, np.float32)
        for at_, value in np.ndenumerate(x):
            delta = Fraction(sum(w * int(d[name][at_]) for w, d in deltas), total)
            out[at_] = float(Fraction(float(value)) + Fraction(round(delta), scale))
        merged[name] = out
    return merged


@pytest.mark.parametrize("weights", ["equal", "examples"])
def test_a_round_goes_from_its_opening_to_a_release_that_is_the_merge_of_its_updates(
    tmp_path: Path, weights: Literal["equal", "examples"]
) -> None:
    with founded(tmp_path / "hub", Federation(rule=FactorMean(weights=weights))) as hub:
        desk = Desk(hub, target=2)
        assert desk.step() == "rest"
        hub.announce()
        start = recompute.recompute_start(TINY)
        for n in (1, 2):
            assert desk.step() == "open"
            assert desk.step() == "collect"
            for name in NAMES:
                desk.update(name)
            assert desk.step() == "merge"
            release = desk.said()[-1]
            assert isinstance(release, Release)
            assert [i.institution for i in release.inputs] == sorted(NAMES)
            assert [i.weight for i in release.inputs] == [
                1 if weights == "equal" else 10 + len(n) for n in sorted(NAMES)
            ]
            merged = desk.blobs.read(release.adapter.sha256)
            expected = mean(start, [(i.weight, desk.blobs.read(i.delta.sha256)) for i in release.inputs])
            got = safetensors.numpy.load(merged)
            assert got.keys() == expected.keys()
            for name, x in expected.items():
                np.testing.assert_array_equal(got[name], x)
            hub.f.blobs[release.adapter.sha256] = start = merged
            assert desk.step() == "await ratification"
            desk.ratify("clinic", "coop")
        assert desk.step() == "rest"
        report = audit(DirectorySource(hub.public), recompute=recompute)
        assert (report.verdict, report.findings) == ("pass", ())
        assert [r.release and r.release.check for r in report.rounds] == ["recomputed", "recomputed"]


def of_spec(spec: AdapterSpec, value: int = 1) -> bytes:
    return write_delta(GridTensors({n: np.full(s, value, np.int32) for n, s in tensor_shapes(spec).items()}), spec)


def of_floats(value: float) -> bytes:
    return bytes(safetensors.numpy.save({n: np.full(s, value, np.float32) for n, s in tensor_shapes(TINY).items()}))


def beyond_the_range() -> bytes:
    return bytes(safetensors.numpy.save({n: np.full(s, LIMIT + 1, np.int32) for n, s in tensor_shapes(TINY).items()}))


BAD_DELTAS: list[tuple[Callable[[], bytes], str, str]] = [
    (lambda: b"x", "file: wanted at least the 8 bytes of the header's length, got 1", "one byte"),
    (lambda: b"\xff" * 4096, "header: wanted a length of at most", "a header that asks for all memory"),
    (lambda: of_spec(TINY)[:-4], "file: wanted [0-9]+ bytes, got [0-9]+", "cut off"),
    (lambda: of_spec(TINY) + b"\0", "file: wanted [0-9]+ bytes, got [0-9]+", "a byte too many"),
    (lambda: of_floats(float("nan")), "wanted dtype I32, got 'F32'", "not a number"),
    (lambda: of_floats(1.0), "wanted dtype I32, got 'F32'", "floats"),
    (lambda: of_spec(TINY.model_copy(update={"rank": 3})), r"wanted shape \[.*\], got \[.*\]", "another rank"),
    (lambda: of_spec(TINY.model_copy(update={"layers": 1})), "tensors: wanted 8, got 4", "a layer is missing"),
    (beyond_the_range, "wanted at most 2\\^24 = 16777216 grid steps, got 16777217", "a value out of range"),
    (lambda: b"\x80\x04]\x94." * 20, "header: wanted a length of at most", "a pickle"),
]


@pytest.mark.parametrize(("delta", "reason", "why"), BAD_DELTAS, ids=[why for _, _, why in BAD_DELTAS])
def test_a_delta_that_cannot_be_merged_gets_one_signed_rejection_and_the_round_goes_on(
    desk: Desk, delta: Callable[[], bytes], reason: str, why: str
) -> None:
    assert desk.step() == "open"
    desk.update("clinic", delta())
    assert desk.step() == "collect"
    for _ in range(2):  # neither another step nor another driver rejects it again
        assert desk.step() == "collect"
        desk.restart()
    opened, *rejections = desk.said()
    assert isinstance(opened, Round)
    (rejection,) = rejections
    assert isinstance(rejection, Rejection)
    assert rejection.institution == "clinic"
    assert rejection.leaf == desk.hub.f.state.rounds[0].updates["clinic"].leaf
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(rejection.reason)
    for name in ("coop", "school"):
        desk.update(name)
    assert desk.step() == "merge"
    release = desk.said()[-1]
    assert isinstance(release, Release)
    assert [i.institution for i in release.inputs] == ["coop", "school"]
    assert audit(DirectorySource(desk.hub.public), recompute=recompute).verdict == "pass"


def test_too_few_updates_by_the_deadline_close_the_round_with_the_reason(desk: Desk) -> None:
    assert desk.step() == "open"
    assert desk.step() == "collect"
    desk.update("coop")
    desk.now += DEADLINE
    assert desk.step() == "collect"
    desk.now += 1
    assert desk.step() == "close"
    leaf = desk.hub.f.state.rounds[0].leaf
    assert desk.said()[-1] == Incident(
        round=1, round_leaf=leaf, reason="wanted 2 updates, got 1; no answer from clinic, school"
    )
    assert desk.step() == "rest"
    desk.now += 3
    assert desk.step() == "open"
    assert desk.hub.f.state.rounds[1].round.start == desk.hub.f.compact.start


def test_a_release_that_too_few_are_left_to_ratify_is_closed_with_the_numbers_and_nobody_waits(desk: Desk) -> None:
    desk.step()
    for name in NAMES:
        desk.update(name)
    assert [desk.step(), desk.step()] == ["merge", "await ratification"]
    for name in ("school", "clinic"):
        desk.hub.say(name, Exit(institution=name, reason="no funds"))
    desk.now += 60
    assert desk.step() == "close"
    leaf = desk.hub.f.state.rounds[0].leaf
    reason = "wanted 2 ratifications, got 0; 1 more can come, from coop"
    assert desk.said()[-1] == Incident(round=1, round_leaf=leaf, reason=reason)
    assert desk.step() == "rest", "the pause counts from the incident, not from the release"
    desk.now += 3
    assert desk.step() == "open"
    assert desk.hub.f.state.rounds[1].round.start == desk.hub.f.compact.start
    assert audit(DirectorySource(desk.hub.public), recompute=recompute).verdict == "pass"


def test_a_release_that_can_be_ratified_after_all_when_the_word_is_said_is_not_closed(tmp_path: Path) -> None:
    with founded(tmp_path / "hub", Federation(quorum=Quorum(updates=2, ratifications=3, amendments=2))) as hub:
        hub.announce()
        desk, f = Desk(hub), hub.f
        desk.step()
        for name in NAMES:
            desk.update(name)
        assert desk.step() == "merge"
        expires("school")(f)
        hub.sequencer.submit(f.entries[-1])

        def meanwhile(_: State, step: Step, __: Wait | None) -> None:
            desk.steps.append(step)
            if step.act == "close":
                renewed = f.amended(members=f.members(school="school-2"))
                hub.sequencer.submit(f.amendment(renewed, "clinic", "coop", "school-2"))

        desk.driver = RoundDriver(hub.sequencer, desk.blobs, 1, meanwhile, lambda: desk.now)
        assert desk.step() == "close"
        assert desk.step() == "await ratification"
        assert desk.steps[-1].why == "awaiting clinic, coop, school"


def test_whatever_is_awaited_has_names_and_an_end_and_time_counts_anew_in_each_stage(desk: Desk) -> None:
    desk.step()
    desk.step()
    assert desk.waits == [None, Wait(("clinic", "coop", "school"), 0, DEADLINE)]
    desk.update("coop")
    desk.now += 35
    desk.step()
    assert desk.waits[-1] == Wait(("clinic", "school"), 35, DEADLINE)
    desk.update("clinic")
    desk.update("school")
    desk.now += 5
    assert desk.step() == "merge"
    assert desk.waits[-1:] == [None]
    desk.step()
    desk.ratify("school")
    desk.now += DEADLINE
    assert desk.step() == "await ratification"
    assert desk.waits[-1] == Wait(("clinic", "coop"), DEADLINE, DEADLINE)
    desk.now += 0.1
    assert desk.step() == "open", "the end that was stated is the end"
    assert desk.waits[-1:] == [None]
    desk.step()
    assert desk.waits[-1] == Wait(("clinic", "coop", "school"), 0, DEADLINE)


def test_a_quorum_is_merged_at_the_deadline_without_those_who_are_late(desk: Desk) -> None:
    desk.step()
    desk.step()
    desk.update("coop")
    desk.update("school")
    desk.now += DEADLINE + 1
    assert desk.step() == "merge"
    desk.hub.catch_up()
    release = desk.said()[-1]
    assert isinstance(release, Release)
    assert [i.institution for i in release.inputs] == ["coop", "school"]


def test_a_merge_out_of_range_closes_the_round_instead(desk: Desk) -> None:
    desk.step()
    for name in NAMES:
        # Each is in range by itself, but the start's A is not 0 everywhere.
        desk.update(name, of_spec(TINY, LIMIT))
    assert desk.step() == "merge"
    incident = desk.said()[-1]
    assert isinstance(incident, Incident)
    assert incident.reason.startswith("the merge is not possible: merge: tensor")
    assert "wanted at most 2^24 = 16777216 grid steps" in incident.reason
    assert desk.hub.f.state.rounds[0].incident == incident.reason


# -- what can go wrong meanwhile


def test_an_update_that_comes_in_during_the_merge_is_merged_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.step()
    desk.step()
    desk.update("coop")
    desk.update("school")
    desk.now += DEADLINE + 1
    late = [lambda: desk.update("clinic")]

    def merge(*args: object) -> recompute.Made:
        while late:
            late.pop()()
        return recompute.merge_release(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "merge_release", merge)
    assert desk.step() == "merge"
    assert len(desk.said()) == 1, "no release without an update that is in the log"
    assert desk.step() == "merge"
    release = desk.said()[-1]
    assert isinstance(release, Release)
    assert [i.institution for i in release.inputs] == ["clinic", "coop", "school"]


def test_a_bad_update_that_comes_in_while_others_are_checked_does_not_spoil_the_merge(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.step()
    desk.update("coop")
    desk.update("school")
    late = [lambda: desk.update("clinic", b"not a delta")]

    def check(*args: object) -> None:
        recompute.check_delta(*args)  # type: ignore[arg-type]
        while late:
            late.pop()()

    monkeypatch.setattr(rounds, "check_delta", check)
    acts = [desk.step()]
    while acts[-1] == "collect" and len(acts) < 5:
        acts.append(desk.step())
    assert acts[-1] == "merge"
    kinds = [type(p) for p in desk.said()]
    assert kinds == [Round, Rejection, Release]


def test_a_delta_is_read_and_checked_once_however_long_a_round_takes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bytes] = []

    def check(data: bytes, spec: AdapterSpec, encoding: Encoding | None) -> None:
        checked.append(data)
        recompute.check_delta(data, spec, encoding)

    monkeypatch.setattr(rounds, "check_delta", check)
    desk.step()
    for n, name in enumerate(("coop", "school"), 1):
        desk.update(name)
        for _ in range(3):
            assert desk.step() == "collect"
            assert len(checked) == n


@pytest.mark.parametrize("lost", ["delta", "start"])
def test_a_blob_that_our_own_disk_has_lost_is_nobodys_fault_and_ends_no_round(desk: Desk, lost: str) -> None:
    desk.step()
    for name in NAMES:
        desk.update(name)
    f = desk.hub.f
    blob = f.state.rounds[0].updates["coop"].update.delta if lost == "delta" else f.compact.start
    path = desk.blobs.path(blob.sha256)
    data = path.read_bytes()
    path.unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match=f"{blob.sha256}: not here, though the log names it; restore it"):
            desk.step()
    assert [type(p) for p in desk.said()] == [Round]
    desk.blobs.put_bytes(data)
    assert desk.step() == "merge"


def test_a_driver_that_is_restarted_before_every_step_writes_the_same_log(tmp_path: Path) -> None:
    def run(home: Path, restarts: bool) -> tuple[list[bytes], list[str]]:
        with founded(home) as hub:
            hub.announce()
            desk = Desk(hub, target=2)
            acts = []

            def step() -> None:
                if restarts:
                    hub.restart()
                    desk.restart()
                acts.append(desk.step())

            for n in range(2):
                step()
                desk.update("coop")
                step()
                desk.update("school", b"not a delta")
                step()
                desk.update("clinic")
                step()
                release = desk.said()[-1]
                assert isinstance(release, Release)
                hub.f.blobs[release.adapter.sha256] = desk.blobs.read(release.adapter.sha256)
                step()
                desk.ratify("clinic", "school")
                assert len(hub.f.state.rounds) == n + 1
            step()
            return list(read_entries(DirectorySource(hub.public), 0, hub.sequencer.state.size)), acts

    plain, plain_acts = run(tmp_path / "plain", False)
    killed, killed_acts = run(tmp_path / "killed", True)
    assert plain == killed
    assert plain_acts == killed_acts == ["open", "collect", "collect", "merge", "await ratification"] * 2 + ["rest"]


def test_after_a_restart_the_deadline_counts_anew(desk: Desk) -> None:
    desk.step()
    desk.step()
    desk.now += DEADLINE
    desk.hub.restart()
    desk.restart()
    assert desk.step() == "collect"
    desk.now += DEADLINE
    assert desk.step() == "collect"
    desk.now += 1
    assert desk.step() == "close"


# -- what a driver does in turn


def test_a_round_opens_as_soon_as_the_one_before_is_ratified_and_rests_after_one_that_was_closed(desk: Desk) -> None:
    desk.target = 2
    desk.restart()
    desk.step()
    desk.step()
    for name in NAMES:
        desk.update(name)
    assert desk.step() == "merge"
    release = desk.said()[-1]
    assert isinstance(release, Release)
    desk.hub.f.blobs[release.adapter.sha256] = desk.blobs.read(release.adapter.sha256)
    desk.ratify(*NAMES)
    assert desk.step() == "open"
    assert desk.step() == "collect"
    for name in NAMES:
        desk.hub.say(name, Refusal(round=2, round_leaf=desk.hub.f.state.rounds[1].leaf, reason="harvest"))
    assert desk.step() == "close"
    assert desk.step() == "rest"


def test_the_inputs_of_a_release_are_every_update_that_was_not_set_aside(desk: Desk) -> None:
    desk.step()
    for name in NAMES:
        desk.update(name)
    assert desk.step() == "merge"
    release, r = desk.said()[-1], desk.hub.f.state.rounds[0]
    assert isinstance(release, Release)
    assert release.inputs == tuple(
        Input(institution=n, leaf=r.updates[n].leaf, delta=r.updates[n].update.delta, weight=1) for n in sorted(NAMES)
    )
