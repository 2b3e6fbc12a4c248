"""Every encoding of a delta, as a parameter; and deltas of awkward sizes to encode."""

import numpy as np
import pytest

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.delta_encoding import Encoding

ODD = AdapterSpec(
    rank=3,
    alpha=3,
    prefix="p",
    layers=1,
    modules=(LoraModule(name="m", in_features=67, out_features=1), LoraModule(name="n", in_features=1, out_features=9)),
)
"""Sizes that are no multiple of a block, of two or of eight."""
ENCODINGS = [Encoding(bits=bits, keep_millis=keep) for bits in (4, 8, 32) for keep in (1000, 400, 30, 1)]
encodings = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: f"{e.bits} bits, {e.keep_millis}/1000")


def delta(seed: int = 0, spec: AdapterSpec = ODD, size: int = 5000) -> GridTensors:
    rng = np.random.default_rng(seed)
    return GridTensors({n: rng.integers(-size, size + 1, s, dtype=np.int32) for n, s in tensor_shapes(spec).items()})


def equal(one: GridTensors, two: GridTensors) -> bool:
    return one.values.keys() == two.values.keys() and all(
        q.dtype == np.int32 and np.array_equal(q, two[name]) for name, q in one.items()
    )
