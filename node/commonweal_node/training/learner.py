"""The model side of a node: one base model in memory, this community's rows, and every use of the two.

Rows are read once and stay in this process. What comes out is adapters on the grid, losses and counts; nothing else.

Files below the node's home, for its operator::

    training/checkpoint.safetensors   the training that is going on
    runs/<what>.html, .json           what each training did
    runs/<what>/events.…              the same for TensorBoard, where that is asked for
    runs/<what>.log                   what a Flower ClientApp printed, where one trains
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from commonweal_adapters.files.delta import GridTensors, from_grid, to_grid
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.home import NodeHome
from commonweal_node.model.blend import BlendWeights, blend, export_peft
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.model.tensors import AdapterTensors, Factor, adapter_digest
from commonweal_node.probes.membership_attack import MIN_ROWS, MembershipAttack
from commonweal_node.probes.probe import Probe
from commonweal_node.probes.score import PackedProbe, measure_probe, pack_probe
from commonweal_node.rows.manifest import load_manifest
from commonweal_node.training.board import Board
from commonweal_node.training.checkpoints import CheckpointFile, Course
from commonweal_node.training.flower_trainer import FlowerTrainer, check_trainer
from commonweal_node.training.inputs import Terms, load_material, shuffled_seed
from commonweal_node.training.jobs import Training, order_load, order_training
from commonweal_node.training.memory_estimate import peak_bytes
from commonweal_node.training.objectives import TrainingRows, choose_objectives
from commonweal_node.training.pareto import Point, sweep
from commonweal_node.training.run_report import MembershipFigure, RunReport, run_name, save_report
from commonweal_node.training.team import ALONE, Team
from commonweal_node.training.train import Progress
from commonweal_node.training.training_rows import load_training_rows
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.base.files import show_folder
from commonweal_protocols.statements.compact import Recipe

if TYPE_CHECKING:
    from commonweal_node.training.tensorboard import EventFile

log = logging.getLogger(__name__)

MICRO = 1_000_000


class Learner:
    """Not thread-safe."""

    def __init__(
        self,
        compact: Terms,
        config: NodeConfig,
        weights: ObjectiveWeights,
        home: Path,
        board: Board,
        stopping: threading.Event,
        team: Team = ALONE,
        *,
        work: Path | None = None,
    ) -> None:
        """Load the base and the rows, and have the team's workers do so too.

        Args:
            compact: The rules in force.
            config: This node's settings.
            weights: The charter's objectives.
            home: The node's folder, with its keys.
            board: Told what is being done.
            stopping: Once set, a training or an evaluation ends with an error.
            team: The processes that train together; this is its process 0, and all else it does by itself.
            work: Where reports and checkpoints go; the home if not given.

        Raises:
            BaseModelError: The base cannot be had, or is not the one that the compact names.
            ConfigError: A row is malformed, there is nothing to train or to evaluate on, too little memory, a
                package that a setting needs is missing, or a worker has other rows.
            UnavailableError: A worker has ended.
        """
        if config.tensorboard and find_spec("tensorboardX") is None:
            raise ConfigError(
                "tensorboard: wanted the package tensorboardX, got none: pip install 'commonweal[tensorboard]'"
            )
        check_trainer(config, team.size)
        self._board, self._stopping = board, stopping
        self._config = config
        self._work = work or home
        self._compact = compact
        self._weights = weights
        self._team = team

        def tell(line: str) -> None:
            board.set(doing=f"base model: {line}")

        self._material = load_material(compact, config, weights, team, tell)
        self.manifest = load_manifest(self._material.data, config.institution, home)
        order_load(team, compact, self._material)
        self._model, self._rows = self._material.model, self._material.rows
        self._tune, report = self._material.tune, self._material.report
        self._report, self._idle_told = heldout_batches(report), False
        self._attack = (
            MembershipAttack(self._model, self._rows.conversations, report, config.membership_rows)
            if min(config.membership_rows, len(self._rows.conversations), len(report)) >= MIN_ROWS
            else None
        )
        self._newest: tuple[bytes, RunReport] | None = None  # the newest training's, by what it gave
        self._losses: dict[tuple[bytes, str], RowLosses] = {}
        self._probed: dict[tuple[bytes, str], float] = {}
        self._packed: dict[str, PackedProbe] = {}  # by name: a probe is asked under each choice

    @property
    def num_examples(self) -> int:
        """How many training rows the community has, of all kinds that its objectives train on."""
        return len(self._rows.conversations) + len(self._rows.texts) + len(self._rows.pairs)

    def train(self, start: GridTensors, recipe: Recipe, what: str, frozen: Factor | None = None) -> GridTensors:
        """Train from ``start`` and return the trained adapter, on the grid. A report of it is kept for the operator.

        Raises:
            ConfigError: A loss is not finite; or see :class:`FlowerTrainer`.
            StorageError: The checkpoint or the report cannot be written.
            UnavailableError: The node is stopping, or a worker has ended.
        """
        bits, config = self._compact.adapter.grid_bits, self._config
        recipe = recipe.model_copy(update={"steps": recipe.steps_for(self.num_examples), "passes_millis": None})
        if config.trainer:
            return self._train_with_app(start, recipe, what, frozen)
        self._board.set(doing=what, step=0, steps=recipe.steps, losses={}, eta_seconds=None)
        training = self._training(self._weights, recipe).model_copy(
            update={
                # Another order of the rows for each start: a round of less than a pass would else see the same ones.
                "seed": shuffled_seed(config.seed, config.institution, from_grid(start, bits)),
                "early_stop_every_steps": config.early_stop_every_steps,
                "frozen": frozen,
            }
        )
        with self._events(what, recipe) as events:

            def report(p: Progress) -> None:
                if self._stopping.is_set():
                    raise UnavailableError("training: the node is stopping; it continues from the last checkpoint")
                self._tell(what, p)
                if events is not None:
                    events.add(p)

            checkpoint = CheckpointFile(NodeHome(self._work).checkpoint, config.checkpoint_seconds)
            trained = order_training(self._team, self._material, training, from_grid(start, bits), report, checkpoint)
            made = to_grid(trained.adapter, bits)
            told = self._write_report(start, made, recipe, what, trained.course)
            if events is not None:
                events.add_heldout("tune", told.course.heldout)
                events.add_heldout("report", [(0, told.heldout_before), (told.course.step, told.heldout_after)])
        return made

    def _train_with_app(self, start: GridTensors, recipe: Recipe, what: str, frozen: Factor | None) -> GridTensors:
        doing = f"{what}: training (flower app)"
        self._board.set(doing=doing, step=0, steps=0, losses={}, eta_seconds=None)
        material = self._material
        trainer = FlowerTrainer(
            self._config, self._compact.adapter, material.base, material.data, NodeHome(self._work), self._stopping
        )
        result = trainer.train(start, recipe, what, frozen)
        self._write_report(start, result.adapter, recipe, what, Course(seconds=result.seconds), result.metrics)
        return result.adapter

    @contextmanager
    def _events(self, what: str, recipe: Recipe) -> "Iterator[EventFile | None]":
        if not self._config.tensorboard:
            yield None
            return
        from commonweal_node.training.tensorboard import EventFile

        events = EventFile(NodeHome(self._work).runs / run_name(what), recipe)
        try:
            yield events
        finally:
            events.close()

    def sweep(self, start: GridTensors, tried: Sequence[ObjectiveWeights], recipe: Recipe) -> list[Point]:
        """Train by each weighting, and measure every objective on held-out rows; no adapter is kept.

        Raises:
            ConfigError: A held-out row of some kind is missing, a loss is not finite, or a ClientApp trains here.
        """
        if self._config.trainer:
            raise ConfigError("--pareto: wanted the node's own trainer, got another in node.toml: it has no weightings")
        config, model, tensors = self._config, self._model, from_grid(start, self._compact.adapter.grid_bits)
        max_tokens, most = self._compact.recipe.max_tokens, config.max_heldout_rows
        heldout = load_training_rows(config.data, "heldout", self._weights, model.tokenizer, max_tokens)

        def train(k: int, weights: ObjectiveWeights) -> AdapterTensors:
            def report(p: Progress) -> None:
                self._tell(f"weighting {k + 1} of {len(tried)}", p)

            training = self._training(weights, recipe)
            return order_training(self._team, self._material, training, tensors, report).adapter

        return sweep(
            model,
            tensors,
            self._rows,
            TrainingRows(heldout.conversations[:most], heldout.texts[:most], heldout.pairs[:most]),
            tried,
            config.batch_tokens,
            train,
        )

    def _training(self, weights: ObjectiveWeights, recipe: Recipe) -> Training:
        """One that trains both factors and takes all of its steps."""
        config = self._config
        return Training(
            weights=weights,
            recipe=recipe,
            seed=config.seed,
            batch_tokens=config.batch_tokens,
            early_stop_every_steps=0,
            early_stop_patience=config.early_stop_patience,
            frozen=None,
        )

    def _tell(self, what: str, p: Progress) -> None:
        if p.parts < self._team.size and not self._idle_told:
            self._idle_told = True
            log.warning(
                "training: wanted at least one part of a step for each of %d processes, got %d: the others are idle "
                "(lower batch_tokens in node.toml, or raise the recipe's batch_size)",
                self._team.size,
                p.parts,
            )
        self._board.set(
            doing=what,
            step=p.step,
            steps=p.steps,
            losses=dict(p.losses),
            tokens_per_second=p.tokens_per_second,
            steps_per_second=p.steps_per_second,
            eta_seconds=p.eta_seconds,
        )

    def _write_report(
        self,
        start: GridTensors,
        made: GridTensors,
        recipe: Recipe,
        what: str,
        course: Course,
        metrics: Mapping[str, float] | None = None,
    ) -> RunReport:
        """Measure what was made, as it will be sent, keep the figures, and return them."""
        bits, size = self._compact.adapter.grid_bits, self._team.size
        self._board.set(doing=f"{what}: measuring it")
        adapter = from_grid(made, bits)
        objectives = choose_objectives(self._weights, self._rows)
        report = RunReport(
            institution=self._config.institution,
            what=what,
            weights={o.name: o.weight for o in objectives},
            rows={o.name: o.num_rows for o in objectives},
            recipe=recipe.model_dump(),
            seed=self._config.seed,
            machine=f"{self._model.describe()}, torch {torch.__version__}"
            + (f", {size} processes" if size > 1 else ""),
            estimated_bytes=self._material.estimated_bytes,
            peak_bytes=peak_bytes(),
            course=course,
            trainer=self._config.trainer,
            metrics=dict(metrics or {}),
            heldout_before=self._rows_losses(from_grid(start, bits), "report").mean,
            heldout_after=self._rows_losses(adapter, "report").mean,
        )
        save_report(NodeHome(self._work).runs, report)
        self._newest = adapter_digest(adapter), report
        return report

    def membership(self, adapter: GridTensors) -> int | None:
        """Return how well the attack does on a trained adapter, in millionths; None where there are too few rows.

        Asked of what is to leave this host; the report of that training has the figure from then on.
        """
        if self._attack is None:
            return None
        tensors = from_grid(adapter, self._compact.adapter.grid_bits)
        figure = self._attack.measure(tensors)
        if self._newest is not None and self._newest[0] == adapter_digest(tensors):
            told = MembershipFigure(**asdict(figure))
            save_report(NodeHome(self._work).runs, self._newest[1].model_copy(update={"membership": told}))
        self._board.set(membership_auc=figure.auc)
        return round(figure.auc * MICRO)

    def reported(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> RowLosses:
        """Return the losses of a blend on the half that is told of.

        Raises:
            LocalError: A loss is not finite.
            UnavailableError: The node is stopping.
        """
        self._board.set(doing=what)
        return self._rows_losses(self._weighted(shared, own, weights), "report")

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> int:
        """Return what a probe measures under a blend, in millionths.

        Raises:
            ConfigError: A question is too long.
            LocalError: A score is not finite.
            UnavailableError: The node is stopping.
        """
        self._board.set(doing=what)
        if probe.name not in self._packed:
            self._packed[probe.name] = pack_probe(probe, self._model.tokenizer)
        packed = self._packed[probe.name]
        adapter = self._weighted(shared, own, weights)
        key = (adapter_digest(adapter), probe.name)
        if key not in self._probed:
            self._probed[key] = measure_probe(self._model, adapter, packed, self._check_running)
        return round(self._probed[key] * MICRO)

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise UnavailableError("evaluation: the node is stopping")

    def choosing(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> RowLosses:
        """Return the losses of a blend on the half that choices are made on.

        Raises:
            LocalError: A loss is not finite.
            UnavailableError: The node is stopping.
        """
        self._board.set(doing=f"choosing: {what}")
        return self._rows_losses(self._weighted(shared, own, weights), "tune")

    def export(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, directory: Path) -> None:
        """Write a blend as a PEFT folder, and have ``directory`` lead to it in one step.

        Raises:
            StorageError: It cannot be written.
        """
        spec, bits = self._compact.adapter, self._compact.adapter.grid_bits
        adapter = self._weighted(shared, own, weights)
        if adapter is None:
            adapter = blend(spec, from_grid(shared, bits), from_grid(own, bits), weights)
        base = str(self._material.base.resolve())
        show_folder(directory, lambda aside: export_peft(aside, spec, adapter, base))

    def _weighted(self, shared: GridTensors, own: GridTensors, weights: BlendWeights) -> AdapterTensors | None:
        spec, bits = self._compact.adapter, self._compact.adapter.grid_bits
        match (weights.shared_millis, weights.own_millis):
            case (0, 0):
                return None
            case (1000, 0):
                return from_grid(shared, bits)
            case (0, 1000):
                return from_grid(own, bits)
            case _:
                return blend(spec, from_grid(shared, bits), from_grid(own, bits), weights)

    def _rows_losses(self, adapter: AdapterTensors | None, half: Literal["tune", "report"]) -> RowLosses:
        """Measure once for each adapter: a round's start is the last release, evaluated already."""
        key = (adapter_digest(adapter), half)
        if key not in self._losses:
            self._check_running()
            self._losses[key] = row_losses(self._model, adapter, self._tune if half == "tune" else self._report)
        return self._losses[key]
