"""Linear algebra that is the same everywhere: against numpy's own, and with other orders of summation."""

import numpy as np
import pytest
from numpy.typing import NDArray

from commonweal_adapters.exact.spectral import eigen, fixed_matmul, orthonormal


def random(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def test_products_are_those_of_float64_to_the_last_bits_of_the_largest() -> None:
    a, b = random(0, 3, 5, 40), random(1, 3, 40, 6)
    bound = np.abs(a).max() * np.abs(b).max() * 40 * 2.0**-49
    np.testing.assert_allclose(fixed_matmul(a, b), a @ b, rtol=0, atol=bound)


def test_a_product_does_not_depend_on_the_order_of_its_sum() -> None:
    a, b = random(2, 1, 4, 300), random(3, 1, 300, 4)
    seen, plain = set(), set()
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(300)
        seen.add(fixed_matmul(a[:, :, order].copy(), b[:, order].copy()).tobytes())
        plain.add((a[:, :, order].copy() @ b[:, order].copy()).tobytes())
    assert len(seen) == 1
    assert len(plain) > 1  # else this test would prove nothing


def test_a_matrix_does_not_look_at_its_neighbours() -> None:
    a, b = random(4, 2, 3, 3), random(5, 2, 3, 3)
    a[1] *= 1e9
    alone = fixed_matmul(a[:1], b[:1])
    assert fixed_matmul(a, b)[0].tobytes() == alone[0].tobytes()


def test_zeros_and_powers_of_two_come_out_exactly() -> None:
    zero = np.zeros((1, 2, 3))
    assert not fixed_matmul(zero, random(6, 1, 3, 2)).any()
    ones = np.full((1, 2, 3), 2.0**40)
    assert (fixed_matmul(ones, np.ones((1, 3, 2))) == 3 * 2.0**40).all()


def test_columns_become_orthonormal_in_the_metric_and_keep_their_span() -> None:
    half = random(7, 2, 9, 9)
    metric = half.transpose(0, 2, 1) @ half
    x = random(8, 2, 9, 4)
    made = orthonormal(x, metric)
    np.testing.assert_allclose(
        made.transpose(0, 2, 1) @ metric @ made, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-12
    )
    for i in range(2):
        assert np.linalg.matrix_rank(np.hstack([x[i], made[i]])) == 4


@pytest.mark.parametrize("seed", range(8))
def test_a_dependent_column_becomes_zero(seed: int) -> None:
    half = random(20 + seed, 1, 6, 6)
    metric = half.transpose(0, 2, 1) @ half
    x = random(seed, 1, 6, 4)
    # What rounding leaves of it is noise on either side of 0, and must not be taken for a direction.
    x[0, :, 2] = x[0, :, 0] / 3 - x[0, :, 1]
    made = orthonormal(x, metric)
    assert not made[0, :, 2].any()
    kept = made[0][:, [0, 1, 3]]
    np.testing.assert_allclose(kept.T @ metric[0] @ kept, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("q", [1, 2, 5, 16, 33])
def test_eigenvalues_are_numpys(q: int) -> None:
    half = random(q, 3, q, q)
    symmetric = half @ half.transpose(0, 2, 1)
    values, vectors = eigen(symmetric)
    for i in range(3):
        wanted = np.linalg.eigvalsh(symmetric[i])[::-1]
        np.testing.assert_allclose(values[i], wanted, rtol=0, atol=1e-13 * wanted[0])
        np.testing.assert_allclose(symmetric[i] @ vectors[i], vectors[i] * values[i], atol=1e-12 * wanted[0])
        np.testing.assert_allclose(vectors[i].T @ vectors[i], np.eye(q), atol=1e-13)


def test_a_diagonal_matrix_is_sorted_and_equals_keep_their_order() -> None:
    values, vectors = eigen(np.diag([1.0, 3.0, 3.0, 2.0])[None])
    assert values.tolist() == [[3.0, 3.0, 2.0, 1.0]]
    assert vectors[0].argmax(axis=0).tolist() == [1, 2, 3, 0]
