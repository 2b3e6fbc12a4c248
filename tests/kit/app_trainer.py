"""A node's trainer whose Flower ClientApp is one of the kit's; two training rows, a held-out one, and no torch."""

import json
import threading
from pathlib import Path

from commonweal_adapters.files.delta import read_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.config import NodeConfig
from commonweal_node.home import NodeHome
from commonweal_node.training.flower_trainer import AppResult, FlowerTrainer
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule, Recipe

SPEC = AdapterSpec(
    rank=2,
    alpha=4,
    prefix="base_model.model.model.layers",
    layers=1,
    modules=(LoraModule(name="self_attn.q_proj", in_features=3, out_features=4),),
)
RECIPE = Recipe(steps=3, batch_size=2, learning_rate_micros=250_000, max_tokens=160)
START = read_adapter(recompute_start(SPEC), SPEC)


def app_trainer(home: Path, app: str, seconds: int = 100, **run_config: str) -> FlowerTrainer:
    """One whose app is that of the kit, or the one with this whole name; its files are written below ``home``."""
    rows = [{"text": f"well {i}", "split": split} for i, split in enumerate(("train", "train", "heldout"))]
    (home / "base").mkdir(parents=True, exist_ok=True)
    (home / "base/config.json").write_text("{}")
    (home / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = NodeConfig(
        institution="clinic",
        data=home / "rows.jsonl",
        trainer=app if ":" in app else f"flower:tests.kit.flower_apps:{app}",
        trainer_config=dict(run_config),
        trainer_timeout_seconds=seconds,
    )
    return FlowerTrainer(config, SPEC, home / "base", config.data, NodeHome(home), threading.Event())


def train(trainer: FlowerTrainer, *, frozen: bool = False) -> AppResult:
    """Have it train a round, whose rule freezes A if asked to."""
    return trainer.train(START, RECIPE, "round 1", "A" if frozen else None)
