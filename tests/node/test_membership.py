"""The membership figure: its arithmetic against counting, and what it says of rows that were learnt by heart."""

import json
from pathlib import Path

import numpy as np
import pytest

from commonweal_adapters.files.delta import read_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.connection.status import StatusBoard
from commonweal_node.model.heldout import example_losses, heldout_batches, row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tokens import tokenise
from commonweal_node.probes.membership_attack import MIN_ROWS, MembershipAttack, roc_area
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.train import train_adapter
from commonweal_protocols.statements.compact import Recipe
from tests.kit.learner import BASE, SPEC, learner
from tests.kit.tiny_model import EXAMPLES, example, random_adapter, tiny_base

MODEL = AdaptedModel(tiny_base(), SPEC)


def test_the_area_is_the_share_of_pairs_that_are_in_order() -> None:
    assert roc_area([3, 2], [1, 0]).auc == 1
    assert roc_area([0, 1], [2, 3]).auc == 0
    assert roc_area([1, 1], [1, 1]).auc == 0.5
    assert roc_area([2, 0, 1], [1, 3]).auc == pytest.approx((1 + 0 + 0.5) / 6)


def test_the_error_is_hanley_and_mcneils() -> None:
    # Their paper's form, with the numbers of a table by hand: AUC 0.75 from 2 and 2.
    found = roc_area([3, 1], [2, 0])
    q1, q2 = 0.75 / 1.25, 2 * 0.5625 / 1.75
    assert found.auc == 0.75
    assert found.error == pytest.approx(((0.1875 + (q1 - 0.5625) + (q2 - 0.5625)) / 4) ** 0.5)


def test_example_losses_are_those_of_each_example_alone() -> None:
    adapter = random_adapter(SPEC, 1)
    rows = tokenise(EXAMPLES, BASE.tokenizer, 500).examples
    wanted = [row_losses(MODEL, adapter, heldout_batches([row])).mean for row in rows]
    assert example_losses(MODEL, adapter, rows) == pytest.approx(wanted, rel=1e-5)


def test_rows_learnt_by_heart_are_told_from_others_and_an_untrained_adapter_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, 12)) for _ in range(16)]
    rows = tokenise([example(t[:4], t[4:]) for t in texts], BASE.tokenizer, 120).examples
    recipe = Recipe(steps=25, batch_size=8, learning_rate_micros=20_000, max_tokens=120)
    start = random_adapter(SPEC, 2, b_size=0.0)
    objective = TokenObjective("supervised", 1.0, rows[:8])
    trained = train_adapter(MODEL, start, [objective], recipe, 0, lambda _: None)
    attack = MembershipAttack(MODEL, rows[:8], rows[8:], most=8)
    assert attack.measure(trained.adapter).auc > 0.9
    # B = 0 is the base itself: nothing is told, though some rows are easier than others.
    assert attack.measure(start).auc == 0.5
    assert roc_area(*(example_losses(MODEL, None, part) for part in (rows[:8], rows[8:]))).auc != 0.5


def test_the_figure_that_is_sent_is_the_one_that_the_report_and_the_status_tell(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, "clinic")
    made = learner(tmp_path, MIN_ROWS, board)
    start = read_adapter(recompute_start(SPEC), SPEC)
    trained = made.train(start, Recipe(steps=3, batch_size=2, learning_rate_micros=50_000, max_tokens=160), "round 1")
    assert json.loads((tmp_path / "runs/round-1.json").read_text())["membership"] is None, "it may yet stay at home"
    figure = made.membership(trained)
    told = json.loads((tmp_path / "runs/round-1.json").read_text())["membership"]["auc"]
    assert figure == round(told * 1e6) != 500_000
    assert board.newest.membership_auc == told
    assert made.membership(start) == 500_000, "of the start, whose product is zero, it is another"


def test_with_too_few_rows_there_is_no_figure(tmp_path: Path) -> None:
    made = learner(tmp_path, MIN_ROWS - 1, StatusBoard(tmp_path, "clinic"))
    trained = made.train(
        read_adapter(recompute_start(SPEC), SPEC),
        Recipe(steps=1, batch_size=1, learning_rate_micros=1, max_tokens=160),
        "few",
    )
    assert made.membership(trained) is None
    assert json.loads((tmp_path / "runs/few.json").read_text())["membership"] is None


def test_a_sample_is_bounded_and_spread() -> None:
    rows = tokenise(EXAMPLES, BASE.tokenizer, 500).examples
    found = MembershipAttack(MODEL, rows, rows[:2], most=3).measure(random_adapter(SPEC, 3))
    assert (found.members, found.others) == (3, 2)
