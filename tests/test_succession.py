"""A coordinator that is gone for good: a standby has everything, the members sign, and training goes on under it.

Real processes on loopback; the old coordinator is killed in the middle of a round.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweal_protocols.merkle import leaf_hash
from commonweal_protocols.proof import parse_proof
from commonweal_protocols.records import DirectorySource, read_checkpoint, read_entries, unverified_size
from tests.processes import NAMES, Processes

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
        "heir", "coordinator", "standby", *settings, "--follow", invite["records"],
        "--ca", p.coordinator / "tls/ca.pem", "--consortium", invite["consortium"],
    )  # fmt: skip
    return home


def succeed(p: Processes, heir: Path) -> str:
    """Draft the succession from the standby's own mirror and every member's copy."""
    copies: list[str | Path] = [x for name in NAMES for x in ("--records", p.node(name) / "records")]
    return p.command("coordinator", "succeed", "--home", heir, "--consortium", invite_of(p)["consortium"], *copies)


class Succeeded:
    """What was found before and after."""

    def __init__(self, p: Processes, heir: Path) -> None:
        self.p = p
        self.heir = heir
        self.old = entries_of(p.public)
        self.carried: list[bytes] = []
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
        for name in NAMES:
            p.command("node", "amend", "--home", p.node(name), "--invite", heir / "invite.json", "--yes")
        told.seconds["signed"] = time.monotonic() - began
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
        p.wait("two ratified releases and everybody's decision", lambda: p.finished(2))
        print({k: round(v, 1) for k, v in told.seconds.items()})
        yield told


def test_training_goes_on_within_a_minute(after: Succeeded) -> None:
    assert after.seconds["work"] < WITHIN_SECONDS


def test_the_open_round_ends_with_everybodys_update(after: Succeeded) -> None:
    state = after.p.finished(2)
    assert state is not None
    for r in state.rounds:
        assert sorted(r.updates) == sorted(NAMES)
        assert r.incident is None
        assert r.release is not None
        assert r.release.is_ratified
    assert (state.compact.version, state.compact.coordinator.name) == (2, "heir")


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
    assert receipts >= 3 * (1 + 2 + 2 + 2), "identity, two updates, ratifications and adoptions of each"
