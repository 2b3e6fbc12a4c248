"""Auditing a successor's log: what the one before it had signed is held against it, and everybody's memory with it."""

from pathlib import Path

import pytest

from commonweal_adapters import recompute
from commonweal_protocols.audit.audit import Outcome, audit, examine
from commonweal_protocols.audit.memory import Memory
from commonweal_protocols.audit.report import Report
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.compact import Coordinator
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.note import format_vkey, sign_note
from tests.kit.federation import ORIGIN, Federation, key_of, two_rounds
from tests.kit.shelf import beginning, note_of, tree_of
from tests.kit.succession import LOG_KEY, OTHER, heir


def succeed(f: Federation, by: Coordinator | None = None) -> None:
    """Another coordinator follows, with all that there is."""
    last = f.replica.checkpoint()
    seen = {"origin": last.origin, "size": last.size, "root": last.root.hex()}
    f.add(f.amendment(f.amended(coordinator=(by or heir()).model_dump(), succeeds=seen), *f.keys))
    f.coordinator, f.log_key = key_of("heir"), LOG_KEY


@pytest.fixture
def f() -> Federation:
    f = two_rounds()
    succeed(f)
    f.run_round()
    return f


def examined(public: Path, **options: object) -> Outcome:
    return examine(DirectorySource(public), recompute=recompute, **options)  # type: ignore[arg-type]


def remembered(public: Path) -> Memory:
    memory = examined(public).memory
    assert memory is not None
    return memory


def finding(report: Report) -> str:
    assert report.verdict == "fail"
    return report.findings[0].sentence


def test_a_successors_log_passes_and_the_report_names_the_one_before(f: Federation, tmp_path: Path) -> None:
    report = audit(DirectorySource(f.publish(tmp_path)), recompute=recompute)
    assert (report.verdict, report.origin, report.carried_over) == ("pass", OTHER, {ORIGIN: 26})
    assert [r.release and r.release.check for r in report.rounds] == ["recomputed"] * 3


def test_checkpoints_and_receipts_of_the_old_log_hold_in_the_new_one(f: Federation, tmp_path: Path) -> None:
    old = two_rounds()
    against = {"checkpoint": note_of(old, old.entries), "earlier": note_of(old, old.entries[:9])}
    assert examined(f.publish(tmp_path), against=against).report.findings == ()


def test_every_log_of_a_history_is_known_by_the_key_that_the_members_named_for_it(
    f: Federation, tmp_path: Path
) -> None:
    of_second = sign_note(f.replica.checkpoint().text(), OTHER, LOG_KEY)
    size, third = f.replica.size, key_of("third log")
    log = format_vkey("log.test/third", third.public_key().public_bytes_raw())
    succeed(f, heir("third").model_copy(update={"log": log}))
    f.log_key = third
    first = two_rounds()
    against = {"first": note_of(first, first.entries), "second": of_second}
    report = examined(f.publish(tmp_path), against=against).report
    assert (report.findings, report.carried_over) == ((), {ORIGIN: 26, OTHER: size})


def test_what_was_left_behind_is_found_by_who_has_seen_it(tmp_path: Path) -> None:
    old = two_rounds()
    short = beginning(old, 20)
    succeed(short)
    report = examined(short.publish(tmp_path), against={"x": note_of(old, old.entries)}).report
    assert f"log {ORIGIN}: left behind: 26 entries were seen there, 20 were carried over" in finding(report)


def test_another_history_under_the_old_key_is_found(f: Federation, tmp_path: Path) -> None:
    other = f.entries[:8] + f.entries[7:8]
    note = sign_note(Checkpoint(ORIGIN, 9, tree_of(other).root(9)).text(), ORIGIN, key_of("log"))
    assert f"log {ORIGIN}: forked: at size 9" in finding(examined(f.publish(tmp_path), against={"x": note}).report)


def test_a_checkpoint_under_a_key_that_the_members_never_named_is_no_argument(f: Federation, tmp_path: Path) -> None:
    note = sign_note(Checkpoint(ORIGIN, 9, tree_of(f.entries[:9]).root(9)).text(), ORIGIN, LOG_KEY)
    with pytest.raises(ConfigError, match=f"x: wanted a signed checkpoint of the log {ORIGIN}"):
        examined(f.publish(tmp_path), against={"x": note})


def test_who_remembers_the_old_log_goes_on_from_there_and_finds_the_same(f: Federation, tmp_path: Path) -> None:
    memory = remembered(two_rounds().publish(tmp_path / "old"))
    public = f.publish(tmp_path / "new")
    again = examined(public, memory=memory)
    assert again.report == examined(public).report
    assert again.report.verdict == "pass"
    assert examined(public, memory=memory, full=True).report == again.report


def test_who_remembers_more_of_the_old_log_than_was_carried_over_says_so(tmp_path: Path) -> None:
    old = two_rounds()
    memory = remembered(old.publish(tmp_path / "old"))
    short = beginning(old, 20)
    succeed(short)
    assert "left behind: 26 entries" in finding(examined(short.publish(tmp_path / "new"), memory=memory).report)


def test_who_remembers_the_successors_log_is_not_shown_the_old_one_again(f: Federation, tmp_path: Path) -> None:
    memory = remembered(f.publish(tmp_path / "new"))
    report = examined(two_rounds().publish(tmp_path / "old"), memory=memory).report
    assert f"got {ORIGIN} with another key" in finding(report)
