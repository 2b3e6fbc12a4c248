"""Adapters as they lie about in the world: PEFT folders and safetensors files, read as if a stranger had sent them.

Here the spec is not given, it is found: by the names and shapes of a file that is checked to the last byte before a
tensor is looked at. What a consortium could not take is not refused but said, as a problem, so that a person can see
it; what is not an adapter at all is refused. Written folders load in any PEFT program. Nothing is ever unpickled.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from commonweal_adapters.files.delta import LIMIT, GridTensors, to_grid, write_adapter
from commonweal_adapters.files.lora_file import parse_layout, slots, tensor_shapes
from commonweal_adapters.files.peft_config import PeftConfig, Scaling, odd_names, parse_config
from commonweal_protocols.base.errors import BlobError, ConfigError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.values import MAX_BLOB_BYTES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 25
_NAME = re.compile(
    r"(?P<prefix>[A-Za-z0-9_.]+?)\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<factor>[AB])\.weight"
)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter, or a delta where ``is_delta``, as it was found."""

    path: Path
    size_bytes: int
    dtypes: tuple[str, ...]
    config: PeftConfig | None
    tensors: Mapping[str, NDArray[np.float32]]
    """In float32, which holds F16, BF16 and a delta's integers exactly."""
    is_delta: bool
    problems: tuple[str, ...]
    """Why no consortium could take it as it is; empty for most."""

    def spec(self, grid_bits: int) -> AdapterSpec:
        """Return the shape that a consortium with this adapter would have.

        Raises:
            BlobError: Its layers are not alike, or something else that a spec cannot say.
        """
        shapes = {name: x.shape for name, x in self.tensors.items()}
        rank = next((s[0] for n, s in shapes.items() if ".lora_A." in n and len(s) == 2), 0)
        alpha = self.config.lora_alpha if self.config else rank
        return find_spec(shapes, alpha, grid_bits, self.config.scaling if self.config else "lora")

    def values(self, grid_bits: int) -> Mapping[str, NDArray[np.float32]]:
        """Return the values in an adapter's unit; a delta's integers are multiples of 2^-grid_bits."""
        if not self.is_delta:
            return self.tensors
        return {name: x * np.float32(2.0**-grid_bits) for name, x in self.tensors.items()}

    def grid(self, grid_bits: int) -> GridTensors:
        """Return the values on the grid: rounded to it; or a delta's integers, which are on it.

        Raises:
            BlobError: A value is not finite or beyond ±2^(24 - grid_bits).
        """
        return to_grid(self.values(grid_bits), grid_bits)


def load_adapter(path: Path) -> Adapter:
    """Read a PEFT folder, or one safetensors file (with the ``adapter_config.json`` beside it, if there is one).

    Raises:
        ConfigError: There is no such file, or it cannot be read.
        BlobError: It is not a safetensors file of float or int32 tensors, or its configuration is not LoRA's.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    data = _read(weights, MAX_BLOB_BYTES)
    problems: list[str] = []
    config = _load_config(weights.parent / CONFIG, problems) if path.is_dir() or path.name == WEIGHTS else None
    try:
        tensors, dtypes = _read_tensors(data)
    except BlobError as e:
        raise BlobError(f"{weights}: {e}") from e
    if "I32" not in dtypes:
        problems += odd_names(tensors, config)
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            problems.append(f"tensor {name}: {int(np.count_nonzero(~np.isfinite(x)))} values are not finite")
        elif subnormal := int(np.count_nonzero((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny))):
            problems.append(f"tensor {name}: {subnormal} values are subnormal, and round to 0 on any grid")
    return Adapter(weights, len(data), dtypes, config, tensors, "I32" in dtypes, tuple(problems))


def check_bases(adapters: Sequence[Adapter]) -> None:
    """Hold adapters to one base model, as far as their configurations name one.

    Raises:
        BlobError: They name two.
    """
    named = [(a.path, base) for a in adapters if a.config and (base := a.config.base_model_name_or_path)]
    if other := [n for n in named if n[1] != named[0][1]]:
        (one, base), (two, another) = named[0], other[0]
        raise BlobError(
            f"{two}: wanted an adapter of {ascii(base)[:200]}, as {one} is, got one of {ascii(another)[:200]}; if both "
            "are names of one base model, give --any-base"
        )


def find_spec(
    shapes: Mapping[str, tuple[int, ...]], alpha: float, grid_bits: int, scaling: Scaling = "lora"
) -> AdapterSpec:
    """Return the one spec whose tensors are exactly these.

    Args:
        shapes: Tensor names, as PEFT writes them, and shapes.
        alpha: PEFT's ``lora_alpha``.
        grid_bits: The spec's.
        scaling: The spec's.

    Raises:
        BlobError: There is none: a name or shape is no LoRA factor's, layers differ, ranks are mixed.
    """
    modules: dict[str, tuple[int, int]] = {}
    prefixes, layers, ranks = set(), set(), set()
    for name, shape in shapes.items():
        found = _NAME.fullmatch(name)
        if not found or len(shape) != 2:
            raise BlobError(f"tensor {ascii(name)[:200]}: wanted PREFIX.LAYER.MODULE.lora_(A or B).weight of two axes")
        prefixes.add(found["prefix"])
        layers.add(int(found["layer"]))
        rank, width = shape if found["factor"] == "A" else shape[::-1]
        ranks.add(rank)
        widths = modules.get(found["module"], (0, 0))
        modules[found["module"]] = (width, widths[1]) if found["factor"] == "A" else (widths[0], width)
    if len(prefixes) != 1 or len(ranks) != 1 or layers != set(range(len(layers))):
        raise BlobError(
            f"adapter: wanted one prefix, one rank and layers from 0 on, got {sorted(prefixes)[:3]}, "
            f"ranks {sorted(ranks)[:5]}, {len(layers)} layers up to {max(layers, default=0)}"
        )
    if alpha != int(alpha):
        raise BlobError(f"adapter: wanted a whole lora_alpha, got {alpha}")
    try:
        spec = AdapterSpec(
            rank=ranks.pop(),
            alpha=int(alpha),
            scaling=scaling,
            prefix=prefixes.pop(),
            layers=len(layers),
            modules=tuple(LoraModule(name=m, in_features=i, out_features=o) for m, (i, o) in sorted(modules.items())),
            grid_bits=grid_bits,
        )
    except ValidationError as e:
        first = e.errors()[0]
        raise BlobError(f"adapter: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from e
    wanted = tensor_shapes(spec)
    if odd := sorted(n for n in wanted.keys() | shapes.keys() if wanted.get(n) != shapes.get(n)):
        raise BlobError(f"adapter: wanted every layer alike, and {odd[0]} is not")
    return spec


def save_adapter(directory: Path, spec: AdapterSpec, adapter: GridTensors, base_reference: str) -> None:
    """Write a PEFT folder, for ``PeftModel.from_pretrained``.

    Args:
        directory: Made if missing; its adapter files are replaced.
        spec: The adapter's shape and scaling.
        adapter: On the spec's grid.
        base_reference: Written down as the base model's name.

    Raises:
        BlobError: Not the spec's tensors.
        StorageError: The folder cannot be written.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_reference,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.scaling == "rslora",
        "lora_dropout": 0.0,
        "bias": "none",
        # Full paths: a bare "q_proj" would also match layers outside of the spec's blocks.
        "target_modules": [slot.path for slot in slots(spec)],
    }
    write_atomic(directory / WEIGHTS, write_adapter(adapter, spec))
    write_atomic(directory / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _read(path: Path, max_bytes: int) -> bytes:
    return read_bounded(path, max_bytes, "an adapter's file", error=ConfigError, too_large=BlobError)


def _load_config(path: Path, problems: list[str]) -> PeftConfig:
    try:
        config, odd = parse_config(_read(path, _MAX_CONFIG_BYTES))
    except BlobError as e:
        raise BlobError(f"{path}: {e}") from e
    problems += [f"{CONFIG}: {o}" for o in odd]
    return config


def _read_tensors(data: bytes) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
    layout = parse_layout(data, {dtype: np.dtype(kind).itemsize for dtype, kind in DTYPES.items()}, _MAX_HEADER_BYTES)
    dtypes = tuple(sorted({place.dtype for place in layout.values()}))
    if "I32" in dtypes and len(dtypes) > 1:
        raise BlobError(f"tensors: wanted floats, or int32 alone, got {', '.join(dtypes)}")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, place in sorted(layout.items()):
        count = math.prod(place.shape)
        raw = np.frombuffer(data, DTYPES[place.dtype], count, place.begin).reshape(place.shape)
        if place.dtype == "BF16":
            # The upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        if place.dtype == "I32" and (raw.min() < -LIMIT or raw.max() > LIMIT):
            worst = max(int(raw.max()), -int(raw.min()))
            raise BlobError(f"tensor {ascii(name)[:200]}: wanted integers in ±2^24, got {worst}")
        # Another's header may be of any length, and what follows it anywhere in memory.
        tensors[name] = np.require(raw.astype(np.float32, copy=False), requirements="A")
    return tensors, dtypes
