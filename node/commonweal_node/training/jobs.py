"""What process 0 has its workers do, and what they do: load the same base and rows, train when told, end when told.

An order is one JSON text of a closed schema; after that of a training come the start's values, whose number the
adapter's spec says. Workers are told all that the node knows from the log, the charter and its operator, so a worker's
home is ``node.toml``, the data that this names, and a cache: no key, no charter, no invite.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.model.tensors import AdapterTensors, Factor, check_adapter
from commonweal_node.training.checkpoints import CheckpointFile
from commonweal_node.training.inputs import Material, Terms, load_material
from commonweal_node.training.objectives import choose_objectives
from commonweal_node.training.team import Team
from commonweal_node.training.train import EarlyStop, Progress, Trained, train_adapter
from commonweal_protocols.base.errors import CommonwealError, LocalError, MalformedError, UnavailableError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, Recipe

log = logging.getLogger(__name__)

_END_SECONDS = 60


class Load(Closed):
    """Load this base, and the rows that these weights train on. It is the :class:`material.Terms` of a worker."""

    order: Literal["load"] = "load"
    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe
    weights: ObjectiveWeights


class Training(Closed):
    """Train once. ``early_stop_every_steps`` = 0: all steps are taken."""

    order: Literal["train"] = "train"
    weights: ObjectiveWeights
    recipe: Recipe
    seed: int
    batch_tokens: int
    early_stop_every_steps: int
    early_stop_patience: int
    frozen: Factor | None


class End(Closed):
    """There is no more to do."""

    order: Literal["end"] = "end"


_ORDER: TypeAdapter[Load | Training | End] = TypeAdapter(Annotated[Load | Training | End, Field(discriminator="order")])


def order_load(team: Team, terms: Terms, material: Material) -> None:
    """Have the workers load what process 0 has loaded, and make sure that it is the same.

    Raises:
        ConfigError: A worker has other rows, or another kind of machine.
        UnavailableError: A worker has ended.
    """
    load = Load(base=terms.base, adapter=terms.adapter, recipe=terms.recipe, weights=material.weights)
    team.spread(load.to_canonical())
    material.agree(team)


def order_training(
    team: Team,
    material: Material,
    training: Training,
    start: AdapterTensors,
    on_progress: Callable[[Progress], None],
    checkpoint: CheckpointFile | None = None,
) -> Trained:
    """Train in process 0, with all of its workers.

    Raises:
        CommonwealError: See :func:`train.train_adapter`.
    """
    spec = material.model.spec
    # Before anybody hears of it: what is refused here is refused in one process alone.
    check_adapter(start, spec, spec.rank)
    choose_objectives(training.weights, material.rows)
    team.spread(training.to_canonical())
    team.spread_arrays([start[name] for name in tensor_shapes(spec)])
    return _train(team, material, training, start, on_progress, checkpoint)


@contextmanager
def ending(team: Team) -> Iterator[None]:
    """Within the block the team has work; after it the workers end, and so does the team."""
    try:
        try:
            yield
        except CommonwealError:
            _order_end(team)
            raise
        # Whatever else is raised may leave the workers in the middle of a step: they end because this process has.
        _order_end(team)
    finally:
        team.leave()


def _order_end(team: Team) -> None:
    # Who is gone already need not be told.
    with suppress(UnavailableError):
        team.spread(End().to_canonical(), _END_SECONDS)


def work(team: Team, config: NodeConfig) -> None:
    """Be a worker: do what process 0 orders until it says that there is no more, or is gone.

    Raises:
        BaseModelError: The base cannot be had here.
        ConfigError: The rows or the machine are not those of process 0.
        MalformedError: An order is not one of those known.
        UnavailableError: A process of the team has ended.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # A launcher sends them to all: process 0 decides what becomes of a step that others take part in.
        signal.signal(number, signal.SIG_IGN)
    try:
        _obey(team, config)
    finally:
        team.leave()


def _obey(team: Team, config: NodeConfig) -> None:
    material = None
    while not isinstance(order := _hear(team), End):
        if isinstance(order, Load):
            material = load_material(order, config, order.weights, team, log.info)
            material.agree(team)
        elif material is None:
            raise MalformedError("process 0: wanted the order to load first, got one to train")
        else:
            start = {n: np.zeros(shape, np.float32) for n, shape in tensor_shapes(material.model.spec).items()}
            team.spread_arrays(list(start.values()))
            try:
                _train(team, material, order, start, lambda _: None, None)
            except LocalError as e:
                # All processes have raised at the same point, unless one has gone.
                team.check()
                log.warning("%s", e)


def _hear(team: Team) -> Load | Training | End:
    said = team.spread(b"")
    try:
        return _ORDER.validate_json(said)
    except ValidationError as e:
        raise MalformedError(f"process 0: wanted an order, got {said[:80]!r} (is it the same version?)") from e


def _train(
    team: Team,
    material: Material,
    training: Training,
    start: AdapterTensors,
    on_progress: Callable[[Progress], None],
    checkpoint: CheckpointFile | None,
) -> Trained:
    every = training.early_stop_every_steps
    return train_adapter(
        material.model,
        start,
        choose_objectives(training.weights, material.rows),
        training.recipe,
        training.seed,
        on_progress,
        batch_tokens=training.batch_tokens,
        checkpoint=checkpoint,
        early_stop=EarlyStop(material.tune, every, training.early_stop_patience) if every else None,
        frozen=training.frozen,
        team=team,
    )
