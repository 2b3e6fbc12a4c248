"""Masked rounds: what a compact must say, what the coordinator does, and what can no longer be done afterwards."""

import json
from pathlib import Path

import pytest

from commonweal_adapters.exact.privacy import privatise
from commonweal_coordinator.rounds.rounds import Wait, decide, wait_of
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.rounds import release_inputs
from commonweal_protocols.statements.compact import Compact, Quorum
from commonweal_protocols.statements.governance import Exit, Recall
from commonweal_protocols.statements.privacy_budget import PrivacyTerms, cost_micro_rho
from commonweal_protocols.statements.rounds import Figures, Refusal, Release
from commonweal_protocols.statements.secure_messages import Advertisement, StageEnd
from tests.kit.deliberation import a_motion
from tests.kit.federation import TINY, Federation
from tests.kit.masked import FOUR, SECURE, Masked, masked

DEADLINE = 600

COMPACTS: list[tuple[dict[str, object], str]] = [
    ({"rule": {"name": "median", "weights": "equal"}}, "wanted the rule factor-mean .* got median, weights equal"),
    (
        {"rule": {"name": "factor-mean", "weights": {"name": "capped", "cap_millis": 400}}},
        "each weighs its own before the others' are known; got factor-mean, weights capped",
    ),
    ({"encoding": {"bits": 8}}, "wanted no encoding, since masks fill all 64 bits of every element"),
    (
        {"quorum": {"updates": 2, "ratifications": 3, "amendments": 3}},
        r"wanted quorum.updates of at least 3 \(more than 667 of 1000 of 4 members, and at least 3\), got 2",
    ),
    (
        {"secure": {"threshold_millis": 500}, "quorum": {"updates": 2, "ratifications": 3, "amendments": 3}},
        "wanted quorum.updates of at least 3",
    ),
    (
        {"max_update_bytes": 1200, "adapter": {**TINY.model_dump(mode="json"), "rank": 4}},
        "wanted max_update_bytes of at least 1216, the size of a masked vector, got 1200",
    ),
    ({"secure": {"threshold_millis": 499}}, "greater than or equal to 500"),
    ({"secure": {"neighbours": 102}}, "less than or equal to 100"),
]


def compact() -> Compact:
    quorum = Quorum(updates=3, ratifications=3, amendments=3)
    return Federation(names=FOUR, quorum=quorum, terms={"secure": SECURE}).compact


@pytest.mark.parametrize(("terms", "message"), COMPACTS, ids=[m[:40] for _, m in COMPACTS])
def test_a_compact_under_which_nothing_can_be_masked_is_refused(terms: dict[str, object], message: str) -> None:
    good = compact().model_dump(mode="json")
    Compact.model_validate_json(json.dumps(good))
    with pytest.raises(ValueError, match=message):
        Compact.model_validate_json(json.dumps({**good, **terms}))


def test_a_masked_vector_has_eight_bytes_for_each_element() -> None:
    # TINY: two layers of rank 2, 6 → 4 and 4 → 5.
    assert compact().adapter.masked_bytes == 8 * 2 * 2 * ((6 + 4) + (4 + 5))


# -- the coordinator's table


def decided(m: Masked, elapsed: float) -> tuple[str, str]:
    step = decide(m.hub.sequencer.state, target=1, elapsed_seconds=elapsed)
    return step.act, step.why


ROWS: list[tuple[str, tuple[str, ...], float, str, str]] = [
    # stage, who speaks in it, elapsed, act, its words
    ("advertise", (), 0, "await messages", "advertise: awaiting clinic, coop, farm, school"),
    ("advertise", FOUR[:3], DEADLINE / 8, "await messages", "advertise: awaiting school"),
    ("advertise", FOUR[:3], DEADLINE / 8 + 0.1, "end stage", "advertise: 3 of 4"),
    ("advertise", FOUR[:2], DEADLINE / 8 + 0.1, "close", "advertise: wanted 3, got 2; no answer from farm, school"),
    ("advertise", FOUR, 0, "end stage", "advertise: 4 of 4"),
    ("seal", FOUR[1:], 0, "await messages", "seal: awaiting clinic"),
    ("seal", FOUR[1:], DEADLINE / 8 + 0.1, "end stage", "seal: 3 of 4"),
    ("mask", (), 0, "collect", "mask: awaiting clinic, coop, farm, school"),
    ("mask", FOUR[:3], DEADLINE / 2, "collect", "mask: awaiting school"),
    ("mask", FOUR[:3], DEADLINE / 2 + 0.1, "end stage", "mask: 3 of 4"),
    ("reveal", FOUR[:2], DEADLINE / 4, "await messages", "reveal: awaiting farm, school"),
    (
        "reveal",
        FOUR[:2],
        DEADLINE / 4 + 0.1,
        "close",
        "reveal: no answer from farm, school; too few shares of clinic, coop, farm, school",
    ),
    ("reveal", FOUR, 0, "merge", "4 of 4 reveals, which are enough"),
]


@pytest.mark.parametrize(
    ("stage", "speakers", "elapsed", "act", "words"), ROWS, ids=[f"{r[0]}-{len(r[1])}-{r[3]}" for r in ROWS]
)
def test_the_next_step_of_a_masked_round_follows_from_its_stage(
    stage: str, speakers: tuple[str, ...], elapsed: float, act: str, words: str, tmp_path: Path
) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        if stage == "mask" and speakers:
            m.step()
        for _ in range(2 if speakers else 0):
            m.turn(*speakers)
        assert decided(m, elapsed) == (act, words)


@pytest.mark.parametrize(("stage", "share"), [("advertise", 8), ("seal", 8), ("mask", 2), ("reveal", 4)])
def test_each_stage_says_for_whom_it_waits_and_until_when(stage: str, share: int, tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        state = m.hub.sequencer.state
        step = decide(state, target=1, elapsed_seconds=3)
        assert wait_of(state, step, elapsed_seconds=3) == Wait(tuple(sorted(FOUR)), 3, DEADLINE // share)


def test_nobody_waits_for_a_member_that_has_left(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("seal")
        m.turn("clinic", "coop", "farm")
        m.hub.say("school", Exit(institution="school", reason="no funds"))
        assert decided(m, 0) == ("end stage", "seal: 3 of 4")


# -- what the fold lets in


def test_the_messages_of_masked_rounds_have_no_place_in_others(tmp_path: Path) -> None:
    with masked(tmp_path, None) as m:
        m.step()
        said = Advertisement(round=1, round_leaf=m.round.leaf, mask_key="ab" * 32, box_key="cd" * 32)
        with pytest.raises(RuleError, match="message: round 1 is not masked"):
            m.hub.say("clinic", said)
        with pytest.raises(RuleError, match="stage end: round 1 is not masked"):
            m.hub.sequencer.say(StageEnd(round=1, round_leaf=m.round.leaf, stage="seal", speakers=FOUR))
        f = m.hub.f
        with pytest.raises(RuleError, match="wanted no partners in a round that is not masked"):
            m.hub.say("clinic", f.update("clinic").model_copy(update={"partners": ("coop",)}))


def test_who_has_declined_says_no_more_in_the_round(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("advertise")
        m.hub.say("farm", Refusal(round=1, round_leaf=m.round.leaf, reason="harvest"))
        said = Advertisement(round=1, round_leaf=m.round.leaf, mask_key="ab" * 32, box_key="cd" * 32)
        with pytest.raises(RuleError, match="message: farm has declined round 1"):
            m.hub.say("farm", said)


def test_a_member_does_not_end_a_stage(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("advertise")
        m.turn()
        with pytest.raises(RuleError, match="stageend: wanted the coordinator as the author"):
            m.hub.say("clinic", StageEnd(round=1, round_leaf=m.round.leaf, stage="advertise", speakers=FOUR))


@pytest.mark.parametrize(
    ("stage", "speakers", "words"),
    [("mask", FOUR[:3], "wanted the end of the stage mask first"), ("reveal", FOUR[:2], "got too few of clinic")],
)
def test_no_release_comes_before_the_masks_can_be_taken_off(
    stage: str, speakers: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        m.step()
        m.turn(*speakers)
        early = Release(
            round=1,
            start=m.round.round.start,
            rule=m.round.round.rule,
            inputs=release_inputs(m.hub.sequencer.state, m.round),
            adapter=m.round.round.start,
            figures=Figures(error_micros=None, diversity_micros=None, counted_micros=(10**6,)),
        )
        with pytest.raises(RuleError, match=words):
            m.hub.sequencer.say(early)


# -- budgets, recalls, revoked keys


def test_a_masked_update_spends_of_the_privacy_budget_and_is_noised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = PrivacyTerms(clip_steps=4000, sigma_steps=2000, budget_micro_rho=10**12)
    drawn = []

    def counted(*args: object) -> object:
        drawn.append(args)
        return privatise(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("commonweal_node.institution.masked_round.privatise", counted)
    with masked(tmp_path, privacy=terms.model_dump(mode="json")) as m:
        m.until("mask")
        m.step()
        first = m.members["clinic"].institution.answer(1)
        (m.members["clinic"].home / "answers" / f"{m.round.leaf}.dsse").unlink()
        m.members["clinic"].start()
        assert m.members["clinic"].institution.answer(1) == first
        assert len(drawn) == 1
        m.until("over")
        assert m.round.release is not None
        assert m.hub.sequencer.state.spent_micro_rho("clinic") == cost_micro_rho(terms)


def test_a_masked_release_is_recalled_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("over")
        m.ratify()
        with pytest.raises(RuleError, match="recall: round 1 was masked: its release can be recalled as a whole only"):
            m.hub.say("clinic", a_motion(Recall(kind="recall", round=1, institution="coop")))
        m.hub.say("clinic", a_motion(Recall(kind="recall", round=1, institution=None)))


def test_a_masked_round_with_a_key_that_is_revoked_is_closed(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("mask")
        f = m.hub.f
        m.hub.catch_up()
        revoked = {"key": public_hex(f.keys["coop"]), "from_index": f.state.size, "reason": "stolen"}
        members = f.members(coop="coop again")
        draft = f.amended(members=members, revocations=[revoked])
        m.hub.sequencer.submit(f.amendment(draft, "clinic", "farm", "school", "coop again"))
        assert m.round.incident == "masked together with coop, whose key version 2 revoked"
