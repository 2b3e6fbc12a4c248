"""``commonweal compact show``: the rules in force, and those that were, each with its entry."""

import json
from pathlib import Path

import pytest

from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.tlog.merkle import leaf_hash
from tests.kit.federation import Federation
from tests.kit.terminal import Terminal
from tests.kit.town import Town


@pytest.fixture
def amended(tmp_path: Path) -> tuple[Federation, Path, int]:
    """A log whose second version of the compact is the entry of this index."""
    f = Federation()
    f.add(f.amendment(f.amended(round_deadline_seconds=60), "clinic", "school"))
    index = len(f.entries) - 1
    return f, f.publish(tmp_path), index


def test_the_rules_in_force_come_with_the_entry_that_put_them_in_force(
    program: Terminal, amended: tuple[Federation, Path, int]
) -> None:
    f, public, index = amended
    assert program("compact", "show", public, "--json") == 0
    said = json.loads(program.out)
    assert (said["version"], said["in_force"], said["index"]) == (2, True, index)
    assert said["leaf"] == leaf_hash(f.entries[index]).hex()
    assert Compact.model_validate_json(json.dumps(said["compact"])) == f.state.compact
    assert program("compact", "show", public) == 0
    assert f"version      2, in force; since entry {index}, leaf {said['leaf']}" in program.out
    assert "60 s for an answer" in program.out


def test_an_earlier_version_is_shown_as_it_was(program: Terminal, amended: tuple[Federation, Path, int]) -> None:
    _, public, index = amended
    assert program("compact", "show", public, "--version", "1") == 0
    assert f"version      1, until version 2, entry {index}; since entry 0" in program.out
    assert "600 s for an answer" in program.out
    assert program("compact", "show", public, "--version", "3") == 2
    assert "--version: wanted 1 to 2, got 3" in program.err


def test_a_member_reads_its_own_consortiums_rules_without_a_place(town: Town) -> None:
    said = json.loads(town.does("clinic", "compact", "show", "--json"))
    assert Compact.model_validate_json(json.dumps(said["compact"])) == town.state().compact


def test_after_an_exit_the_rules_in_force_are_those_without_who_has_left(town: Town) -> None:
    town.hub.announce()
    town.does("coop", "node", "exit", "--yes", "--reason", "no funds", "--out", town.folder / "departure")
    said = json.loads(town.does("clinic", "compact", "show", "--json"))
    assert [m["institution"] for m in said["compact"]["members"]] == ["clinic", "school"]
    assert (said["version"], said["index"]) == (1, 0)
