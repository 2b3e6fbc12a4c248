"""Clip and noise: the norm is never above the clip, and the noise is the discrete Gaussian, element by element."""

import hashlib
import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.exact.discrete_gaussian import MAX_SIGMA, discrete_gaussian
from commonweal_adapters.exact.privacy import clip, privatise, squared_norm
from commonweal_adapters.files.delta import LIMIT, GridTensors, read_delta, write_delta
from commonweal_protocols.statements.privacy_budget import PrivacyTerms
from tests.kit.encodings import delta, equal
from tests.kit.federation import TINY


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


# -- the norm and the clip


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 5000, LIMIT]))
def test_the_norm_is_exact(seed: int, size: int) -> None:
    grid = delta(seed, TINY, size)
    assert squared_norm(grid) == sum(int(q) ** 2 for _, t in grid.items() for q in t.reshape(-1))


def test_the_norm_of_the_largest_tensor_does_not_wrap() -> None:
    assert squared_norm(GridTensors({"x": np.full((1 << 10, 1 << 10), -LIMIT, np.int32)})) == 1 << 68


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 1 << 40), st.sampled_from([1, 5000, LIMIT]))
def test_a_clipped_delta_is_within_the_clip_and_keeps_its_direction(seed: int, steps: int, size: int) -> None:
    before = delta(seed, TINY, size)
    after = clip(before, steps)
    norm = squared_norm(before)
    assert squared_norm(after) <= steps**2
    if norm <= steps**2:
        assert equal(after, before)
        return
    for name, q in before.items():
        for x, y in zip(q.reshape(-1).tolist(), after[name].reshape(-1).tolist(), strict=True):
            # Towards 0, by less than one step and what the factor's 38 places leave.
            wanted = Fraction(math.isqrt((x * steps) ** 2 * 4**20 // norm), 2**20)
            assert x * y >= 0
            assert -1 - Fraction(1, 2**10) < abs(y) - wanted <= 0


# -- the noise


def masses(sigma: int, reach: int) -> dict[int, float]:
    weight = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in range(-60 * sigma, 60 * sigma + 1)}
    total = math.fsum(weight.values())
    return {x: weight[x] / total for x in range(-reach, reach + 1)}


@pytest.mark.parametrize("sigma", [1, 2, 3, 10])
def test_the_noise_has_the_formulas_distribution(sigma: int) -> None:
    count, reach = 200_000, 3 * sigma
    drawn = discrete_gaussian(sigma, count, seeded(sigma))
    wanted = masses(sigma, reach)
    chi = sum((np.count_nonzero(drawn == x) - count * p) ** 2 / (count * p) for x, p in wanted.items())
    tail, p = np.count_nonzero(np.abs(drawn) > reach), 1 - math.fsum(wanted.values())
    chi += (tail - count * p) ** 2 / (count * p)
    freedom = len(wanted)
    # Beyond five standard deviations of χ² with a fixed seed: a wrong sampler, not bad luck.
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("sigma", [1000, 1 << 20, MAX_SIGMA])
def test_coarse_noise_is_a_normal_distribution_in_all_its_length(sigma: int) -> None:
    count = 100_000
    drawn = np.sort(discrete_gaussian(sigma, count, seeded(sigma))) / sigma
    normal = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in drawn.tolist()])
    # Kolmogorov-Smirnov at a probability of about 1e-6; the lattice's own steps are below 1e-3.
    assert np.abs(normal - np.arange(1, count + 1) / count).max() < 2.7 / math.sqrt(count) + 0.5 / sigma
    assert drawn[0] < -4
    assert drawn[-1] > 4
    assert np.unique(discrete_gaussian(sigma, 4000, seeded(1)) % 2, return_counts=True)[1].min() > 1800


def test_the_noise_is_the_sources_and_nobody_elses() -> None:
    one, two = (discrete_gaussian(5, 1000, seeded(s)) for s in (1, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, discrete_gaussian(5, 1000, seeded(2)))


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1])
def test_a_sigma_beyond_what_is_exact_is_refused(sigma: int) -> None:
    with pytest.raises(ValueError, match=f"sigma: wanted 1 to {MAX_SIGMA}, got {sigma}"):
        discrete_gaussian(sigma, 1, seeded(0))


# -- both


def test_what_is_shown_is_the_clipped_delta_plus_the_noise_in_the_order_of_the_tensors() -> None:
    terms = PrivacyTerms(clip_steps=3000, sigma_steps=50, budget_micro_rho=1)
    before = delta(4, TINY)
    shown = privatise(before, terms, seeded(9))
    clipped, source = clip(before, terms.clip_steps), seeded(9)
    assert not equal(clipped, before)
    for name, q in clipped.items():
        assert np.array_equal(shown[name], q + discrete_gaussian(50, q.size, source).reshape(q.shape))
    assert equal(read_delta(write_delta(shown, TINY), TINY), shown)


def test_noise_beyond_the_grids_range_saturates() -> None:
    terms = PrivacyTerms(clip_steps=1, sigma_steps=MAX_SIGMA, budget_micro_rho=1)
    shown = privatise(delta(1, TINY), terms, seeded(3))
    every = np.concatenate([q.reshape(-1) for _, q in shown.items()])
    assert (every.min(), every.max()) == (-LIMIT, LIMIT)
    write_delta(shown, TINY)


def test_the_sources_bytes_are_all_that_is_random() -> None:
    asked = []

    def source(count: int) -> bytes:
        asked.append(count)
        return hashlib.shake_256(str(len(asked)).encode()).digest(count)

    terms = PrivacyTerms(clip_steps=10**6, sigma_steps=50, budget_micro_rho=1)
    first = privatise(delta(1, TINY), terms, source)
    asked.clear()
    assert equal(privatise(delta(1, TINY), terms, source), first)
    assert asked
