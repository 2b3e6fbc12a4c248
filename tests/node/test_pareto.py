"""Sweeps over weightings: shares, points that are beaten, and real trainings that move as their weights do."""

import pytest

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.model.tokens import tokenise
from commonweal_node.training.objectives import TrainingRows, choose_objectives
from commonweal_node.training.pareto import Point, render_pareto, sweep, undominated, weightings
from commonweal_node.training.train import train_adapter
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.tiny_model import EXAMPLES, random_adapter, tiny_base

BOTH = ObjectiveWeights(supervised_millis=600, base_kl_millis=400)


def test_shares_go_from_all_of_the_one_to_all_of_the_other() -> None:
    weights = ObjectiveWeights(supervised_millis=600, dpo_millis=400, base_kl_millis=50)
    tried = weightings(weights, ("supervised", "dpo"), 3)
    assert [(w.supervised_millis, w.dpo_millis, w.base_kl_millis) for w in tried] == [
        (1000, 0, 50),
        (500, 500, 50),
        (0, 1000, 50),
    ]


@pytest.mark.parametrize("names", [("supervised", "text"), ("supervised", "supervised")])
def test_an_objective_without_a_weight_cannot_be_traded(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="two objectives with a weight"):
        weightings(BOTH, names, 3)  # type: ignore[arg-type]


def test_a_point_is_beaten_only_by_one_that_is_no_worse_in_anything() -> None:
    points = [Point(BOTH, {"supervised": a, "base-kl": b}) for a, b in ((1, 3), (2, 2), (2, 3), (3, 1), (2, 2))]
    assert undominated(points) == [True, True, False, True, True]


def test_more_weight_on_the_anchor_keeps_the_adapter_nearer_to_the_base() -> None:
    base = tiny_base()
    spec = detect_adapter_spec(base, rank=2, alpha=4)
    rows = TrainingRows(tokenise(EXAMPLES, base.tokenizer, 120).examples)
    tried = [ObjectiveWeights(supervised_millis=1000, base_kl_millis=k) for k in (0, 2000, 50_000)]
    recipe = Recipe(steps=12, batch_size=5, learning_rate_micros=10_000, max_tokens=120)
    model, start = AdaptedModel(base, spec), random_adapter(spec, 1, b_size=0.0)

    def train(_: int, weights: ObjectiveWeights) -> AdapterTensors:
        return train_adapter(model, start, choose_objectives(weights, rows), recipe, 0, lambda _: None).adapter

    points = sweep(model, start, rows, rows, tried, 1024, train)
    kl = [p.losses["base-kl"] for p in points]
    supervised = [p.losses["supervised"] for p in points]
    assert kl == sorted(kl, reverse=True)
    assert supervised == sorted(supervised)
    assert kl[-1] < kl[0] / 4
    page = render_pareto(points).decode()
    assert page.count("<svg") == 1
    assert all(f"{p.losses[name]:.4f}" in page for p in points for name in ("supervised", "base-kl"))
