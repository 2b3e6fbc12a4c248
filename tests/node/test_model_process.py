"""The model side in a process of its own: the same bytes, nothing left at rest, and its death is not the node's."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from commonweal_adapters.files.delta import to_grid, write_adapter
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.connection.status import StatusBoard
from commonweal_node.model.blend import BlendWeights
from commonweal_node.probes.probe import Item, Probe
from commonweal_node.rows.row import Message
from commonweal_node.training.model_process import ModelProcess
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.learner import SPEC, learner, terms_and_settings
from tests.kit.tiny_model import random_adapter

START = to_grid(random_adapter(SPEC, 1, b_size=0.0), SPEC.grid_bits)
OTHER = to_grid(random_adapter(SPEC, 2), SPEC.grid_bits)
HALF_EACH, OWN = BlendWeights(500, 500), BlendWeights(0, 1000)
RECIPE = Recipe(steps=3, batch_size=2, learning_rate_micros=5000, max_tokens=160)
PROBE = Probe("greeting", "accuracy", (Item("x:1", (Message("user", "how are you?"),), ("well", "ill"), (1.0, 0.0)),))


def start(home: Path, stopping: threading.Event, **settings: object) -> ModelProcess:
    compact, config = terms_and_settings(home, 8, unload_after_seconds=0, **settings)
    return ModelProcess(compact, config, ObjectiveWeights(), home, StatusBoard(home, "clinic"), stopping)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ModelProcess]:
    made = start(tmp_path, threading.Event())
    yield made
    made.end()


def only_child() -> psutil.Process:
    (child,) = [p for p in psutil.Process().children() if "commonweal_node.training.model_main" in p.cmdline()]
    return child


def test_every_answer_is_that_of_the_model_side_without_a_process(tmp_path: Path, model: ModelProcess) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    here = learner(beside, 8, StatusBoard(beside, "clinic"))
    assert (model.num_examples, model.manifest) == (here.num_examples, here.manifest) == (8, None)
    made = model.train(START, RECIPE, "round 1")
    assert write_adapter(made, SPEC) == write_adapter(here.train(START, RECIPE, "round 1"), SPEC)
    for theirs, ours in ((model.choosing, here.choosing), (model.reported, here.reported)):
        found, wanted = theirs(made, OTHER, HALF_EACH, "x"), ours(made, OTHER, HALF_EACH, "x")
        assert np.array_equal(found.nats, wanted.nats)
        assert np.array_equal(found.tokens, wanted.tokens)
    assert model.probe(PROBE, made, OTHER, HALF_EACH, "x") == here.probe(PROBE, made, OTHER, HALF_EACH, "x")
    assert model.membership(made) == here.membership(made)
    model.export(made, OTHER, HALF_EACH, tmp_path / "theirs")
    here.export(made, OTHER, HALF_EACH, tmp_path / "ours")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "theirs" / weights).read_bytes() == (tmp_path / "ours" / weights).read_bytes()


def test_at_rest_nothing_runs_and_the_next_work_starts_another(model: ModelProcess) -> None:
    before = model.choosing(START, START, HALF_EACH, "x")
    child = only_child()
    model.rest()
    assert not child.is_running()
    assert np.array_equal(model.choosing(START, START, HALF_EACH, "x").nats, before.nats)
    assert only_child().pid != child.pid


def test_a_process_that_is_killed_is_said_and_the_next_call_starts_another(model: ModelProcess) -> None:
    os.kill(only_child().pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="was killed"):
        model.choosing(START, START, HALF_EACH, "x")
    assert model.choosing(START, START, HALF_EACH, "x").mean > 0


def test_an_error_arrives_as_what_it_is_and_the_process_goes_on(model: ModelProcess) -> None:
    child = only_child()
    with pytest.raises(ConfigError, match="wanted at most 4096 tokens"):
        model.probe(replace(PROBE, items=(replace(PROBE.items[0], options=("x" * 9999, "y")),)), START, START, OWN, "x")
    assert model.choosing(START, START, HALF_EACH, "x").mean > 0
    assert only_child().pid == child.pid


def test_a_start_that_fails_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        start(tmp_path, threading.Event(), data=tmp_path / "none.jsonl")
    assert not [p for p in psutil.Process().children() if "commonweal_node.training.model_main" in p.cmdline()]


def test_a_node_that_stops_ends_a_training_at_its_next_step(tmp_path: Path) -> None:
    stopping = threading.Event()
    board = _StopsAtAStep(stopping)
    compact, config = terms_and_settings(tmp_path, 8)
    model = ModelProcess(compact, config, ObjectiveWeights(), tmp_path, board, stopping)
    with pytest.raises(UnavailableError, match="the node is stopping"):
        model.train(START, RECIPE.model_copy(update={"steps": 100_000}), "round 1")
    model.end()
    assert board.step < 100_000


class _StopsAtAStep:
    step = 0

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def set(self, **fields: object) -> None:
        if isinstance(step := fields.get("step"), int) and step:
            self.step = step
            self._stopping.set()
