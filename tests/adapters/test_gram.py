"""Inner products are exact whatever the values, and the same as Python's integers make them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from commonweal_adapters.exact import gram as gram_module
from commonweal_adapters.exact.gram import DIGIT_BITS, Limbs, factor_gram, gram
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import CHUNK, Held
from tests.kit.deltas import a_round, matrix


@pytest.mark.parametrize("size", [1, 1 << 18, 1 << 19, (1 << 19) + 1, LIMIT])
def test_the_gram_matrix_is_the_sum_of_products_in_python_integers(size: int) -> None:
    start, deltas = a_round(1, 4, size=size)
    rows = matrix(deltas, start)
    wanted = [[sum(int(x) * int(y) for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    assert gram(start, [d.rows for d in deltas]) == wanted


@pytest.mark.parametrize("value", [1 << 19, -(1 << 19), LIMIT, -LIMIT])
def test_a_full_chunk_of_the_largest_values_is_exact(value: int) -> None:
    # The largest sum on either side of the switch to limbs; one lost bit would show.
    grid = GridTensors({"a": np.full((2, CHUNK), value, np.int32)})
    odd = GridTensors({"a": np.full((2, CHUNK), value, np.int32)})
    odd["a"][1, -1] -= np.sign(value)
    assert gram(grid, [Held(grid), Held(odd)]) == [
        [2 * CHUNK * value**2, 2 * CHUNK * value**2 - abs(value)],
        [2 * CHUNK * value**2 - abs(value), (2 * CHUNK - 1) * value**2 + (abs(value) - 1) ** 2],
    ]


def test_threads_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start, deltas = a_round(2, 5, size=LIMIT)
    rows = [d.rows for d in deltas]
    wanted = gram(start, rows, threads=1)
    assert gram(start, rows, threads=7) == wanted
    monkeypatch.setattr("commonweal_adapters.files.source.CHUNK", 5)
    assert gram(start, rows, threads=3) == wanted


def value(made: Limbs) -> NDArray[np.object_]:
    digits = made.digits()
    assert all((d >= -(1 << 19)).all() and (d < 1 << 19).all() for d in digits)
    return sum((d.astype(object) * (1 << DIGIT_BITS * i) for i, d in enumerate(digits)), np.zeros((), object))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 1 << 13, 1 << 19, 1 << 25]))
def test_factor_products_are_exact_in_digits_and_rounded_in_floats(seed: int, size: int) -> None:
    rows = np.random.default_rng(seed).integers(-size, size + 1, (3, 33), np.int32)
    wanted = rows.astype(object) @ rows.astype(object).T
    made = factor_gram(rows)
    assert (value(made) == wanted).all()
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(made.floats(), wanted.astype(np.float64), rtol=0, atol=scale * 2**-51)


def test_factor_products_of_the_widest_layer_do_not_overflow() -> None:
    wide = np.full((2, 1 << 20), 1 << 25, np.int32)
    wide[1] *= -1
    assert value(factor_gram(wide)).tolist() == [[1 << 70, -(1 << 70)], [-(1 << 70), 1 << 70]]


def test_the_switch_to_limbs_is_where_a_chunk_would_reach_two_to_the_53() -> None:
    assert gram_module._NARROW**2 * CHUNK <= 1 << 53 < (2 * gram_module._NARROW) ** 2 * CHUNK
