"""What a worker takes for an order."""

import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from safetensors.numpy import save

from commonweal_adapters.files.delta import from_grid, read_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.commands.train import Terms
from commonweal_node.config import load_config
from commonweal_node.training.jobs import Load, Training, work
from commonweal_node.training.team import WAIT_TIMEOUT, Team
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.settings import load_toml
from tests.kit.team_process import RECIPE
from tests.kit.tiny_home import make_home

TRAINING = Training(
    weights=ObjectiveWeights(),
    recipe=RECIPE,
    seed=0,
    batch_tokens=64,
    early_stop_every_steps=0,
    early_stop_patience=1,
    frozen=None,
)


class Told(Team):
    """A worker that is told these things, one after the other; it computes by itself."""

    def __init__(self, *said: bytes) -> None:
        super().__init__()
        self.said = list(said)

    def lead(self, say: Callable[[], bytes], within: timedelta = WAIT_TIMEOUT) -> bytes:
        return self.said.pop(0)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A worker ignores some; this process must not go on doing so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def load(home: Path) -> bytes:
    """The first order to a worker with this home."""
    terms, weights = load_toml(home / "terms.toml", Terms), ObjectiveWeights()
    return Load(base=terms.base, adapter=terms.adapter, recipe=terms.recipe, weights=weights).to_canonical()


def test_a_worker_ends_when_there_is_no_more_and_leaves_signals_to_process_0(home: Path, load: bytes) -> None:
    for said in ([], [load]):
        team = Told(*said, b"", b"never heard")
        work(team, load_config(home / "node.toml"))
        assert team.said == [b"never heard"]
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_training_that_fails_everywhere_leaves_the_worker_waiting_for_the_next(
    home: Path, load: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = load_toml(home / "terms.toml", Terms).adapter
    start = save(from_grid(read_adapter(recompute_start(adapter), adapter), adapter.grid_bits))
    # There is no row with a preference.
    no_rows = TRAINING.model_copy(update={"weights": ObjectiveWeights(dpo_millis=500)}).to_canonical()
    # Nothing kept to go on from, and a word of process 0 after each step.
    course = [b""] * (1 + RECIPE.steps)
    team = Told(load, no_rows, start, TRAINING.to_canonical(), start, *course, b"", b"never heard")
    work(team, load_config(home / "node.toml"))
    assert team.said == [b"never heard"]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "training: wanted at least one row for the objective dpo, got none"
    ]


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda _: b"{}", "no order"),
        (lambda _: TRAINING.to_canonical(), "an order to train, before there is anything to train on"),
        (lambda load: load.replace(b"{", b'{"now":true,', 1), "an unknown key"),
        (lambda load: load.replace(b'"steps":3', b'"steps":0'), "a recipe out of bounds"),
        (lambda _: b"\x80\x04.", "a pickle"),
    ],
)
def test_anything_but_the_order_to_load_is_refused_at_first(home: Path, load: bytes, spoil: Change, why: str) -> None:
    refuses(home, spoil(load))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda _: b"{}", "no order"),
        (lambda training: training.replace(b'"seed":0', b'"seed":"0"'), "text for a number"),
        (lambda training: training.replace(b'"frozen":null', b'"frozen":"C"'), "a factor that there is not"),
        (lambda training: training.replace(b'"steps":6', b'"steps":0'), "a recipe out of bounds"),
    ],
)
def test_anything_but_an_order_to_train_is_refused_after_it(home: Path, load: bytes, spoil: Change, why: str) -> None:
    refuses(home, load, spoil(TRAINING.to_canonical()))


def refuses(home: Path, *said: bytes) -> None:
    team = Told(*said)
    with pytest.raises(MalformedError, match="process 0: wanted an order, got"):
        work(team, load_config(home / "node.toml"))
    assert team.said == []
