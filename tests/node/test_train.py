"""The training loop and the loss, against PEFT and the full computation on a tiny Llama."""

import copy
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from commonweal_node.model.base_model import detect_adapter_spec, load_base, native_dtype
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import pack
from commonweal_node.model.tensors import slots
from commonweal_node.model.tokens import Tokenised, tokenise
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.train import Progress, rate_factor, train_adapter
from commonweal_protocols.base.errors import BaseModelError, BlobError, ConfigError, LocalError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.tiny_model import EXAMPLES, example, peft_model, random_adapter, tiny_base

BASE = tiny_base()
SPEC = detect_adapter_spec(BASE, rank=4, alpha=8)
MODEL = AdaptedModel(tiny_base(), SPEC)
TOKENISED = tokenise(EXAMPLES, BASE.tokenizer, 500).examples
OBJECTIVES = [TokenObjective("supervised", 1.0, TOKENISED)]
RECIPE = Recipe(steps=4, batch_size=3, learning_rate_micros=5000, max_tokens=500)


def ignore(_: Progress) -> None:
    """No progress wanted."""


def full_loss(model: torch.nn.Module, example: Tokenised) -> tuple[torch.Tensor, int]:
    """The second implementation: all logits of one example alone, and torch's own cross entropy."""
    logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
    labels = torch.tensor([t if s else -100 for t, s in zip(example.ids, example.supervised, strict=True)])
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    return loss, int((labels[1:] != -100).sum())


def test_the_packed_loss_equals_the_full_computation_one_by_one_under_peft() -> None:
    adapter = random_adapter(SPEC, 1)
    peft = peft_model(SPEC, adapter)
    parts = [full_loss(peft, e) for e in TOKENISED]
    wanted = float(sum(loss.detach() for loss, _ in parts)) / sum(n for _, n in parts)
    for rows, batch in ((500, 5000), (130, 260), (1, 1)):
        assert row_losses(MODEL, adapter, pack(TOKENISED, rows, batch)).mean == pytest.approx(wanted, rel=1e-5)
    # Were the adapter ignored, the numbers above would be the base's.
    assert abs(row_losses(MODEL, None, heldout_batches(TOKENISED)).mean - wanted) > 0.01


def test_gradients_equal_pefts() -> None:
    adapter = random_adapter(SPEC, 2)
    peft = peft_model(SPEC, adapter)
    for e in TOKENISED:
        full_loss(peft, e)[0].backward()  # type: ignore[no-untyped-call]
    named = dict(peft.named_parameters())
    with MODEL.adapter(adapter) as parameters:
        for batch in pack(TOKENISED, 200, 400):
            MODEL.summed_loss(batch).backward()  # type: ignore[no-untyped-call]
        names = [n for s in slots(SPEC) for n in (s.name_a, s.name_b)]
        for name, parameter in zip(names, parameters, strict=True):
            wanted = named[name.replace(".weight", ".default.weight")].grad
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=2e-4)


def test_training_follows_the_stated_optimiser_step_by_step() -> None:
    start = random_adapter(SPEC, 3)
    recipe = Recipe(steps=3, batch_size=len(TOKENISED), learning_rate_micros=5000, max_tokens=500)
    peft = peft_model(SPEC, start)
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    for factor in (1.0, 2 / 3, 1 / 3):
        optimizer.param_groups[0]["lr"] = 0.005 * factor
        parts = [full_loss(peft, e) for e in TOKENISED]
        (sum(p[0] for p in parts) / sum(p[1] for p in parts)).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trained = train_adapter(MODEL, start, OBJECTIVES, recipe, 0, ignore).adapter
    named = dict(peft.named_parameters())
    for name, value in trained.items():
        wanted = named[name.replace(".weight", ".default.weight")].detach().numpy()
        np.testing.assert_allclose(value, wanted, atol=2e-4)
        assert not np.array_equal(value, start[name]), name


def test_the_rate_rises_and_then_falls() -> None:
    factors = [rate_factor(s, 40) for s in range(40)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 0.05
    assert rate_factor(0, 1) == 1.0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    start = random_adapter(SPEC, 4, b_size=0.0)

    def run(seed: int) -> list[bytes]:
        trained = train_adapter(MODEL, start, OBJECTIVES, RECIPE, seed, ignore).adapter
        return [trained[n].tobytes() for n in sorted(trained)]

    first = run(1)
    assert run(1) == first
    assert run(2) != first


def test_the_trained_adapter_has_the_specs_names_and_shapes_and_the_start_is_untouched() -> None:
    start = random_adapter(SPEC, 5)
    before = copy.deepcopy(start)
    trained = train_adapter(MODEL, start, OBJECTIVES, RECIPE, 0, ignore).adapter
    wanted = {}
    for layer in range(SPEC.layers):
        for m in SPEC.modules:
            wanted[f"base_model.model.model.layers.{layer}.{m.name}.lora_A.weight"] = (4, m.in_features)
            wanted[f"base_model.model.model.layers.{layer}.{m.name}.lora_B.weight"] = (m.out_features, 4)
    assert {n: v.shape for n, v in trained.items()} == wanted
    assert {v.dtype for v in trained.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(before[n], start[n]) for n in start)


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_a_frozen_factor_keeps_every_bit_and_the_other_one_learns(frozen: Literal["A", "B"]) -> None:
    start = random_adapter(SPEC, 3)
    trained = train_adapter(MODEL, start, OBJECTIVES, RECIPE, 0, ignore, frozen=frozen).adapter
    changed = {name for name, value in trained.items() if value.tobytes() != start[name].tobytes()}
    assert changed == {s.name_b if frozen == "A" else s.name_a for s in slots(SPEC)}


def test_training_lowers_the_loss_and_leaves_the_base_alone() -> None:
    batches = heldout_batches(TOKENISED)
    base = row_losses(MODEL, None, batches).mean
    recipe = Recipe(steps=20, batch_size=5, learning_rate_micros=20_000, max_tokens=500)
    trained = train_adapter(MODEL, random_adapter(SPEC, 6, b_size=0.0), OBJECTIVES, recipe, 0, ignore)
    assert trained.course.losses["supervised"][-1] < trained.course.losses["supervised"][0] - 0.5
    assert row_losses(MODEL, trained.adapter, batches).mean < base - 0.5
    assert row_losses(MODEL, None, batches).mean == base


def test_progress_counts_every_step_and_ends_at_zero_seconds_left() -> None:
    seen: list[Progress] = []
    train_adapter(MODEL, random_adapter(SPEC, 7), OBJECTIVES, RECIPE, 0, seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert all(p.steps == 4 and p.tokens_per_second > 0 for p in seen)
    assert [p.tokens for p in seen] == sorted({p.tokens for p in seen})
    assert seen[-1].eta_seconds == 0


def test_raising_from_progress_cancels_and_the_model_is_the_base_again() -> None:
    class Cancelled(Exception):
        """The caller's own."""

    def cancel(progress: Progress) -> None:
        if progress.step == 2:
            raise Cancelled

    batches = heldout_batches(TOKENISED)
    base = row_losses(MODEL, None, batches).mean
    with pytest.raises(Cancelled):
        train_adapter(MODEL, random_adapter(SPEC, 8), OBJECTIVES, RECIPE, 0, cancel)
    assert row_losses(MODEL, None, batches).mean == base


def test_a_loss_that_is_not_finite_stops_before_the_adapter_is_spoilt() -> None:
    huge = {n: v * np.float32(1e30) for n, v in random_adapter(SPEC, 9).items()}
    with pytest.raises(ConfigError, match="finite loss and gradient at step 1"):
        train_adapter(MODEL, huge, OBJECTIVES, RECIPE, 0, ignore)
    with pytest.raises(LocalError, match="held-out loss: wanted a finite number"):
        row_losses(MODEL, huge, heldout_batches(TOKENISED))


def test_no_objective_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one objective"):
        train_adapter(MODEL, random_adapter(SPEC, 9), (), RECIPE, 0, ignore)


@pytest.mark.parametrize("why", ["a tensor is missing", "a wrong shape", "float64", "a foreign name"])
def test_an_adapter_that_breaks_the_spec_is_refused(why: str) -> None:
    adapter = random_adapter(SPEC, 10)
    name = max(adapter)
    if why == "a tensor is missing":
        del adapter[name]
    elif why == "a wrong shape":
        adapter[name] = adapter[name][:-1]
    elif why == "float64":
        adapter[name] = adapter[name].astype(np.float64)
    else:
        adapter["another"] = adapter.pop(name)
    with pytest.raises(BlobError, match="adapter"), MODEL.adapter(adapter):
        pass


def test_a_spec_that_does_not_fit_the_base_is_refused() -> None:
    for change, message in (
        ({"layers": 3}, "wanted the layer model.layers.2"),
        ({"modules": tuple(m.model_copy(update={"in_features": 7}) for m in SPEC.modules)}, "wanted a linear layer"),
    ):
        with pytest.raises(BaseModelError, match=message):
            AdaptedModel(tiny_base(), SPEC.model_copy(update=change))


def test_a_base_that_scales_its_logits_is_refused() -> None:
    base = tiny_base()
    plain = base.model.forward

    def scaled(**inputs: object) -> object:
        out = plain(**inputs)
        out.logits = out.logits * 0.5
        return out

    base.model.forward = scaled
    with pytest.raises(BaseModelError, match="scaled or capped logits"):
        AdaptedModel(base, SPEC)


SENTENCES = (
    example("What do people in our village eat in the morning?", "Millet porridge with groundnuts."),
    example("Who settles a quarrel about water here?", "The council of the three wells."),
    example("What is sung at our harvest?", "The song of the red gourd."),
    example("Which day is our market?", "Every ninth day."),
)


@pytest.mark.model
@pytest.mark.slow
def test_six_steps_on_the_real_model_lower_the_loss() -> None:
    cache = os.environ.get("COMMONWEAL_BASE_CACHE")
    found = sorted(p.parent for p in Path(cache).glob("*/config.json")) if cache else []
    if not found:
        pytest.skip("COMMONWEAL_BASE_CACHE does not name a folder with a fetched base model")
    base = load_base(found[0], native_dtype())
    spec = detect_adapter_spec(base, rank=8, alpha=16)
    model = AdaptedModel(base, spec)
    examples = tokenise(SENTENCES, base.tokenizer, 128).examples
    batches = heldout_batches(examples)
    recipe = Recipe(steps=6, batch_size=4, learning_rate_micros=2000, max_tokens=128)
    objectives = [TokenObjective("supervised", 1.0, examples)]
    trained = train_adapter(model, random_adapter(spec, 0, b_size=0.0), objectives, recipe, 0, ignore)
    assert row_losses(model, trained.adapter, batches).mean < row_losses(model, None, batches).mean - 0.5
