"""A federation of real processes that changes: a key rotates, a stolen one is revoked, an institution joins."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweal_protocols.base.keys import load_key_file, public_hex
from commonweal_protocols.records.source import DirectorySource, read_checkpoint
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.policy import Policy
from tests.kit.processes import Processes, free_ports, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def p(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One round is over; no other is opened."""
    with Processes(tmp_path_factory.mktemp("federation"), rounds=1, steps=10) as processes:
        processes.start_all()
        processes.wait("a ratified release and everybody's decision", lambda: processes.finished(1))
        yield processes


def key_of(p: Processes, name: str) -> str:
    return public_hex(load_key_file(p.node(name) / "keys/institution.pem"))


def version(p: Processes, number: int) -> bool:
    state = p.state()
    return state is not None and state.compact.version == number


def amend(p: Processes, *options: str | Path) -> str:
    return p.command("coordinator", "amend", "--home", p.coordinator, *options)


def sign(p: Processes, *names: str) -> None:
    for name in names:
        p.command("node", "amend", "--home", p.node(name), "--yes")


def test_a_running_node_rotates_its_key(p: Processes) -> None:
    old = key_of(p, "clinic")
    p.command("node", "rotate-key", "--home", p.node("clinic"))
    p.wait("the file to change", lambda: key_of(p, "clinic") != old)
    state = p.state()
    assert state is not None
    assert state.key("clinic") == key_of(p, "clinic")
    assert state.retired[old].reason == "rotated"


def test_a_stolen_key_is_revoked_and_its_owner_goes_on_under_another(p: Processes) -> None:
    state = p.state()
    assert state is not None
    stolen, size = key_of(p, "coop"), state.size
    p.stop("coop")  # or its node would rotate the key by itself
    p.command("node", "rotate-key", "--home", p.node("coop"))
    card = p.node("coop") / "card-next.json"
    dry = amend(p, "--card", card, "--revoke", f"coop@{size - 1}:laptop stolen", "--dry-run")
    assert f"revoked: key {stolen} from entry {size - 1} on: laptop stolen" in dry
    assert "wanted: 2 signatures of the members of version 1, 2 of those of version 2" in dry
    p.command("node", "amend", "--home", p.node("clinic"), "--yes", code=1)  # a dry run drafts nothing
    amend(p, "--card", card, "--revoke", f"coop@{size - 1}:laptop stolen")
    sign(p, "clinic", "school")
    assert "every key that joins; missing: ['coop']" in str(
        p.wait("the coordinator to say what is missing", lambda: p.status("coordinator").get("amendment"))
    )
    sign(p, "coop")
    p.wait("version 2 in force", lambda: version(p, 2))
    p.start("coop")
    p.wait("the next key in its place", lambda: key_of(p, "coop") != stolen)
    state = p.state()
    assert state is not None
    assert state.key("coop") == key_of(p, "coop")
    assert state.retired[stolen].suspect_from_index == size - 1
    p.wait("no trouble", lambda: p.trouble("coop") == "")


def test_an_institution_joins_and_its_node_is_a_witness_from_then_on(p: Processes) -> None:
    rows = write_rows(p.home / "library.jsonl", "library")
    ports, home = free_ports(2), p.node("library")
    options = ["--home", str(home), "--institution", "library", "--data", str(rows), "--threads", "1"]
    p.command("node", "init", *options, "--witness-port", str(ports + 1))
    terms = (p.home / "compact.toml").read_text()
    more = p.home / "compact-4.toml"
    more.write_text(
        terms.replace("witnesses = 2", "witnesses = 4")
        .replace("ratifications = 2", "ratifications = 3")
        .replace("amendments = 2", "amendments = 3")
    )
    amend(p, "--compact", more, "--card", home / "card.json")
    sign(p, "clinic", "school")
    p.command("node", "join", p.coordinator / "invite.json", "--home", home, "--yes")
    # Its own witness is among the four that the checkpoint of the new version wants.
    p.start("library")
    p.wait("version 3 in force", lambda: version(p, 3))
    p.wait("its announcement", lambda: "library" in (state.identities if (state := p.state()) else {}))
    state = p.state()
    assert state is not None
    policy: Policy = policy_of(state.compact)
    opened = policy.open(read_checkpoint(DirectorySource(p.public)))
    assert {w.witness.name for w in opened.witnesses} == {"clinic", "coop", "library", "school"}


def test_the_coordinator_comes_back_to_the_version_in_force(p: Processes) -> None:
    p.kill("coordinator")
    p.start("coordinator")
    p.wait("it to run", lambda: p.status("coordinator").get("phase") == "running")
    old = key_of(p, "library")
    p.command("node", "rotate-key", "--home", p.node("library"))
    p.wait("the file to change", lambda: key_of(p, "library") != old)


def test_what_members_vote_for_the_coordinator_carries_and_an_exit_is_whole(p: Processes) -> None:
    terms = p.home / "terms.toml"
    terms.write_text("round_deadline_seconds = 77\n")
    words: list[str | Path] = ["--title", "shorter rounds", "--reasons", "we are quick", "--terms", terms]
    motion = p.command("motion", "new", *words, "--home", p.node("clinic")).split()[1]
    for name in ("clinic", "coop", "library", "school"):
        p.command("vote", "cast", motion, "yes", "--home", p.node(name))
    p.wait("version 4 in force", lambda: version(p, 4))
    state = p.state()
    assert state is not None
    assert state.compact.round_deadline_seconds == 77
    assert "wanted 3 yes of 4 members, got 4" in p.command(
        "vote", "tally", motion, "--explain", "--home", p.node("school")
    )
    # A quorum of four of four witnesses continues as one of three of three: the leaver's witness leaves with it.
    p.command("node", "exit", "--yes", "--reason", "done", "--out", p.home / "departure", "--home", p.node("library"))
    p.wait("its node to say so", lambda: "has left the consortium" in p.trouble("library"))
    assert "from its first to its exit" in p.command("audit", "departure", p.home / "departure")


def test_the_whole_of_it_audits(p: Processes) -> None:
    out = p.command("audit", "run", p.public, "--no-memory")
    assert "verdict    pass" in out
