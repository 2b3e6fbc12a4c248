"""A whole model side over a tiny base, for a federation of one."""

import json
import threading
from pathlib import Path

import torch

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.connection.status import StatusBoard
from commonweal_node.model.base_model import detect_adapter_spec, folder_digest
from commonweal_node.training.learner import Learner
from commonweal_protocols.statements.compact import BaseModelRef, Compact, Recipe
from tests.kit.federation import Federation
from tests.kit.tiny_model import save_tiny_base, tiny_base

BASE = tiny_base()
SPEC = detect_adapter_spec(BASE, rank=4, alpha=8)


def terms_and_settings(home: Path, train_rows: int, **settings: object) -> tuple[Compact, NodeConfig]:
    """A compact of a tiny base, and a node's settings with so many training rows and sixteen held-out ones."""
    save_tiny_base(home / "base")
    rows = [
        {
            "messages": [{"role": "user", "content": f"what of {i}?"}, {"role": "assistant", "content": f"{i * 7}"}],
            "split": "train" if i < train_rows else "heldout",
        }
        for i in range(train_rows + 16)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = {"institution": "clinic", "data": home / "rows.jsonl", "cache": home / "cache"}
    config = NodeConfig.model_validate(given | {"threads": torch.get_num_threads()} | settings)
    base = BaseModelRef(reference=f"path:{home / 'base'}", sha256=folder_digest(home / "base"))
    recipe = Recipe(steps=3, batch_size=2, learning_rate_micros=5000, max_tokens=160)
    return Federation().compact.model_copy(update={"base": base, "adapter": SPEC, "recipe": recipe}), config


def learner(home: Path, train_rows: int, board: StatusBoard, **settings: object) -> Learner:
    """A whole model side over a tiny base, with so many training rows and eight held-out ones to report on."""
    compact, config = terms_and_settings(home, train_rows, **settings)
    return Learner(compact, config, ObjectiveWeights(), home, board, threading.Event())
