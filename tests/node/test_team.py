"""Several real processes on loopback, met by the stock launcher, train what one process trains."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commonweal_node.model.tokens import step_indices
from commonweal_node.training.checkpoints import CheckpointFile
from commonweal_node.training.train import GRADIENT_NORM, rate_factor
from tests.kit.launch import launch
from tests.kit.team_process import BATCH_TOKENS, MODEL, RECIPE, SCENES, SEED, START, Scene, play, tell

TOLERANCE = 100 * RECIPE.steps * 16 * 2.0**-24
"""Of losses and values, which are of the order of 1. In each step at most 16 parts are added in another order, which
moves a gradient by as many roundings; AdamW divides by its root mean square, which enlarges them where parts cancel
each other: a hundredfold is room enough. A part that is left out moves a loss by more than ten times this."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes, whose products are then rounded as here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Played = list[dict[str, Any]]
"""What each process of a team has seen."""


@pytest.fixture(scope="module")
def team_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Played]:
    """Has so many processes play every scene, once. The checkpoint of a training that was cancelled lies beside."""

    @cache
    def team_of(size: int) -> Played:
        folder = tmp_path_factory.mktemp("team")
        done = launch(folder, size, "tests.kit.team_process", folder)
        assert done.returncode == 0, done.stderr
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
        assert [(f["size"], f["threads"]) for f in found] == [(size, 1)] * size
        found[0]["kept"] = str(folder / "kept.safetensors")
        return found

    return team_of


@pytest.fixture(params=[2, 3])
def played(request: pytest.FixtureRequest, team_of: Callable[[int], Played]) -> Played:
    return team_of(request.param)


def two_shares(scene: Scene) -> dict[str, np.ndarray[Any, Any]]:
    """The second implementation: one process computes both shares, one after the other, and adds them up."""
    with MODEL.adapter(START) as parameters:
        objectives = scene.objectives()
        order = [list(step_indices(o.num_rows, RECIPE.batch_size, RECIPE.steps, SEED)) for o in objectives]
        for o in objectives:
            o.prepare(MODEL, range(o.num_rows), BATCH_TOKENS)
        optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0, fused=True)
        for step in range(RECIPE.steps):
            optimizer.param_groups[0]["lr"] = RECIPE.learning_rate_micros / 1e6 * rate_factor(step, RECIPE.steps)
            parts = [
                (o, part)
                for o, rows in zip(objectives, order, strict=True)
                for part in o.parts(MODEL, rows[step], BATCH_TOKENS)
            ]
            shares = []
            for mine in (parts[0::2], parts[1::2]):
                for o, part in mine:
                    (part() * o.weight).backward()  # type: ignore[no-untyped-call]
                shares.append([p.grad.clone() for p in parameters if p.grad is not None])
                optimizer.zero_grad()
            for parameter, first, second in zip(parameters, *shares, strict=True):
                parameter.grad = first + second
            torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
        return MODEL.read(parameters)


def test_two_processes_train_the_very_bytes_of_two_shares_that_are_added_up(team_of: Callable[[int], Played]) -> None:
    for name in ("supervised", "every objective"):
        for tensor, value in two_shares(SCENES[name]).items():
            got = np.array(team_of(2)[0][name]["adapter"][tensor], np.float32)
            assert got.tobytes() == value.tobytes(), (name, tensor)


@pytest.mark.parametrize("name", SCENES)
def test_a_team_takes_the_course_of_one_process(played: Played, name: str) -> None:
    alone, course = tell(SCENES[name]), played[0][name]["course"]
    wanted: Any = alone["course"]
    assert course["losses"].keys() == wanted["losses"].keys()
    for objective, losses in wanted["losses"].items():
        # Before the first step nothing differs but the order in which float64 parts are added.
        assert course["losses"][objective][0] == pytest.approx(losses[0], rel=1e-12)
        assert course["losses"][objective] == pytest.approx(losses, abs=TOLERANCE)
    assert [step for step, _ in course["heldout"]] == [step for step, _ in wanted["heldout"]]
    assert [loss for _, loss in course["heldout"]] == pytest.approx([x for _, x in wanted["heldout"]], abs=TOLERANCE)
    assert [course[fact] for fact in ("step", "best_step", "tokens")] == [
        wanted[fact] for fact in ("step", "best_step", "tokens")
    ]
    for tensor, values in alone["adapter"].items():  # type: ignore[attr-defined]
        np.testing.assert_allclose(played[0][name]["adapter"][tensor], values, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", SCENES)
def test_all_processes_hold_the_same_bytes(played: Played, name: str) -> None:
    assert len({found[name]["digest"] for found in played}) == 1


@pytest.mark.parametrize("name", SCENES)
def test_every_part_is_computed_by_exactly_one_process_and_all_have_work(played: Played, name: str) -> None:
    own = [found[name]["own_tokens"] for found in played]
    assert sum(own) == tell(SCENES[name])["own_tokens"]
    assert min(own) > 0


def test_a_frozen_factor_keeps_every_bit(played: Played) -> None:
    for tensor, value in START.items():
        got = np.array(played[0]["frozen"]["adapter"][tensor], np.float32)
        assert (got.tobytes() == value.tobytes()) == ("lora_A" in tensor)


def test_early_stop_ends_every_process_at_the_same_step(played: Played) -> None:
    courses = [found["early stop"]["course"] for found in played]
    assert 0 < courses[0]["best_step"] < courses[0]["step"] < SCENES["early stop"].recipe.steps
    assert all(course["heldout"] == courses[0]["heldout"] for course in courses)


@pytest.mark.parametrize(
    ("what", "fix"), [("rows", "copy node.toml and the data"), ("machine", "one number of threads")]
)
def test_a_worker_with_other_rows_or_another_machine_is_refused_by_name_in_every_process(
    played: Played, what: str, fix: str
) -> None:
    last = len(played) - 1
    for found in played:
        assert found["same"] == ""
        assert found[f"other {what}"].startswith(
            f"{what}: wanted the same in every process as in process 0, got another in process {last} on "
        )
        assert fix in found[f"other {what}"]
        # Nobody hangs, and the same team trains on.
        assert found["after a refusal"] == found["every objective"]["digest"]


def test_a_cancelled_training_ends_in_every_process_and_goes_on_to_the_same_bytes(played: Played) -> None:
    assert played[0]["cancelled"] == "Cancelled: at step 4"
    assert {found["cancelled"] for found in played[1:]} == {"UnavailableError: training: process 0 has ended it"}
    for found in played:
        assert found["gone on"] == found["every objective"]["digest"]
    # The step in which it was cancelled had not been kept.
    assert [found["seen"] for found in played] == [[4, 5, 6]] + [[]] * (len(played) - 1)


def test_a_checkpoint_of_another_number_of_processes_is_not_gone_on_from(played: Played, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(Path(played[0]["kept"]).read_bytes())
    seen: list[int] = []
    play(SCENES["every objective"], on_progress=lambda p: seen.append(p.step), checkpoint=CheckpointFile(path, 1000))
    assert seen == [1, 2, 3, 4, 5, 6]
