"""What a node says of itself: a round never waits for a node that does nothing and does not say why."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from commonweal_node.connection.status import NodeStatus, StatusBoard
from commonweal_protocols.base.status_file import load_status


@dataclass
class Clock:
    now: float = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(tmp_path: Path, clock: Clock) -> StatusBoard:
    return StatusBoard(tmp_path, "clinic", clock)


def on_disk(home: Path) -> str:
    return load_status(home, NodeStatus, "node").trouble


IDLE = "round 3 waits for this node, which for over a minute has been waiting: for a round"


def test_a_node_that_is_awaited_and_idle_for_over_a_minute_says_so(
    tmp_path: Path, board: StatusBoard, clock: Clock
) -> None:
    board.phase("waiting", 2, "for a round")
    board.await_answer(3)
    clock.now += 60
    board.look()
    assert board.newest.trouble == "", "a minute itself is in time"
    clock.now += 1
    board.look()
    assert (board.newest.trouble, on_disk(tmp_path)) == (IDLE, IDLE)
    board.await_answer(0)
    assert (board.newest.trouble, on_disk(tmp_path)) == ("", ""), "answered, or the round is over"


@pytest.mark.parametrize("phase", ["training", "evaluating", "sending", "ratifying"])
def test_whoever_works_is_not_idle_however_long_and_its_minute_begins_when_that_ends(
    board: StatusBoard, clock: Clock, phase: str
) -> None:
    board.await_answer(3)
    clock.now += 59
    board.phase(phase, 3, "round 3")
    clock.now += 3600
    board.look()
    assert board.newest.trouble == ""
    board.phase("waiting", 3, "for a round")
    clock.now += 60
    board.look()
    assert board.newest.trouble == ""
    clock.now += 1
    board.look()
    assert board.newest.trouble == IDLE


def test_nobody_who_is_not_awaited_is_idle(board: StatusBoard, clock: Clock) -> None:
    board.phase("waiting", 2, "for a round")
    board.await_answer(0)
    clock.now += 3600
    board.look()
    assert board.newest.trouble == ""
    board.await_answer(3)
    clock.now += 60
    board.look()
    assert board.newest.trouble == "", "the minute begins when the round waits"


def test_a_base_that_takes_long_to_load_is_named_once_a_round_waits(board: StatusBoard, clock: Clock) -> None:
    board.await_answer(1)
    board.phase("starting", 0, "loading the base model")
    clock.now += 61
    board.look()
    assert board.newest.trouble == (
        "round 1 waits for this node, which for over a minute has been starting: loading the base model"
    )


def test_what_is_known_to_be_in_the_way_comes_before_idleness_and_is_not_lost_by_it(
    board: StatusBoard, clock: Clock
) -> None:
    board.phase("waiting", 2, "for a round")
    board.await_answer(3)
    board.set(trouble="hub:7001 does not answer")
    clock.now += 61
    board.look()
    assert board.newest.trouble == board.trouble == "hub:7001 does not answer"
    board.set(doing="for a round")
    assert board.newest.trouble == "hub:7001 does not answer", "until somebody says that it is over"
    board.set(trouble="")
    assert (board.newest.trouble, board.trouble) == (IDLE, "")
