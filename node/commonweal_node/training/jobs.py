"""What process 0 has its workers do, and what they do: load the same base and rows, train when told, end when told.

Process 0 says one :class:`Load`, then a :class:`Training` and its start for each training, then nothing: the end.
Workers are told all that the node knows from the log, the charter and its operator, so a worker's home is
``node.toml``, the data that this names, and a cache: no key, no charter, no invite.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from pydantic import ValidationError
from safetensors.numpy import load, save

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.model.tensors import AdapterTensors, Factor
from commonweal_node.training.checkpoints import CheckpointFile
from commonweal_node.training.inputs import Material, Terms, load_material
from commonweal_node.training.objectives import choose_objectives
from commonweal_node.training.team import WAIT_TIMEOUT, Team
from commonweal_node.training.train import EarlyStop, Progress, Trained, train_adapter
from commonweal_protocols.base.errors import CommonwealError, MalformedError, UnavailableError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, Recipe

log = logging.getLogger(__name__)

_END_TIMEOUT = timedelta(minutes=1)


class Load(Closed):
    """Load this base, and the rows that these weights train on. It is the :class:`inputs.Terms` of a worker."""

    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe
    weights: ObjectiveWeights


class Training(Closed):
    """Train once. ``early_stop_every_steps`` = 0: all steps are taken."""

    weights: ObjectiveWeights
    recipe: Recipe
    seed: int
    batch_tokens: int
    early_stop_every_steps: int
    early_stop_patience: int
    frozen: Factor | None


Order = TypeVar("Order", Load, Training)


def order_load(team: Team, terms: Terms, material: Material) -> None:
    """Have the workers load what process 0 has loaded, and make sure that it is the same.

    Raises:
        ConfigError: A worker has other rows, or another kind of machine.
        UnavailableError: A worker has ended.
    """
    order = Load(base=terms.base, adapter=terms.adapter, recipe=terms.recipe, weights=material.weights)
    team.lead(order.to_canonical)
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
    team.lead(training.to_canonical)
    team.lead(lambda: save(dict(start)))
    return _train(team, material, training, start, on_progress, checkpoint)


@contextmanager
def ending(team: Team) -> Iterator[None]:
    """Within the block the team has work; after it the workers end, and so does the team."""
    try:
        yield
    except CommonwealError:
        _order_end(team)
        raise
    else:
        _order_end(team)
    finally:
        # Whatever else was raised may leave the workers in the middle of a step: they end because this process has.
        team.leave()


def _order_end(team: Team) -> None:
    # Who is gone already need not be told.
    with suppress(UnavailableError):
        team.lead(bytes, _END_TIMEOUT)


def work(team: Team, config: NodeConfig) -> None:
    """Be a worker: do what process 0 orders until it says that there is no more, or is gone.

    Raises:
        BaseModelError: The base cannot be had here.
        ConfigError: The rows or the machine are not those of process 0.
        MalformedError: An order is none of this version.
        UnavailableError: A process of the team has ended.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # A launcher sends them to all: process 0 decides what becomes of a step that others take part in.
        signal.signal(number, signal.SIG_IGN)
    try:
        if terms := _hear(team, Load):
            material = load_material(terms, config, terms.weights, team, log.info)
            material.agree(team)
            while training := _hear(team, Training):
                start = load(team.lead(bytes))
                try:
                    _train(team, material, training, start, lambda _: None, None)
                except CommonwealError as e:
                    # All processes have raised at the same point, unless one has gone.
                    team.check()
                    log.warning("%s", e)
    finally:
        team.leave()


def _hear(team: Team, kind: type[Order]) -> Order | None:
    """Wait for process 0's next order; None: there is no more to do."""
    said = team.lead(bytes, WAIT_TIMEOUT)
    try:
        return kind.model_validate_json(said) if said else None
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
