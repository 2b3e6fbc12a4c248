"""Blends: base + a · shared + b · own, exact.

For two adapters of rank r with factors (A₁, B₁) and (A₂, B₂) and one scaling s, the blend is the rank-2r adapter

    A = [A₁; A₂]  (2r, in),   B = [a B₁, b B₂]  (out, 2r),   so that  s B A = a · s B₁A₁ + b · s B₂A₂

with no approximation: averaging the factors themselves would give another product. Weights are in thousandths, as
the adoption entry has them. Pure but for ``export_peft``; no torch, no randomness.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from commonweal_node.model.tensors import AdapterTensors, check_adapter, slots
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.statements.compact import AdapterSpec


@dataclass(frozen=True, slots=True, order=True)
class BlendWeights:
    """How much of each adapter, in thousandths."""

    shared_millis: int
    own_millis: int


def blend(
    spec: AdapterSpec, shared: AdapterTensors, own: AdapterTensors, weights: BlendWeights
) -> dict[str, NDArray[np.float32]]:
    """The rank-2r adapter of the module's docstring; float32, the names of ``spec``.

    Raises:
        BlobError: An adapter breaks the spec.
    """
    check_adapter(shared, spec, spec.rank)
    check_adapter(own, spec, spec.rank)
    a, b = np.float32(weights.shared_millis / 1000), np.float32(weights.own_millis / 1000)
    blended: dict[str, NDArray[np.float32]] = {}
    for slot in slots(spec):
        blended[slot.name_a] = np.concatenate([shared[slot.name_a], own[slot.name_a]], axis=0)
        blended[slot.name_b] = np.concatenate([a * shared[slot.name_b], b * own[slot.name_b]], axis=1)
    return blended


def export_peft(directory: Path, spec: AdapterSpec, adapter: AdapterTensors, base_reference: str) -> None:
    """Write an adapter or a blend as a PEFT folder, for ``PeftModel.from_pretrained`` and what serves such folders.

    Args:
        directory: Made if missing; its adapter files are replaced.
        spec: The adapter's names, layers, and scale, which the folder keeps.
        adapter: Of the spec's rank, or a blend of twice that.
        base_reference: Written down as the base model's name: what a program that loads the folder can resolve.

    Raises:
        BlobError: The adapter breaks the spec.
        StorageError: The folder cannot be written.
    """
    every = slots(spec)
    first = adapter.get(every[0].name_a)
    terms = 2 if first is not None and first.shape[:1] == (2 * spec.rank,) else 1
    check_adapter(adapter, spec, terms * spec.rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_reference,
        "inference_mode": True,
        "r": terms * spec.rank,
        # lora_alpha / r must be the spec's scale whatever the rank. That of rsLoRA is written in the same way, since
        # not every program that serves adapters knows `use_rslora`.
        "lora_alpha": terms * spec.alpha * (1 if spec.scaling == "lora" else math.sqrt(spec.rank)),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        # Full paths: a bare "q_proj" would also match layers outside of the spec's blocks.
        "target_modules": [slot.path for slot in every],
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Contiguous: safetensors writes an array's memory as it lies.
        tensors = {name: np.ascontiguousarray(value) for name, value in adapter.items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        for path in directory.iterdir():
            path.chmod(0o644)  # for the program that serves it, which is often another user's
    except OSError as error:
        raise StorageError(f"{directory}: wanted to write a PEFT folder, got {error}") from error
