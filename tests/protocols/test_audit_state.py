"""An auditor's memory: it comes back as it was, and a damaged one is noticed, never believed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commonweal_protocols.audit import memory as audit_state
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.memory import Memory, format_memory, kinds, load_memory, parse_memory, save_memory
from commonweal_protocols.base.errors import MalformedError, PeerError, StorageError
from commonweal_protocols.tlog.merkle import HASH_BYTES
from tests.kit.federation import two_rounds
from tests.kit.shelf import beginning, note_of, shelf, tree_of

FEDERATION = two_rounds()


def memory_of(size: int = 26) -> Memory:
    memory = examine(shelf(FEDERATION, FEDERATION.entries[:size])).memory
    assert memory is not None
    return memory


def facts(memory: Memory) -> tuple[object, ...]:
    leaves = memory.tree.nodes(0, 0, memory.tree.size)
    rest = (memory.consortium, memory.log, memory.note, memory.journal, memory.recomputed, memory.state)
    return (leaves, *rest)


@pytest.mark.parametrize("size", [1, 4, 9, 26])
def test_a_memory_comes_back_as_it_was(size: int, tmp_path: Path) -> None:
    memory, path = memory_of(size), tmp_path / "deep/memory"
    save_memory(path, memory)
    loaded = load_memory(path)
    assert loaded is not None
    assert facts(loaded) == facts(memory)
    assert loaded.checkpoint.root == tree_of(FEDERATION.entries[:size]).root(size)
    replica = loaded.replica()
    assert replica is not None
    for data in FEDERATION.entries[size:]:
        replica.add(data)
    assert replica.state == FEDERATION.state
    # What grows is a copy: the memory is still of the checkpoint in it.
    assert loaded.tree.size == size


def test_the_file_is_its_owners_alone_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    for size in (9, 26):
        save_memory(path, memory_of(size))
        assert path.stat().st_mode & 0o777 == 0o600
        assert [p.name for p in tmp_path.iterdir()] == ["memory"]


def test_the_first_audit_has_no_memory(tmp_path: Path) -> None:
    assert load_memory(tmp_path / "none") is None


def test_no_changed_byte_goes_unnoticed() -> None:
    data = format_memory(memory_of(9))
    for at in range(0, len(data), 11):
        with pytest.raises(MalformedError):
            parse_memory(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("data", [b"", b"{}", format_memory(memory_of(4))[:-1], format_memory(memory_of(4)) + b"\n"])
def test_another_file_is_refused_and_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"memory: auditor's memory: wanted such a file.*move it away"):
        load_memory(path)


def rewritten(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The file of somebody who changes one thing and knows how to write the digest."""
    header, _, head, tail, _ = format_memory(memory_of(9)).split(b"\n")
    h, t = json.loads(head), json.loads(tail)
    change(h, t["state"])
    body = json.dumps(h).encode() + b"\n" + json.dumps(t).encode() + b"\n"
    return header + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_a_file_that_is_rewritten_without_a_change_is_read() -> None:
    assert facts(parse_memory(rewritten(lambda h, s: None))) == facts(memory_of(9))


OTHER_LEAF = "0" * 2 * HASH_BYTES
UNFIT: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    ("another leaf", lambda h, s: h.update(leaves=OTHER_LEAF + h["leaves"][64:]), "do not lead to its signed root"),
    ("a leaf less", lambda h, s: h.update(leaves=h["leaves"][:-64]), "do not lead to its signed root"),
    ("half a leaf", lambda h, s: h.update(leaves=h["leaves"][:-2]), "wanted hashes of 32 bytes"),
    ("leaves that are not hex", lambda h, s: h.update(leaves="zz"), "auditor's memory"),
    ("an older checkpoint", lambda h, s: h.update(note=note_of(FEDERATION, FEDERATION.entries, 8).decode()), "lead to"),
    ("a checkpoint of nobody", lambda h, s: h.update(note=h["note"].replace("\n9\n", "\n8\n")), "does not hold"),
    ("another log", lambda h, s: h.update(log=h["log"].replace("three", "threx")), "vkey"),
    ("another consortium", lambda h, s: h.update(consortium="0" * 64), "wanted consortium"),
    ("another consortium in the state", lambda h, s: s.update(consortium="0" * 64), "wanted consortium"),
    ("another log in the state", lambda h, s: s["compact"]["coordinator"].update(log="x" * 20), "wanted log"),
    ("another size in the state", lambda h, s: s.update(size=8), "wanted size 9"),
    ("a line less", lambda h, s: h["journal"].pop(), "wanted 9 lines in its journal, got 8"),
    ("a line of another form", lambda h, s: h["journal"].append(["x"]), "auditor's memory"),
    ("an unknown key", lambda h, s: h.update(more=1), "auditor's memory"),
    ("an unknown key in the state", lambda h, s: s.update(more=1), "auditor's memory"),
    ("an unknown key in a round", lambda h, s: s["rounds"][0].update(more=1), "auditor's memory"),
    ("a missing key in the state", lambda h, s: s.pop("compact"), "auditor's memory"),
    ("a number as text", lambda h, s: s.update(size="9"), "auditor's memory"),
    ("an adapter that is no digest", lambda h, s: h.update(recomputed=["x"]), "auditor's memory"),
]


@pytest.mark.parametrize(("why", "change", "message"), UNFIT, ids=[u[0] for u in UNFIT])
def test_parts_that_do_not_fit_one_another_are_refused(
    why: str, change: Callable[[dict[str, Any], dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(PeerError, match=message):
        parse_memory(rewritten(change))


def test_another_programs_state_is_not_believed_but_what_the_log_signed_is() -> None:
    memory = parse_memory(rewritten(lambda h, s: h.update(program="commonweal 99")))
    assert memory.state is None
    assert memory.replica() is None
    source = shelf(FEDERATION)
    assert examine(source, memory=memory).report.to_bytes() == examine(source).report.to_bytes()
    assert "tile/entries/000.p/26" in source.reads
    fork = beginning(FEDERATION, 7)
    fork.say("hub", fork.release())
    fork.say("school", fork.ratification())
    outcome = examine(shelf(fork), memory=memory)
    assert "forked: at size 9" in outcome.report.findings[0].sentence
    assert len(outcome.evidence) == 1


def test_a_state_of_another_shape_is_not_even_read() -> None:
    def change(head: dict[str, Any], state: dict[str, Any]) -> None:
        head["program"] = "commonweal 99"
        state.clear()

    memory = parse_memory(rewritten(change))
    assert memory.state is None
    with pytest.raises(MalformedError, match="wanted a state"):
        format_memory(memory)


def test_the_program_changes_with_the_shape_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    before = audit_state._program()
    monkeypatch.setattr(audit_state._Tail, "model_json_schema", classmethod(lambda cls: {"another": "shape"}))
    audit_state._program.cache_clear()
    try:
        assert audit_state._program() != before
    finally:
        audit_state._program.cache_clear()


def test_kinds_are_counted_in_the_order_of_their_names() -> None:
    counts = kinds(memory_of(9).journal)
    assert list(counts.items()) == [("compact", 1), ("identity", 3), ("release", 1), ("round", 1), ("update", 3)]
