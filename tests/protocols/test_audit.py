"""The audit: it passes honest records, and names the entry and the culprit's key for every way to bend them.

Every attacker here holds the coordinator's keys and re-signs what those can re-sign.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commonweal_adapters import recompute
from commonweal_protocols.audit.audit import Outcome, audit, examine
from commonweal_protocols.audit.evidence import (
    EntryEvidence,
    ForkEvidence,
    format_evidence,
    parse_evidence,
    verify_evidence,
)
from commonweal_protocols.audit.memory import Memory
from commonweal_protocols.audit.report import Report
from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.cli import run
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.compact import AdapterSpec, Quorum, Witness
from commonweal_protocols.statements.rounds import Release, Update
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.note import format_vkey
from commonweal_protocols.tlog.proof import format_proof
from tests.kit.author import Author
from tests.kit.federation import ORIGIN, Federation, blob_of, key_of, two_rounds
from tests.kit.shelf import Shelf, beginning, note_of, shelf, tree_of


def audited(public: Path, **options: object) -> Report:
    return audit(DirectorySource(public), recompute=recompute, **options)  # type: ignore[arg-type]


def examined(source: Shelf, **options: object) -> Outcome:
    return examine(source, recompute=recompute, **options)  # type: ignore[arg-type]


def remembered(source: Shelf, **options: object) -> Memory:
    """What an auditor keeps that has once seen these records hold."""
    memory = examined(source, **options).memory
    assert memory is not None
    return memory


class Counting:
    """The arithmetic, and how often which part of it was asked for."""

    def __init__(self) -> None:
        self.starts = 0
        self.releases: list[int] = []

    def recompute_start(self, spec: AdapterSpec) -> bytes:
        self.starts += 1
        return recompute.recompute_start(spec)

    def recompute_release(
        self, spec: AdapterSpec, release: Release, fetch: Callable[[Digest], bytes], masking: Masking | None
    ) -> Release:
        self.releases.append(release.round)
        return recompute.recompute_release(spec, release, fetch, masking)


def index_of(f: Federation, kind: type, who: str) -> int:
    """The first entry of a kind by an author."""
    key = public_hex(f.key(who))
    return next(
        i
        for i, data in enumerate(f.entries)
        if isinstance((e := open_entry(data)).statement.predicate, kind) and e.signers == (key,)
    )


def blamed(report: Report, f: Federation, index: int | None) -> str:
    """Assert that one finding names the entry and the coordinator's key; return its sentence."""
    assert report.verdict == "fail"
    finding = report.findings[0]
    assert finding.index == index
    assert finding.key == public_hex(f.coordinator)
    assert public_hex(f.coordinator) in finding.sentence
    if index is not None:
        assert f"entry {index}:" in finding.sentence
    return finding.sentence


def test_honest_records_pass_and_every_release_is_recomputed(tmp_path: Path) -> None:
    f = two_rounds()
    report = audited(f.publish(tmp_path), consortium=f.state.consortium)
    assert report.findings == ()
    assert report.verdict == "pass"
    assert [r.release and r.release.check for r in report.rounds] == ["recomputed", "recomputed"]
    assert report.entries == {
        "adoption": 6, "compact": 1, "identity": 3, "ratification": 6, "release": 2, "round": 2, "update": 6
    }  # fmt: skip
    assert report.size == len(f.entries) == 26


def test_two_audits_of_one_log_give_equal_bytes(tmp_path: Path) -> None:
    f = two_rounds()
    one, two = f.publish(tmp_path / "one"), f.publish(tmp_path / "elsewhere/two")
    assert audited(one).to_bytes() == audited(two).to_bytes()


def test_without_the_arithmetic_digests_are_still_checked(tmp_path: Path) -> None:
    report = audit(DirectorySource(two_rounds().publish(tmp_path)))
    assert report.verdict == "pass"
    assert [r.release and r.release.check for r in report.rounds] == ["digests only", "digests only"]


def test_a_changed_byte_in_a_delta(tmp_path: Path) -> None:
    f = two_rounds()
    public = f.publish(tmp_path)
    update = f.state.rounds[0].updates["school"].update
    path = public / "blob" / update.delta.sha256
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    sentence = blamed(audited(public), f, index_of(f, Update, "school"))
    assert f"update of round 1 by school (key {public_hex(f.keys['school'])})" in sentence
    assert f"wanted sha256 {update.delta.sha256}" in sentence


def test_a_dropped_update(tmp_path: Path) -> None:
    f = two_rounds()
    dropped = index_of(f, Update, "school")
    entries = f.entries[:dropped] + f.entries[dropped + 1 :]
    report = audited(f.publish(tmp_path, entries))
    sentence = blamed(report, f, dropped)
    # The next entry saw a log in which the update still stood.
    assert "seen" in sentence


def test_a_dropped_update_shows_as_a_gap_even_to_authors_who_saw_nothing(tmp_path: Path) -> None:
    f = Federation()
    f.announce()
    f.open_round()
    school = f.keys["school"]
    chain = f.state.chain(public_hex(school))
    author = Author(school, f.state.consortium)
    update = f.update("school")
    first = author.sign(update, seq=chain.seq + 1, prev=chain.leaf, seen=())
    after = author.sign(update, seq=chain.seq + 2, prev=leaf_hash(first).hex(), seen=())
    sentence = blamed(audited(f.publish(tmp_path, [*f.entries, after])), f, len(f.entries))
    assert "wanted number 1 in the chain of school, got 2" in sentence


def test_a_reordered_entry(tmp_path: Path) -> None:
    f = two_rounds()
    i = index_of(f, Update, "school")
    entries = [*f.entries]
    entries[i], entries[i + 1] = entries[i + 1], entries[i]
    blamed(audited(f.publish(tmp_path, entries)), f, i)


def test_a_release_that_is_not_the_merge_of_its_inputs(tmp_path: Path) -> None:
    f = Federation()
    f.announce()
    f.open_round()
    for name in f.keys:
        f.say(name, f.update(name))
    honest = f.release()
    start = f.blobs[honest.start.sha256]
    # The start itself is a well-formed adapter on the grid; it is just not the merge.
    f.say("hub", honest.model_copy(update={"adapter": blob_of(start)}))
    sentence = blamed(audited(f.publish(tmp_path)), f, len(f.entries) - 1)
    assert f"adapter {honest.start.sha256} is not the factor-mean of its 3 inputs" in sentence


def test_a_forged_signature(tmp_path: Path) -> None:
    f = two_rounds()
    i = index_of(f, Update, "school")
    value = json.loads(f.entries[i])
    signature = bytearray(base64.b64decode(value["signatures"][0]["sig"]))
    signature[0] ^= 1
    value["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    entries = [*f.entries[:i], canonical.encode(value), *f.entries[i + 1 :]]
    sentence = blamed(audited(f.publish(tmp_path, entries)), f, i)
    assert f"does not hold under key {public_hex(f.keys['school'])}" in sentence


def test_a_checkpoint_that_another_key_signed(tmp_path: Path) -> None:
    f = two_rounds()
    f.log_key = f.keys["clinic"]
    assert "checkpoint of 26 entries" in blamed(audited(f.publish(tmp_path)), f, 25)


def test_a_changed_byte_in_an_entry(tmp_path: Path) -> None:
    f = two_rounds()
    public = f.publish(tmp_path)
    path = public / "tile/entries/000.p/26"
    data = path.read_bytes()
    at = data.index(f.entries[7]) + len(f.entries[7]) // 2
    path.chmod(0o644)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    blamed(audited(public), f, 7)


def test_a_missing_blob(tmp_path: Path) -> None:
    f = two_rounds()
    public = f.publish(tmp_path)
    (public / "blob" / f.state.rounds[1].updates["coop"].update.delta.sha256).unlink()
    assert "got no such file" in audited(public).findings[0].sentence


def test_another_consortium_than_the_expected_one(tmp_path: Path) -> None:
    f = two_rounds()
    assert "wanted " + "0" * 64 in blamed(audited(f.publish(tmp_path), consortium="0" * 64), f, 0)


def test_a_start_that_is_not_what_the_seed_makes(tmp_path: Path) -> None:
    f = Federation()
    other = f.compact.adapter.model_copy(update={"seed": 8})
    f.compact = f.compact.model_copy(update={"adapter": other})
    report = audited(f.publish(tmp_path, [f.founding()]))
    assert "is not what its seed makes" in blamed(report, f, 0)


# -- the second audit


def test_an_incremental_report_is_equal_to_a_full_one_wherever_the_last_audit_ended() -> None:
    f = two_rounds()
    whole = shelf(f)
    full = examined(whole).report.to_bytes()
    for size in range(1, len(f.entries) + 1):
        memory = remembered(shelf(f, f.entries[:size]))
        assert examined(whole, memory=memory).report.to_bytes() == full, size


def test_what_an_incremental_audit_keeps_is_what_a_full_one_keeps() -> None:
    f = two_rounds()
    grown = remembered(shelf(f), memory=remembered(shelf(f, f.entries[:14])))
    fresh = remembered(shelf(f))
    assert (grown.note, grown.journal, grown.recomputed) == (fresh.note, fresh.journal, fresh.recomputed)
    assert grown.state == fresh.state
    assert grown.tree.nodes(0, 0, 26) == fresh.tree.nodes(0, 0, 26)


def test_the_second_audit_reads_and_merges_only_what_is_new() -> None:
    f = Federation()
    f.announce()
    while len(f.entries) < 300:
        f.run_round()
    memory = remembered(shelf(f))
    first = len(f.state.rounds)
    f.run_round()
    source, arithmetic = shelf(f), Counting()
    assert examine(source, memory=memory, recompute=arithmetic).report.verdict == "pass"
    release = f.state.rounds[-1].release
    assert release is not None
    blobs = {release.release.start, release.release.adapter, *(i.delta for i in release.release.inputs)}
    assert {p for p in source.reads if p.startswith("blob/")} == {f"blob/{b.sha256}" for b in blobs}
    # The first 256 entries lie in bundle 000, which an incremental audit has no use for.
    assert {p for p in source.reads if p.startswith("tile/")} == {f"tile/entries/001.p/{len(f.entries) - 256}"}
    assert arithmetic.releases == [first + 1]
    assert arithmetic.starts == 0


def test_nothing_new_costs_one_small_file() -> None:
    source = shelf(two_rounds())
    memory = remembered(source)
    source.reads.clear()
    assert examined(source, memory=memory).report.verdict == "pass"
    assert source.reads == ["checkpoint"]


def test_a_full_audit_believes_nothing_of_what_was_verified_before() -> None:
    f = two_rounds()
    arithmetic, source = Counting(), shelf(f)
    memory = remembered(source)
    source.reads.clear()
    outcome = examine(source, memory=memory, full=True, recompute=arithmetic)
    assert outcome.report.to_bytes() == examined(source).report.to_bytes()
    assert (arithmetic.starts, arithmetic.releases) == (1, [1, 2])
    assert "tile/entries/000.p/26" in source.reads


def test_what_was_only_looked_at_is_merged_by_the_next_audit_that_can() -> None:
    source, arithmetic = shelf(two_rounds()), Counting()
    memory = examine(source).memory
    report = examine(source, memory=memory, recompute=arithmetic).report
    assert (arithmetic.starts, arithmetic.releases) == (1, [1, 2])
    assert report.to_bytes() == examined(source).report.to_bytes()


def test_an_audit_without_the_arithmetic_says_so_even_of_what_was_merged_before() -> None:
    source = shelf(two_rounds())
    report = examine(source, memory=remembered(source)).report
    assert report.to_bytes() == examine(source).report.to_bytes()


def test_without_the_arithmetic_too_the_digests_of_what_is_new_are_checked() -> None:
    f = two_rounds()
    memory = examine(shelf(f, f.entries[:15])).memory
    source = shelf(f)
    del source.files[f"blob/{f.state.rounds[1].updates['coop'].update.delta.sha256}"]
    assert "got no such file" in examine(source, memory=memory).report.findings[0].sentence


def test_a_memory_of_one_consortium_does_not_vouch_for_another() -> None:
    f = two_rounds()
    outcome = examined(shelf(f), memory=remembered(shelf(f)), consortium="0" * 64)
    assert "wanted " + "0" * 64 in blamed(outcome.report, f, 0)


def test_a_log_that_changes_its_key_is_not_the_one_that_was_seen() -> None:
    f, g = two_rounds(), Federation()
    g.log_key = key_of("another log")
    vkey = format_vkey(ORIGIN, g.log_key.public_key().public_bytes_raw())
    g.compact = g.compact.model_copy(update={"coordinator": g.compact.coordinator.model_copy(update={"log": vkey})})
    source = shelf(g, [g.founding()])
    consortium = examined(source).report.consortium
    outcome = examined(source, memory=remembered(shelf(f)), consortium=consortium)
    assert f"wanted {f.compact.coordinator.log} as before" in outcome.report.findings[0].sentence


def test_a_failed_audit_is_not_remembered() -> None:
    f = two_rounds()
    source = shelf(f)
    del source.files[f"blob/{f.state.rounds[1].updates['coop'].update.delta.sha256}"]
    assert examined(source).memory is None


def bent(f: Federation) -> list[tuple[str, list[bytes]]]:
    """Other histories that the coordinator might show to somebody who has seen the first 20 entries of ``f``."""
    other = beginning(f, 14)
    other.run_round()
    return [
        ("an entry before is dropped", f.entries[:7] + f.entries[8:]),
        ("two entries before are swapped", [*f.entries[:5], f.entries[6], f.entries[5], *f.entries[7:]]),
        ("an entry after is dropped", f.entries[:21] + f.entries[22:]),
        ("the log is shorter", f.entries[:17]),
        ("the log is empty", []),
        ("another history of this consortium", other.entries),
        ("another history, and shorter", other.entries[:16]),
        ("an entry after is junk", [*f.entries, b"junk"]),
        ("everything is another", [b"junk"]),
    ]


@pytest.mark.parametrize("i", range(9))
def test_where_the_log_is_bent_an_incremental_report_is_the_full_one_too(i: int) -> None:
    f = two_rounds()
    _, entries = bent(f)[i]
    memory = remembered(shelf(f, f.entries[:20]))
    incremental = examined(shelf(f, entries), memory=memory)
    assert incremental.report.verdict == "fail"
    full = examined(shelf(f, entries), memory=memory, full=True)
    assert incremental.report.to_bytes() == full.report.to_bytes()
    assert incremental.evidence == full.evidence
    assert incremental.memory is None
    # The refused history leaves no trace in what was verified.
    assert memory.tree.size == 20
    assert examined(shelf(f), memory=memory).report.verdict == "pass"


# -- two histories


def convicted(outcome: Outcome, f: Federation) -> str:
    """Assert that the evidence convicts the log's key, offline and after a round trip through its file."""
    assert outcome.evidence
    sentences = []
    for evidence in outcome.evidence:
        conviction = verify_evidence(parse_evidence(format_evidence(evidence)), f.replica.log)
        assert conviction.key == public_hex(f.log_key)
        sentences.append(conviction.sentence)
    return " ".join(sentences)


def test_a_log_that_is_rolled_back() -> None:
    f = two_rounds()
    memory = remembered(shelf(f))
    outcome = examined(shelf(f, f.entries[:-3]), memory=memory)
    assert "rolled back: 26 entries were seen, 23 are here" in blamed(outcome.report, f, None)
    # No signature says that an older checkpoint is the newest.
    assert outcome.evidence == ()


@pytest.mark.parametrize("seen", [15, 18, 26], ids=["shorter", "somewhere inside", "of one size"])
def test_a_log_with_another_history_convicts_itself(seen: int) -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.say("school", g.adoption())
    g.run_round()
    assert len(g.entries) == 26
    outcome = examined(shelf(g), memory=remembered(shelf(f, f.entries[:seen])))
    assert f"forked: at size {seen}" in blamed(outcome.report, f, None)
    assert "signed two histories" in convicted(outcome, f)


def test_a_shorter_log_with_another_history_convicts_itself_by_the_tree_that_was_kept() -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.say("school", g.adoption())
    outcome = examined(shelf(g), memory=remembered(shelf(f)))
    assert "forked: 26 entries were seen, 15 are here, and these are not the first" in blamed(outcome.report, f, None)
    assert "signed two histories" in convicted(outcome, f)


def test_a_second_history_that_breaks_the_compact_convicts_the_log_all_the_same() -> None:
    f = two_rounds()
    dropped = index_of(f, Update, "school")
    entries = f.entries[:dropped] + f.entries[dropped + 1 :]
    outcome = examined(shelf(f, entries), memory=remembered(shelf(f)))
    blamed(outcome.report, f, dropped)
    assert any(isinstance(e, ForkEvidence) for e in outcome.evidence)
    assert "signed two histories" in convicted(outcome, f)


def test_a_log_that_founds_another_consortium_under_its_old_name_and_key_convicts_itself() -> None:
    f, g = two_rounds(), Federation(rule=FactorMean(weights="examples"))
    outcome = examined(shelf(g), memory=remembered(shelf(f)))
    assert f"wanted {f.state.consortium}" in outcome.report.findings[0].sentence
    assert "signed two histories" in convicted(outcome, f)


def test_a_checkpoint_that_others_saw_of_this_history_is_fine() -> None:
    f = two_rounds()
    seen = {str(n): note_of(f, f.entries, n) for n in (0, 1, 13, 26)}
    assert examined(shelf(f), against=seen).report.to_bytes() == examined(shelf(f)).report.to_bytes()


def test_two_auditors_who_were_shown_two_histories_convict_the_log_once_they_meet() -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    theirs = examined(shelf(g)).note
    assert theirs is not None
    outcome = examined(shelf(f), against={"theirs": theirs})
    assert "forked: at size 25" in blamed(outcome.report, f, None)
    assert "signed two histories" in convicted(outcome, f)


def test_one_checkpoint_is_one_finding_and_one_piece_of_evidence_whoever_saw_it() -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    memory = remembered(shelf(f, f.entries[:20]))
    outcome = examined(shelf(g), memory=memory, against={"theirs": memory.note, "the same": memory.note})
    assert len(outcome.evidence) == len(outcome.report.findings) == 1


def test_entries_that_the_log_has_not_signed_convict_nobody() -> None:
    f = two_rounds()
    served = [*f.entries[:9], b"{}", *f.entries[10:]]
    for memory in (None, remembered(shelf(f)), remembered(shelf(f, f.entries[:9]))):
        outcome = examined(shelf(f, served, note_of(f, f.entries)), memory=memory, full=True)
        # A mirror, or the way to it, may have changed them.
        assert "entry 9" in outcome.report.findings[0].sentence
        assert outcome.evidence == ()


def test_a_source_that_hides_what_others_have_seen_is_behind() -> None:
    f = two_rounds()
    outcome = examined(shelf(f, f.entries[:20]), against={"theirs": note_of(f, f.entries)})
    assert "rolled back: 26 entries were seen, 20 are here" in blamed(outcome.report, f, None)


def test_another_logs_checkpoint_is_no_gossip_about_this_one() -> None:
    f = two_rounds()
    note = note_of(f, f.entries)
    f.log_key = f.keys["clinic"]
    with pytest.raises(ConfigError, match=r"theirs: wanted a signed checkpoint of the log log\.test/three"):
        examined(shelf(f, note=note), against={"theirs": note_of(f, f.entries)})


# -- what no log may sequence


def test_a_forged_entry_convicts_the_log() -> None:
    f = two_rounds()
    outcome = examined(shelf(f, [*f.entries[:9], b"{}", *f.entries[9:]]))
    assert "entry 9 is not a signed statement" in convicted(outcome, f)


def test_two_entries_of_one_number_convict_the_log() -> None:
    f = two_rounds()
    school = f.keys["school"]
    again = Author(school, f.state.consortium).sign(f.update("school"), seq=1, prev="a" * 64, seen=())
    outcome = examined(shelf(f, [*f.entries, again]))
    blamed(outcome.report, f, 26)
    (evidence,) = outcome.evidence
    assert isinstance(evidence, EntryEvidence)
    sentence = convicted(outcome, f)
    assert f"two entries number 1 of author {public_hex(school)}" in sentence
    assert f"entry {index_of(f, Update, 'school')} " in sentence


def test_an_entry_of_another_consortium_is_a_finding_but_convicts_nobody_by_itself() -> None:
    f = two_rounds()
    elsewhere = Author(f.keys["school"], "e" * 64).sign(f.update("school"), seq=1, prev="a" * 64, seen=())
    outcome = examined(shelf(f, [*f.entries, elsewhere]))
    assert "wanted consortium" in blamed(outcome.report, f, 26)
    assert outcome.evidence == ()


def test_an_entry_that_only_the_compact_forbids_is_a_finding_but_convicts_nobody_by_itself() -> None:
    f = two_rounds()
    stranger = Author(key_of("stranger"), f.state.consortium).sign(f.update("school"), seq=0, prev=None, seen=())
    outcome = examined(shelf(f, [*f.entries, stranger]))
    assert "wanted a member as the author" in blamed(outcome.report, f, 26)
    assert outcome.evidence == ()


# -- witnesses


def witnessed() -> Federation:
    key = key_of("witness")
    vkey = make_cosignature_verifier("witness.test/one", key.public_key()).vkey
    f = Federation()
    f.compact = f.compact.model_copy(
        update={
            "witnesses": (Witness(name="one", vkey=vkey, url="https://127.0.0.1:1/"),),
            "quorum": Quorum(updates=2, ratifications=2, amendments=2, witnesses=1),
        }
    )
    return f


def test_a_checkpoint_without_the_compacts_quorum_of_witnesses_does_not_hold() -> None:
    f = witnessed()
    entries = [f.founding()]
    sentence = blamed(examined(shelf(f, entries)).report, f, 0)
    assert "wanted the quorum" in sentence
    note = note_of(f, entries)
    cp = examined(shelf(f, entries)).replica.checkpoint()
    line = cosign(cp, "witness.test/one", key_of("witness"), at=1_800_000_000)
    assert examined(shelf(f, entries, note + line.encode())).report.verdict == "pass"


# -- the command


def test_the_command_passes_fails_and_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = two_rounds()
    memory, out = tmp_path / "memory", tmp_path / "report.json"
    whole, short = f.publish(tmp_path / "whole"), f.publish(tmp_path / "short", f.entries[:-3])
    options = ["--memory", str(memory), "--report", str(out)]
    assert run(["audit", "run", str(short), *options]) == 0
    assert run(["audit", "run", str(whole), *options, "--json"]) == 0
    assert capsys.readouterr().out.endswith(out.read_text())
    assert run(["audit", "run", str(short), *options]) == 1
    assert "rolled back" in capsys.readouterr().out
    # A failed audit is not remembered as the truth.
    assert run(["audit", "run", str(whole), *options]) == 0
    assert run(["audit", "run", str(whole), *options, "--full"]) == 0


def test_the_command_writes_evidence_and_a_checkpoint_that_others_can_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    ours, theirs = f.publish(tmp_path / "ours"), g.publish(tmp_path / "theirs")
    seen, folder = tmp_path / "seen", tmp_path / "evidence"
    assert run(["audit", "run", str(theirs), "--no-memory", "--checkpoint", str(seen)]) == 0
    assert seen.read_bytes() == (theirs / "checkpoint").read_bytes()
    against = ["audit", "run", str(ours), "--no-memory", "--against", str(seen)]
    assert run(against) == 1
    assert "--evidence-dir FOLDER" in capsys.readouterr().err
    assert run([*against, "--evidence-dir", str(folder)]) == 1
    (file,) = folder.iterdir()
    capsys.readouterr()
    assert run(["audit", "evidence", str(file), "--log", f.compact.coordinator.log]) == 1
    assert "signed two histories" in capsys.readouterr().out


def test_an_authors_receipt_is_gossip_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    tree = tree_of(g.entries)
    receipt = tmp_path / "receipt.tlog-proof"
    receipt.write_bytes(format_proof(15, tree.inclusion_path(15, tree.size), note_of(g, g.entries)))
    ours = f.publish(tmp_path / "ours")
    assert run(["audit", "run", str(ours), "--no-memory", "--against", str(receipt)]) == 1
    assert "forked: at size 25" in capsys.readouterr().out


def test_a_memory_names_the_log_that_evidence_is_checked_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    memory, folder = tmp_path / "memory", tmp_path / "evidence"
    options = ["--memory", str(memory), "--evidence-dir", str(folder)]
    assert run(["audit", "run", str(f.publish(tmp_path / "one")), *options]) == 0
    assert run(["audit", "run", str(g.publish(tmp_path / "two")), *options]) == 1
    (file,) = folder.iterdir()
    capsys.readouterr()
    assert run(["audit", "evidence", str(file), "--memory", str(memory)]) == 1
    assert "convicted" in capsys.readouterr().out


USAGE: list[tuple[list[str], int, str]] = [
    ([], 2, "Missing argument 'PLACE'"),
    (["/nowhere/at/all"], 2, "wanted a folder of public records"),
    (["ftp://x"], 2, "wanted an http:// or https:// address"),
    (["https://127.0.0.1:1", "--no-memory"], 4, "does not answer"),
    ([".", "--sign", "key.pem"], 2, "wanted both of --sign and --verdict"),
    ([".", "--webhook", "https://127.0.0.1:1"], 2, "wanted --follow with --webhook"),
    ([".", "--follow", "--webhook", "http://example.org/"], 2, "wanted https://, or http:// to this machine"),
    (
        [".", "--against", "/nowhere/at/all"],
        2,
        "/nowhere/at/all: wanted a signed checkpoint, got no such file",
    ),
]


@pytest.mark.parametrize(("args", "code", "message"), USAGE)
def test_the_command_says_what_was_wanted(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "run", *args]) == code
    assert message in capsys.readouterr().err
