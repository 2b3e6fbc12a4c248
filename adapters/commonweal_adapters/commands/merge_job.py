"""``commonweal adapter merge``: PEFT adapters in, a PEFT folder and its stated error out.

Values are rounded to a grid on the way in, as a node's are; from there on everything is exact, and the same files give
the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from commonweal_adapters.commands.inspect_job import load_sound, shape_of
from commonweal_adapters.exact.gram import gram
from commonweal_adapters.files.delta import GridTensors, make_delta, write_adapter
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.peft_files import Adapter, check_bases, save_adapter
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import error_micros, squared_error
from commonweal_adapters.rules.plural import diversity_micros
from commonweal_adapters.rules.stack import exact_residual, stack
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.rules import AnyRule
from commonweal_protocols.statements.values import Digest

WideRule = Literal["stack", "exact-residual"]
"""What no compact can name, since the result has another rank than the inputs."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One input of a merge: how much it weighed, and how much it counted in the result."""

    path: str
    weight: int
    counted_micros: int


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merge. The error is ‖ΔW - Σ wᵢ BᵢAᵢ / W‖ / ‖Σ wᵢ BᵢAᵢ / W‖; None where the exact merge is 0."""

    rule: str
    inputs: tuple[Counted, ...]
    error_micros: int | None
    diversity_micros: int
    rank: int
    adapter_sha256: Digest


@dataclass(frozen=True, slots=True)
class MergeJob:
    """What to merge, and how."""

    paths: Sequence[Path]
    """Which comes first decides between equals."""
    weights: Sequence[int]
    """One for each path, 1 to 10^9."""
    rule: AnyRule | WideRule
    start: Path | None
    """From where all trained; None: from zeros."""
    grid_bits: int
    seed: str
    """For rules that draw."""
    any_base: bool
    """Names of base models may differ: they are one under several names."""
    out: Path
    """The folder. ``exact-residual`` writes its residual to ``residual`` below it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    spec: AdapterSpec
    adapter: GridTensors
    counted_micros: Sequence[int]
    residual: tuple[AdapterSpec, GridTensors] | None = None


def run_merge(job: MergeJob) -> MergeReport:
    """Merge adapters of one shape into a PEFT folder.

    Raises:
        ConfigError: A file cannot be read.
        BlobError: A file is no adapter, has problems, another shape or another base; or the rule does not allow these
            inputs.
        StorageError: The folder cannot be written.
    """
    adapters = [load_sound(path) for path in job.paths]
    spec, begun = adapters[0].spec(job.grid_bits), load_sound(job.start) if job.start else None
    if not job.any_base:
        check_bases([*adapters, begun] if begun else adapters)
    start = _grid(begun, spec) if begun else _zeros(spec)
    # Names in the order of the arguments: rules sort by them.
    deltas = [
        Delta(f"{i:06d}", weight, Held(make_delta(start, _grid(adapter, spec), spec)))
        for i, (adapter, weight) in enumerate(zip(adapters, job.weights, strict=True))
    ]
    made = _apply(job, spec, start, deltas)
    base = next((a.config.base_model_name_or_path for a in adapters if a.config), None) or ""
    save_adapter(job.out, made.spec, made.adapter, base)
    if made.residual:
        save_adapter(job.out / "residual", *made.residual, base)
    error = squared_error(spec, start, deltas, made.adapter, Fraction(spec.rank, made.spec.rank))
    return MergeReport(
        rule=job.rule if isinstance(job.rule, str) else job.rule.name,
        inputs=tuple(
            Counted(str(p), w, c) for p, w, c in zip(job.paths, job.weights, made.counted_micros, strict=True)
        ),
        error_micros=None if error is None else error_micros(error),
        diversity_micros=diversity_micros(gram(start, [d.rows for d in deltas])),
        rank=made.spec.rank,
        adapter_sha256=digest_of(write_adapter(made.adapter, made.spec)),
    )


def _apply(job: MergeJob, spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta]) -> _Result:
    shares = [weight * 10**6 // sum(job.weights) for weight in job.weights]
    if job.rule == "stack":
        return _Result(*stack(spec, start, deltas), shares)
    if job.rule == "exact-residual":
        mean, residual_spec, residual = exact_residual(spec, start, deltas)
        return _Result(spec, mean, shares, (residual_spec, residual))
    made = merge(job.rule, spec, start, deltas, round_seed=job.seed)
    return _Result(spec, made.adapter, made.counted_micros)


def _zeros(spec: AdapterSpec) -> GridTensors:
    return GridTensors({name: np.zeros(shape, np.int32) for name, shape in tensor_shapes(spec).items()})


def _grid(adapter: Adapter, spec: AdapterSpec) -> GridTensors:
    """The adapter's values on the spec's grid, once it has the spec's shape."""
    if adapter.is_delta:
        raise BlobError(f"{adapter.path}: wanted an adapter, got a delta (int32)")
    if (got := adapter.spec(spec.grid_bits)) != spec:
        raise BlobError(f"{adapter.path}: wanted {shape_of(spec)}, got {shape_of(got)}")
    try:
        return adapter.grid(spec.grid_bits)
    except BlobError as e:
        raise BlobError(f"{adapter.path}: {e}; take fewer --grid-bits") from e
