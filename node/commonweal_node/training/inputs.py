"""What a process trains with: the base model, and the community's rows as tokens. Read once; rows stay in the process.

The node has it, and so has every worker that trains with it: same base, same rows, which ``agree`` makes sure of.
"""

import hashlib
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.model.base_model import fetch_base, load_base, native_dtype, share_weights
from commonweal_node.model.heldout import heldout_batches
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import Batch
from commonweal_node.model.tensors import AdapterTensors, adapter_digest
from commonweal_node.model.tokens import Tokenised, split_heldout, tokenise
from commonweal_node.rows.row import Example, read_examples
from commonweal_node.training.memory_estimate import Demand, check_memory, load_shape
from commonweal_node.training.objectives import TrainingRows, choose_objectives
from commonweal_node.training.team import Team
from commonweal_node.training.training_rows import load_training_rows
from commonweal_protocols.base.errors import BaseModelError, ConfigError
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, Recipe

log = logging.getLogger(__name__)


class Terms(Protocol):
    """What of a compact matters to the model side."""

    @property
    def base(self) -> BaseModelRef:
        """The base model."""

    @property
    def adapter(self) -> AdapterSpec:
        """The shape of every adapter."""

    @property
    def recipe(self) -> Recipe:
        """How a round trains; rows are cut at its ``max_tokens``."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The base, and rows of every kind that the weights train on.

    Attributes:
        model: The base, on this process's device.
        base: Where its files are, in transformers' layout.
        data: Where the rows are from. Of a curation, the very folder: a later one may take its name meanwhile.
        weights: The charter's objectives.
        rows: To train on.
        tune: Held-out rows by which a blend is chosen and a training may end early.
        report: Held-out rows for the figures that are told.
        estimated_bytes: What a training was estimated to take, in this process; None where nothing is known.
    """

    model: AdaptedModel
    base: Path
    data: Path
    weights: ObjectiveWeights
    rows: TrainingRows
    tune: Sequence[Batch]
    report: tuple[Tokenised, ...]
    estimated_bytes: int | None

    def agree(self, team: Team) -> None:
        """Hold all processes of a team to the same base, kind of machine, and rows.

        Raises:
            ConfigError: They differ; it names the processes.
            UnavailableError: A process has ended.
        """
        # Where products are rounded otherwise, the processes would drift apart after a step.
        capability = (platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__)
        machine = hashlib.sha256(repr((self.model.describe(), *capability)).encode())
        team.agree("machine", machine.digest(), "it takes one kind of CPU and GPU, one torch, one number of threads")
        rows = hashlib.sha256()
        for objective in choose_objectives(self.weights, self.rows):
            rows.update(objective.identity())
        for batch in self.tune:
            rows.update(batch.ids.tobytes() + batch.targets.tobytes())
        team.agree("rows", rows.digest(), "copy node.toml and the data of process 0 to that host again")


def load_material(
    terms: Terms, config: NodeConfig, weights: ObjectiveWeights, team: Team, tell: Callable[[str], None]
) -> Material:
    """Load the base and the rows.

    Args:
        terms: The rules in force.
        config: This node's settings; of them the data, the cache, and how to compute.
        weights: The charter's objectives.
        team: Whose memory is shared, and the device of this process.
        tell: Told each slow step in one line.

    Raises:
        BaseModelError: The base cannot be had, or is not the one that the compact names.
        ConfigError: A row is malformed, there is nothing to train or to evaluate on, or too little memory.
    """
    dtype = native_dtype(team.device)
    folder = share_weights(fetch_base(terms.base, config.cache, tell), dtype, tell)
    estimated_bytes = _check_memory(folder, terms, config, team)
    tell("loading it")
    model = AdaptedModel(
        load_base(folder, dtype, team.device),
        terms.adapter,
        config.threads or None,
        checkpointing=config.gradient_checkpointing,
    )
    data, max_tokens = config.data.resolve(), terms.recipe.max_tokens
    if max_tokens > model.max_tokens:
        raise BaseModelError(
            f"base model: wanted one that reads {max_tokens} tokens, as the recipe's max_tokens has it, got "
            f"{model.max_tokens}: lower max_tokens in the compact"
        )

    def tokens(examples: tuple[Example, ...]) -> tuple[Tokenised, ...]:
        found = tokenise(examples, model.tokenizer, max_tokens).examples
        if not found:
            raise ConfigError(f"{data}: wanted held-out rows for choosing and for reporting, got too few")
        return found

    rows = load_training_rows(data, "train", weights, model.tokenizer, max_tokens)
    halves = split_heldout(read_examples(data, "heldout"), config.max_heldout_rows)
    tune = heldout_batches(tokens(halves.tune))
    return Material(model, folder, data, weights, rows, tune, tokens(halves.report), estimated_bytes)


def _check_memory(folder: Path, terms: Terms, config: NodeConfig, team: Team) -> int | None:
    shape = load_shape(folder)
    if shape is None:
        log.info("memory: how much a training takes is not known, since %s/config.json has words of its own", folder)
        return None
    demand = Demand(
        shape,
        terms.adapter,
        torch.finfo(native_dtype(team.device)).bits // 8,
        terms.recipe.max_tokens,
        config.gradient_checkpointing,
        early_stop=config.early_stop_every_steps > 0,
    )
    if team.device == "cpu":
        available = psutil.virtual_memory().available // team.local_size
    else:
        available = torch.cuda.mem_get_info(team.device)[0]
    return check_memory(demand, config.batch_tokens, available, team.local_size)


def shuffled_seed(seed: int, institution: str, start: AdapterTensors) -> int:
    """Return the seed of a training: it follows from the node's own, its name, and the adapter that it starts from."""
    digest = hashlib.sha256(f"{seed}:{institution}:".encode() + adapter_digest(start)).digest()
    return int.from_bytes(digest[:4]) >> 1
