"""``commonweal adapter inspect`` and ``diff``: files in, plain data out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commonweal_adapters.commands.inspection import GridFit, Likeness, ModuleNorms, compare, grid_fit, module_norms
from commonweal_adapters.files.peft_config import Scaling
from commonweal_adapters.files.peft_files import Adapter, load_adapter
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

_ANY_BITS = 20
"""Likeness depends on no grid."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """One adapter. ``spec`` is None, and what needs it empty, where no consortium could have such an adapter."""

    path: str
    size_bytes: int
    dtypes: tuple[str, ...]
    is_delta: bool
    base: str | None
    elements: int
    rank: int | None
    alpha: float | None
    scaling: Scaling | None
    layers: int | None
    modules: tuple[ModuleNorms, ...]
    fit: GridFit | None
    problems: tuple[str, ...]


def inspect_file(path: Path, grid_bits: int) -> Inspection:
    """Look at an adapter or a delta, and say what is wrong with it.

    Raises:
        ConfigError: It cannot be read.
        BlobError: It is no adapter at all.
    """
    adapter = load_adapter(path)
    problems = list(adapter.problems)
    tensors = adapter.values(grid_bits)
    finite = all(np.isfinite(x).all() for x in tensors.values())
    fit = grid_fit(tensors, grid_bits) if finite else None
    if fit and fit.range_used > 1:
        problems.append(f"values: wanted at most ±2^{24 - fit.grid_bits} for this grid, got {fit.largest}")
    spec = None
    try:
        spec = adapter.spec(grid_bits)
    except BlobError as e:
        problems.append(str(e))
    if spec and adapter.config and adapter.config.r != spec.rank:
        problems.append(f"r: wanted {spec.rank}, which the tensors have, got {adapter.config.r} in the configuration")
    return Inspection(
        path=str(adapter.path),
        size_bytes=adapter.size_bytes,
        dtypes=adapter.dtypes,
        is_delta=adapter.is_delta,
        base=adapter.config.base_model_name_or_path if adapter.config else None,
        elements=sum(x.size for x in tensors.values()),
        rank=spec.rank if spec else None,
        alpha=adapter.config.lora_alpha if adapter.config else None,
        scaling=adapter.config.scaling if adapter.config else None,
        layers=spec.layers if spec else None,
        modules=tuple(module_norms(spec, tensors)) if spec and finite else (),
        fit=fit,
        problems=tuple(problems),
    )


def diff_files(one: Path, other: Path) -> tuple[Likeness, ...]:
    """Compare two adapters of the same layers and modules.

    Raises:
        ConfigError: One cannot be read.
        BlobError: One is no adapter, has a value that is not finite, or their layers or modules differ.
    """
    first, second = (load_sound(path) for path in (one, other))
    specs = first.spec(_ANY_BITS), second.spec(_ANY_BITS)
    same = specs[1].model_copy(update={k: getattr(specs[0], k) for k in ("rank", "alpha", "scaling")})
    if same != specs[0]:
        raise BlobError(f"{other}: wanted the layers and modules of {shape_of(specs[0])}, got {shape_of(specs[1])}")
    return tuple(compare(specs[0], first.values(_ANY_BITS), specs[1], second.values(_ANY_BITS)))


def load_sound(path: Path) -> Adapter:
    """Read an adapter that has no problems.

    Raises:
        ConfigError: It cannot be read.
        BlobError: It is no adapter, or has a problem: the first is told.
    """
    adapter = load_adapter(path)
    if adapter.problems:
        raise BlobError(f"{adapter.path}: {adapter.problems[0]}")
    return adapter


def shape_of(spec: AdapterSpec) -> str:
    """What distinguishes two specs, for an error's text."""
    scaling = "" if spec.scaling == "lora" else f" ({spec.scaling})"
    modules = ", ".join(f"{m.name} ({m.in_features} to {m.out_features})" for m in spec.modules)
    return f"rank {spec.rank}, alpha {spec.alpha}{scaling}, {spec.layers} layers {spec.prefix} of {modules}"
