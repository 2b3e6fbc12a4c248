"""What is said in one log of another consortium's releases: which of it the fold takes, and what bears it out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from commonweal_adapters import recompute
from commonweal_adapters.files.delta import GridTensors, read_delta, write_delta
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.cli import app
from commonweal_protocols.audit.foreign_job import check_foreign
from commonweal_protocols.audit.page import render_html
from commonweal_protocols.audit.story_job import read_story
from commonweal_protocols.audit.text import print_audit
from commonweal_protocols.base.errors import ConfigError, RuleError, SignatureError
from commonweal_protocols.fold.amendment import with_key
from commonweal_protocols.records.provenance import check_release, name_release
from commonweal_protocols.records.replay import replay_at
from commonweal_protocols.statements.compact import Member
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Blob, Seen
from commonweal_protocols.tlog.note import sign_note
from tests.kit.deliberation import recalled
from tests.kit.federation import NAMES, TINY, Federation, key_of, two_rounds
from tests.kit.ring import RING, contributed, ring, union
from tests.kit.shelf import shelf

# -- naming a release


def test_what_names_a_release_is_borne_out_by_its_own_log_at_that_place() -> None:
    f = ring()
    named = name_release(f.replica)
    logged = f.state.rounds[0].release
    assert logged is not None
    assert (named.consortium, named.round, named.release_leaf) == (f.state.consortium, 1, logged.leaf)
    assert named.adapter == logged.release.adapter
    assert (named.at.origin, named.at.size, named.at.root) == (RING, f.replica.size, f.replica.checkpoint().root.hex())
    f.run_round()
    (then,) = replay_at(shelf(f), named.at.size)
    check_release(named, then)


@pytest.mark.parametrize(
    "changes",
    [
        {"consortium": "0" * 64},
        {"log": "log.test/ring+00000000+AAAA"},
        {"at": Seen(origin=RING, size=9, root="0" * 64)},
        {"release_leaf": "0" * 64},
        {"adapter": Blob(sha256="0" * 64, size_bytes=9)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_name_with_anything_else_in_it_is_not_borne_out(changes: dict[str, object]) -> None:
    f = ring()
    named = name_release(f.replica).model_copy(update=changes)
    with pytest.raises(RuleError, match=f"foreign release: {next(iter(changes))}: wanted"):
        check_release(named, f.replica)


def test_a_release_that_is_not_ratified_or_was_recalled_has_no_name() -> None:
    f = two_rounds()
    named = name_release(f.replica)
    assert named.round == 2
    recalled(None, f, 2)
    with pytest.raises(RuleError, match="wanted a ratified release of round 2 among its first"):
        check_release(named, f.replica)
    assert name_release(f.replica).round == 1
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    f.say("hub", f.release())
    assert name_release(f.replica).round == 1


# -- what the fold takes


def test_a_decision_on_anothers_release_stays_in_the_state_beside_those_before() -> None:
    f, other = two_rounds(), ring()
    first = f.foreign_adoption(name_release(other.replica))
    f.say("school", first)
    other.run_round()
    second = f.foreign_adoption(name_release(other.replica))
    f.say("school", second)
    assert [d.adoption for d in f.state.foreign["school"]] == [first, second]
    assert [d.index for d in f.state.foreign["school"]] == [f.state.size - 2, f.state.size - 1]
    assert set(f.state.foreign) == {"school"}


def test_a_release_of_the_same_consortium_is_not_foreign() -> None:
    f = two_rounds()
    with pytest.raises(RuleError, match="wanted a release of another consortium, got one of this"):
        f.say("school", f.foreign_adoption(name_release(f.replica)))


def test_nobody_goes_back_to_an_older_state_of_the_other_log() -> None:
    f, other = two_rounds(), ring()
    old = name_release(other.replica)
    other.run_round()
    f.say("school", f.foreign_adoption(name_release(other.replica)))
    with pytest.raises(RuleError, match=f"wanted the log of {old.consortium} at {other.replica.size} entries or more"):
        f.say("school", f.foreign_adoption(old))
    f.say("coop", f.foreign_adoption(old))  # who has seen no more
    f.say("school", f.foreign_adoption(name_release(third().replica)))  # of a third log


def third() -> Federation:
    """One more consortium."""
    f = Federation(names=("a", "b"), origin="log.test/third", realm="third ")
    f.run_round()
    return f


def test_a_coordinator_has_no_decision_to_make_on_anothers_release() -> None:
    f, other = two_rounds(), ring()
    with pytest.raises(RuleError, match="wanted a member as the author"):
        f.say("hub", f.foreign_adoption(name_release(other.replica)))


def test_a_member_that_is_a_consortium_gives_its_releases_alone() -> None:
    inner, other = ring(), third()
    outer = union(inner.state.consortium)
    outer.open_round()
    plain = outer.update("delta")
    for release in (None, name_release(other.replica)):
        with pytest.raises(RuleError, match=f"wanted a release of the consortium {inner.state.consortium}"):
            outer.say("delta", plain.model_copy(update={"release": release}))
    outer.say("delta", plain.model_copy(update={"release": name_release(inner.replica)}))


def test_a_member_that_is_none_gives_no_consortiums_release() -> None:
    inner = ring()
    outer = union(inner.state.consortium)
    outer.open_round()
    with pytest.raises(RuleError, match="wanted no consortium's release: coop is none"):
        outer.say("coop", outer.update("coop").model_copy(update={"release": name_release(inner.replica)}))


def test_a_consortium_is_no_member_of_itself() -> None:
    f = two_rounds()
    members = [{**m, "consortium": f.state.consortium} for m in f.members()]
    f.add(f.amendment(f.amended(members=members), *NAMES))
    f.open_round()
    with pytest.raises(RuleError, match="cannot be a member of itself"):
        f.say("coop", f.update("coop").model_copy(update={"release": name_release(f.replica)}))


@pytest.mark.parametrize(
    "terms",
    [
        {"secure": {"threshold_millis": 667}},
        {"privacy": {"clip_steps": 1000, "sigma_steps": 1000, "budget_micro_rho": 10**9}},
        {"encoding": {"bits": 8, "keep_millis": 1000}},
        {"encoding": {"bits": 32, "keep_millis": 500}},
    ],
    ids=["secure", "privacy", "8 bits", "sparse"],
)
def test_where_a_consortium_is_a_member_nothing_may_hide_or_change_what_it_gives(terms: dict[str, object]) -> None:
    nobody: dict[str, object] = {"quorum": {"updates": 3, "ratifications": 2, "amendments": 2}}
    Federation(terms={**nobody, **terms})  # allowed among institutions
    with pytest.raises(ValidationError, match="delta is a consortium"):
        union("0" * 64, **nobody, **terms)


def test_a_new_key_speaks_for_the_same_consortium() -> None:
    compact = union("0" * 64).compact
    after = with_key(compact, "delta", "1" * 64)
    assert after.members[1] == Member(institution="delta", key="1" * 64, consortium="0" * 64)


# -- holding it to the other log


def test_a_decision_is_held_to_the_other_log() -> None:
    f, other = two_rounds(), ring()
    f.say("school", f.foreign_adoption(name_release(other.replica)))
    other.run_round()
    (check,) = check_foreign(shelf(f), [shelf(other)], recompute)
    assert (check.verdict, check.withdrawn, check.in_both) == ("holds", False, ("clinic",))
    assert check.named.institution == "school"
    assert check.named.index == f.state.size - 1
    (without,) = check_foreign(shelf(f), [])
    assert without.verdict == "not checked"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"adapter": Blob(sha256="0" * 64, size_bytes=9)}, "adapter: wanted"),
        ({"at": Seen(origin=RING, size=500, root="0" * 64)}, "wanted at least 500 entries"),
        ({"at": Seen(origin=RING, size=3, root="0" * 64)}, "wanted a ratified release of round 1 among its first 3"),
    ],
)
def test_a_decision_on_what_the_other_log_does_not_bear_out_fails(changes: dict[str, object], why: str) -> None:
    f, other = two_rounds(), ring()
    named = ForeignRelease.model_validate({**name_release(other.replica).model_dump(), **changes})
    f.say("school", f.foreign_adoption(named))
    (check,) = check_foreign(shelf(f), [shelf(other)], recompute)
    assert check.verdict == "fails"
    assert why in check.sentence


def test_a_release_on_another_base_fails() -> None:
    f = Federation(origin=RING, realm="ring ", terms={"base": {"reference": "path:/other", "sha256": "cd" * 32}})
    f.run_round()
    mine = two_rounds()
    mine.say("school", mine.foreign_adoption(name_release(f.replica)))
    (check,) = check_foreign(shelf(mine), [shelf(f)], recompute)
    assert (check.verdict, check.sentence) == ("fails", f"base: wanted {'ab' * 32}, as here, got {'cd' * 32}")


def test_a_release_that_its_own_consortium_withdrew_later_holds_and_is_said_to_be_withdrawn() -> None:
    f, other = two_rounds(), Federation(origin=RING, realm="ring ")
    other.run_round()
    f.say("school", f.foreign_adoption(name_release(other.replica)))
    recalled(None, other)
    (check,) = check_foreign(shelf(f), [shelf(other)], recompute)
    assert (check.verdict, check.withdrawn) == ("holds", True)


def test_a_log_that_does_not_hold_bears_nothing_out() -> None:
    f, other = two_rounds(), ring()
    f.say("school", f.foreign_adoption(name_release(other.replica)))
    forged = sign_note(other.replica.checkpoint().text(), RING, key_of("somebody"))
    with pytest.raises(SignatureError, match="ring"):
        check_foreign(shelf(f), [shelf(other, note=forged)], recompute)


def test_records_that_nobody_named_or_that_come_twice_are_refused() -> None:
    f, other = two_rounds(), ring()
    with pytest.raises(ConfigError, match="named: none"):
        check_foreign(shelf(f), [shelf(other)])
    f.say("school", f.foreign_adoption(name_release(other.replica)))
    with pytest.raises(ConfigError, match="once, got"):
        check_foreign(shelf(f), [shelf(other), shelf(other)])


def test_a_contribution_is_the_release_byte_for_byte() -> None:
    inner = ring()
    outer = contributed(inner)
    report = examine(shelf(outer), recompute=recompute).report
    assert report.verdict == "pass"
    (check,) = check_foreign(shelf(outer), [shelf(inner)], recompute)
    assert (check.verdict, check.named.what, check.named.institution) == ("holds", "contribution", "delta")
    assert check.sentence.endswith("start and delta make it, byte for byte")
    (unread,) = check_foreign(shelf(outer), [shelf(inner)])
    assert (unread.verdict, unread.sentence.endswith("not recomputed")) == ("holds", True)


def test_a_contribution_that_is_one_grid_step_off_fails() -> None:
    inner = ring()
    honest = contributed(inner)
    delta = read_delta(honest.blobs[honest.state.rounds[0].updates["delta"].update.delta.sha256], TINY)
    values = {name: q.copy() for name, q in delta.items()}
    next(iter(values.values()))[0, 0] += np.int32(1)
    outer = contributed(inner, write_delta(GridTensors(values), TINY))
    (check,) = check_foreign(shelf(outer), [shelf(inner)], recompute)
    assert check.verdict == "fails"
    assert "contribution: wanted start + delta to be" in check.sentence


def test_a_contribution_of_more_examples_than_its_contributors_had_fails() -> None:
    inner = ring()
    (check,) = check_foreign(shelf(contributed(inner, num_examples=10**6)), [shelf(inner)], recompute)
    assert check.verdict == "fails"
    assert f"num_examples: wanted {10 + len('clinic') + 10 + len('library')}" in check.sentence


# -- telling it


def test_reports_pages_and_stories_name_the_other_consortium(tmp_path: Path) -> None:
    inner = ring()
    outer = contributed(inner)
    outer.say("coop", outer.foreign_adoption(name_release(inner.replica)))
    outcome = examine(shelf(outer), recompute=recompute)
    assert [(f.institution, f.what) for f in outcome.report.foreign] == [("delta", "contribution"), ("coop", "blend")]
    out = io.StringIO()
    print_audit(outcome.report, Console(file=out, width=300))
    html = render_html(outcome).decode()
    where = f"of the consortium {inner.state.consortium[:16]}…"
    assert out.getvalue().count(where) == 2
    assert html.count(where) >= 2
    assert "contributed it, for that consortium" in html
    sentences = [c.sentence for c in read_story(shelf(outer)).claims]
    assert sum(where in s for s in sentences) == 2
    assert any(s.startswith("coop blends the release of round 1 of the consortium") for s in sentences)


def test_the_command_says_what_holds_and_its_exit_code_what_does_not(tmp_path: Path) -> None:
    inner = ring()
    theirs = inner.publish(tmp_path / "inner")
    ours = contributed(inner).publish(tmp_path / "outer")
    run = CliRunner().invoke
    result = run(app, ["foreign", str(ours), "--other", str(theirs), "--json"])
    assert result.exit_code == 0
    (check,) = json.loads(result.stdout)
    assert (check["verdict"], check["named"]["institution"]) == ("holds", "delta")
    result = run(app, ["foreign", str(ours)])
    assert result.exit_code == 0
    assert "not checked: no records" in result.stdout
    bad = contributed(inner, num_examples=10**6).publish(tmp_path / "bad")
    result = run(app, ["foreign", str(bad), "--other", str(theirs)])
    assert result.exit_code == 1
    assert "fails: num_examples" in result.stdout
