"""What a coordinator's status says to people: who is awaited, since when, and for how long still."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commonweal_coordinator.commands import cli
from commonweal_coordinator.status import CoordinatorStatus
from commonweal_protocols.base.status_file import save_status


def shown(home: Path, monkeypatch: pytest.MonkeyPatch, *, at: float, **fields: object) -> str:
    """The line of the round, as the command prints it at a time."""
    status = {"phase": "running", "consortium": "a" * 64, "pid": os.getpid(), "written_at": 1000.0, "round": 3}
    save_status(home, CoordinatorStatus.model_validate(status | fields))
    monkeypatch.setattr(cli, "now", lambda: at)
    done = CliRunner().invoke(cli.app, ["status", "--home", str(home)])
    assert done.exit_code == 0, done.output
    return next(line for line in done.output.splitlines() if line.startswith("round"))


COLLECT = {"step": "collect", "why": "awaiting clinic, coop", "waiting_since": 1000.0, "gives_up_at": 1600.0}


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (1035.4, "for 35 s; gives up in 565 s"),
        (1000.0, "for 0 s; gives up in 600 s"),
        (1700.0, "for 700 s; gives up in 0 s"),
    ],
)
def test_a_wait_is_shown_with_how_long_it_has_been_and_how_long_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: float, words: str
) -> None:
    assert shown(tmp_path, monkeypatch, at=at, **COLLECT) == f"round       3: collect awaiting clinic, coop {words}"


def test_where_nobody_is_awaited_or_the_daemon_is_gone_no_time_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = shown(tmp_path, monkeypatch, at=1035, step="rest", why="1 of 1 releases ratified")
    assert line == "round       3: rest 1 of 1 releases ratified"
    line = shown(tmp_path, monkeypatch, at=1035, **COLLECT, phase="stopped")
    assert line == "round       3: collect awaiting clinic, coop"
