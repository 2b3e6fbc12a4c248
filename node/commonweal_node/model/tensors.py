"""An adapter at this room's borders: plain arrays under the names of the compact's AdapterSpec. No torch, no I/O."""

import hashlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.lora_file import PEFT_ROOT, Slot, slots, tensor_shapes
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

__all__ = ["PEFT_ROOT", "AdapterTensors", "Factor", "Slot", "adapter_digest", "check_adapter", "slots"]

AdapterTensors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""An adapter at this room's border: the AdapterSpec's tensor names → float32 arrays."""

Factor: TypeAlias = Literal["A", "B"]
"""One of the two matrices of each adapted layer."""


def check_adapter(tensors: AdapterTensors, spec: AdapterSpec, rank: int) -> None:
    """Hold an adapter to its spec, at ``rank`` (a blend has twice the spec's).

    Raises:
        BlobError: A name, shape or dtype differs.
    """
    wanted = tensor_shapes(spec, rank=rank)
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise BlobError(f"adapter: wanted {len(wanted)} tensors, got {len(tensors)} ({odd[0]} is in one only)")
    for name, shape in wanted.items():
        got = tensors[name]
        if got.shape != shape or got.dtype != np.float32:
            raise BlobError(f"adapter tensor {name}: wanted float32 {shape}, got {got.dtype} {got.shape}")


def adapter_digest(adapter: AdapterTensors | None) -> bytes:
    """Return a digest of an adapter's values, by which this process knows it again; None is the base alone."""
    digest = hashlib.sha256()
    for name in sorted(adapter or ()):
        digest.update(adapter[name].tobytes() if adapter else b"")
    return digest.digest()
