"""Small rounds for the merge rules: a spec of two layers, a random start, and one random delta for each institution."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule

SPEC = AdapterSpec(
    rank=2,
    alpha=4,
    prefix="base_model.model.layers",
    layers=2,
    modules=(
        LoraModule(name="q_proj", in_features=9, out_features=7),
        LoraModule(name="up_proj", in_features=9, out_features=12),
    ),
    grid_bits=20,
)


def random_grid(rng: np.random.Generator, size: int, spec: AdapterSpec = SPEC) -> GridTensors:
    """Every integer uniform in ±size."""
    shapes = tensor_shapes(spec)
    return GridTensors({name: rng.integers(-size, size + 1, shape, np.int32) for name, shape in shapes.items()})


def a_round(
    seed: int, count: int, *, size: int = 1 << 18, weights: Sequence[int] | None = None, spec: AdapterSpec = SPEC
) -> tuple[GridTensors, list[Delta]]:
    """A start, and ``count`` deltas up to ``size`` grid steps; the weights are equal where none are given."""
    rng = np.random.default_rng(seed)
    start = random_grid(rng, 1 << 20, spec)
    grids = [random_grid(rng, size, spec) for _ in range(count)]
    return start, [Delta(f"i{k:03d}", weights[k] if weights else 1, Held(grid)) for k, grid in enumerate(grids)]


def flat(tensors: GridTensors) -> NDArray[np.int64]:
    """All elements of all tensors, one after the other."""
    return np.concatenate([q.reshape(-1) for _, q in tensors.items()]).astype(np.int64)


def flat_delta(delta: Delta, shapes: GridTensors) -> NDArray[np.int64]:
    return np.concatenate([delta.rows.read(name, 0, q.size) for name, q in shapes.items()]).astype(np.int64)


def matrix(deltas: Sequence[Delta], shapes: GridTensors) -> NDArray[np.int64]:
    """One row for each delta."""
    return np.stack([flat_delta(d, shapes) for d in deltas])


def data(tensors: GridTensors) -> bytes:
    """What two merges are compared by."""
    return b"".join(name.encode() + q.tobytes() for name, q in tensors.items())
