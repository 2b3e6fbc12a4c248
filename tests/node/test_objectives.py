"""Objectives: each loss and each gradient against the paper's formula, written out over full logits under PEFT."""

import copy
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from commonweal_node.charter.objective_weights import OBJECTIVES, ObjectiveWeights
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import slots
from commonweal_node.model.tokens import Tokenised, tokenise
from commonweal_node.rows.row import Pair, Text
from commonweal_node.training.objectives import Objective, TrainingRows, choose_objectives
from commonweal_node.training.training_rows import tokenise_pairs, tokenise_texts
from commonweal_protocols.base.errors import ConfigError
from tests.kit.tiny_model import EXAMPLES, peft_model, random_adapter, tiny_base

BASE = tiny_base()
SPEC = detect_adapter_spec(BASE, rank=4, alpha=8)
MODEL = AdaptedModel(tiny_base(), SPEC)
START, ADAPTER = random_adapter(SPEC, 1), random_adapter(SPEC, 2)
ROWS = TrainingRows(
    tokenise(EXAMPLES, BASE.tokenizer, 500).examples,
    tokenise_texts([Text("the well is deep", "1"), Text("ask the elders first", "2")], BASE.tokenizer, 12),
    tokenise_pairs(
        [
            Pair("may I?", "of course, and thank you for asking", "no", "1"),
            Pair("who decides?", "all of us", "I do, and nobody else", "2"),
            Pair("what now?", "let us ask", "let us not", "3"),
        ],
        BASE.tokenizer,
        500,
    ),
)
ALL = ObjectiveWeights(
    supervised_millis=700, text_millis=300, dpo_millis=500, simpo_millis=250, base_kl_millis=100, dpo_beta_millis=200
)
Formula = Callable[[torch.nn.Module], torch.Tensor]


def log_probabilities(model: torch.nn.Module, row: Tokenised) -> torch.Tensor:
    """(supervised tokens, V): all of one row's logits by itself, and torch's own softmax."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
    at = [k - 1 for k, s in enumerate(row.supervised) if s and k]
    return torch.log_softmax(logits[at], dim=-1)


def answer(model: torch.nn.Module, row: Tokenised) -> torch.Tensor:
    """The log-probability of each supervised token."""
    targets = torch.tensor([t for k, (t, s) in enumerate(zip(row.ids, row.supervised, strict=True)) if s and k])
    return log_probabilities(model, row).gather(1, targets[:, None])[:, 0]


def cross_entropy(rows: Sequence[Tokenised]) -> Formula:
    return lambda model: -torch.cat([answer(model, r) for r in rows]).mean()


def dpo(model: torch.nn.Module) -> torch.Tensor:
    """Rafailov et al. 2023, equation 7, with the training's start as the reference."""
    reference, losses = peft_model(SPEC, START), []
    for pair in ROWS.pairs:
        won, lost = (answer(model, r).sum() - answer(reference, r).sum().detach() for r in (pair.chosen, pair.rejected))
        losses.append(-torch.log(1 / (1 + torch.exp(-0.2 * (won - lost)))))
    return torch.stack(losses).mean()


def simpo(model: torch.nn.Module) -> torch.Tensor:
    """Meng et al. 2024, equation 6: β = 2, γ = 1."""
    losses = []
    for pair in ROWS.pairs:
        margin = 2.0 * (answer(model, pair.chosen).mean() - answer(model, pair.rejected).mean()) - 1.0
        losses.append(-torch.log(1 / (1 + torch.exp(-margin))))
    return torch.stack(losses).mean()


def base_kl(model: torch.nn.Module) -> torch.Tensor:
    base, parts = tiny_base().model, []
    for row in ROWS.conversations:
        ours, theirs = log_probabilities(model, row), log_probabilities(base, row).detach()
        parts.append((ours.exp() * (ours - theirs)).sum(dim=-1))
    return torch.cat(parts).mean()


FORMULAS: dict[str, Formula] = {
    "supervised": cross_entropy(ROWS.conversations),
    "text": cross_entropy(ROWS.texts),
    "dpo": dpo,
    "simpo": simpo,
    "base-kl": base_kl,
}


def prepared(weights: ObjectiveWeights) -> list[Objective]:
    objectives = choose_objectives(weights, ROWS)
    with MODEL.adapter(START):
        for o in objectives:
            o.prepare(MODEL, range(o.num_rows), 300)
    return objectives


def gradients(formula: Formula) -> tuple[float, list[torch.Tensor]]:
    """A formula's value and its gradients for (A, B) of each slot, by autograd under PEFT."""
    model = peft_model(SPEC, ADAPTER)
    loss = formula(model)
    loss.backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_parameters())
    found = [named[n.replace(".weight", ".default.weight")].grad for s in slots(SPEC) for n in (s.name_a, s.name_b)]
    return float(loss.detach()), [g for g in found if g is not None]


@pytest.mark.parametrize("batch_tokens", [1, 5000])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_loss_and_gradient_is_its_papers_formula(name: str, batch_tokens: int) -> None:
    (objective,) = [o for o in prepared(ALL) if o.name == name]
    wanted, wanted_gradients = gradients(FORMULAS[name])
    with MODEL.adapter(ADAPTER) as parameters:
        total = 0.0
        for compute in objective.parts(MODEL, range(objective.num_rows), batch_tokens):
            part = compute()
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
        found = [p.grad for p in parameters]
    assert total == pytest.approx(wanted, rel=2e-5)
    assert max(float(g.abs().max()) for g in wanted_gradients) > 1e-3
    for got, want in zip(found, wanted_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-5)


def test_at_the_start_dpo_is_log_two_and_the_kl_of_the_base_to_itself_is_nothing() -> None:
    objectives = {o.name: o for o in prepared(ALL)}
    with torch.no_grad(), MODEL.adapter(START):
        dpo_loss = sum(float(p()) for p in objectives["dpo"].parts(MODEL, range(3), 300))
    untouched = random_adapter(SPEC, 3, b_size=0.0)
    with torch.no_grad(), MODEL.adapter(untouched):
        kl = sum(float(p()) for p in objectives["base-kl"].parts(MODEL, range(5), 300))
    assert dpo_loss == pytest.approx(np.log(2), rel=1e-5)
    assert abs(kl) < 1e-6


def test_only_objectives_with_a_weight_are_trained_and_in_their_fixed_order() -> None:
    assert [o.name for o in choose_objectives(ALL, ROWS)] == list(OBJECTIVES)
    assert [o.name for o in choose_objectives(ObjectiveWeights(), ROWS)] == ["supervised"]
    assert [o.weight for o in choose_objectives(ALL, ROWS)] == [0.7, 0.3, 0.5, 0.25, 0.1]


def test_an_objective_without_rows_is_refused() -> None:
    for weights, name in (
        (ObjectiveWeights(text_millis=1), "text"),
        (ObjectiveWeights(dpo_millis=1), "dpo"),
        (ObjectiveWeights(simpo_millis=1), "simpo"),
    ):
        with pytest.raises(ConfigError, match=f"at least one row for the objective {name}, got none"):
            choose_objectives(weights, TrainingRows(conversations=ROWS.conversations))


def test_weights_that_train_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="wanted a weight above 0"):
        ObjectiveWeights(supervised_millis=0, base_kl_millis=500)


def test_every_fact_of_an_objective_is_in_its_identity() -> None:
    changed = [
        ObjectiveWeights.model_validate(ALL.model_dump() | {f"{name}_millis": value})
        for name, value in (("supervised", 701), ("dpo_beta", 201), ("simpo_beta", 2001), ("simpo_margin", 999))
    ]
    known = [b"".join(o.identity() for o in choose_objectives(w, ROWS)) for w in (ALL, *changed)]
    other = copy.copy(ROWS.conversations[0])
    rows = TrainingRows(
        (Tokenised(other.ids, (True, *other.supervised[1:])), *ROWS.conversations[1:]), ROWS.texts, ROWS.pairs
    )
    known.append(b"".join(o.identity() for o in choose_objectives(ALL, rows)))
    assert len(set(known)) == len(known)
    assert known[0] == b"".join(o.identity() for o in choose_objectives(ALL, ROWS))


def test_a_texts_pieces_are_the_whole_text_and_its_end() -> None:
    tokenizer = BASE.tokenizer
    text = "ask the elders first, and then the young"
    pieces = tokenise_texts([Text(text, "1")], tokenizer, 7)
    ids = list(itertools.chain.from_iterable(p.ids for p in pieces))
    assert tokenizer.decode(ids) == text + "<|im_end|>"
    assert all(len(p.ids) <= 7 and p.supervised == (False,) + (True,) * (len(p.ids) - 1) for p in pieces)


def test_a_pair_that_differs_only_beyond_the_cut_is_dropped() -> None:
    same, other = Pair("q", "yes and yes", "yes and no", "1"), Pair("q", "yes", "no", "2")
    whole = tokenise_pairs([same, other], BASE.tokenizer, 500)
    assert len(whole) == 2
    differs = next(
        k for k, (a, b) in enumerate(zip(whole[0].chosen.ids, whole[0].rejected.ids, strict=False)) if a != b
    )
    assert tokenise_pairs([same, other], BASE.tokenizer, differs) == (tokenise_pairs([other], BASE.tokenizer, differs))
