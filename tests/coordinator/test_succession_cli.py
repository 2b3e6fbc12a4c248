"""The commands for when a coordinator is gone: what they make, what they print, and what they refuse."""

from pathlib import Path

import pytest

from commonweal_coordinator.home import CoordinatorHome
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.invite import CoordinatorCard, Invite
from commonweal_protocols.statements.statement import parse_statement
from tests.kit.federation import two_rounds
from tests.kit.terminal import Terminal


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """What is left of a coordinator: the records of 26 entries."""
    return two_rounds().publish(tmp_path / "old")


@pytest.fixture
def home(program: Terminal, tmp_path: Path) -> Path:
    """A standby that has mirrored nothing yet."""
    assert program("coordinator", "standby", "--home", tmp_path / "heir", "--name", "heir") == 0, program.err
    return tmp_path / "heir"


def consortium_of(public: Path) -> str:
    return replay(DirectorySource(public)).state.consortium


def draft_in(home: Path) -> Compact:
    compact = parse_statement((CoordinatorHome(home).succession / "compact.json").read_bytes()).predicate
    assert isinstance(compact, Compact)
    return compact


def test_a_standby_has_a_card_that_a_compact_can_name(home: Path) -> None:
    card = CoordinatorCard.load(home / "coordinator-card.json")
    assert card.coordinator.name == "heir"
    assert card.invite("ab" * 32, "three").exchange == "127.0.0.1:7400"
    assert card.ca_pem == (home / "tls/ca.pem").read_text()


def test_the_same_command_again_mirrors_under_the_same_keys(program: Terminal, home: Path, public: Path) -> None:
    card = (home / "coordinator-card.json").read_bytes()
    args = ("coordinator", "standby", "--home", home, public, "--once")
    assert program(*args) == 2
    assert "wanted --consortium SHA256 with PLACE, or any log would do" in program.err
    assert program(*args, "--consortium", consortium_of(public)) == 0, program.err
    assert "mirrored: 26 entries, 0 blobs are missing" in program.out
    assert (home / "coordinator-card.json").read_bytes() == card
    assert program("audit", "run", CoordinatorHome(home).mirror, "--no-memory") == 0, "with its blobs"


def test_without_any_history_there_is_no_succession(program: Terminal, home: Path) -> None:
    assert program("coordinator", "succeed", "--home", home, "--consortium", "ab" * 32) == 2
    assert "wanted a history, got none" in program.err
    assert not CoordinatorHome(home).succession.exists()


def test_a_succession_is_drafted_from_a_copy_and_again_until_it_has_begun(
    program: Terminal, home: Path, public: Path
) -> None:
    args = ("coordinator", "succeed", "--home", home, "--consortium", consortium_of(public))
    lost = two_rounds().state.rounds[1].release
    assert lost is not None
    (public / "blob" / lost.release.adapter.sha256).unlink()
    assert program(*args, public) == 0, program.err
    assert "history: 26 entries of log log.test/three" in program.out
    assert f"missing: blob {lost.release.adapter.sha256}" in program.out
    assert "warning: this coordinator is not the first that the compact names as a successor" in program.out
    assert "warning: witnesses: none are wanted" in program.out
    made = draft_in(home)
    assert (made.version, made.coordinator.name) == (2, "heir")
    assert Invite.load(home / "invite.json").consortium == consortium_of(public)
    # From its own mirror now, and other terms.
    assert program(*args, "--remove", "coop") == 0, program.err
    assert [m.institution for m in draft_in(home).members] == ["clinic", "school"]
    assert program("coordinator", "lint-compact", "--home", home) == 1
    assert "successors: none" in program.out
    mirroring = ("coordinator", "standby", "--home", home, public, "--consortium", consortium_of(public))
    assert program(*mirroring) == 2
    assert "a succession is drafted here" in program.err
    (home / "lock.db").touch()
    assert program(*args) == 2
    assert "a log has begun here already" in program.err


def test_what_is_no_compact_is_not_linted(program: Terminal, tmp_path: Path) -> None:
    assert program("coordinator", "lint-compact", tmp_path / "none.json") == 2
    assert "none.json: wanted a compact, got no such file" in program.err
