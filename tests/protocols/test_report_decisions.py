"""What an audit says of deciding together: motions, dissent, recalls, and keys that have ended."""

import io
from pathlib import Path

from rich.console import Console

from commonweal_adapters import recompute
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.page import render_html
from commonweal_protocols.audit.report import EndedKey, Report
from commonweal_protocols.audit.text import print_audit
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.source import DirectorySource
from tests.kit.deliberation import ballot, close, propose, recalled, with_a_release
from tests.kit.federation import NAMES, Federation, key_of

WHY = "<b>a prayer book</b> is no outlier"


def told() -> Federation:
    """A dispute, a key that is revoked, a recall, and a motion that is still open."""
    f = with_a_release(0)
    propose(f)
    for name in NAMES:
        f.say(name, ballot(f, "no" if name == "coop" else "yes", WHY if name == "coop" else "it is time"))
    close(f)
    revoked = [{"key": public_hex(key_of("clinic")), "from_index": 4, "reason": "laptop stolen"}]
    f.add(f.amendment(f.amended(members=f.members(clinic="clinic-2"), revocations=revoked), *NAMES[1:], "clinic-2"))
    f.keys["clinic"] = key_of("clinic-2")
    recalled("coop", f)
    f.say("hub", f.release())
    recalled(None, f)
    propose(f)
    return f


def report_of(f: Federation, directory: Path) -> Report:
    return examine(DirectorySource(f.publish(directory)), recompute=recompute).report


def test_motions_stand_in_the_report_with_their_count_and_their_dissent(tmp_path: Path) -> None:
    f = told()
    report = report_of(f, tmp_path)
    assert (report.verdict, report.compact_version) == ("pass", 2)
    assert [(m.stage, m.result) for m in report.motions] == [("closed", "passed")] * 3 + [("open", None)]
    first = report.motions[0]
    assert (first.author, first.proposal) == ("clinic", "to resolve “We publish our held-out losses.”")
    assert first.dissent == {"coop": WHY}
    assert first.steps[1] == "no: 1 (coop)"
    assert [m.index for m in report.motions] == [m.index for m in f.state.motions.values()]


def test_a_revoked_key_stands_in_the_report_with_where_it_is_suspect(tmp_path: Path) -> None:
    f = told()
    key = public_hex(key_of("clinic"))
    assert report_of(f, tmp_path).ended_keys == (
        EndedKey(
            key=key, owner="clinic", at_index=f.state.retired[key].at_index, suspect_from_index=4,
            reason="revoked: laptop stolen",
        ),
    )  # fmt: skip


def test_keys_stand_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    f = Federation()
    for name in NAMES:
        f.rotate(name, f"{name}-2")
    assert [e.owner for e in report_of(f, tmp_path).ended_keys] == list(NAMES)


def test_a_recalled_release_names_the_motion_that_withdrew_it(tmp_path: Path) -> None:
    f = told()
    (r,) = report_of(f, tmp_path).rounds
    assert r.release is not None
    assert r.release.recalled_by == list(f.state.motions.values())[2].index
    assert r.release.inputs == ("clinic", "school")


def test_a_later_audit_says_the_same_as_a_full_one(tmp_path: Path) -> None:
    f = told()
    half = len(f.entries) - 12
    memory = examine(DirectorySource(f.publish(tmp_path / "half", f.entries[:half])), recompute=recompute).memory
    assert memory is not None
    source = DirectorySource(f.publish(tmp_path / "whole"))
    later = examine(source, memory=memory, recompute=recompute).report
    assert later.to_bytes() == examine(source, recompute=recompute).report.to_bytes()


def test_people_read_it_on_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    print_audit(report_of(told(), tmp_path), Console(file=out, width=200))
    for line in (
        "compact    version 2",
        "suspect from entry 4 on",
        "a motion (entry 15, of clinic): passed",
        f"dissent of coop: {WHY}",
        "recalled by the motion in entry",
    ):
        assert line in out.getvalue()


def test_people_read_it_on_a_page_where_others_words_are_words(tmp_path: Path) -> None:
    outcome = examine(DirectorySource(told().publish(tmp_path)), recompute=recompute)
    page = render_html(outcome).decode()
    assert "What was decided together" in page
    assert "&lt;b&gt;a prayer book&lt;/b&gt; is no outlier" in page
    assert "<b>" not in page
    assert "Keys that sign no more" in page
    assert "Round 1: released, and recalled by the members" in page
    assert "3 institutions are its members now, under version 2 of the rules" in page
    for motion in outcome.report.motions:
        assert f"Proof: entry {motion.index}<" in page


def test_a_consortium_without_any_of_it_has_no_such_sections(tmp_path: Path) -> None:
    page = render_html(examine(DirectorySource(Federation().publish(tmp_path)))).decode()
    assert "What was decided together" not in page
    assert "Keys that sign no more" not in page
    assert "3 institutions founded this consortium" in page
