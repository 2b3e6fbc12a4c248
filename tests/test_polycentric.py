"""Institutions in two consortia at once, as real processes: other keys, another rule, another coordinator, no root.

Each consortium's log knows nothing of the other, and one of them adopts a release of the other's with its provenance.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from commonweal_protocols.keys import load_key_file, public_hex
from commonweal_protocols.records import DirectorySource, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.state import State
from tests.processes import CANARY, NAMES, Processes, tiny_terms

pytestmark = pytest.mark.slow
THREE, RING = "three", "ring"


@dataclass
class Both:
    """Two consortia of the same three institutions, after a round of each."""

    three: Processes
    ring: Processes

    def state(self, which: str) -> State:
        state = (self.three if which == THREE else self.ring).state()
        assert state is not None
        return state


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    homes = [tmp_path_factory.mktemp(name) for name in (THREE, RING)]
    with Processes(homes[0], rounds=1, steps=30) as three:
        three.start_all()
        terms = tiny_terms(homes[1], 30).replace('"three"', '"ring"').replace('"factor-mean"', '"svd"')
        with Processes(homes[1], terms=terms, rounds=1) as ring:
            ring.start_all()
            for p in (three, ring):
                p.wait("a ratified release and everybody's decision", partial(p.finished, 1), seconds=240)
            yield Both(three, ring)


def key_of(p: Processes, name: str) -> str:
    return public_hex(load_key_file(p.node(name) / "keys/institution.pem"))


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
    invite = json.loads((both.ring.coordinator / "invite.json").read_text())
    ca = both.ring.home / "ca.pem"
    ca.write_text(invite["ca_pem"])
    adopt = ["node", "adopt", invite["records"], "--consortium", theirs.consortium, "--ca", ca, "--home", home]
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
        both.three.command("audit", "run", "--dir", p.public, "--no-memory")
    assert CANARY.encode() not in entries(both.three)


def test_another_consortium_than_was_asked_for_is_not_adopted(both: Both) -> None:
    wrong: list[str | Path] = ["--consortium", "0" * 64, "--home", both.three.node("coop")]
    both.three.command("node", "adopt", both.ring.public, *wrong, code=1)
    own: list[str | Path] = ["--consortium", both.state(THREE).consortium, "--home", both.three.node("coop")]
    both.three.command("node", "adopt", both.three.public, *own, code=2)
    assert "coop" not in both.state(THREE).foreign
