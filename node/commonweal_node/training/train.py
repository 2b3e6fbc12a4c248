"""The training loop: an adapter in, a trained adapter out. The only module that computes an optimiser step.

Guarantees: the same start, objectives, recipe, seed, machine, thread and process count give the same bytes, whether the
run was killed and went on from a checkpoint or not; the caller's arrays are never written to; the model has no adapter
afterwards, whatever happened. But for the checkpoint it reads and writes no file, and it sends nothing but to the
processes of its own team.

AdamW (arXiv 1711.05101) without weight decay on float32 master values, β = (0.9, 0.999), ε = 1e-8; the learning rate
rises over the first tenth of the steps and then falls linearly towards 0; the gradient's L2 norm is clipped at 1.
The gradient of a step is the weighted sum of its objectives' gradients, each over ``batch_size`` rows of its own.

Several processes take a step's parts in turn, counted over all of its objectives, add up their gradients and losses,
and then all do the same step with the same values. So they train what one process does but for the order in which
floats are added; no part is computed twice.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import Batch
from commonweal_node.model.tensors import AdapterTensors, Factor
from commonweal_node.model.tokens import step_indices
from commonweal_node.training.checkpoints import CheckpointFile, Course, TrainingState, decode
from commonweal_node.training.objectives import Objective
from commonweal_node.training.team import ALONE, Team
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.compact import Recipe

GRADIENT_NORM = 1.0
BATCH_TOKENS = 1024
"""Tokens that go forward and backward together; a larger step accumulates, so memory does not grow with the recipe."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is, after a step. ``losses`` has one mean for each objective, in nats, by its name.

    ``tokens`` counts every token computed, supervised or not, in all processes; the rates are since this process began,
    not of an earlier one. ``parts`` is how many parts the step had: no more processes than that had work in it.
    """

    step: int
    steps: int
    parts: int
    losses: Mapping[str, float]
    tokens: int
    tokens_per_second: float
    steps_per_second: float
    eta_seconds: float


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When to end before the last step: held-out rows, every how many steps, and how many times without a new best.

    What is returned then are the best values seen, not the last. The schedule of the learning rate does not change.
    """

    batches: Sequence[Batch]
    every_steps: int
    patience: int


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained adapter, and how it went: every step's loss by objective, and the held-out losses on the way."""

    adapter: dict[str, NDArray[np.float32]]
    course: Course


# Long because the steps of one training loop share what they change.
def train_adapter(
    model: AdaptedModel,
    start: AdapterTensors,
    objectives: Sequence[Objective],
    recipe: Recipe,
    seed: int,
    on_progress: Callable[[Progress], None],
    *,
    batch_tokens: int = BATCH_TOKENS,
    checkpoint: CheckpointFile | None = None,
    early_stop: EarlyStop | None = None,
    frozen: Factor | None = None,
    team: Team = ALONE,
) -> Trained:
    """Train from ``start``. Of a team, every process calls it with the same arguments, but for the two of process 0.

    That they are the same is for the caller to see to.

    Args:
        model: The base; its spec is the adapter's.
        start: The round's start; not changed.
        objectives: At least one, as ``choose_objectives`` gives them.
        recipe: Steps, rows of each objective for each step, and the highest learning rate.
        seed: Fixes the order of the rows; nothing else is random.
        on_progress: Called after each step, in process 0. To cancel, raise from it: the exception passes through
            unchanged, and the other processes end with an UnavailableError.
        batch_tokens: See ``BATCH_TOKENS``; another number rounds otherwise, so it is part of what fixes the bytes.
        checkpoint: Where process 0 continues from and writes to; None: a killed run begins anew.
        early_stop: None: all steps are taken.
        frozen: The factor that stays what it is in ``start``, bit for bit.
        team: The processes that share the work.

    Raises:
        BlobError: ``start`` breaks the spec.
        ConfigError: There is no objective, or a loss is no longer finite.
        StorageError: The checkpoint cannot be read or written.
        UnavailableError: A process has ended.
    """
    if not objectives:
        raise ConfigError("training: wanted at least one objective, got none")
    identity = _identity(model, start, objectives, recipe, seed, batch_tokens, early_stop, frozen, team.size)
    order = [list(step_indices(o.num_rows, recipe.batch_size, recipe.steps, seed)) for o in objectives]
    with model.adapter(start) as parameters:
        for o, steps in zip(objectives, order, strict=True):
            o.prepare(model, sorted({i for step in steps for i in step}), batch_tokens, team)
        run = _Run(model, parameters, recipe, early_stop, frozen, team)
        if kept := team.lead(lambda: checkpoint.load(identity) if checkpoint else b""):
            run.restore(decode(kept))
        began = saved = time.monotonic()
        before, tokens_before, spent = run.course.step, run.course.tokens, run.course.seconds

        def tell_and_keep() -> bytes:
            nonlocal saved
            on_progress(_progress(run, recipe.steps, before, tokens_before, seconds))
            if checkpoint and not run.is_over() and time.monotonic() - saved >= checkpoint.every_seconds:
                checkpoint.save(identity, run.state())
                saved = time.monotonic()
            return b""

        for step in range(before, recipe.steps):
            run.take([(o, steps[step]) for o, steps in zip(objectives, order, strict=True)], batch_tokens)
            seconds = max(time.monotonic() - began, 1e-9)
            run.course.seconds = spent + seconds
            team.lead(tell_and_keep)
            if run.is_over():
                break
        if checkpoint:
            checkpoint.remove()
        return Trained(model.read(run.best or parameters), run.course)


def _progress(run: "_Run", steps: int, before: int, tokens_before: int, seconds: float) -> Progress:
    course = run.course
    done = course.step - before
    return Progress(
        course.step,
        steps,
        run.parts,
        {name: losses[-1] for name, losses in course.losses.items()},
        course.tokens,
        (course.tokens - tokens_before) / seconds,
        done / seconds,
        seconds / done * (steps - course.step),
    )


class _Run:
    """The moving parts of one training; lives inside of ``train_adapter``."""

    def __init__(
        self,
        model: AdaptedModel,
        parameters: list[nn.Parameter],
        recipe: Recipe,
        early_stop: EarlyStop | None,
        frozen: Factor | None,
        team: Team,
    ) -> None:
        self._model = model
        self._team = team
        self._parameters = parameters
        self._recipe = recipe
        self._early_stop = early_stop
        # Parameters are (A, B) of each slot in turn.
        self._frozen = [] if frozen is None else parameters[0 if frozen == "A" else 1 :: 2]
        self._rate = recipe.learning_rate_micros / 1e6
        self._optimizer = torch.optim.AdamW(parameters, lr=self._rate, weight_decay=0.0, fused=True)
        self.course = Course()
        self.parts = 0
        """How many parts the newest step had."""
        self.best: list[torch.Tensor] = []
        """The best values on held-out rows, where they are watched; else empty."""

    def take(self, chosen: Sequence[tuple[Objective, Sequence[int]]], batch_tokens: int) -> None:
        """Compute one step.

        Raises:
            ConfigError: A loss or the gradient is not finite; the adapter is as it was.
        """
        step = self.course.step
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * rate_factor(step, self._recipe.steps)
        losses, tokens = self._gradients(chosen, batch_tokens)
        for parameter in self._frozen:
            if parameter.grad is not None:
                # Without a gradient the moments stay 0, and so does every step.
                parameter.grad.zero_()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM))
        # Refused before the optimiser can write it into the adapter.
        if not all(map(math.isfinite, (norm, *losses.values()))):
            raise ConfigError(
                f"training: wanted a finite loss and gradient at step {step + 1}, got {losses} and {norm} "
                "(lower recipe.learning_rate_micros)"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for name, loss in losses.items():
            self.course.losses.setdefault(name, []).append(loss)
        self.course.step = step + 1
        self.course.tokens += tokens
        if self._early_stop and (step + 1) % self._early_stop.every_steps == 0:
            self._watch(self._early_stop)

    def _gradients(
        self, chosen: Sequence[tuple[Objective, Sequence[int]]], batch_tokens: int
    ) -> tuple[dict[str, float], int]:
        """Leave the step's gradient with the parameters; its losses, and how many tokens it took."""
        before = self._model.computed_tokens
        losses = {objective.name: 0.0 for objective, _ in chosen}
        self.parts = 0
        for objective, rows in chosen:
            for compute in objective.parts(self._model, rows, batch_tokens):
                if self._team.takes(self.parts):
                    part = compute()
                    (part * objective.weight).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    losses[objective.name] += float(part.detach())
                self.parts += 1
        # The losses first: they go between CPUs, where a process that has died is noticed at once, on any device.
        *summed, tokens = self._team.sum([*losses.values(), self._model.computed_tokens - before])
        self._team.sum_gradients(self._parameters)
        return dict(zip(losses, summed, strict=True)), int(tokens)

    def _watch(self, early_stop: EarlyStop) -> None:
        with torch.no_grad():
            own = sum(
                float(self._model.summed_loss(b)) for k, b in enumerate(early_stop.batches) if self._team.takes(k)
            )
        (nats,) = self._team.sum([own])
        loss = nats / sum(len(b.targets) for b in early_stop.batches)
        lowest = min((seen for _, seen in self.course.heldout), default=math.inf)
        self.course.heldout.append((self.course.step, loss))
        if loss < lowest:
            self.course.best_step = self.course.step
            self.best = [p.detach().clone() for p in self._parameters]

    def is_over(self) -> bool:
        """Whether the held-out loss has had no new best for as many evaluations as are borne."""
        if self._early_stop is None:
            return False
        since = sum(step > self.course.best_step for step, _ in self.course.heldout)
        return since >= self._early_stop.patience

    def state(self) -> TrainingState:
        """Copies of all that the next step depends on."""
        moments = [self._optimizer.state[p] for p in self._parameters]
        return TrainingState(
            self.course.model_copy(deep=True),
            [_array(p) for p in self._parameters],
            [_array(m["exp_avg"]) for m in moments],
            [_array(m["exp_avg_sq"]) for m in moments],
            [_array(b) for b in self.best],
        )

    def restore(self, state: TrainingState) -> None:
        """Go on from a state of this very training."""
        self.course = state.course
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state.values, strict=True):
                parameter.copy_(torch.from_numpy(value))
        whole = self._optimizer.state_dict()
        whole["state"] = {
            i: {
                "step": torch.tensor(float(state.course.step)),
                "exp_avg": torch.from_numpy(mean),
                "exp_avg_sq": torch.from_numpy(square),
            }
            for i, (mean, square) in enumerate(zip(state.means, state.squares, strict=True))
        }
        self._optimizer.load_state_dict(whole)
        self.best = [torch.from_numpy(b).to(self._model.device) for b in state.best]


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().copy()


def _identity(
    model: AdaptedModel,
    start: AdapterTensors,
    objectives: Sequence[Objective],
    recipe: Recipe,
    seed: int,
    batch_tokens: int,
    early_stop: EarlyStop | None,
    frozen: Factor | None,
    processes: int,
) -> str:
    """What the bytes of the result depend on, in one digest."""
    watched = (early_stop.every_steps, early_stop.patience) if early_stop else ()
    machine = (model.describe(), torch.__version__, processes)
    facts = (recipe.model_dump_json(), seed, batch_tokens, watched, frozen, *machine)
    digest = hashlib.sha256(repr(facts).encode())
    for name in sorted(start):
        digest.update(start[name].tobytes())
    for objective in objectives:
        digest.update(objective.identity())
    for batch in early_stop.batches if early_stop else ():
        digest.update(batch.ids.tobytes() + batch.targets.tobytes())
    return digest.hexdigest()


def rate_factor(step: int, steps: int) -> float:
    """The part of the highest learning rate at ``step`` (from 0): up over a tenth of the steps, down to 1/steps."""
    rising = max(1, steps // 10)
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))
