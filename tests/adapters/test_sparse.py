"""TIES and DARE: which elements stay, what becomes of them, and that peft's formulas give the same."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.rules import Dare, TaskArithmetic, Ties
from tests.kit.deltas import SPEC, a_round, data, flat, matrix


def naive_ties(rows: list[list[int]], shares: list[int], density: int, scale: int) -> list[int]:
    """One tensor, one element after another."""
    kept = []
    for row in rows:
        stay = max(1, len(row) * density // 1000)
        least = sorted((abs(q) for q in row), reverse=True)[stay - 1]
        kept.append([q if abs(q) >= least else 0 for q in row])
    moved = []
    for column in zip(*kept, strict=True):
        total = sum(w * q for w, q in zip(shares, column, strict=True))
        agree = [(w, q) for w, q in zip(shares, column, strict=True) if total * q > 0]
        weight = sum(w for w, _ in agree)
        moved.append(round(Fraction(scale * sum(w * q for w, q in agree), 1000 * weight)) if weight else 0)
    return moved


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 1 << 20]), st.sampled_from([1, 200, 500, 1000]))
def test_ties_is_its_formula_tensor_by_tensor(seed: int, size: int, density: int) -> None:
    start, deltas = a_round(seed, 4, size=size, weights=[1, 1, 1, 1])
    made = merge(Ties(weights="examples", density_millis=density, scale_millis=700), SPEC, start, deltas)
    for name, q in start.items():
        rows = [d.rows.read(name, 0, q.size).tolist() for d in deltas]
        moved = naive_ties(rows, [1] * 4, density, 700)
        assert made.adapter[name].reshape(-1).tolist() == (q.reshape(-1) + moved).tolist()


def of(*rows: list[int]) -> tuple[GridTensors, list[Delta]]:
    deltas = [Delta(f"i{k}", 1, Held(GridTensors({"a": np.array([r], np.int32)}))) for k, r in enumerate(rows)]
    return GridTensors({"a": np.zeros((1, len(rows[0])), np.int32)}), deltas


def test_who_disagrees_with_the_elected_sign_is_left_out_and_that_is_published() -> None:
    start, deltas = of([10, 10, 10, 10], [20, 20, 20, -20], [-5, -5, 30, -20])
    made = merge(Ties(weights="equal", density_millis=1000), SPEC, start, deltas)
    # Column 2 elects +, and the third is out; in the last, -, and the first is out.
    assert made.adapter["a"].tolist() == [[15, 15, 20, -20]]
    assert made.counted_micros == (750_000, 10**6, 500_000)


def test_values_that_cancel_out_leave_the_start() -> None:
    start, deltas = of([7, 3, 0], [-7, 3, 0])
    made = merge(Ties(weights="equal", density_millis=1000), SPEC, start, deltas)
    assert made.adapter["a"].tolist() == [[0, 3, 0]]
    # What is elected by nobody counts for nobody.
    assert made.counted_micros == (333_333, 333_333)


def test_all_that_equal_the_least_that_stays_stay() -> None:
    start, deltas = of([9, -4, 4, 1])
    made = merge(Ties(weights="equal", density_millis=500), SPEC, start, deltas)
    assert made.adapter["a"].tolist() == [[9, -4, 4, 0]]


def test_peft_ties_finds_the_same_within_half_a_step() -> None:
    torch = pytest.importorskip("torch")
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    start, deltas = a_round(5, 3, size=1 << 22)
    made = merge(Ties(weights="equal", density_millis=400), SPEC, start, deltas).adapter
    for name, q in start.items():
        tensors = [torch.tensor(d.rows.read(name, 0, q.size).copy(), dtype=torch.float64) for d in deltas]
        wanted = merge_utils.ties(tensors, torch.ones(3, dtype=torch.float64), 0.4).numpy()
        np.testing.assert_allclose(made[name].reshape(-1) - q.reshape(-1), wanted, rtol=0, atol=0.5 + 1e-6)


def test_peft_task_arithmetic_finds_the_same_within_the_rounding() -> None:
    torch = pytest.importorskip("torch")
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    weights = [1, 3, 4]
    start, deltas = a_round(6, 3, size=1 << 20, weights=weights)
    made = merge(TaskArithmetic(weights="examples", scale_millis=1500), SPEC, start, deltas).adapter
    rows = [torch.tensor(r, dtype=torch.float64) for r in matrix(deltas, start)]
    wanted = merge_utils.task_arithmetic(rows, torch.tensor([1.5 * w / 8 for w in weights], dtype=torch.float64))
    np.testing.assert_allclose(flat(made) - flat(start), wanted.numpy(), rtol=0, atol=0.5 + 1e-6)


# -- DARE

WIDE = AdapterSpec(
    rank=1,
    alpha=1,
    prefix="p",
    layers=1,
    modules=(LoraModule(name="m", in_features=(1 << 17) + 5, out_features=3),),
)


def stays(seed: int, round_seed: str, institution: str, name: str, size: int, drop_millis: int) -> list[bool]:
    """The docstring's streams, one word after another."""
    made = []
    for block in range(0, size, 1 << 16):
        lines = ["urn:commonweal:dare:v1", round_seed, str(seed), institution, name, str(block >> 16)]
        n = min(1 << 16, size - block)
        stream = hashlib.shake_256("\n".join(lines).encode()).digest(2 * n)
        words = [int.from_bytes(stream[2 * i : 2 * i + 2], "little") for i in range(n)]
        made += [w >= drop_millis * 65536 // 1000 for w in words]
    return made


def test_dare_is_its_formula_with_the_streams_that_its_contract_names() -> None:
    start, deltas = a_round(7, 2, spec=WIDE)
    made = merge(Dare(weights="equal", drop_millis=300, seed=11), WIDE, start, deltas, round_seed="ab")
    for name, q in start.items():
        masks = [stays(11, "ab", d.institution, name, q.size, 300) for d in deltas]
        rows = [d.rows.read(name, 0, q.size).tolist() for d in deltas]
        for at in (*range(min(50, q.size)), q.size - 1):
            total = sum(row[at] for row, mask in zip(rows, masks, strict=True) if mask[at])
            moved = round(Fraction(total * 1000, 2 * 700))
            assert made.adapter[name].reshape(-1)[at] == q.reshape(-1)[at] + moved


def test_dare_drops_the_share_it_says_and_keeps_the_mean() -> None:
    name_a = next(iter(tensor_shapes(WIDE)))
    kept = np.array(stays(0, "", "i000", name_a, 1 << 17, 900))
    # Five standard errors of a binomial with p = 1/10.
    assert abs(kept.mean() - 0.1) < 5 * (0.09 / kept.size) ** 0.5 + 2**-16


@pytest.mark.parametrize("other", [{"round_seed": "b"}, {"seed": 1}])
def test_each_round_and_each_seed_draws_anew(other: dict[str, str | int]) -> None:
    start, deltas = a_round(8, 3)
    seed, round_seed = other.get("seed", 0), str(other.get("round_seed", "a"))
    one = merge(Dare(weights="equal", drop_millis=500), SPEC, start, deltas, round_seed="a")
    two = merge(Dare(weights="equal", drop_millis=500, seed=int(seed)), SPEC, start, deltas, round_seed=round_seed)
    assert data(one.adapter) != data(two.adapter)


def test_institutions_draw_apart() -> None:
    start, deltas = a_round(9, 1)
    (d,) = deltas
    rule = Dare(weights="equal", drop_millis=500)
    assert data(merge(rule, SPEC, start, [d]).adapter) != data(
        merge(rule, SPEC, start, [Delta("x", 1, d.rows)]).adapter
    )
