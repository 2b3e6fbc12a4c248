"""What everybody computes again: the same start from the same seed, the same release from the same inputs."""

import hashlib
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters import recompute
from commonweal_adapters.files.delta import LIMIT, GridTensors, read_adapter, read_delta, write_adapter, write_delta
from commonweal_adapters.files.encode import quantise, write_encoded
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.recompute import (
    check_delta,
    merge_release,
    recompute_release,
    recompute_start,
    recompute_without,
)
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import error_micros, squared_error
from commonweal_protocols.audit.releases import Recompute
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements import rules
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.rounds import Input, Release
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.values import Blob
from tests.kit.federation import TINY, blob_of

RULE = FactorMean(weights="examples")
LEAF = "0" * 64
NAMES = ("clinic", "coop", "school")


def test_the_module_is_the_audits_recompute() -> None:
    offered: Recompute = recompute
    assert offered.recompute_start(TINY) == recompute_start(TINY)


# -- the start


def naive_start(spec: AdapterSpec, name: str, rows: int, columns: int) -> list[list[int]]:
    """The docstring's formula, one Python integer after another."""
    bound = math.isqrt(4**spec.grid_bits // columns)
    text = f"urn:commonweal:start:v1\n{spec.seed}\n{name}"
    stream = hashlib.shake_256(text.encode()).digest(8 * rows * columns)
    words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, len(stream), 8)]
    q = [w % (2 * bound + 1) - bound for w in words]
    return [q[r * columns : (r + 1) * columns] for r in range(rows)]


@settings(deadline=None)
@given(st.integers(0, 2**53 - 1), st.integers(8, 23))
def test_the_start_is_the_formula(seed: int, bits: int) -> None:
    spec = AdapterSpec.model_validate(TINY.model_dump() | {"seed": seed, "grid_bits": bits})
    start = read_adapter(recompute_start(spec), spec)
    for name, shape in tensor_shapes(spec).items():
        if ".lora_B." in name:
            assert not start[name].any()
        else:
            assert start[name].tolist() == naive_start(spec, name, *shape)


def test_every_seed_and_every_tensor_gets_other_numbers() -> None:
    starts = [read_adapter(recompute_start(TINY.model_copy(update={"seed": s})), TINY) for s in (0, 1)]
    drawn = [q.tobytes() for start in starts for name, q in start.items() if ".lora_A." in name]
    assert len(set(drawn)) == len(drawn)


def test_a_is_spread_as_peft_spreads_it() -> None:
    columns = 1 << 16
    spec = AdapterSpec(
        rank=8,
        alpha=8,
        prefix="p",
        layers=1,
        modules=(LoraModule(name="m", in_features=columns, out_features=1),),
    )
    a = safetensors.numpy.load(recompute_start(spec))["p.0.m.lora_A.weight"].astype(np.float64)
    bound = 1 / math.sqrt(columns)
    assert np.abs(a).max() == bound  # 2^19 draws of 8193 values: each end is drawn
    # A uniform's mean and variance, within five standard errors.
    n = a.size
    assert abs(a.mean()) < 5 * bound / math.sqrt(3 * n)
    assert abs(a.var() / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / n)


@pytest.mark.parametrize("in_features", [1, 3, 576, 1536, 1 << 20])
def test_the_bound_is_the_floor_of_the_root(in_features: int) -> None:
    bound = math.isqrt(4**23 // in_features)
    assert Fraction(bound) ** 2 * in_features <= 4**23 < Fraction(bound + 1) ** 2 * in_features


def test_a_spec_beyond_any_blob_is_refused_before_memory_is_taken() -> None:
    module = LoraModule(name="m", in_features=1 << 20, out_features=1 << 20)
    spec = AdapterSpec(rank=1024, alpha=1, prefix="p", layers=1024, modules=(module,))
    with pytest.raises(BlobError, match=f"wanted tensors of at most {1 << 34} bytes, got {1024 * 2 * 4 << 30}"):
        recompute_start(spec)


def test_a_grid_too_coarse_for_any_start_but_zero_is_refused() -> None:
    module = LoraModule(name="m", in_features=(1 << 16) + 1, out_features=1)
    spec = AdapterSpec(rank=1, alpha=1, prefix="p", layers=1, modules=(module,), grid_bits=8)
    with pytest.raises(BlobError, match="wanted grid_bits of at least 9 for 65537 in_features, got 8"):
        recompute_start(spec)
    recompute_start(spec.model_copy(update={"grid_bits": 9}))


# -- the release


def random_grid(seed: int, size: int) -> GridTensors:
    rng = np.random.default_rng(seed)
    return GridTensors({n: rng.integers(-size, size + 1, s, dtype=np.int32) for n, s in tensor_shapes(TINY).items()})


class Store:
    """Blobs in memory that count how often they are asked for."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    def keep(self, data: bytes) -> Blob:
        blob = blob_of(data)
        self.blobs[blob.sha256] = data
        return blob

    def fetch(self, sha256: str) -> bytes:
        self.asked.append(sha256)
        return self.blobs[sha256]


def a_round(seed: int = 0) -> tuple[Store, Blob, tuple[Input, ...]]:
    store = Store()
    start = store.keep(write_adapter(random_grid(seed, LIMIT // 2), TINY))
    inputs = tuple(
        Input(
            institution=name,
            leaf=LEAF,
            delta=store.keep(write_delta(random_grid(seed + 1 + k, LIMIT // 4), TINY)),
            weight=10**k + k,
        )
        for k, name in enumerate(NAMES)
    )
    return store, start, inputs


@settings(deadline=None)
@given(st.integers(0, 2**16))
def test_a_release_is_what_another_reader_and_fractions_make_of_its_inputs(seed: int) -> None:
    store, start, inputs = a_round(seed)
    released = safetensors.numpy.load(merge_release(TINY, start, RULE, inputs, (), store.fetch).adapter)
    before = safetensors.numpy.load(store.blobs[start.sha256])
    deltas = [safetensors.numpy.load(store.blobs[i.delta.sha256]) for i in inputs]
    total = sum(i.weight for i in inputs)
    for name, values in released.items():
        for at in np.ndindex(values.shape):
            summed = sum(i.weight * int(d[name][at]) for i, d in zip(inputs, deltas, strict=True))
            q = Fraction(float(before[name][at])) * 2**TINY.grid_bits + round(Fraction(summed, total))
            assert Fraction(float(values[at])) == q / 2**TINY.grid_bits


def test_the_order_of_the_inputs_never_changes_a_byte() -> None:
    store, start, inputs = a_round()
    made = {
        merge_release(TINY, start, RULE, order, (), store.fetch).adapter for order in itertools.permutations(inputs)
    }
    assert len(made) == 1


def test_a_release_is_recomputed_from_its_own_fields() -> None:
    store, start, inputs = a_round()
    release = released(store, start, inputs)
    assert recompute_release(TINY, release, store.fetch) == release
    other = blob_of(b"another adapter")
    zero = release.figures.model_copy(update={"error_micros": 0})
    for field, value in (("adapter", other), ("figures", zero), ("state_after", (other,))):
        assert recompute_release(TINY, release.model_copy(update={field: value}), store.fetch) == release
    fewer = release.model_copy(update={"inputs": inputs[:2]})
    assert recompute_release(TINY, fewer, store.fetch).adapter != release.adapter


def test_each_blob_is_fetched_once() -> None:
    store, start, inputs = a_round()
    merge_release(TINY, start, RULE, inputs, (), store.fetch)
    assert store.asked == [start.sha256, *(i.delta.sha256 for i in inputs)]


def test_errors_of_the_callers_fetch_pass_through() -> None:
    store, start, inputs = a_round()
    del store.blobs[inputs[1].delta.sha256]
    with pytest.raises(KeyError, match=inputs[1].delta.sha256):
        merge_release(TINY, start, RULE, inputs, (), store.fetch)


def flip_last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def replaced(inputs: tuple[Input, ...], delta: Blob) -> tuple[Input, ...]:
    return (inputs[0], inputs[1].model_copy(update={"delta": delta}), inputs[2])


def test_other_bytes_under_a_blobs_name_are_refused() -> None:
    store, start, inputs = a_round()
    delta = inputs[1].delta.sha256
    good = store.blobs[delta]
    store.blobs[delta] = flip_last_byte(good)
    got = blob_of(store.blobs[delta]).sha256
    with pytest.raises(BlobError, match=f"^delta {delta} of coop: wanted sha256 {delta}, got {got}$"):
        merge_release(TINY, start, RULE, inputs, (), store.fetch)
    store.blobs[delta] = good + b"\0"
    with pytest.raises(BlobError, match=f"^delta {delta} of coop: wanted {len(good)} bytes, got {len(good) + 1}$"):
        merge_release(TINY, start, RULE, inputs, (), store.fetch)
    store.blobs[delta] = good
    store.blobs[start.sha256] = flip_last_byte(store.blobs[start.sha256])
    with pytest.raises(BlobError, match=f"^start {start.sha256}: wanted sha256 {start.sha256}, got "):
        merge_release(TINY, start, RULE, inputs, (), store.fetch)


def far_out() -> bytes:
    """A well-formed delta with one integer beyond the range."""
    data = write_delta(random_grid(0, 1), TINY)
    return data[:-4] + (LIMIT + 1).to_bytes(4, "little")


BAD_DELTAS: list[tuple[str, Callable[[], bytes], str]] = [
    ("an adapter in a delta's place", lambda: recompute_start(TINY), "wanted dtype I32, got 'F32'"),
    ("an integer out of range", far_out, r"wanted at most 2\^24 = 16777216 grid steps, got 16777217"),
    ("cut off", lambda: write_delta(random_grid(0, 1), TINY)[:-4], "file: wanted .* bytes, got"),
    ("no file at all", lambda: b"hello, world", "header: wanted a length"),
]


@pytest.mark.parametrize(("why", "make", "message"), BAD_DELTAS, ids=[w for w, _, _ in BAD_DELTAS])
def test_a_bad_delta_is_refused_alone_and_in_a_merge_where_its_author_is_named(
    why: str, make: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(BlobError, match=message):
        check_delta(make(), TINY, None)
    store, start, inputs = a_round()
    bad = store.keep(make())
    with pytest.raises(BlobError, match=f"^delta {bad.sha256} of coop: .*{message}"):
        merge_release(TINY, start, RULE, replaced(inputs, bad), (), store.fetch)


def test_a_good_delta_passes() -> None:
    check_delta(write_delta(random_grid(0, LIMIT), TINY), TINY, None)


def test_a_start_off_the_grid_is_refused() -> None:
    store, _, inputs = a_round()
    tensors = {name: np.full(shape, 0.3, np.float32) for name, shape in tensor_shapes(TINY).items()}
    start = store.keep(safetensors.numpy.save(tensors))
    with pytest.raises(BlobError, match=f"^start {start.sha256}: tensor .*: wanted multiples of 2\\^-20"):
        merge_release(TINY, start, RULE, inputs, (), store.fetch)


def test_a_result_out_of_range_is_refused() -> None:
    store, _, inputs = a_round()
    start = store.keep(
        write_adapter(GridTensors({n: np.full(s, LIMIT, np.int32) for n, s in tensor_shapes(TINY).items()}), TINY)
    )
    up = store.keep(
        write_delta(GridTensors({n: np.full(s, 9, np.int32) for n, s in tensor_shapes(TINY).items()}), TINY)
    )
    with pytest.raises(BlobError, match=f"merge: tensor .* got {LIMIT + 9}"):
        merge_release(TINY, start, RULE, replaced(inputs, up)[1:2], (), store.fetch)


# -- other rules, and what is published beside a release

ROBUST = rules.Median(weights="equal")


def released(store: Store, start: Blob, inputs: tuple[Input, ...]) -> Release:
    made = merge_release(TINY, start, RULE, inputs, (), store.fetch)
    adapter = store.keep(made.adapter)
    return Release(round=1, start=start, rule=RULE, inputs=inputs, adapter=adapter, figures=made.figures)


def test_a_round_by_another_rule_is_that_rules_merge() -> None:
    store, start, inputs = a_round()
    made = merge_release(TINY, start, ROBUST, inputs, (), store.fetch)
    before = read_adapter(store.blobs[start.sha256], TINY)
    deltas = [Delta(i.institution, 1, Held(read_delta(store.blobs[i.delta.sha256], TINY))) for i in inputs]
    wanted = merge(ROBUST, TINY, before, deltas)
    assert made.adapter == write_adapter(wanted.adapter, TINY)
    assert made.figures.counted_micros == wanted.counted_micros
    assert made.state == ()


def test_an_optimisers_state_goes_from_round_to_round_as_files() -> None:
    store, start, inputs = a_round()
    rule = rules.FedAvgM(weights="equal", momentum_millis=500)
    first = merge_release(TINY, start, rule, inputs, (), store.fetch)
    (momentum,) = first.state
    again = merge_release(TINY, start, rule, inputs, (store.keep(momentum),), store.fetch)
    before, one, two = (read_adapter(d, TINY) for d in (store.blobs[start.sha256], first.adapter, again.adapter))
    for name, m in read_delta(momentum, TINY).items():
        assert np.array_equal(one[name], before[name] + m)
        # The same mean again: m ← m / 2 + m.
        np.testing.assert_allclose(two[name] - before[name], 1.5 * m, rtol=0, atol=0.5)


def test_dare_draws_by_the_rounds_start() -> None:
    store, start, inputs = a_round()
    other = store.keep(write_adapter(random_grid(99, LIMIT // 2), TINY))
    rule = rules.Dare(weights="equal", drop_millis=500)
    moved = []
    for blob in (start, other):
        before = read_adapter(store.blobs[blob.sha256], TINY)
        after = read_adapter(merge_release(TINY, blob, rule, inputs, (), store.fetch).adapter, TINY)
        moved.append([(after[n] - q).tolist() for n, q in before.items()])
    assert moved[0] != moved[1]


def test_figures_are_those_of_the_logged_inputs() -> None:
    store, start, inputs = a_round()
    release = released(store, start, inputs)
    figures = release.figures
    before, merged = (read_adapter(store.blobs[b.sha256], TINY) for b in (start, release.adapter))
    deltas = [Delta(i.institution, i.weight, Held(read_delta(store.blobs[i.delta.sha256], TINY))) for i in inputs]
    error = squared_error(TINY, before, deltas, merged)
    assert error is not None
    assert figures.error_micros == error_micros(error) > 0
    rows = np.stack([np.concatenate([d.rows.read(n, 0, q.size) for n, q in before.items()]) for d in deltas])
    exact = rows.astype(object) @ rows.astype(object).T
    assert figures.diversity_micros == 10**6 - -(-(10**6 * int(exact.sum())) // (3 * int(np.trace(exact))))


def test_without_an_institution_a_release_is_the_others_merge_and_the_change_is_measured() -> None:
    store, start, inputs = a_round()
    release = released(store, start, inputs)
    data, moved = recompute_without(TINY, release, "coop", store.fetch)
    assert data == merge_release(TINY, start, RULE, (inputs[0], inputs[2]), (), store.fetch).adapter
    published, without = (safetensors.numpy.load(d) for d in (store.blobs[release.adapter.sha256], data))
    squared = sum(((published[n].astype(np.float64) - without[n]) ** 2).sum() for n in published)
    assert abs(moved - 1e6 * math.sqrt(squared)) <= 1
    assert moved > 0


def test_an_institution_that_took_no_part_cannot_be_left_out() -> None:
    store, start, inputs = a_round()
    with pytest.raises(BlobError, match="institution: wanted one of clinic, coop, school, got bank"):
        recompute_without(TINY, released(store, start, inputs), "bank", store.fetch)


def test_a_delta_in_another_encoding_is_the_same_delta() -> None:
    store, start, inputs = a_round()
    encoding = Encoding(bits=8, keep_millis=500)
    sent = quantise(read_delta(store.blobs[inputs[1].delta.sha256], TINY), encoding)
    plain, encoded = write_delta(sent, TINY), write_encoded(sent, TINY, encoding)
    made = [
        merge_release(TINY, start, RULE, replaced(inputs, store.keep(data)), (), store.fetch)
        for data in (plain, encoded)
    ]
    assert made[0] == made[1]
    check_delta(encoded, TINY, encoding)
    for data, wanted in ((encoded, None), (plain, encoding), (encoded, Encoding(bits=4))):
        with pytest.raises(BlobError):
            check_delta(data, TINY, wanted)
