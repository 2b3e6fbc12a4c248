"""What a step trains: one class for each objective, over rows that are tokens already.

An objective's loss for a step is a mean over its own rows of that step: over supervised tokens, or over pairs. It is
given in parts that sum to that mean, each no larger than a batch, so memory does not grow with the step. A part is
computed by anyone who calls it, so that several processes can share a step. Reads no file.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from commonweal_node.charter.objective_weights import ObjectiveName, ObjectiveWeights
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.losses import dpo_loss, simpo_loss
from commonweal_node.model.packing import ROW_TOKENS, Batch, pack, pack_pairs
from commonweal_node.model.tokens import Tokenised
from commonweal_node.training.team import ALONE, Team
from commonweal_protocols.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """Two answers to one prompt; only the answers' tokens are supervised. People preferred ``chosen``."""

    chosen: Tokenised
    rejected: Tokenised


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """A community's rows by kind, as tokens."""

    conversations: tuple[Tokenised, ...] = ()
    texts: tuple[Tokenised, ...] = ()
    pairs: tuple[TokenisedPair, ...] = ()


Part: TypeAlias = Callable[[], Tensor]
"""Computes a differentiable scalar each time it is called; nothing before that."""


class Objective(Protocol):
    """One loss and its rows. Not thread-safe; one training at a time."""

    @property
    def name(self) -> ObjectiveName:
        """Under which its loss is reported."""

    @property
    def weight(self) -> float:
        """What its gradient is multiplied by; > 0."""

    @property
    def num_rows(self) -> int:
        """How many rows it has; ≥ 1."""

    def prepare(self, model: AdaptedModel, used: Sequence[int], batch_tokens: int, team: Team = ALONE) -> None:
        """Compute what is needed of the training's start, which ``model`` has now, for the rows that will be used."""

    def parts(self, model: AdaptedModel, chosen: Sequence[int], batch_tokens: int) -> list[Part]:
        """Return parts whose sum is the mean loss over the rows ``chosen``, in nats."""

    def identity(self) -> bytes:
        """Return a digest of rows and parameters: a training resumes from a checkpoint where this is the same."""


def choose_objectives(weights: ObjectiveWeights, rows: TrainingRows) -> list[Objective]:
    """Return the objectives with a weight, in their fixed order.

    Raises:
        ConfigError: One of them has no rows.
    """
    conversations, texts, pairs = rows.conversations, rows.texts, rows.pairs
    made: list[Objective] = [
        TokenObjective("supervised", weights.weight("supervised"), conversations),
        TokenObjective("text", weights.weight("text"), texts),
        Dpo(weights.weight("dpo"), pairs, weights.dpo_beta_millis / 1000),
        Simpo(weights.weight("simpo"), pairs, weights.simpo_beta_millis / 1000, weights.simpo_margin_millis / 1000),
        BaseKl(weights.weight("base-kl"), conversations),
    ]
    chosen = [o for o in made if o.weight]
    for o in chosen:
        if not o.num_rows:
            raise ConfigError(f"training: wanted at least one row for the objective {o.name}, got none")
    return chosen


def _digest(parts: Sequence[object], rows: Sequence[Tokenised]) -> bytes:
    digest = hashlib.sha256(repr(parts).encode())
    for row in rows:
        digest.update(np.array([len(row.ids), *row.ids], np.int64).tobytes())
        digest.update(np.array(row.supervised, np.bool_).tobytes())
    return digest.digest()


class TokenObjective:
    """Mean cross entropy of supervised tokens: of conversations, or (every token supervised) of texts."""

    def __init__(self, name: ObjectiveName, weight: float, rows: Sequence[Tokenised]) -> None:
        self.name: ObjectiveName = name
        self.weight = weight
        self.rows = rows
        self.num_rows = len(rows)

    def prepare(self, model: AdaptedModel, used: Sequence[int], batch_tokens: int, team: Team = ALONE) -> None:
        """Nothing of the start is needed."""

    def parts(self, model: AdaptedModel, chosen: Sequence[int], batch_tokens: int) -> list[Part]:
        batches = pack([self.rows[i] for i in chosen], ROW_TOKENS, batch_tokens)
        supervised = sum(len(b.targets) for b in batches)
        return [partial(self._part, model, batch, supervised) for batch in batches]

    def _part(self, model: AdaptedModel, batch: Batch, supervised: int) -> Tensor:
        return model.summed_loss(batch) / supervised

    def identity(self) -> bytes:
        return _digest((self.name, self.weight), self.rows)


class BaseKl(TokenObjective):
    """Mean KL(adapted ‖ base) at supervised tokens."""

    def __init__(self, weight: float, rows: Sequence[Tokenised]) -> None:
        super().__init__("base-kl", weight, rows)

    def _part(self, model: AdaptedModel, batch: Batch, supervised: int) -> Tensor:
        return model.summed_base_kl(batch) / supervised


class _PairObjective:
    """What the two preference losses share."""

    def __init__(self, weight: float, pairs: Sequence[TokenisedPair]) -> None:
        self.weight = weight
        self.pairs = pairs
        self.num_rows = len(pairs)

    def _pack(self, chosen: Sequence[int], batch_tokens: int) -> list[Batch]:
        return pack_pairs([e for i in chosen for e in (self.pairs[i].chosen, self.pairs[i].rejected)], batch_tokens)

    def _rows(self) -> list[Tokenised]:
        return [e for p in self.pairs for e in (p.chosen, p.rejected)]


class Dpo(_PairObjective):
    """Mean DPO loss; the reference is the training's start, whose margins are computed once."""

    name: ObjectiveName = "dpo"

    def __init__(self, weight: float, pairs: Sequence[TokenisedPair], beta: float) -> None:
        super().__init__(weight, pairs)
        self.beta = beta
        self._margins: dict[int, float] = {}

    @torch.no_grad()
    def prepare(self, model: AdaptedModel, used: Sequence[int], batch_tokens: int, team: Team = ALONE) -> None:
        margins = [0.0] * len(used)
        for k, batch in enumerate(self._pack(used, batch_tokens)):
            if team.takes(k):
                places, answers, _ = _answers(model, batch)
                for place, margin in zip(places, (answers[:, 0] - answers[:, 1]).tolist(), strict=True):
                    margins[place] = margin
        self._margins = dict(zip(used, team.sum(margins), strict=True))

    def parts(self, model: AdaptedModel, chosen: Sequence[int], batch_tokens: int) -> list[Part]:
        return [partial(self._part, model, batch, chosen) for batch in self._pack(chosen, batch_tokens)]

    def _part(self, model: AdaptedModel, batch: Batch, chosen: Sequence[int]) -> Tensor:
        places, answers, _ = _answers(model, batch)
        reference = answers.new_tensor([self._margins[chosen[place]] for place in places])
        return dpo_loss(answers[:, 0], answers[:, 1], reference, self.beta).sum() / len(chosen)

    def identity(self) -> bytes:
        return _digest((self.name, self.weight, self.beta), self._rows())


class Simpo(_PairObjective):
    """Mean SimPO loss."""

    name: ObjectiveName = "simpo"

    def __init__(self, weight: float, pairs: Sequence[TokenisedPair], beta: float, margin: float) -> None:
        super().__init__(weight, pairs)
        self.beta = beta
        self.margin = margin

    def prepare(self, model: AdaptedModel, used: Sequence[int], batch_tokens: int, team: Team = ALONE) -> None:
        """Nothing of the start is needed."""

    def parts(self, model: AdaptedModel, chosen: Sequence[int], batch_tokens: int) -> list[Part]:
        return [partial(self._part, model, batch, len(chosen)) for batch in self._pack(chosen, batch_tokens)]

    def _part(self, model: AdaptedModel, batch: Batch, pairs: int) -> Tensor:
        _, answers, lengths = _answers(model, batch)
        means = answers / lengths
        return simpo_loss(means[:, 0], means[:, 1], self.beta, self.margin).sum() / pairs

    def identity(self) -> bytes:
        return _digest((self.name, self.weight, self.beta, self.margin), self._rows())


def _answers(model: AdaptedModel, batch: Batch) -> tuple[list[int], Tensor, Tensor]:
    """Which P pairs a batch of ``pack_pairs`` holds, and their answers' summed nats and lengths, both (P, 2)."""
    found = model.log_probabilities(batch)
    places = sorted({int(owner) // 2 for owner in batch.owners})
    line = {pair: k for k, pair in enumerate(places)}
    # A product and no scattered sum: on a GPU that would add in any order.
    belongs = found.new_zeros(2 * len(places), len(found))
    belongs[[2 * line[int(o) // 2] + int(o) % 2 for o in batch.owners], list(range(len(found)))] = 1.0
    return places, (belongs @ found).view(-1, 2), belongs.sum(dim=1).view(-1, 2)
