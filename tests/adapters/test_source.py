"""Deltas are read slice by slice, from memory or from disk, and nothing out of range comes through."""

import tempfile
import tracemalloc
from contextlib import closing

import numpy as np
import pytest

from commonweal_adapters.exact.weighted_sum import factor_mean
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import CHUNK, Delta, DeltaFile, Held, Spool, chunks_of, for_each
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from tests.kit.deltas import SPEC, a_round, data, random_grid


def test_a_slice_is_the_same_from_memory_and_from_the_spool() -> None:
    grid = random_grid(np.random.default_rng(0), LIMIT)
    spool = Spool(SPEC)
    spool.keep(random_grid(np.random.default_rng(1), 9))
    kept = spool.keep(grid)
    for name, q in grid.items():
        for begin, end in ((0, q.size), (3, 4), (q.size - 2, q.size)):
            wanted = q.reshape(-1)[begin:end].tolist()
            for rows in (Held(grid), kept):
                assert rows.read(name, begin, end).tolist() == wanted
    spool.close()


def test_a_merge_from_disk_is_the_merge_from_memory() -> None:
    start, deltas = a_round(3, 3, weights=[3, 1, 7])
    wanted = data(factor_mean(start, deltas))
    spool = Spool(SPEC)
    grids = (GridTensors({n: d.rows.read(n, 0, q.size).reshape(q.shape) for n, q in start.items()}) for d in deltas)
    kept = [Delta(d.institution, d.weight, spool.keep(g)) for d, g in zip(deltas, grids, strict=True)]
    assert data(factor_mean(start, kept)) == wanted
    spool.close()


@pytest.mark.parametrize("value", [LIMIT + 1, -LIMIT - 1, -(2**31)])
def test_a_value_out_of_range_is_refused_when_it_is_read(value: int) -> None:
    name = next(iter(tensor_shapes(SPEC)))
    grid = random_grid(np.random.default_rng(0), 9)
    grid[name][0, 0] = value
    with closing(Spool(SPEC)) as spool:
        for rows in (Held(grid), spool.keep(grid)):
            rows.read(name, 1, 9)
            with pytest.raises(BlobError, match=rf"tensor {name}: wanted at most 2\^24 .* got {abs(value)}"):
                rows.read(name, 0, 9)


def test_a_file_that_is_cut_off_meanwhile_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(16))
        file.flush()
        rows = DeltaFile(file, {"a": 4})
        assert rows.read("a", 0, 3).tolist() == [0, 0, 0]
        file.truncate(15)
        with pytest.raises(BlobError, match="cut off while it was read"):
            rows.read("a", 0, 3)


def test_chunks_cover_every_element_once() -> None:
    q = GridTensors({"a": np.zeros((3, CHUNK), np.int32), "b": np.zeros((1, 5), np.int32)})
    seen = {name: np.zeros(t.size, np.int64) for name, t in q.items()}
    for name, begin, end in chunks_of(q):
        assert 0 < end - begin <= CHUNK
        seen[name][begin:end] += 1
    assert all((s == 1).all() for s in seen.values())


def test_an_error_in_a_thread_is_raised_to_the_caller() -> None:
    def work(part: int) -> None:
        if part == 3:
            raise BlobError("part 3")

    with pytest.raises(BlobError, match="part 3"):
        for_each(work, range(8), 4)


def test_memory_does_not_grow_with_the_number_of_deltas() -> None:
    module = LoraModule(name="m", in_features=1 << 19, out_features=1)
    spec = AdapterSpec(rank=2, alpha=1, prefix="p", layers=1, modules=(module,))
    start = GridTensors({name: np.zeros(shape, np.int32) for name, shape in tensor_shapes(spec).items()})
    spool = Spool(spec)  # 4 MiB a delta
    grid = random_grid(np.random.default_rng(0), 99, spec)
    deltas = [Delta(f"i{k}", 1, spool.keep(grid)) for k in range(32)]
    tracemalloc.start()
    try:
        factor_mean(start, deltas, threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        spool.close()
    # Of 128 MiB of deltas nothing stays: the result, and eight arrays of int64 for one chunk.
    assert peak <= (4 << 20) + 8 * 8 * CHUNK
