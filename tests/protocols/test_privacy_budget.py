"""The accountant: whole micro-ρ that add up, a round too many is refused, and ε agrees with another library."""

import importlib
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from commonweal_protocols.statements.privacy_budget import (
    PrivacyTerms,
    allows,
    cost_micro_rho,
    epsilon,
    spent_micro_rho,
)

CLIPS, SIGMAS = st.integers(1, 1 << 40), st.integers(1, 1 << 24)


def terms(clip: int = 1000, sigma: int = 4000, budget: int = 500_000) -> PrivacyTerms:
    return PrivacyTerms(clip_steps=clip, sigma_steps=sigma, budget_micro_rho=budget)


@given(CLIPS, SIGMAS)
def test_a_cost_is_the_theorems_rounded_up(clip: int, sigma: int) -> None:
    rho = Fraction((2 * clip) ** 2, 2 * sigma**2)
    assert cost_micro_rho(terms(clip, sigma)) == math.ceil(10**6 * rho)


def test_costs_add_up_over_the_rounds_of_one_institution() -> None:
    cheap, dear = terms(sigma=4000), terms(sigma=1000)
    assert (cost_micro_rho(cheap), cost_micro_rho(dear)) == (125_000, 2_000_000)
    rounds = [(cheap, {"clinic", "coop"}), (None, {"clinic"}), (dear, {"coop"}), (cheap, {"clinic"}), (cheap, set())]
    assert spent_micro_rho("clinic", rounds) == 2 * 125_000
    assert spent_micro_rho("coop", rounds) == 125_000 + 2_000_000
    assert spent_micro_rho("school", rounds) == 0


def test_a_round_that_would_overspend_is_not_allowed_and_one_that_just_fits_is() -> None:
    four = terms(budget=4 * 125_000)
    assert allows(four, 3 * 125_000)
    assert not allows(four, 3 * 125_000 + 1)
    assert not allows(four, 4 * 125_000)
    assert not allows(terms(budget=124_999), 0)


@pytest.mark.parametrize("field", ["clip_steps", "sigma_steps", "budget_micro_rho"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", 1 << 60])
def test_terms_without_noise_or_bounds_are_no_terms(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        PrivacyTerms.model_validate(terms().model_dump() | {field: value})


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan])
def test_epsilon_wants_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta: wanted a number between 0 and 1"):
        epsilon(1, delta)


def test_nothing_spent_is_no_epsilon() -> None:
    assert epsilon(0, 1e-6) == 0


@given(st.integers(1, 10**12), st.sampled_from([1e-3, 1e-6, 1e-12]))
def test_epsilon_is_never_worse_than_the_plain_formula_and_grows_with_what_was_spent(rho: int, delta: float) -> None:
    plain = rho / 1e6 + 2 * math.sqrt(rho / 1e6 * math.log(1 / delta))  # Bun and Steinke 2016, proposition 1.3
    assert epsilon(rho, delta) <= plain * (1 + 1e-9)
    assert epsilon(rho, delta) <= epsilon(rho + 1000, delta) + 1e-9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", [1, 5, 40])
@pytest.mark.parametrize("sigma", [2000, 8000, 100_000])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_epsilon_is_what_dp_accounting_says(rounds: int, sigma: int, delta: float) -> None:
    dp: Any = pytest.importorskip("dp_accounting", reason="wanted dp-accounting, the second implementation")
    rdp: Any = importlib.import_module("dp_accounting.rdp")
    pld: Any = importlib.import_module("dp_accounting.pld")
    spent = rounds * cost_micro_rho(terms(sigma=sigma))
    orders = [1 + 10 ** (i / 50) for i in range(-250, 250)]
    event = dp.SelfComposedDpEvent(dp.GaussianDpEvent(sigma / 2000), rounds)
    theirs = rdp.RdpAccountant(orders).compose(event).get_epsilon(delta)
    assert epsilon(spent, delta) == pytest.approx(theirs, rel=2e-3)
    zcdp = rdp.RdpAccountant(orders).compose(dp.ZCDpEvent(spent / 1e6)).get_epsilon(delta)
    assert epsilon(spent, delta) == pytest.approx(zcdp, rel=2e-3)
    # A tight accountant of the same Gaussian cannot say more than a true bound.
    tight = pld.PLDAccountant().compose(event).get_epsilon(delta)
    assert tight <= epsilon(spent, delta) * (1 + 1e-3)
