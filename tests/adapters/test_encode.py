"""Encoded deltas: less precise by a stated amount, exact from there on, in one encoding, and nobody's bomb."""

import itertools
import json
import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from commonweal_adapters.exact.weighted_sum import factor_mean
from commonweal_adapters.files.delta import LIMIT, GridTensors, read_delta, write_delta
from commonweal_adapters.files.encode import BLOCK, parse_encoding, payload_bytes, quantise, read_encoded, write_encoded
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.delta_encoding import Encoding
from tests.kit.encodings import ENCODINGS, ODD, delta, encodings, equal
from tests.kit.federation import TINY

M = "p.0.m.lora_A.weight"
BYTES, HALVES, SPARSE, RAW = Encoding(bits=8), Encoding(bits=4), Encoding(bits=8, keep_millis=100), Encoding(bits=32)


def flat(grid: GridTensors, name: str) -> list[int]:
    return [int(q) for q in grid[name].reshape(-1)]


# -- what is kept, and how exactly


@encodings
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([0, 1, 3, 200, 5000, LIMIT - 1, LIMIT]))
def test_what_an_encoding_holds_is_written_and_read_back_exactly(encoding: Encoding, seed: int, size: int) -> None:
    left = quantise(delta(seed, size=size), encoding)
    data = write_encoded(left, ODD, encoding)
    assert equal(read_encoded(data, ODD, encoding), left)
    assert parse_encoding(data) == encoding


@encodings
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1, 20, 5000, LIMIT]))
def test_the_largest_are_kept_each_within_half_a_step_of_its_scale(encoding: Encoding, seed: int, size: int) -> None:
    before = delta(seed, size=size)
    after = quantise(before, encoding)
    cap = {4: 7, 8: 127, 32: LIMIT}[encoding.bits]
    for name, _ in before.items():
        q, left = flat(before, name), flat(after, name)
        kept = sorted(range(len(q)), key=lambda i: (-abs(q[i]), i))[: encoding.kept(len(q))]
        span = BLOCK * (len(q) // encoding.kept(len(q)))
        for i in range(len(q)):
            if i not in kept:
                assert left[i] == 0
                continue
            scale = math.ceil(Fraction(max(abs(q[j]) for j in kept if j // span == i // span), cap)) or 1
            code = round(Fraction(q[i], scale))
            if abs(code * scale) > LIMIT:
                code -= 1 if code > 0 else -1
            assert left[i] == code * scale


def test_no_rounding_leaves_the_range() -> None:
    for encoding, q in itertools.product((BYTES, HALVES), range(LIMIT - 300, LIMIT + 1)):
        left = quantise(GridTensors({"x": np.array([[q, -q]], np.int32)}), encoding)["x"]
        assert np.abs(left).max() <= LIMIT


def test_a_merge_of_what_was_read_is_the_merge_of_what_was_written() -> None:
    start, encoding = delta(9), Encoding(bits=4, keep_millis=300)
    left = [quantise(delta(i), encoding) for i in range(5)]
    sent = [read_encoded(write_encoded(d, ODD, encoding), ODD, encoding) for d in left]
    plain = [read_delta(write_delta(d, ODD), ODD) for d in left]
    merged = [factor_mean(start, [Delta(f"n{i}", i + 1, Held(d)) for i, d in enumerate(ds)]) for ds in (sent, plain)]
    assert equal(*merged)


# -- one encoding, from the format's description and by another reader


def naive_positions(data: NDArray[np.uint8], low: NDArray[np.uint8], n: int, k: int) -> list[int]:
    """Elias-Fano, bit by bit."""
    low_bits = int(math.log2(n // k))
    text = "".join(f"{b:08b}"[::-1] for b in data.tolist())
    below = "".join(f"{b:08b}"[::-1] for b in low.tolist())
    found: list[int] = []
    high = 0
    for bit in text:
        if bit == "0":
            high += 1
            continue
        i = len(found)
        part = below[i * low_bits : (i + 1) * low_bits][::-1]
        found.append((high << low_bits) + (int(part, 2) if part else 0))
    return found


def sizes(n: int, encoding: Encoding) -> dict[str, int]:
    """How many items of each array belong to a tensor of n elements, by the module's formulas."""
    k = math.ceil(n * encoding.keep_millis / 1000)
    low = math.floor(math.log2(n / k))
    found = {} if encoding.bits == 32 else {"scales": math.ceil(n / (64 * (n // k)))}
    found["codes"] = math.ceil(k / 2) if encoding.bits == 4 else k
    if k < n:
        found |= {"high": math.ceil((k + (n - 1) // 2**low) / 8), "low": math.ceil(k * low / 8)}
    return found


@encodings
def test_another_reader_makes_the_same_integers_of_the_file(encoding: Encoding) -> None:
    left = quantise(delta(3), encoding)
    arrays = safetensors.numpy.load(write_encoded(left, ODD, encoding))
    at = dict.fromkeys(arrays, 0)
    for name in sorted(left.values):
        n = left[name].size
        k = math.ceil(n * encoding.keep_millis / 1000)
        mine = {}
        for part, count in sizes(n, encoding).items():
            mine[part] = arrays[part][at[part] : at[part] + count]
            at[part] += count
        codes = mine["codes"].tolist()
        if encoding.bits == 4:
            halves = [h for byte in codes for h in (byte & 15, byte >> 4)]
            codes = [h - 16 if h > 7 else h for h in halves]
        places = list(range(n)) if k == n else naive_positions(mine["high"], mine["low"], n, k)
        wanted = [0] * n
        for i, code in zip(places, codes[:k], strict=True):
            scale = 1 if encoding.bits == 32 else int(mine["scales"][i // (64 * (n // k))])
            wanted[i] = code * scale
        assert flat(left, name) == wanted
    assert at == {part: array.size for part, array in arrays.items()}
    assert payload_bytes(ODD, encoding) == sum(a.nbytes for a in arrays.values())


def test_two_adapters_whose_arrays_are_of_one_size_are_told_apart() -> None:
    other = ODD.model_copy(update={"prefix": "q"})
    data = write_encoded(quantise(delta(spec=other), BYTES), other, BYTES)
    assert len(data) == len(GOOD)
    with pytest.raises(BlobError, match="header: wanted that of this spec and bits=8"):
        read_encoded(data, ODD, BYTES)


@encodings
def test_every_bit_that_is_flipped_is_refused_or_another_delta(encoding: Encoding) -> None:
    left = quantise(delta(5), encoding)
    data = write_encoded(left, ODD, encoding)
    for bit in range(0, 8 * len(data), 7):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        try:
            read = read_encoded(bytes(other), ODD, encoding)
        except BlobError:
            continue
        assert not equal(read, left)
        assert write_encoded(read, ODD, encoding) == other


Change = Callable[[list[int]], None]
NUMPY = {"U8": "u1", "I8": "i1", "I32": "<i4"}


def patched(encoding: Encoding, fill: int = 0, **changes: Change) -> bytes:
    """The file of a delta that is ``fill`` everywhere, with arrays of its first tensor changed where they lie."""
    left = quantise(GridTensors({n: np.full(s, fill, np.int32) for n, s in tensor_shapes(ODD).items()}), encoding)
    data = bytearray(write_encoded(left, ODD, encoding))
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    for part, change in changes.items():
        entry = entries[part]
        # Its part comes first.
        begin = 8 + size + entry["data_offsets"][0]
        end = begin + sizes(3 * 67, encoding)[part] * np.dtype(NUMPY[entry["dtype"]]).itemsize
        items = np.frombuffer(bytes(data[begin:end]), NUMPY[entry["dtype"]]).tolist()
        change(items)
        data[begin:end] = np.array(items, NUMPY[entry["dtype"]]).tobytes()
    return bytes(data)


def put(at: int, value: int) -> Change:
    return lambda items: items.__setitem__(at, value)


def xor(at: int, value: int) -> Change:
    return lambda items: items.__setitem__(at, items[at] ^ value)


def times(factor: int) -> Change:
    return lambda items: items.__setitem__(slice(None), [factor * i for i in items])


# 201 elements of which 21 are kept: all zeros, so the positions 0 to 20, of which 3 bits are in ``low``.
ALL_ONES: Change = lambda items: items.__setitem__(slice(None), [255] * 7 + [127])  # noqa: E731
HIGHEST: Change = lambda items: items.__setitem__(slice(None), [255, 255, 15, 0, 0, 32])  # noqa: E731
OTHER_SPELLINGS: list[tuple[str, Encoding, bytes, str]] = [
    ("twice the codes", BYTES, patched(BYTES, 6, codes=times(2)), "scales are another encoding"),
    ("a scale for zeros", BYTES, patched(BYTES, scales=put(0, 1)), "scales are another encoding"),
    ("a negative scale", BYTES, patched(BYTES, 6, scales=times(-1)), "scales are another encoding"),
    ("a code without a scale", BYTES, patched(BYTES, codes=put(0, 1)), "codes are another encoding"),
    ("the code -128", BYTES, patched(BYTES, 6, codes=put(0, -128)), r"wanted codes in ±127, got 128"),
    ("the code -8", HALVES, patched(HALVES, 6, codes=put(0, 0x18)), r"wanted codes in ±7, got 8"),
    ("a last half that stands for nothing", HALVES, patched(HALVES, codes=put(-1, 0x10)), "codes are another"),
    ("a scale beyond the range", BYTES, patched(BYTES, 6, scales=put(0, LIMIT + 1)), "wanted at most 2"),
    ("a product beyond int32", BYTES, patched(BYTES, 6, scales=put(0, 2**31 - 1), codes=put(0, 64)), "at most 2"),
    ("an integer beyond the range", RAW, patched(RAW, codes=put(0, -LIMIT - 1)), "wanted at most 2"),
    ("a position too few", SPARSE, patched(SPARSE, high=put(0, 0)), "wanted 21 positions, got "),
    ("a position too many", SPARSE, patched(SPARSE, high=put(-1, 0xFF)), "wanted 21 positions, got "),
    ("a zero that is not one of the first", SPARSE, patched(SPARSE, low=xor(-1, 0x10)), "low are another encoding"),
    ("the same position twice", SPARSE, patched(SPARSE, low=xor(-1, 0x70)), "low are another encoding"),
    ("a bit that stands for nothing", SPARSE, patched(SPARSE, low=xor(-1, 0x80)), "low are another encoding"),
    ("beyond the tensor", SPARSE, patched(SPARSE, high=HIGHEST, low=ALL_ONES), "wanted positions below 201, got 207"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "encoding", "data", "message"), OTHER_SPELLINGS, ids=[o[0] for o in OTHER_SPELLINGS])
def test_any_other_encoding_is_refused(why: str, encoding: Encoding, data: bytes, message: str) -> None:
    with pytest.raises(BlobError, match=message) as e:
        read_encoded(data, ODD, encoding)
    assert M in str(e.value)


# -- what is refused before memory is taken

LARGE = AdapterSpec(
    rank=64, alpha=1, prefix="p", layers=4, modules=(LoraModule(name="m", in_features=8192, out_features=8192),)
)
"""16 MiB as a delta."""
GOOD = write_encoded(quantise(delta(), BYTES), ODD, BYTES)
HEADER = 8 + int.from_bytes(GOOD[:8], "little")
BOMBS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("cut off in the length", GOOD[:7]),
    ("cut off in the header", GOOD[:100]),
    ("cut off in the arrays", GOOD[:-1]),
    ("a byte more", GOOD + b"\0"),
    ("a header of 2^63 bytes", (2**63).to_bytes(8, "little") + GOOD[8:]),
    ("10^9 rows", GOOD.replace(b'"shape":[234]', b'"shape":[999]', 1)),
    ("a negative shape", GOOD.replace(b'"shape":[234]', b'"shape":[-23', 1)),
    ("overlapping offsets", GOOD.replace(b'"data_offsets":[28,', b'"data_offsets":[24,', 1)),
    ("another dtype", GOOD.replace(b'"I8"', b'"U8"', 1)),
    ("another array", GOOD.replace(b"codes", b"coins", 1)),
    ("another writer's padding", GOOD[: HEADER - 1] + b"\n" + GOOD[HEADER:]),
    ("another encoding in the header", GOOD.replace(b"bits=8", b"bits=4", 1)),
    ("a plain delta", write_delta(delta(), ODD)),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data"), BOMBS, ids=[w for w, _ in BOMBS])
def test_a_malformed_file_is_refused_before_memory_is_taken(why: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BlobError, match="wanted") as e:
            read_encoded(data, LARGE if why == "empty" else ODD, BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert str(e.value).isascii()


def test_the_table_starts_from_a_good_file() -> None:
    assert equal(read_encoded(GOOD, ODD, BYTES), quantise(delta(), BYTES))
    assert all(data != GOOD for _, data in BOMBS)


def test_a_small_file_takes_no_more_than_the_specs_delta_and_a_few_of_its_tensors() -> None:
    encoding = Encoding(bits=4, keep_millis=1)
    data = write_encoded(quantise(delta(spec=LARGE), encoding), LARGE, encoding)
    assert len(data) < 20_000
    tensor = 4 * 64 * 8192
    tracemalloc.start()
    try:
        read_encoded(data, LARGE, encoding)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * tensor + 4 * tensor


NOT_AN_ENCODING = [b"", GOOD[:40], GOOD.replace(b"bits=8", b"bits=5"), GOOD.replace(b"1000", b"1001"), b"\0" * 200]


@pytest.mark.parametrize("data", NOT_AN_ENCODING)
def test_a_file_that_says_no_encoding_has_none(data: bytes) -> None:
    with pytest.raises(BlobError, match="wanted a header that begins with its encoding"):
        parse_encoding(data)


# -- what is not written


def changed(name: str, q: NDArray[np.int32] | None) -> GridTensors:
    values = dict(quantise(delta(), SPARSE).values)
    if q is None:
        del values[name]
    else:
        values[name] = q
    return GridTensors(values)


NOT_WRITTEN: list[tuple[str, GridTensors, str]] = [
    ("one missing", changed(M, None), "wanted 4, got 3"),
    ("one more", changed("x", np.zeros((1, 1), np.int32)), "wanted 4, got 5"),
    ("transposed", changed(M, np.zeros((67, 3), np.int32)), r"wanted int32 \(3, 67\), got int32 \(67, 3\)"),
    ("more than are kept", changed(M, np.ones((3, 67), np.int32)), "wanted at most 21 values but 0, got 201"),
    ("no common scale", changed(M, np.eye(3, 67, dtype=np.int32) * 128 + np.eye(3, 67, 1, np.int32)), "got 128"),
]


@pytest.mark.parametrize(("why", "grid", "message"), NOT_WRITTEN, ids=[n[0] for n in NOT_WRITTEN])
def test_what_an_encoding_cannot_hold_is_not_written(why: str, grid: GridTensors, message: str) -> None:
    with pytest.raises(BlobError, match=message):
        write_encoded(grid, ODD, SPARSE)


def test_the_tiny_federations_spec_goes_through_every_encoding() -> None:
    for encoding in ENCODINGS:
        left = quantise(delta(spec=TINY), encoding)
        assert equal(read_encoded(write_encoded(left, TINY, encoding), TINY, encoding), left)
