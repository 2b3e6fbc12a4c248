"""What a worker takes for an order."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.training.jobs import End, Training, work
from commonweal_node.training.team import Alone
from commonweal_protocols.base.errors import MalformedError
from tests.kit.team_process import RECIPE

TRAINING = Training(
    weights=ObjectiveWeights(),
    recipe=RECIPE,
    seed=0,
    batch_tokens=64,
    early_stop_every_steps=0,
    early_stop_patience=1,
    frozen=None,
).to_canonical()


class Told(Alone):
    """A worker that is told these things, one after the other."""

    def __init__(self, *said: bytes) -> None:
        super().__init__()
        self.said = list(said)

    def spread(self, data: bytes, seconds: float | None = None) -> bytes:
        return self.said.pop(0)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A worker ignores some; this process must not go on doing so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def config(home: Path) -> NodeConfig:
    return NodeConfig(institution="clinic", data=home / "none.jsonl")


def test_a_worker_ends_when_it_is_told_to_and_leaves_signals_to_process_0(tmp_path: Path) -> None:
    team = Told(End().to_canonical(), b"never heard")
    work(team, config(tmp_path))
    assert team.said == [b"never heard"]
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "nothing"),
        (b"{}", "no order"),
        (b'{"order":"dance"}', "one that nobody knows"),
        (b'{"order":"end","now":true}', "an unknown key"),
        (TRAINING.replace(b'"seed":0', b'"seed":"0"'), "text for a number"),
        (TRAINING.replace(b'"frozen":null', b'"frozen":"C"'), "a factor that there is not"),
        (TRAINING.replace(b'"steps":6', b'"steps":0'), "a recipe out of bounds"),
        (b"\x80\x04.", "a pickle"),
    ],
)
def test_anything_but_an_order_is_refused(tmp_path: Path, said: bytes, why: str) -> None:
    with pytest.raises(MalformedError, match="process 0: wanted an order, got"):
        work(Told(said), config(tmp_path))


def test_an_order_to_train_is_refused_before_there_is_anything_to_train(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="wanted the order to load first, got one to train"):
        work(Told(TRAINING), config(tmp_path))
