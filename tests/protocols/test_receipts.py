"""A node keeps a proof of everything that it has said, and believes no answer that is none."""

from pathlib import Path

import pytest

from commonweal_protocols.base.errors import LogError, MalformedError, SignatureError
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.proof import open_cosigned_proof
from tests.kit.federation import Federation
from tests.kit.institution import NAME, Node


def receipts(node: Node) -> set[str]:
    return {p.name for p in (node.home / "receipts").glob("*")}


def test_each_entry_of_ours_leaves_a_proof_that_anybody_can_check_offline(tmp_path: Path) -> None:
    f = Federation()
    f.announce()
    f.open_round()
    node = Node(tmp_path, f)
    # Logged without its proof having come back, as after a crash; the next look fetches it.
    update = f.add(node.answer())
    assert receipts(node) == set()
    for name in ("coop", "school"):
        f.say(name, f.update(name))
    f.say("hub", f.release())
    while len(f.state.rounds[0].release.adoptions if f.state.rounds[0].release else ()) == 0:
        if f.state.rounds[0].release and not f.state.rounds[0].release.is_ratified:
            f.say("coop", f.ratification())
        node.tend()
    mine = [e for e in f.entries[5:] if open_entry(e).signers == open_entry(update).signers]
    assert isinstance(open_entry(mine[0]).statement.predicate, Update)
    assert len(mine) == 3, "an update, a ratification, an adoption"
    assert receipts(node) == {f"{leaf_hash(e).hex()}.tlog-proof" for e in mine}
    for entry in mine:
        proof = (node.home / "receipts" / f"{leaf_hash(entry).hex()}.tlog-proof").read_bytes()
        index, _ = open_cosigned_proof(proof, entry, policy_of(f.compact))
        assert f.entries[index] == entry


@pytest.mark.parametrize("why", ["no proof", "the proof of another entry", "under another key"])
def test_an_answer_that_does_not_prove_it_is_not_believed(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = Federation()
    node = Node(tmp_path, f)
    honest = f.receipt

    def lie(entry: bytes) -> bytes:
        if why == "no proof":
            return b"logged, believe me"
        if why == "the proof of another entry":
            return honest(f.entries[0])
        log_key, f.log_key = f.log_key, f.keys[NAME]
        try:
            return honest(entry)
        finally:
            f.log_key = log_key

    monkeypatch.setattr(f, "receipt", lie)
    with pytest.raises((MalformedError, LogError, SignatureError)):
        node.tend()
    assert receipts(node) == set()
