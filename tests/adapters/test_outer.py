"""Outer optimisers: rounds on the grid follow torch's optimisers in floats, and the state is on the grid too."""

from fractions import Fraction

import numpy as np
import pytest

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.outer import round_half_even
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.rules import FactorMean, FedAdam, FedAvgM, Nesterov
from tests.kit.deltas import SPEC, a_round, data, flat, matrix

UNIT = 2.0**SPEC.grid_bits


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_follows_torchs_sgd_over_rounds(nesterov: bool) -> None:
    torch = pytest.importorskip("torch")
    rule: FedAvgM | Nesterov
    if nesterov:
        rule = Nesterov(weights="equal", momentum_millis=900, rate_millis=700)
    else:
        rule = FedAvgM(weights="equal", momentum_millis=900, rate_millis=700)
    start, _ = a_round(0, 1)
    x = torch.nn.Parameter(torch.tensor(flat(start), dtype=torch.float64))
    sgd = torch.optim.SGD([x], lr=0.7, momentum=0.9, nesterov=nesterov)
    state: tuple[GridTensors, ...] = ()
    for seed in range(5):
        _, deltas = a_round(seed, 3)
        x.grad = -torch.tensor(matrix(deltas, start), dtype=torch.float64).mean(dim=0)
        sgd.step()
        made = merge(rule, SPEC, start, deltas, state=state)
        start, state = made.adapter, made.state
    # A step each round for mean, state and adapter, and what the state's add up to.
    np.testing.assert_allclose(flat(start), x.detach().numpy(), rtol=0, atol=20)


def test_adam_follows_its_formula_over_rounds() -> None:
    rule = FedAdam(weights="equal", rate_micros=50_000, tau_micros=2000, momentum_millis=900, second_millis=990)
    start, _ = a_round(0, 1)
    x, m, v = flat(start) / UNIT, np.zeros(flat(start).size), np.zeros(flat(start).size)
    state: tuple[GridTensors, ...] = ()
    for seed in range(5):
        _, deltas = a_round(seed, 3)
        gradient = matrix(deltas, start).mean(axis=0) / UNIT
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        x = x + 0.05 * m / (np.sqrt(v) + 0.002)
        made = merge(rule, SPEC, start, deltas, state=state)
        start, state = made.adapter, made.state
    np.testing.assert_allclose(flat(start) / UNIT, x, rtol=0, atol=2e-4)
    np.testing.assert_allclose(flat(state[0]) / UNIT, m, rtol=0, atol=5 / UNIT)
    # s is cut off, not rounded, each time.
    np.testing.assert_allclose(flat(state[1]) / UNIT, np.sqrt(v), rtol=0, atol=10 / UNIT)


def test_the_root_in_adams_state_is_the_integer_root() -> None:
    start = GridTensors({"a": np.zeros((1, 4), np.int32)})
    delta = GridTensors({"a": np.array([[LIMIT, LIMIT - 1, 3, -LIMIT]], np.int32)})
    rule = FedAdam(weights="equal", rate_micros=1, second_millis=0)
    made = merge(rule, SPEC, start, [Delta("i", 1, Held(delta))])
    # s² = Δ² exactly: one too few would show at the squares themselves.
    assert made.state[1]["a"].tolist() == [[LIMIT, LIMIT - 1, 3, LIMIT]]


def test_the_first_round_without_momentum_and_at_full_rate_is_the_mean() -> None:
    start, deltas = a_round(1, 4)
    rule = FedAvgM(weights="equal", momentum_millis=0, rate_millis=1000)
    assert data(merge(rule, SPEC, start, deltas).adapter) == data(
        merge(FactorMean(weights="equal"), SPEC, start, deltas).adapter
    )


def test_a_state_of_another_rule_is_refused() -> None:
    start, deltas = a_round(2, 2)
    zero = GridTensors({n: np.zeros_like(q) for n, q in start.items()})
    with pytest.raises(BlobError, match="fedadam: wanted a state of 2 grids, or none, got 1"):
        merge(FedAdam(weights="equal", rate_micros=1), SPEC, start, deltas, state=(zero,))
    with pytest.raises(BlobError, match="factor-mean: wanted no state, got 1 grids"):
        merge(FactorMean(weights="equal"), SPEC, start, deltas, state=(zero,))


def test_a_state_out_of_range_is_refused() -> None:
    start = GridTensors({"a": np.zeros((1, 1), np.int32)})
    most = GridTensors({"a": np.full((1, 1), LIMIT, np.int32)})
    rule = FedAvgM(weights="equal", momentum_millis=500, rate_millis=1)
    with pytest.raises(BlobError, match=f"fedavgm state a: wanted at most .* got {LIMIT + LIMIT // 2}"):
        merge(rule, SPEC, start, [Delta("i", 1, Held(most))], state=(most,))


@pytest.mark.parametrize("n", range(-9, 10))
def test_rounding_takes_ties_to_even(n: int) -> None:
    assert round_half_even(n, 2) == round(Fraction(n, 2))
    assert round_half_even(n, 3) == round(Fraction(n, 3))
