"""Products of integers in tiles: exact, whatever the shape, and never handed to BLAS's threads."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.exact.blas import integer_gram, integer_product

SIDES = st.integers(1, 40)


@settings(deadline=None)
@given(SIDES, st.integers(1, 3000), SIDES, st.integers(0, 2**32 - 1))
def test_products_are_those_of_integers(m: int, n: int, p: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-(1 << 20), 1 << 20, (m, n)), rng.integers(-(1 << 20), 1 << 20, (n, p))
    assert np.array_equal(integer_product(a.astype(np.float64), b.astype(np.float64)), a @ b)
    assert np.array_equal(integer_gram(a.astype(np.float64)), a @ a.T)


def test_stacks_are_multiplied_matrix_by_matrix() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-99, 99, (3, 20, 50)), rng.integers(-99, 99, (3, 50, 17))
    assert np.array_equal(integer_product(a.astype(np.float64), b.astype(np.float64)), a @ b)


def test_the_largest_sum_that_is_allowed_is_exact() -> None:
    row = np.full((1, 1 << 15), 2.0**19)
    row[0, -1] -= 1
    assert int(integer_gram(row)[0, 0]) == ((1 << 15) - 1) * (1 << 38) + ((1 << 19) - 1) ** 2


def test_no_product_is_large_enough_for_threads() -> None:
    sizes: list[int] = []

    class Seen(np.ndarray[Any, np.dtype[np.float64]]):
        def __matmul__(self, other: Any) -> Any:  # noqa: ANN401 - as numpy's own
            sizes.append(self.shape[0] * self.shape[1] * other.shape[1])
            return np.asarray(self) @ np.asarray(other)

    for m, n, p in ((1, 1 << 20, 1), (6, 1 << 15, 6), (100, 1 << 12, 100), (400, 64, 16)):
        integer_product(np.ones((m, n)).view(Seen), np.ones((n, p)))
    assert max(sizes) <= 4 * 65_536
    assert len(sizes) > 4
