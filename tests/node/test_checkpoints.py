"""A killed training continues to the same bytes, from wherever it was killed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tokens import tokenise
from commonweal_node.rows.row import Pair
from commonweal_node.training.checkpoints import CheckpointFile, Course, TrainingState, decode
from commonweal_node.training.objectives import Objective, TrainingRows, choose_objectives
from commonweal_node.training.train import EarlyStop, Progress, Trained, train_adapter
from commonweal_node.training.training_rows import tokenise_pairs
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.tiny_model import EXAMPLES, random_adapter, tiny_base

BASE = tiny_base()
SPEC = detect_adapter_spec(BASE, rank=2, alpha=4)
MODEL = AdaptedModel(tiny_base(), SPEC)
START = random_adapter(SPEC, 4, b_size=0.0)
RECIPE = Recipe(steps=5, batch_size=3, learning_rate_micros=5000, max_tokens=120)
TOKENISED = tokenise(EXAMPLES, BASE.tokenizer, 120).examples
ROWS = TrainingRows(
    TOKENISED,
    pairs=tokenise_pairs([Pair("q", "yes", "no", "1"), Pair("r", "we", "I", "2")], BASE.tokenizer, 120),
)
WEIGHTS = ObjectiveWeights(dpo_millis=500, base_kl_millis=100)
STOP = EarlyStop(heldout_batches(TOKENISED[:2]), every_steps=2, patience=5)


class Killed(Exception):
    """Stands for the end of a process."""


def objectives() -> list[Objective]:
    return choose_objectives(WEIGHTS, ROWS)


def run(checkpoint: CheckpointFile | None, kill_at: int = 0, seed: int = 1, seen: list[int] | None = None) -> Trained:
    def report(p: Progress) -> None:
        if seen is not None:
            seen.append(p.step)
        if p.step == kill_at:
            raise Killed

    return train_adapter(
        MODEL, START, objectives(), RECIPE, seed, report, checkpoint=checkpoint, early_stop=STOP
    )  # fmt: skip


def fingerprint(trained: Trained) -> str:
    """All that must be the same: the adapter and every loss on the way."""
    digest = hashlib.sha256(repr((trained.course.losses, trained.course.heldout, trained.course.step)).encode())
    for name in sorted(trained.adapter):
        digest.update(trained.adapter[name].tobytes())
    return digest.hexdigest()


def test_a_training_that_was_killed_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    wanted = fingerprint(run(None))
    for kill_at in (1, 3, RECIPE.steps):
        kept = CheckpointFile(tmp_path / f"{kill_at}.safetensors", every_seconds=0)
        with pytest.raises(Killed):
            run(kept, kill_at)
        seen: list[int] = []
        assert fingerprint(run(kept, seen=seen)) == wanted
        # The step in which it was killed is the only one that is computed twice.
        assert seen == list(range(kill_at, RECIPE.steps + 1))
        assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_not_gone_on_from(tmp_path: Path) -> None:
    kept = CheckpointFile(tmp_path / "c.safetensors", every_seconds=0)
    with pytest.raises(Killed):
        run(kept, 5, seed=2)
    assert fingerprint(run(kept, seed=1)) == fingerprint(run(None, seed=1))


def test_a_checkpoint_is_its_owners_alone_and_a_broken_one_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    kept = CheckpointFile(path, every_seconds=0)
    kept.save("x", TrainingState(Course(step=1), [np.ones(2, np.float32)]))
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept.load("y") == b""
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="remove the file to train anew"):
        kept.load("x")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = [np.array([[1.5, -0.0], [np.float32(1e-42), 3e38]], np.float32), np.zeros(1, np.float32)]
    course = Course(
        step=3, tokens=9, seconds=0.1, losses={"dpo": [0.1 + 0.2, 1e-300]}, heldout=[(2, 1 / 3)], best_step=2
    )
    kept = CheckpointFile(tmp_path / "c.safetensors", every_seconds=0)
    kept.save("x", TrainingState(course, arrays, arrays[:1], arrays[1:], arrays))
    back = decode(kept.load("x"))
    assert back.course == course
    for got, want in zip(
        (back.values, back.means, back.squares, back.best), (arrays, arrays[:1], arrays[1:], arrays), strict=True
    ):
        assert [a.tobytes() for a in got] == [a.tobytes() for a in want]


def test_early_stop_keeps_the_best_values_on_heldout_rows_and_ends_after_its_patience() -> None:
    # Trained on one row and watched on others, a high rate soon makes those worse.
    few = choose_objectives(ObjectiveWeights(), TrainingRows(TOKENISED[1:2]))
    recipe = Recipe(steps=40, batch_size=1, learning_rate_micros=50_000, max_tokens=120)
    stop = EarlyStop(heldout_batches([TOKENISED[0], *TOKENISED[2:]]), every_steps=1, patience=3)
    trained = train_adapter(MODEL, START, few, recipe, 0, lambda _: None, early_stop=stop)
    losses = dict(trained.course.heldout)
    best = min(losses, key=losses.__getitem__)
    assert trained.course.best_step == best
    assert trained.course.step == best + 3 < 40
    assert row_losses(MODEL, trained.adapter, list(stop.batches)).mean == pytest.approx(losses[best], rel=1e-6)
