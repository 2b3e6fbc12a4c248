"""Institutions in two consortia at once, as real processes: other keys, another rule, another coordinator, no root.

Each consortium's log knows nothing of the other; one of them adopts a release of the other's with its provenance, and
the other is a member of a third.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from commonweal_protocols.base.keys import load_key_file, public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from tests.kit.processes import CANARY, Processes, tiny_terms, write_rows

pytestmark = pytest.mark.slow
THREE, RING = "three", "ring"
NAMES = ("clinic", "coop")


@dataclass
class Both:
    """Two consortia of the same two institutions, after a round of each."""

    three: Processes
    ring: Processes

    def state(self, which: str) -> State:
        state = (self.three if which == THREE else self.ring).state()
        assert state is not None
        return state


def consortium(home: Path, name: str, members: Sequence[str], rule: str, **options: Sequence[str]) -> Processes:
    """A consortium that trains for five steps, once; ``options`` are of a member's ``node init``."""
    terms = tiny_terms(home, 5).replace('"three"', f'"{name}"').replace('"factor-mean"', f'"{rule}"')
    rows = {m: write_rows(home / f"{m}.jsonl", m) for m in members}
    return Processes(home, terms=terms, rows=rows, rounds=1, node_options=options)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with consortium(tmp_path_factory.mktemp(THREE), THREE, NAMES, "factor-mean") as three:
        three.start_all()
        with consortium(tmp_path_factory.mktemp(RING), RING, NAMES, "svd") as ring:
            ring.start_all()
            for p in (three, ring):
                p.wait("a ratified release and everybody's decision", partial(p.finished, 1))
            yield Both(three, ring)


def key_of(p: Processes, name: str) -> str:
    return public_hex(load_key_file(p.node(name) / "keys/institution.pem"))


def reached(p: Processes) -> tuple[str, Path]:
    """Where a consortium's records are served, and the authority behind that."""
    invite, ca = json.loads((p.coordinator / "invite.json").read_text()), p.home / "ca.pem"
    ca.write_text(invite["ca_pem"])
    return str(invite["records"]), ca


def entries(p: Processes) -> bytes:
    source = DirectorySource(p.public)
    return b"\n".join(read_entries(source, 0, unverified_size(read_checkpoint(source))))


def test_one_institution_is_in_two_consortia_with_other_keys_rules_and_coordinators(both: Both) -> None:
    three, ring = both.state(THREE), both.state(RING)
    assert {m.institution for m in three.compact.members} == {m.institution for m in ring.compact.members} == set(NAMES)
    assert three.consortium != ring.consortium
    assert (three.compact.rule.name, ring.compact.rule.name) == ("factor-mean", "svd")
    assert three.compact.base.sha256 == ring.compact.base.sha256
    assert three.compact.coordinator.key != ring.compact.coordinator.key
    assert three.compact.coordinator.log != ring.compact.coordinator.log
    assert not {m.key for m in three.compact.members} & {m.key for m in ring.compact.members}
    assert not {w.vkey for w in three.compact.witnesses} & {w.vkey for w in ring.compact.witnesses}


def test_neither_log_names_the_other(both: Both) -> None:
    for here, there in ((both.three, both.state(RING)), (both.ring, both.state(THREE))):
        said = entries(here)
        assert there.consortium.encode() not in said
        assert there.compact.coordinator.key.encode() not in said


def test_a_node_adopts_the_others_release_while_it_runs_and_an_auditor_of_both_finds_it_so(both: Both) -> None:
    home, theirs = both.three.node("clinic"), both.state(RING)
    records, ca = reached(both.ring)
    adopt: list[str | Path] = ["node", "adopt", records, "--consortium", theirs.consortium, "--ca", ca, "--home", home]
    before = both.state(THREE).size
    tried = json.loads(both.three.command(*adopt, "--dry-run", "--json"))
    assert both.state(THREE).size == before, "a dry run says nothing"
    said = json.loads(both.three.command(*adopt, "--json"))
    assert said == tried
    logged = theirs.rounds[0].release
    assert logged is not None
    assert said["release"]["release_leaf"] == logged.leaf
    assert said["release"]["adapter"]["sha256"] == logged.release.adapter.sha256
    (decision,) = both.three.wait("the entry", lambda: both.state(THREE).foreign.get("clinic"))
    assert json.loads(decision.adoption.to_canonical()) == said
    folder = home / "consortia" / theirs.consortium
    assert (folder / "adopted").is_dir() == (said["decision"] != "refuse")
    assert (folder / "checkpoint").read_bytes() == read_checkpoint(DirectorySource(both.ring.public))
    both.three.command(*adopt)  # decided on already: nothing new is said
    assert len(both.state(THREE).foreign["clinic"]) == 1
    audited = both.three.command("audit", "foreign", both.three.public, "--other", both.ring.public, "--json")
    (check,) = json.loads(audited)
    assert (check["verdict"], check["named"]["institution"], check["withdrawn"]) == ("holds", "clinic", False)
    for p in (both.three, both.ring):
        both.three.command("audit", "run", p.public, "--no-memory")
    assert CANARY.encode() not in entries(both.three)


def test_another_consortium_than_was_asked_for_is_not_adopted(both: Both) -> None:
    wrong: list[str | Path] = ["--consortium", "0" * 64, "--home", both.three.node("coop")]
    both.three.command("node", "adopt", both.ring.public, *wrong, code=1)
    own: list[str | Path] = ["--consortium", both.state(THREE).consortium, "--home", both.three.node("coop")]
    both.three.command("node", "adopt", both.three.public, *own, code=2)
    assert "coop" not in both.state(THREE).foreign


def test_a_delegates_daemon_gives_its_consortiums_release_and_an_auditor_of_both_logs_finds_it_so(
    both: Both, tmp_path: Path
) -> None:
    inner, (records, ca) = both.state(RING), reached(both.ring)
    speaks_for = ["--speaks-for", inner.consortium, "--speaks-for-records", records, "--speaks-for-ca", str(ca)]
    with consortium(tmp_path, "union", ("coop", "delta"), "svd", delta=speaks_for) as union:
        union.start_all()
        state = union.wait("the outer release and all decisions", partial(union.finished, 1))
        checks = json.loads(union.command("node", "doctor", "--home", union.node("delta"), "--json"))
    (speaks,) = [c for c in checks if c["name"] == "speaks for"]
    assert (speaks["ok"], speaks["found"].split(",")[0]) == (True, inner.consortium)
    logged, update = inner.rounds[0].release, state.rounds[0].updates["delta"].update
    assert logged is not None
    assert update.release is not None
    assert (update.release.release_leaf, update.release.adapter) == (logged.leaf, logged.release.adapter)
    # Two institutions with sixteen training rows each.
    assert update.num_examples == 2 * 16
    (check,) = json.loads(union.command("audit", "foreign", union.public, "--other", both.ring.public, "--json"))
    assert (check["verdict"], check["named"]["institution"]) == ("holds", "delta")
    assert check["sentence"].endswith("start and delta make it, byte for byte")
    union.command("audit", "run", union.public, "--no-memory")
