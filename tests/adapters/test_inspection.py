"""Norms and likeness: what numpy says of the dense matrices, without making them."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from commonweal_adapters.commands.inspection import compare, grid_fit, module_norms
from commonweal_adapters.files.lora_file import slots, tensor_shapes
from commonweal_protocols.statements.compact import AdapterSpec
from tests.kit.federation import TINY

WIDE = TINY.model_copy(update={"rank": 3, "alpha": 5})


def random(spec: AdapterSpec, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in tensor_shapes(spec).items()}


def dense(spec: AdapterSpec, tensors: dict[str, NDArray[np.float32]], module: str) -> NDArray[np.float64]:
    """Every layer's s B A of a module, as one vector."""
    return np.concatenate(
        [
            (spec.alpha / spec.rank * tensors[s.name_b].astype(float) @ tensors[s.name_a].astype(float)).reshape(-1)
            for s in slots(spec)
            if module in s.path
        ]
    )


def test_norms_are_those_of_the_dense_products() -> None:
    tensors = random(TINY, 1)
    rows = module_norms(TINY, tensors)
    assert [r.module for r in rows] == [m.name for m in TINY.modules]
    whole = sum(np.sum(dense(TINY, tensors, m.name) ** 2) for m in TINY.modules)
    for row in rows:
        product = np.linalg.norm(dense(TINY, tensors, row.module))
        factors = [
            np.concatenate([tensors[getattr(s, f)].reshape(-1) for s in slots(TINY) if row.module in s.path])
            for f in ("name_a", "name_b")
        ]
        assert row.norm_product == pytest.approx(product)
        assert [row.norm_a, row.norm_b] == pytest.approx([np.linalg.norm(f.astype(float)) for f in factors])
        assert row.share == pytest.approx(product**2 / whole)


def test_likeness_is_that_of_the_dense_products_even_where_ranks_differ() -> None:
    one, other = random(TINY, 1), random(WIDE, 2)
    first, *rest = compare(TINY, one, WIDE, other)
    assert first.module == "all"
    assert math.isnan(first.cosine_factors)
    for row in rest:
        x, y = dense(TINY, one, row.module), dense(WIDE, other, row.module)
        assert row.cosine_product == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert row.distance_product == pytest.approx(np.linalg.norm(x - y))
        assert (row.norm_first, row.norm_second) == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)))


def test_the_same_adapter_in_other_factors_is_alike_in_its_product_alone() -> None:
    one = random(TINY, 1)
    turn = np.array([[0, -3], [2, 0]], np.float32)
    other = {n: (np.linalg.inv(turn) @ x if "lora_A" in n else x @ turn).astype(np.float32) for n, x in one.items()}
    whole = compare(TINY, one, TINY, other)[0]
    assert whole.cosine_product == pytest.approx(1)
    assert whole.distance_product == pytest.approx(0, abs=1e-3)
    assert whole.cosine_factors < 0.5


def test_zeros_have_no_direction() -> None:
    one = random(TINY, 1)
    zeros = {n: np.zeros_like(x) for n, x in one.items()}
    whole = compare(TINY, one, TINY, zeros)[0]
    assert math.isnan(whole.cosine_product)
    assert whole.distance_product == pytest.approx(whole.norm_first)
    assert [r.share for r in module_norms(TINY, zeros)] == [0, 0]
    assert grid_fit(zeros, 20).rounding_error == 0


def test_the_fit_to_a_grid_counts_what_is_off_it_and_how_far() -> None:
    fit = grid_fit({"x": np.array([[1.0, 0.25, -3.0, 2.5]], np.float32)}, 1)
    assert (fit.largest, fit.off_grid) == (3.0, 1)
    assert fit.range_used == 3.0 * 2 / (1 << 24)
    assert fit.rounding_error == pytest.approx(0.25 / math.sqrt(1 + 0.25**2 + 9 + 2.5**2))
