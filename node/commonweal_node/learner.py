"""The model side of a node: one base model in memory, this community's rows, and every use of the two.

Rows are read once and stay in this process. What comes out is adapters on the grid and losses; nothing else.
"""

import hashlib
import threading
from pathlib import Path

from commonweal_adapters.delta import GridTensors, from_grid, to_grid
from commonweal_node.base import fetch_base, load_base, native_dtype
from commonweal_node.blend import BlendWeights, blend, choose_blend, export_peft
from commonweal_node.config import NodeConfig
from commonweal_node.data import split_heldout, tokenise
from commonweal_node.evaluate import heldout_batches, heldout_loss
from commonweal_node.lora import AdaptedModel
from commonweal_node.packing import Batch
from commonweal_node.rows import Example, read_examples
from commonweal_node.status import StatusBoard
from commonweal_node.tensors import AdapterTensors
from commonweal_node.train import Progress, train_adapter
from commonweal_protocols.errors import ConfigError, UnavailableError
from commonweal_protocols.predicates import Compact, Recipe

MICRO = 1_000_000


class Learner:
    """Owned by whoever holds the institution's turn; not thread-safe."""

    def __init__(self, compact: Compact, config: NodeConfig, board: StatusBoard, stopping: threading.Event) -> None:
        """Load the base and the rows.

        Raises:
            BaseModelError: The base cannot be had, or is not the one that the compact names.
            ConfigError: A row is malformed, or there is nothing to train or to evaluate on.
        """
        self._board = board
        self._stopping = stopping
        self._seed = config.seed
        self._compact = compact
        self._max_tokens = compact.recipe.max_tokens
        folder = fetch_base(compact.base, config.cache, lambda line: board.set(doing=f"base model: {line}"))
        board.set(doing="loading the base model")
        self._model = AdaptedModel(load_base(folder, native_dtype()), compact.adapter, config.threads or None)
        training = tokenise(read_examples(config.data, "train"), self._model.tokenizer, self._max_tokens)
        if not training.examples:
            raise ConfigError(f"{config.data}: wanted training rows with a supervised token, got none")
        self._examples = training.examples
        halves = split_heldout(read_examples(config.data, "heldout"), config.max_heldout_rows)
        self._tune = self._batches(halves.tune, config.data)
        self._report = self._batches(halves.report, config.data)
        self._losses: dict[tuple[bytes, str], float] = {}

    def _batches(self, examples: tuple[Example, ...], path: Path) -> list[Batch]:
        tokenised = tokenise(examples, self._model.tokenizer, self._max_tokens).examples
        if not tokenised:
            raise ConfigError(f"{path}: wanted held-out rows for choosing and for reporting, got too few")
        return heldout_batches(tokenised)

    @property
    def num_examples(self) -> int:
        """How many training rows the community has."""
        return len(self._examples)

    def train(self, start: GridTensors, recipe: Recipe, what: str) -> GridTensors:
        """Train from ``start`` and return the trained adapter, on the grid.

        Raises:
            ConfigError: The loss is not finite.
            UnavailableError: The node is stopping.
        """
        bits = self._compact.adapter.grid_bits

        def report(p: Progress) -> None:
            if self._stopping.is_set():
                raise UnavailableError("training: the node is stopping; nothing of this training is kept")
            self._board.set(
                doing=what,
                step=p.step,
                steps=p.steps,
                loss=p.loss,
                tokens_per_second=p.tokens_per_second,
                eta_seconds=p.eta_seconds,
            )

        self._board.set(doing=what, step=0, steps=recipe.steps, loss=None, eta_seconds=None)
        trained = train_adapter(self._model, from_grid(start, bits), self._examples, recipe, self._seed, report)
        return to_grid(trained.adapter, bits)

    def heldout(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> int:
        """Return the loss of a blend on the reported half, in micronats for each supervised token.

        Raises:
            LocalError: The loss is not finite.
        """
        self._board.set(doing=what)
        return round(self._loss(self._weighted(shared, own, weights), self._report, "report") * MICRO)

    def choose(self, shared: GridTensors, own: GridTensors) -> BlendWeights:
        """Return the best weights of the candidates on the other half."""
        spec, bits = self._compact.adapter, self._compact.adapter.grid_bits
        tried = 0

        def loss(adapter: AdapterTensors | None) -> float:
            nonlocal tried
            tried += 1
            self._board.set(doing=f"choosing a blend: candidate {tried}")
            return self._loss(adapter, self._tune, "tune")

        return choose_blend(spec, from_grid(shared, bits), from_grid(own, bits), loss).weights

    def export(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, directory: Path) -> None:
        """Write a blend as a PEFT folder.

        Raises:
            StorageError: It cannot be written.
        """
        spec, bits = self._compact.adapter, self._compact.adapter.grid_bits
        export_peft(
            directory,
            spec,
            blend(spec, from_grid(shared, bits), from_grid(own, bits), weights),
            self._compact.base.reference,
        )

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

    def _loss(self, adapter: AdapterTensors | None, batches: list[Batch], half: str) -> float:
        """The loss, computed once for each adapter and half: a round's start is the last release, evaluated already."""
        digest = hashlib.sha256()
        for name in sorted(adapter or ()):
            digest.update(adapter[name].tobytes() if adapter else b"")
        key = (digest.digest(), half)
        if key not in self._losses:
            if self._stopping.is_set():
                raise UnavailableError("evaluation: the node is stopping")
            self._losses[key] = heldout_loss(self._model, adapter, batches)
        return self._losses[key]
