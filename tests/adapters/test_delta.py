"""The grid: one rounding when a trained adapter enters it, and exact integers from there on."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from commonweal_adapters.files.delta import (
    LIMIT,
    GridTensors,
    apply_delta,
    from_grid,
    make_delta,
    read_adapter,
    read_delta,
    to_grid,
    write_adapter,
    write_delta,
)
from commonweal_adapters.files.lora_file import tensor_shapes, write_tensors
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from tests.kit.federation import TINY

SHAPES = tensor_shapes(TINY)
NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
BITS = TINY.grid_bits
STEP = 2.0**-BITS
STEPS = st.integers(-LIMIT, LIMIT)
GRID_BITS = st.integers(8, 23)


def grid(fill: int = 0, at: int | None = None) -> GridTensors:
    """The spec's tensors, all zeros or random; and one integer of one tensor set."""
    rng = np.random.default_rng(fill)
    low, high = (0, 1) if fill == 0 else (-LIMIT // 2, LIMIT // 2)
    values = {name: rng.integers(low, high, shape, dtype=np.int32) for name, shape in SHAPES.items()}
    if at is not None:
        values[NAME][3, 1] = at
    return GridTensors(values)


def equal(one: GridTensors, two: GridTensors) -> bool:
    return dict(one.items()).keys() == dict(two.items()).keys() and all(
        q.dtype == np.int32 and np.array_equal(q, two[name]) for name, q in one.items()
    )


def file_with(value: float | np.float32) -> bytes:
    """A float32 file of zeros with one value at [3, 1] of one tensor."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    tensors[NAME][3, 1] = value
    return write_tensors(tensors, TINY)


def one(value: float | np.float32) -> dict[str, NDArray[np.float32]]:
    return {NAME: np.array([[0, value]], np.float32)}


# -- to the grid and back


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), GRID_BITS)
def test_a_value_is_rounded_once_half_to_even(value: float, bits: int) -> None:
    wanted = round(Fraction(value) * 2**bits)  # Python rounds fractions half to even
    if abs(wanted) > LIMIT:
        with pytest.raises(BlobError):
            to_grid(one(value), bits)
    else:
        assert to_grid(one(value), bits)[NAME].tolist() == [[0, wanted]]


@given(st.integers(-(2**22), 2**22 - 1))
def test_a_tie_goes_to_the_even_neighbour(q: int) -> None:
    made = to_grid(one(math.ldexp(2 * q + 1, -9)), 8)[NAME][0, 1]
    assert made == q + (q & 1)


@given(STEPS, GRID_BITS)
def test_every_integer_in_range_is_its_float_exactly(q: int, bits: int) -> None:
    made = from_grid(GridTensors({NAME: np.array([[q]], np.int32)}), bits)[NAME]
    assert made.dtype == np.float32
    assert Fraction(float(made[0, 0])) == Fraction(q, 2**bits)
    assert to_grid({NAME: made}, bits)[NAME].tolist() == [[q]]


NOT_TO_GRID: list[tuple[str, float]] = [
    ("not a number", math.nan),
    ("infinite", math.inf),
    ("infinite downwards", -math.inf),
    ("overflows on the way", 3e38),
    ("the first float32 beyond 2^24 steps", (LIMIT + 2) * STEP),
    ("the same below zero", -(LIMIT + 2) * STEP),
]


@pytest.mark.parametrize(("why", "value"), NOT_TO_GRID, ids=[w for w, _ in NOT_TO_GRID])
def test_what_has_no_place_on_the_grid_is_refused_by_name_and_place(why: str, value: float) -> None:
    with pytest.raises(BlobError) as e:
        to_grid(one(value), BITS)
    got = float(np.float32(value))
    assert str(e.value) == f"tensor {NAME}: wanted multiples of 2^-20 up to ±2^4, got {got!r} at [0, 1]"


def test_float64_is_refused_since_its_way_to_float32_would_be_a_second_rounding() -> None:
    with pytest.raises(BlobError, match="wanted float32, got float64"):
        to_grid({NAME: np.zeros((1, 1))}, BITS)  # type: ignore[dict-item]


def test_a_negative_zero_becomes_zero() -> None:
    q = to_grid(one(-0.0), BITS)
    assert not np.signbit(from_grid(q, BITS)[NAME]).any()


def test_the_callers_arrays_are_not_changed() -> None:
    tensors = one(0.3)
    before = tensors[NAME].copy()
    q = to_grid(tensors, BITS)
    from_grid(q, BITS)[NAME] += 1
    assert np.array_equal(tensors[NAME], before)
    assert q[NAME].tolist() == [[0, round(Fraction(float(np.float32(0.3))) * 2**BITS)]]


# -- adapter files


@given(st.integers(1, 2**32), GRID_BITS)
def test_an_adapter_file_holds_the_grid_exactly(seed: int, bits: int) -> None:
    spec = AdapterSpec.model_validate(TINY.model_dump() | {"grid_bits": bits})
    assert equal(read_adapter(write_adapter(grid(seed), spec), spec), grid(seed))


@pytest.mark.parametrize("q", [LIMIT, -LIMIT, LIMIT - 1, 1, -1])
def test_the_last_steps_of_the_range_are_read(q: int) -> None:
    assert read_adapter(file_with(q * STEP), TINY)[NAME][3, 1] == q


OFF_GRID: list[tuple[str, float | np.float32]] = [
    ("not a number", math.nan),
    ("a NaN with the sign bit", -math.nan),
    ("infinite", math.inf),
    ("infinite downwards", -math.inf),
    ("the smallest subnormal", np.float32(2.0**-149)),
    ("the largest subnormal", np.float32(2.0**-126 - 2.0**-149)),
    ("the smallest normal", 2.0**-126),
    ("half a step", STEP / 2),
    ("one and a half steps", 1.5 * STEP),
    ("next to 1", np.nextafter(np.float32(1), np.float32(2))),
    ("a negative zero: a second encoding of 0", -0.0),
    ("beyond the range, though a whole number of steps", (LIMIT + 2) * STEP),
    ("the same below zero", -(LIMIT + 2) * STEP),
    ("where a cast to int32 would wrap", -(2.0**31) * STEP),
    ("huge", 3e38),
]


@pytest.mark.parametrize(("why", "value"), OFF_GRID, ids=[w for w, _ in OFF_GRID])
def test_a_value_off_the_grid_is_refused_and_not_mended(why: str, value: float | np.float32) -> None:
    with pytest.raises(BlobError) as e:
        read_adapter(file_with(value), TINY)
    got = float(np.float32(value))
    assert str(e.value) == f"tensor {NAME}: wanted multiples of 2^-20 up to ±2^4, got {got!r} at [3, 1]"


@given(st.integers(0, 2**32 - 1))
def test_of_all_float32_bit_patterns_those_on_the_grid_are_read(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)[0]
    x = float(value)
    assume(not math.isnan(x))
    steps = Fraction(x) * 2**BITS if math.isfinite(x) else Fraction(1, 3)
    if steps.denominator == 1 and abs(steps) <= LIMIT and not (x == 0 and math.copysign(1, x) < 0):
        assert read_adapter(file_with(value), TINY)[NAME][3, 1] == int(steps)
    else:
        with pytest.raises(BlobError):
            read_adapter(file_with(value), TINY)


@given(STEPS)
def test_on_the_grid_means_read(q: int) -> None:
    assert read_adapter(file_with(q * STEP), TINY)[NAME][3, 1] == q


# -- deltas


@given(st.integers(1, 2**32))
def test_a_delta_file_holds_the_grid_exactly(seed: int) -> None:
    assert equal(read_delta(write_delta(grid(seed), TINY), TINY), grid(seed))


@given(st.integers(1, 2**16), st.integers(1, 2**16))
def test_start_plus_delta_is_what_was_trained(seed: int, other: int) -> None:
    start, trained = grid(seed), grid(other)
    delta = make_delta(start, trained, TINY)
    assert equal(GridTensors({name: q + delta[name] for name, q in start.items()}), trained)
    assert equal(apply_delta(start, delta, TINY), trained)


@pytest.mark.parametrize("q", [LIMIT, -LIMIT])
def test_the_range_ends_at_two_to_the_24th(q: int) -> None:
    assert read_delta(write_delta(grid(at=q), TINY), TINY)[NAME][3, 1] == q


OUT_OF_RANGE = [LIMIT + 1, -LIMIT - 1, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("q", OUT_OF_RANGE)
def test_an_integer_out_of_range_is_neither_read_nor_written(q: int) -> None:
    wanted = rf"tensor {NAME}: wanted at most 2\^24 = 16777216 grid steps, got {abs(q)}"
    with pytest.raises(BlobError, match=wanted):
        read_delta(write_tensors(grid(at=q).values, TINY), TINY)
    with pytest.raises(BlobError, match=wanted):
        write_delta(grid(at=q), TINY)
    with pytest.raises(BlobError, match=wanted):
        write_adapter(grid(at=q), TINY)


def test_a_difference_out_of_range_is_refused() -> None:
    with pytest.raises(BlobError, match=f"delta tensor {NAME}: wanted at most .* got {2 * LIMIT}"):
        make_delta(grid(at=-LIMIT), grid(at=LIMIT), TINY)
    with pytest.raises(BlobError, match=f"trained adapter tensor {NAME}: wanted at most .* got {2 * LIMIT}"):
        apply_delta(grid(at=LIMIT), grid(at=LIMIT), TINY)


def test_the_range_lets_a_whole_consortium_sum_in_int64_and_twice_the_range_would_not() -> None:
    members, weight = 400, 10**9  # the compact's bounds
    assert members * weight * LIMIT < 2**63 < members * weight * 2 * LIMIT


def test_only_int32_is_on_the_grid() -> None:
    floats = GridTensors({name: q.astype(np.float32) for name, q in grid().items()})
    for write in (write_adapter, write_delta):
        with pytest.raises(BlobError, match="wanted int32, got float32"):
            write(floats, TINY)


def test_an_adapter_is_not_taken_for_a_delta_nor_the_other_way_round() -> None:
    with pytest.raises(BlobError, match="wanted dtype I32, got 'F32'"):
        read_delta(write_adapter(grid(), TINY), TINY)
    with pytest.raises(BlobError, match="wanted dtype F32, got 'I32'"):
        read_adapter(write_delta(grid(), TINY), TINY)
