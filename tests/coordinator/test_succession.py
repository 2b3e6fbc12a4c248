"""A coordinator that is gone for good: a standby has everything, the members sign, and training continues under it.

Real processes on loopback; the old coordinator is killed in the middle of a round.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.proof import parse_proof
from tests.kit.processes import NAMES, Processes

pytestmark = pytest.mark.slow

WITHIN_SECONDS = 60
"""How soon after the old coordinator's end an institution has to be at work again."""


def entries_of(directory: Path) -> list[bytes]:
    source = DirectorySource(directory)
    return list(read_entries(source, 0, unverified_size(read_checkpoint(source))))


def invite_of(p: Processes) -> dict[str, str]:
    invite: dict[str, str] = json.loads((p.coordinator / "invite.json").read_text())
    return invite


def make_standby(p: Processes) -> Path:
    """A standby that mirrors, until it is stopped."""
    home, invite = p.home / "heir", invite_of(p)
    settings: list[str | Path] = ["--home", home, "--name", "heir"]
    p.command("coordinator", "standby", *settings, "--base-port", str(p.spare_ports), "--rounds", "2")
    p.launch(
        "heir", "coordinator", "standby", *settings, invite["records"],
        "--ca", p.coordinator / "tls/ca.pem", "--consortium", invite["consortium"],
    )  # fmt: skip
    return home


def succeed(p: Processes, heir: Path) -> str:
    """Draft the succession from the standby's own mirror and every member's copy."""
    copies: list[str | Path] = [p.node(name) / "records" for name in NAMES]
    return p.command("coordinator", "succeed", "--home", heir, "--consortium", invite_of(p)["consortium"], *copies)


class Succeeded:
    """What was found before and after."""

    def __init__(self, p: Processes, heir: Path) -> None:
        self.p = p
        self.heir = heir
        self.old = entries_of(p.public)
        self.carried: list[bytes] = []
        self.late = ""
        self.seconds: dict[str, float] = {}


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Succeeded]:
    with Processes(tmp_path_factory.mktemp("federation"), steps=150) as p:
        p.start_all()
        heir = make_standby(p)

        def answered() -> bool:
            state = p.state()
            return bool(state and state.rounds and state.rounds[0].updates and state.open_round)

        p.wait("an update of a round that is still open", answered)
        p.kill("coordinator")
        began = time.monotonic()
        told = Succeeded(p, heir)
        p.stop("heir")
        drafted = succeed(p, heir)
        # What only the one who is gone has seen is not in any copy; its author says the same again.
        told.carried = entries_of(heir / "mirror")
        assert f"history: {len(told.carried)} entries" in drafted
        p.launch("heir", "coordinator", "run", "--home", heir)
        p.wait("the successor to answer", lambda: p.status("heir").get("phase") == "succeeding")
        for name in NAMES[:2]:
            p.command("node", "amend", "--home", p.node(name), "--invite", heir / "invite.json", "--yes")
        told.seconds["signed"] = time.monotonic() - began
        # Wherever in its beginning that meets it.
        p.wait("the lock of the new log", (heir / "lock.db").exists)
        p.kill("heir")
        # What it has said of itself until then would be taken for the next one's.
        (heir / "status.json").unlink()
        p.launch("heir", "coordinator", "run", "--home", heir)
        p.wait("the successor again", lambda: p.status("heir").get("phase") == "running")
        told.late = p.command("node", "amend", "--home", p.node(NAMES[2]), "--invite", heir / "invite.json", "--yes")
        p.coordinator, p.public = heir, heir / "public"
        p.wait("the new log", lambda: p.state())
        told.seconds["log"] = time.monotonic() - began

        def at_work() -> bool:
            state = p.state()
            assert state is not None
            return state.size > len(told.carried) + 1 or any(p.status(n).get("phase") == "training" for n in NAMES)

        p.wait("somebody to train or answer", at_work)
        told.seconds["work"] = time.monotonic() - began
        p.wait("the round's release", lambda: p.released(1))
        told.seconds["release"] = time.monotonic() - began

        def steps_of_the_second_round() -> bool:
            # Of the first round a node may still be at the steps that the old coordinator asked for.
            statuses = [p.status(n) for n in NAMES]
            return any(s.get("round") == 2 and s.get("phase") == "training" and s.get("step") for s in statuses)

        p.wait("a training step of a round that the successor has opened", steps_of_the_second_round)
        told.seconds["step"] = time.monotonic() - began
        p.wait("two ratified releases and everybody's decision", lambda: p.finished(2))
        print({k: round(v, 1) for k, v in told.seconds.items()})
        yield told


def audit(p: Processes, *options: str | Path, code: int = 0) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(p.command("audit", "run", *options, "--no-memory", "--json", code=code))
    return report


def test_training_goes_on_within_a_minute(after: Succeeded) -> None:
    assert after.seconds["work"] < WITHIN_SECONDS
    assert after.seconds["step"] < WITHIN_SECONDS


def test_the_open_round_ends_with_everybodys_update(after: Succeeded) -> None:
    state = after.p.finished(2)
    assert state is not None
    for r in state.rounds:
        assert sorted(r.updates) == sorted(NAMES)
        assert r.incident is None
        assert r.release is not None
        assert r.release.is_ratified
    assert (state.compact.version, state.compact.coordinator.name) == (2, "heir")
    assert "in force already: version 2; coordinator heir" in after.late, (
        "anyone who is late takes what the others signed"
    )


def test_no_entry_is_lost_and_every_receipt_holds_in_the_new_history(after: Succeeded) -> None:
    entries = entries_of(after.p.public)
    assert entries[: len(after.carried)] == after.carried
    assert set(after.old) <= set(entries)
    leaves = [leaf_hash(data).hex() for data in entries]
    receipts = 0
    for name in NAMES:
        for path in (after.p.node(name) / "receipts").iterdir():
            assert leaves[parse_proof(path.read_bytes()).index] == path.name.removesuffix(".tlog-proof")
            receipts += 1
    assert receipts >= 3 * (1 + 2 + 2), "identity, ratifications and adoptions of each at least"


def test_the_successors_log_audits_from_a_folder_and_over_https_and_names_the_old_one(after: Succeeded) -> None:
    p, old = after.p, after.p.home / "coordinator/public/checkpoint"
    invite = invite_of(p)
    by_folder = audit(p, p.public)
    assert by_folder == audit(p, invite["records"], "--ca", p.coordinator / "tls/ca.pem")
    assert by_folder["verdict"] == "pass"
    assert list(by_folder["carried_over"].values()) == [len(after.carried)]
    receipts = [x for path in (p.node(NAMES[0]) / "receipts").iterdir() for x in ("--against", path)]
    assert audit(p, p.public, *receipts, "--against", after.heir / "mirror/checkpoint")["verdict"] == "pass"
    # The disk of the one that is gone may have one entry more, which nobody else has seen.
    left_behind = len(after.old) > len(after.carried)
    report = audit(p, p.public, "--against", old, code=1 if left_behind else 0)
    assert ("left behind" in str(report["findings"])) == left_behind


def test_nodes_neither_speak_to_the_old_coordinator_nor_cosign_its_log_any_more(after: Succeeded) -> None:
    p = after.p
    for name in NAMES:
        assert (p.node(name) / "invite.json").read_bytes() == (after.heir / "invite.json").read_bytes()
    before = entries_of(p.home / "coordinator/public")
    p.coordinator, p.public = p.home / "coordinator", p.home / "coordinator/public"
    try:
        p.start("coordinator")
        p.wait("no quorum", lambda: "witnesses: wanted a quorum" in p.last_words("coordinator"))
        assert entries_of(p.public) == before, "sealed: without its witnesses it publishes nothing"
        p.stop("coordinator")
    finally:
        p.coordinator, p.public = after.heir, after.heir / "public"


def test_a_history_that_lacks_what_a_node_has_seen_is_not_signed(after: Succeeded, tmp_path: Path) -> None:
    p, home = after.p, tmp_path / "late"
    p.stop("heir")
    try:
        p.command("coordinator", "standby", "--home", home, "--name", "late", "--base-port", str(p.spare_ports + 3))
        consortium, copy = invite_of(p)["consortium"], after.heir / "mirror"
        p.command("coordinator", "succeed", "--home", home, "--consortium", consortium, copy)
        (p.home / "late").mkdir()
        p.launch("late", "coordinator", "run", "--home", home)
        p.wait("it to answer", lambda: (home / "status.json").exists())
        invite, node = home / "invite.json", p.node(NAMES[0])
        p.command("node", "amend", "--home", node, "--invite", invite, "--yes", code=1)
        assert (node / "invite.json").read_bytes() == (after.heir / "invite.json").read_bytes()
        p.stop("late")
    finally:
        p.launch("heir", "coordinator", "run", "--home", after.heir)


def test_two_members_fork_from_the_first_release(after: Succeeded, tmp_path: Path) -> None:
    p, home = after.p, tmp_path / "spring"
    state = p.finished(2)
    assert state is not None
    first = state.rounds[0].release
    assert first is not None
    at = max(first.ratified_by.values()) + 1
    cards: list[str | Path] = []
    for name in NAMES[:2]:
        rows = p.home / f"{name}.jsonl"
        p.command("node", "init", "--home", tmp_path / name, "--institution", name, "--data", rows)
        cards += ["--card", tmp_path / name / "card.json"]
    p.command(
        "coordinator", "fork", p.public, "--at", str(at), "--name", "spring", "--home", home, *cards,
        "--base-port", str(p.spare_ports + 3),
    )  # fmt: skip
    (p.home / "spring").mkdir()
    p.launch("spring", "coordinator", "run", "--home", home)
    p.wait("it to answer", lambda: (home / "status.json").exists())
    invite = home / "invite.json"
    p.command("node", "join", invite, "--home", tmp_path / NAMES[0], "--yes", code=2)
    for name in NAMES[:2]:
        p.command("node", "join", invite, "--home", tmp_path / name, "--yes", "--fork-source", p.public)
    p.wait("its log", (home / "public/tile/entries").exists)
    p.wait("its first entry", lambda: len(entries_of(home / "public")) == 1)
    report = audit(p, home / "public")
    assert (report["verdict"], report["forked_from"]["release_leaf"]) == ("pass", first.leaf)
    p.command("coordinator", "lint-compact", home / "founding/compact.json", code=1)
    p.stop("spring")
