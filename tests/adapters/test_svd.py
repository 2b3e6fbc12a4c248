"""FlexLoRA's rule: as near to the exact merge as numpy's singular values allow, with mixed ranks too."""

import numpy as np
import pytest
from numpy.typing import NDArray

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import Slot, slots, tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import squared_error
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.rules import FactorMean, Svd
from tests.kit.deltas import SPEC, a_round, data

RULE = Svd(weights="examples")
WIDER = AdapterSpec(
    rank=4,
    alpha=8,
    prefix="p",
    layers=2,
    modules=(LoraModule(name="m", in_features=60, out_features=40),),
)
Floats = NDArray[np.float64]


def product(tensors: GridTensors, slot: Slot) -> Floats:
    b, a = tensors[slot.name_b].astype(np.float64), tensors[slot.name_a].astype(np.float64)
    return b @ a


def exact(start: GridTensors, deltas: list[Delta], slot: Slot) -> Floats:
    """The mean of the products, made densely."""
    total = sum(d.weight for d in deltas)
    made = np.zeros((slot.out_features, slot.in_features))
    for d in deltas:
        b, a = (start[n] + d.rows.read(n, 0, start[n].size).reshape(start[n].shape) for n in (slot.name_b, slot.name_a))
        made += d.weight / total * (b.astype(np.float64) @ a.astype(np.float64))
    return made


# With deltas far beyond the start, twenty products have next to nothing in common: a flat spectrum, the hard case.
@pytest.mark.parametrize(
    ("spec", "count", "size"), [(SPEC, 2, 1 << 18), (SPEC, 5, 1 << 18), (WIDER, 7, 1 << 20), (WIDER, 20, 1 << 23)]
)
def test_no_adapter_of_this_rank_is_nearer_by_numpys_singular_values(spec: AdapterSpec, count: int, size: int) -> None:
    start, deltas = a_round(1, count, size=size, weights=list(range(1, count + 1)), spec=spec)
    made = merge(RULE, spec, start, deltas).adapter
    for slot in slots(spec):
        wanted = exact(start, deltas, slot)
        best = np.sqrt((np.linalg.svd(wanted, compute_uv=False)[spec.rank :] ** 2).sum())
        off = np.linalg.norm(product(made, slot) - wanted)
        # A hundred-thousandth for the search, and the rounding to the grid.
        assert off <= best * 1.00001 + 3e-6 * np.linalg.norm(wanted)


def test_the_spaces_are_those_of_numpys_singular_vectors() -> None:
    start, deltas = a_round(2, 2, spec=WIDER)
    made = merge(RULE, WIDER, start, deltas).adapter
    for slot in slots(WIDER):
        u, s, vt = np.linalg.svd(exact(start, deltas, slot))
        for mine, theirs in ((made[slot.name_b].T, u[:, :4].T), (made[slot.name_a], vt[:4])):
            unit = mine / np.linalg.norm(mine, axis=1, keepdims=True)
            # Row by row: the order is that of the singular values.
            np.testing.assert_allclose(np.abs((unit * theirs).sum(axis=1)), 1, atol=1e-6)
        sizes = np.linalg.norm(made[slot.name_b], axis=0) * np.linalg.norm(made[slot.name_a], axis=1)
        np.testing.assert_allclose(sizes, s[:4], rtol=1e-5)


def test_signs_are_canonical() -> None:
    start, deltas = a_round(3, 3)
    made = merge(RULE, SPEC, start, deltas).adapter
    for slot in slots(SPEC):
        b = made[slot.name_b]
        assert (b[np.abs(b).argmax(axis=0), range(SPEC.rank)] > 0).all()


def at_rank(grid: GridTensors, rank: int) -> GridTensors:
    """Zeros beyond the first ``rank`` rows of A and columns of B."""
    made = {}
    for name, q in grid.items():
        kept = q.copy()
        if ".lora_A." in name:
            kept[rank:] = 0
        else:
            kept[:, rank:] = 0
        made[name] = kept
    return GridTensors(made)


def test_institutions_of_lesser_ranks_take_part_and_read_their_share_off_the_front() -> None:
    # One trains rank 1 of 4, one 2, one 4; padded with zeros their whole adapters have the spec's shape.
    start, deltas = a_round(4, 3, spec=WIDER)
    mixed = []
    for d, rank in zip(deltas, (1, 2, 4), strict=True):
        trained = {n: start[n] + d.rows.read(n, 0, q.size).reshape(q.shape) for n, q in start.items()}
        whole = at_rank(GridTensors(trained), rank)
        mixed.append(Delta(d.institution, 1, Held(GridTensors({n: whole[n] - q for n, q in start.items()}))))
    made = merge(RULE, WIDER, start, mixed).adapter
    for slot in slots(WIDER):
        wanted = exact(start, mixed, slot)
        values = np.linalg.svd(wanted, compute_uv=False)
        for rank in (1, 2, 4):
            off = np.linalg.norm(product(at_rank(made, rank), slot) - wanted)
            assert off <= np.sqrt((values[rank:] ** 2).sum()) * 1.001 + 1e-5 * values[0]


def test_what_is_dead_changes_no_product_and_keeps_the_starts_a() -> None:
    start, deltas = a_round(5, 2)
    one = at_rank(start, 1)
    same = [Delta(d.institution, 1, Held(GridTensors({n: one[n] - q for n, q in start.items()}))) for d in deltas]
    made = merge(RULE, SPEC, start, same).adapter
    for slot in slots(SPEC):
        assert not made[slot.name_b][:, 1].any()
        assert np.array_equal(made[slot.name_a][1], start[slot.name_a][1])
        np.testing.assert_allclose(product(made, slot), product(one, slot), rtol=0, atol=3e-6 * 2**40)


def test_nothing_learned_is_nothing_merged() -> None:
    start, _ = a_round(6, 1)
    start = GridTensors({n: np.zeros_like(q) if ".lora_B." in n else q for n, q in start.items()})
    zero = Held(GridTensors({n: np.zeros_like(q) for n, q in start.items()}))
    made = merge(RULE, SPEC, start, [Delta("a", 1, zero), Delta("b", 1, zero)]).adapter
    assert data(made) == data(start)


def test_its_error_is_less_than_the_factor_means() -> None:
    start, deltas = a_round(7, 4, size=1 << 20)
    means, best = (
        squared_error(SPEC, start, deltas, merge(rule, SPEC, start, deltas).adapter)
        for rule in (FactorMean(weights="equal"), Svd(weights="equal"))
    )
    assert means is not None
    assert best is not None
    assert best < means


def test_the_batches_of_layers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start, deltas = a_round(8, 3)
    wanted = data(merge(RULE, SPEC, start, deltas).adapter)
    monkeypatch.setattr("commonweal_adapters.rules.svd._BATCH_ELEMENTS", 1)
    assert data(merge(RULE, SPEC, start, deltas, threads=1).adapter) == wanted


def test_a_result_out_of_range_is_refused() -> None:
    # 2^25 in every place of both factors: the one balanced column is √2 · 2^25 · (9/7)^¼.
    shapes = tensor_shapes(SPEC)
    full = GridTensors({n: np.full(s, 1 << 24, np.int32) for n, s in shapes.items()})
    with pytest.raises(BlobError, match=r"merge: tensor .* wanted at most 2\^24"):
        merge(RULE, SPEC, full, [Delta("a", 1, Held(full))])
