"""The training loop: an adapter in, a trained adapter out. The only module that computes an optimiser step.

Guarantees: the same start, examples, recipe, seed, machine and thread count give the same bytes; the caller's arrays
are never written to; the model has no adapter afterwards, whatever happened. It reads no file and sends nothing.

AdamW (arXiv 1711.05101) without weight decay on float32 master values, β = (0.9, 0.999), ε = 1e-8; the learning rate
rises over the first tenth of the steps and then falls linearly towards 0; the gradient's L2 norm is clipped at 1.
A step's loss is the mean over all supervised tokens of its ``batch_size`` examples, however they are packed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from commonweal_node.data import Tokenised, step_indices
from commonweal_node.lora import AdaptedModel
from commonweal_node.packing import pack
from commonweal_node.tensors import AdapterTensors
from commonweal_protocols.errors import ConfigError
from commonweal_protocols.predicates import Recipe

GRADIENT_NORM = 1.0
ROW_TOKENS = 192
"""As in evaluation: the shared prefix is a small part of a row, and attention a small part of the work."""
BATCH_TOKENS = 1024
"""Tokens that go forward and backward together; a larger step accumulates, so memory does not grow with the recipe."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is, after a step. ``tokens`` counts every token computed, supervised or not."""

    step: int
    steps: int
    loss: float
    tokens: int
    tokens_per_second: float
    eta_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained adapter, and the training's first and last step losses (nats for each supervised token)."""

    adapter: dict[str, NDArray[np.float32]]
    first_loss: float
    last_loss: float
    tokens: int
    seconds: float


def train_adapter(
    model: AdaptedModel,
    start: AdapterTensors,
    examples: Sequence[Tokenised],
    recipe: Recipe,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> Trained:
    """Train from ``start`` on ``examples``.

    Args:
        model: The base; its spec is the adapter's.
        start: The round's start; not changed.
        examples: At least one, cut to ``recipe.max_tokens`` by ``data.tokenise``.
        recipe: Steps, examples for each step, and the highest learning rate.
        seed: Fixes the order of the examples; nothing else is random.
        on_progress: Called after each step. To cancel, raise from it: the exception passes through unchanged.

    Raises:
        BlobError: ``start`` breaks the spec.
        ConfigError: There are no examples, or the loss is no longer finite.
    """
    if not examples:
        raise ConfigError("training: wanted at least one example, got none")
    began = time.monotonic()
    tokens, first, last = 0, math.nan, math.nan
    with model.adapter(start) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate_micros / 1e6, weight_decay=0.0, fused=True)
        for step, chosen in enumerate(step_indices(len(examples), recipe.batch_size, recipe.steps, seed)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_micros / 1e6 * rate_factor(step, recipe.steps)
            batches = pack([examples[i] for i in chosen], ROW_TOKENS, BATCH_TOKENS)
            supervised = sum(len(b.targets) for b in batches)
            last = 0.0
            for batch in batches:
                loss = model.summed_loss(batch) / supervised
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                last += float(loss.detach())
                tokens += batch.tokens
            norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            # Refused before the optimiser can write it into the adapter.
            if not math.isfinite(last) or not math.isfinite(float(norm)):
                raise ConfigError(
                    f"training: wanted a finite loss and gradient at step {step + 1}, got {last} and {float(norm)} "
                    "(lower recipe.learning_rate_micros)"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            first = last if step == 0 else first
            seconds = max(time.monotonic() - began, 1e-9)
            done = step + 1
            eta = seconds / done * (recipe.steps - done)
            on_progress(Progress(done, recipe.steps, last, tokens, tokens / seconds, eta))
        return Trained(model.read(parameters), first, last, tokens, time.monotonic() - began)


def rate_factor(step: int, steps: int) -> float:
    """The part of the highest learning rate at ``step`` (from 0): up over a tenth of the steps, down to 1/steps."""
    rising = max(1, steps // 10)
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))
