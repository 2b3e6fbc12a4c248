"""Rounds in which members mask their updates: the plain release, though any stay away, and nothing else to learn."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from commonweal_adapters import recompute
from commonweal_node.institution.answer_store import Answers
from commonweal_node.institution.masked_round import MaskedRound
from commonweal_protocols.audit.audit import audit
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import Incident, Rejection
from commonweal_protocols.statements.secure_messages import SealedShares, StageEnd
from tests.kit.masked import FOUR, Masked, masked
from tests.kit.secure import delta_of

STAGES = ("advertise", "seal", "mask", "reveal")


def adapter(m: Masked) -> str:
    release = m.round.release
    assert release is not None, m.steps[-1]
    return release.release.adapter.sha256


Plain = Callable[..., str]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """The release of the same deltas where nothing is masked, and these are away."""

    @cache
    def made(*away: str) -> str:
        with masked(tmp_path_factory.mktemp("plain"), None) as m:
            m.away = set(away)
            m.step()
            m.step()
            m.turn()
            (m.late if away else m.step)()
            return adapter(m)

    return made


def test_a_masked_round_gives_the_plain_release_and_no_vector_is_a_delta(tmp_path: Path, plain: Plain) -> None:
    with masked(tmp_path) as m:
        m.until("over")
        assert adapter(m) == plain()
        release = m.round.release
        assert release is not None
        assert (release.release.figures.error_micros, release.release.figures.diversity_micros) == (None, None)
        assert sum(release.release.figures.counted_micros) == 10**6
        m.ratify()
        assert m.round.release is not None
        assert m.round.release.is_ratified
        report = audit(DirectorySource(m.hub.public), recompute=recompute)
        assert (report.verdict, report.rounds[0].release and report.rounds[0].release.check) == ("pass", "recomputed")
        assert any("not provable: that an input was in range" in line for line in report.rounds[0].masked)


@pytest.mark.parametrize("stage", STAGES)
def test_whoever_stays_away_from_a_stage_on_is_left_out_and_the_rest_give_the_plain_release(
    stage: str, tmp_path: Path, plain: Plain
) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        m.away = {"coop"}
        m.until("over")
        left_out = [] if stage == "reveal" else ["coop"]
        assert adapter(m) == plain(*left_out)
        assert sorted(m.round.updates) == sorted(set(FOUR) - set(left_out))


@pytest.mark.parametrize("stage", STAGES)
def test_with_too_few_the_round_ends_without_a_release_and_says_who_was_away(stage: str, tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        m.away = {"coop", "school"}
        m.until("over")
        assert m.round.release is None
        assert m.round.incident is not None
        assert m.round.incident.startswith(f"{stage}: ")
        assert "coop, school" in m.round.incident


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_and_a_coordinator_that_were_killed_in_a_stage_go_on_in_it(
    stage: str, tmp_path: Path, plain: Plain
) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        m.turn("clinic")
        for member in m.members.values():
            member.start()
        m.hub.restart()
        m.restart()
        m.until("over")
        assert adapter(m) == plain()


def test_an_answer_that_did_not_get_through_is_given_again_byte_for_byte(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("mask")
        m.step()
        clinic = m.members["clinic"]
        said = clinic.institution.answer(1)
        clinic.start()
        assert clinic.institution.answer(1) == said
        # Not even its envelope was kept: training again would give another delta under the same masks.
        (clinic.home / "answers" / f"{m.round.leaf}.dsse").unlink()
        clinic.learner.name, clinic.learner.num_examples = "coop", 999
        clinic.start()
        assert clinic.institution.answer(1) == said
        assert len(clinic.learner.trained) == 2


def test_the_secrets_of_a_round_are_readable_by_their_owner_alone_and_go_with_it(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("reveal")
        m.turn()
        for member in m.members.values():
            (folder,) = member.secrets()
            assert folder.stat().st_mode & 0o777 == 0o700
            assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        m.until("over")
        m.ratify()
        assert [member.secrets() for member in m.members.values()] == [[]] * 4


def test_who_declines_says_so_before_anything_is_masked(tmp_path: Path, plain: Plain) -> None:
    with masked(tmp_path) as m:
        farm = m.members["farm"]
        farm.refuse = "harvest"
        farm.start()
        m.until("over")
        assert m.round.refusals == {"farm": "harvest"}
        assert m.round.masking is not None
        assert "farm" not in m.round.masking.advertised
        assert adapter(m) == plain("farm")


@pytest.mark.parametrize("stage", ["advertise", "seal", "mask"])
def test_a_stage_end_with_other_speakers_than_the_logs_is_refused(stage: str, tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until(stage)
        m.step()
        m.turn("clinic", "coop", "farm")
        leaf, state = m.round.leaf, m.hub.sequencer.state
        for speakers in (FOUR, ("clinic", "coop"), ("coop", "clinic", "farm")):
            with pytest.raises(RuleError, match="stage end: wanted all who have spoken"):
                m.hub.sequencer.say(StageEnd(round=1, round_leaf=leaf, stage=stage, speakers=speakers))  # type: ignore[arg-type]
        assert m.hub.sequencer.state == state


def test_a_node_that_is_shown_another_log_after_it_spoke_says_nothing_more(tmp_path: Path) -> None:
    """Its memory of the log may be gone: what it has kept of the round itself is held against the lie."""
    with masked(tmp_path) as m:
        for stage, lie in (("seal", {"digest": "0" * 64}), ("reveal", {"survivors": FOUR[:3]})):
            m.until(stage)
            clinic, masking = m.members["clinic"], m.round.masking
            assert masking is not None
            said = MaskedRound(clinic.home, m.round, masking, "clinic").due()
            assert said is not None
            assert MaskedRound(clinic.home, m.round, masking, "clinic").due() == said
            another = replace(masking, **lie)
            with pytest.raises(RuleError, match="wanted to say what was said before, got another log"):
                MaskedRound(clinic.home, m.round, another, "clinic").due()


def test_a_vector_is_not_sent_again_where_the_log_names_other_partners(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("mask")
        m.step()
        clinic, masking = m.members["clinic"], m.round.masking
        assert masking is not None
        clinic.institution.answer(1)
        answers = Answers(clinic.home, m.hub.sequencer.state.compact.adapter)
        fewer = replace(masking, sealed={n: s for n, s in masking.sealed.items() if n != "school"})
        with pytest.raises(RuleError, match=r"wanted it masked with .* as before, got .'coop', 'farm'"):
            MaskedRound(clinic.home, m.round, fewer, "clinic").mask(answers, delta_of("clinic"), 7)


def test_one_who_speaks_as_a_stage_is_to_end_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with masked(tmp_path) as m:
        m.until("advertise")
        m.turn("clinic", "coop", "farm")
        say = m.hub.sequencer.say

        def say_after_school(predicate: Predicate) -> object:
            monkeypatch.setattr(m.hub.sequencer, "say", say)
            m.turn("school")
            return say(predicate)

        monkeypatch.setattr(m.hub.sequencer, "say", say_after_school)
        assert m.late() == "end stage"
        assert m.stage == "advertise"
        assert m.step() == "end stage"
        assert m.round.masking is not None
        assert sorted(m.round.masking.advertised) == list(FOUR)
        assert m.stage == "seal"


def test_nothing_is_set_aside_that_nobody_can_see(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("reveal")
        update = m.round.updates["coop"]
        with pytest.raises(RuleError, match="rejection: the updates of this round are masked"):
            m.hub.sequencer.say(Rejection(round=1, institution="coop", leaf=update.leaf, reason="too large"))


def test_a_closed_round_leaves_no_secret_and_the_next_one_has_others(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("seal")
        m.turn("clinic")
        first = (m.members["clinic"].secrets()[0] / "secret").read_bytes()
        m.hub.sequencer.say(Incident(round=1, round_leaf=m.round.leaf, reason="to begin again"))
        m.step()
        m.now += 10_000
        m.until("advertise")
        m.turn("clinic")
        (folder,) = m.members["clinic"].secrets()
        assert folder.name == m.round.leaf
        assert (folder / "secret").read_bytes() != first


def test_one_whose_partner_has_sealed_nonsense_declines_and_names_it(tmp_path: Path) -> None:
    with masked(tmp_path) as m:
        m.until("seal")
        coop = m.members["coop"]
        masking = m.round.masking
        assert masking is not None
        said = MaskedRound(coop.home, m.round, masking, "coop").due()
        assert isinstance(said, SealedShares)
        bad = tuple(s.model_copy(update={"box": "0" * 164}) if s.holder == "clinic" else s for s in said.shares)
        m.hub.say("coop", said.model_copy(update={"shares": bad}))
        m.until("over")
        assert m.round.refusals["clinic"].startswith("coop: its box for clinic does not open")
        assert "clinic" not in m.round.updates
        assert m.round.release is not None
