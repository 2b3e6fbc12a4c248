"""The audit: it passes honest records, and names the entry and the culprit's key for every way to bend them.

Every attacker here holds the coordinator's keys and re-signs what those can re-sign.
"""

import base64
import json
from pathlib import Path

import pytest

from commonweal_adapters import recompute
from commonweal_protocols import canonical
from commonweal_protocols.audit import Report, audit
from commonweal_protocols.cli import run
from commonweal_protocols.keys import public_hex
from commonweal_protocols.merkle import Tree, leaf_hash
from commonweal_protocols.predicates import Update
from commonweal_protocols.records import DirectorySource
from commonweal_protocols.statement import Author, Seen, open_entry
from tests.federation import ORIGIN, Federation, blob_of, two_rounds


def audited(public: Path, **options: object) -> Report:
    return audit(DirectorySource(public), recompute=recompute, **options)  # type: ignore[arg-type]


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


def test_a_log_that_is_rolled_back(tmp_path: Path) -> None:
    f = two_rounds()
    tree = Tree()
    for data in f.entries:
        tree.append(leaf_hash(data))
    seen = Seen(origin=ORIGIN, size=len(f.entries), root=tree.root(len(f.entries)).hex())
    assert audited(f.publish(tmp_path / "whole"), earlier=seen).verdict == "pass"
    report = audited(f.publish(tmp_path / "short", f.entries[:-3]), earlier=seen)
    sentence = blamed(report, f, len(f.entries) - 4)
    assert "rolled back: 26 entries were seen, 23 are here" in sentence


def test_a_log_with_another_history(tmp_path: Path) -> None:
    f = two_rounds()
    seen = Seen(origin=ORIGIN, size=5, root="0" * 64)
    assert "forked: at size 5" in blamed(audited(f.publish(tmp_path), earlier=seen), f, 25)


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


# -- the command


def test_the_command_passes_fails_and_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = two_rounds()
    memory, out = tmp_path / "memory.json", tmp_path / "report.json"
    whole, short = f.publish(tmp_path / "whole"), f.publish(tmp_path / "short", f.entries[:-3])
    options = ["--memory", str(memory), "--report", str(out)]
    assert run(["audit", "run", "--dir", str(short), *options]) == 0
    assert run(["audit", "run", "--dir", str(whole), *options, "--json"]) == 0
    assert capsys.readouterr().out.endswith(out.read_text())
    assert run(["audit", "run", "--dir", str(short), *options]) == 1
    assert "rolled back" in capsys.readouterr().out
    # A failed audit is not remembered as the truth.
    assert run(["audit", "run", "--dir", str(whole), *options]) == 0


USAGE: list[tuple[list[str], int, str]] = [
    ([], 2, "wanted one of --url and --dir"),
    (["--dir", "/nowhere/at/all"], 2, "wanted a folder of public records"),
    (["--url", "ftp://x"], 2, "wanted an http:// or https:// address"),
    (["--url", "https://127.0.0.1:1", "--no-memory"], 4, "does not answer"),
]


@pytest.mark.parametrize(("args", "code", "message"), USAGE)
def test_the_command_says_what_was_wanted(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "run", *args]) == code
    assert message in capsys.readouterr().err
