"""One process of a team, as a launcher starts it: it plays every scene and writes down what it saw, for the tests.

``python -m tests.kit.team_process FOLDER`` writes FOLDER/<rank>.json. The tests play the same scenes alone.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.heldout import heldout_batches
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import Factor
from commonweal_node.model.tokens import tokenise
from commonweal_node.rows.row import Pair, Text
from commonweal_node.training.checkpoints import CheckpointFile
from commonweal_node.training.inputs import Material
from commonweal_node.training.objectives import Objective, TrainingRows, choose_objectives
from commonweal_node.training.team import ALONE, Team, join_team
from commonweal_node.training.train import EarlyStop, Progress, Trained, train_adapter
from commonweal_node.training.training_rows import tokenise_pairs, tokenise_texts
from commonweal_protocols.base.errors import ConfigError, LocalError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.tiny_model import example, random_adapter, tiny_base

BASE = tiny_base()
SPEC = detect_adapter_spec(BASE, rank=2, alpha=4)
MODEL = AdaptedModel(tiny_base(), SPEC)
START = random_adapter(SPEC, 4, b_size=0.05)
RECIPE = Recipe(steps=6, batch_size=8, learning_rate_micros=2000, max_tokens=120)
BATCH_TOKENS = 64
"""Less than a row of packed conversations: every row is a part, and a step has several for each process."""
SEED = 3
ROWS = TrainingRows(
    tokenise([example(f"what of {i}?", "so it is " * (8 + i % 3)) for i in range(9)], BASE.tokenizer, 120).examples,
    tokenise_texts([Text("the well is deep", "1"), Text("ask the elders first, then all", "2")], BASE.tokenizer, 20),
    tokenise_pairs([Pair(f"may I {i}?", "yes " * (i + 1), "no", str(i)) for i in range(5)], BASE.tokenizer, 120),
)
HELDOUT = [b for row in ROWS.conversations[:3] for b in heldout_batches([row])]


@dataclass(frozen=True)
class Scene:
    """One training."""

    weights: ObjectiveWeights
    frozen: Factor | None = None
    early_stop: EarlyStop | None = None
    recipe: Recipe = RECIPE

    def objectives(self) -> list[Objective]:
        return choose_objectives(self.weights, ROWS)


SCENES = {
    "supervised": Scene(ObjectiveWeights()),
    "every objective": Scene(
        ObjectiveWeights(supervised_millis=700, text_millis=300, dpo_millis=500, simpo_millis=250, base_kl_millis=100)
    ),
    "frozen": Scene(ObjectiveWeights(), frozen="A"),
    # A rate so high that the held-out loss soon rises.
    "early stop": Scene(
        ObjectiveWeights(),
        early_stop=EarlyStop(HELDOUT, every_steps=1, patience=2),
        recipe=RECIPE.model_copy(update={"steps": 40, "learning_rate_micros": 90_000}),
    ),
}


class Cancelled(Exception):
    """Anyone who is told of the progress wants no more."""


def ignore(_: Progress) -> None:
    """No progress wanted."""


def play(
    scene: Scene,
    team: Team = ALONE,
    on_progress: Callable[[Progress], None] = ignore,
    checkpoint: CheckpointFile | None = None,
) -> Trained:
    return train_adapter(
        MODEL,
        START,
        scene.objectives(),
        scene.recipe,
        SEED,
        on_progress,
        batch_tokens=BATCH_TOKENS,
        checkpoint=checkpoint,
        early_stop=scene.early_stop,
        frozen=scene.frozen,
        team=team,
    )


def digest(trained: Trained) -> str:
    return hashlib.sha256(b"".join(trained.adapter[n].tobytes() for n in sorted(trained.adapter))).hexdigest()


def tell(scene: Scene, team: Team = ALONE) -> dict[str, object]:
    """Play a scene, and say how it went: its course, its adapter, and the tokens that this very process computed."""
    before = MODEL.computed_tokens
    trained = play(scene, team)
    return {
        "course": trained.course.model_dump(exclude={"seconds"}),
        "digest": digest(trained),
        "own_tokens": MODEL.computed_tokens - before,
        "adapter": {name: value.tolist() for name, value in trained.adapter.items()},
    }


def cancelling(step: int) -> Callable[[Progress], None]:
    def cancel(p: Progress) -> None:
        if p.step == step:
            raise Cancelled(f"at step {step}")

    return cancel


def outcome(train: Callable[[], Trained]) -> str:
    """What became of a training: its digest, or the error."""
    try:
        return digest(train())
    except (LocalError, Cancelled) as e:
        return f"{type(e).__name__}: {e}"


def material(scene: Scene, rows: TrainingRows) -> Material:
    """What a process has loaded."""
    return Material(MODEL, Path(), Path(), scene.weights, rows, HELDOUT, (), 0)


def refusal(agree: Callable[[], None]) -> str:
    """The error of an agreement; empty: there was none."""
    try:
        agree()
    except ConfigError as e:
        return str(e)
    return ""


def main(folder: Path) -> None:
    team = join_team()
    found: dict[str, object] = {"size": team.size, "threads": torch.get_num_threads()}
    for name, scene in SCENES.items():
        found[name] = tell(scene, team)
    scene = SCENES["every objective"]
    # The last worker lacks a row.
    last = team.rank == team.size - 1
    fewer = TrainingRows(ROWS.conversations[:-1], ROWS.texts, ROWS.pairs) if last else ROWS
    found["same"] = refusal(lambda: material(scene, ROWS).agree(team))
    found["other rows"] = refusal(lambda: material(scene, fewer).agree(team))
    torch.set_num_threads(2 if last else 1)
    found["other machine"] = refusal(lambda: material(scene, ROWS).agree(team))
    torch.set_num_threads(1)
    found["after a refusal"] = outcome(lambda: play(scene, team))
    kept = CheckpointFile(folder / "checkpoint.safetensors", every_seconds=0) if team.rank == 0 else None
    found["cancelled"] = outcome(lambda: play(scene, team, on_progress=cancelling(4), checkpoint=kept))
    if kept is not None:
        (folder / "kept.safetensors").write_bytes((folder / "checkpoint.safetensors").read_bytes())
    seen: list[int] = []
    found["gone on"] = outcome(lambda: play(scene, team, on_progress=lambda p: seen.append(p.step), checkpoint=kept))
    found["seen"] = seen
    (folder / f"{team.rank}.json").write_text(json.dumps(found))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
