"""``commonweal adapter merge``: PEFT adapters in, a PEFT folder and its stated error out.

Values are rounded to a grid on the way in, as a node's are; from there on everything is exact, and the same files give
the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from commonweal_adapters.commands.inspection import load_sound, shape_of
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
from commonweal_protocols.base.errors import BlobError, ConfigError
from commonweal_protocols.base.report import Report
from commonweal_protocols.statements import rules
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.rules import AnyRule, Median, TrimmedMean
from commonweal_protocols.statements.values import Digest

WideRule = Literal["stack", "exact-residual"]
"""What no compact can name, since the result has another rank than the inputs."""
_RULE: TypeAdapter[AnyRule] = TypeAdapter(rules.Rule)
_WIDE: tuple[WideRule, ...] = get_args(WideRule)
RULES = (*sorted(get_args(r.model_fields["name"].annotation)[0] for r in get_args(AnyRule)), *_WIDE)


class Counted(Report):
    """One input of a merge: how much it weighed, and how much it counted in the result."""

    path: str = Field(title="adapter")
    weight: int
    counted_micros: int


class MergeReport(Report):
    """A merge. The error is ‖ΔW - Σ wᵢ BᵢAᵢ / W‖ / ‖Σ wᵢ BᵢAᵢ / W‖; None where the exact merge is 0."""

    rule: str
    inputs: tuple[Counted, ...]
    error_micros: int | None = Field(title="error against the exact merge")
    diversity_micros: int = Field(title="diversity of the deltas")
    rank: int
    adapter_sha256: Digest


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    spec: AdapterSpec
    adapter: GridTensors
    counted_micros: Sequence[int]
    residual: tuple[AdapterSpec, GridTensors] | None = None


def named_rule(name: str, params: list[str]) -> AnyRule | WideRule:
    """Return a rule by its name and parameters, each NAME=INTEGER.

    Raises:
        ConfigError: There is no such rule, or it has other parameters.
    """
    values: dict[str, object] = {}
    for param in params:
        key, _, value = param.partition("=")
        if not value.isascii() or not value.isdecimal() or key in ("name", "weights") or key in values:
            raise ConfigError(f"--rule-param: wanted NAME=INTEGER, each name once, got {param!r}")
        values[key] = int(value)
    if name not in RULES:
        raise ConfigError(f"--rule: wanted one of {', '.join(RULES)}, got {name!r}")
    for wide in _WIDE:
        if name == wide:
            if values:
                raise ConfigError(f"--rule-param: {name} has no parameters")
            return wide
    try:
        return _RULE.validate_python({"name": name, "weights": "equal", **values})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise ConfigError(f"--rule-param {where}: {first['msg']}; give it as --rule-param {where}=INTEGER") from e


def merge_files(
    paths: Sequence[Path],
    weights: Sequence[int],
    rule: AnyRule | WideRule,
    start: Path | None,
    grid_bits: int,
    seed: str,
    any_base: bool,
    out: Path,
) -> MergeReport:
    """Merge adapters of one shape into a PEFT folder.

    Args:
        paths: The adapters. Which comes first decides between equals.
        weights: One for each path, 1 to 10^9; none: all weigh the same.
        rule: A rule, by whose weights all may weigh the same too.
        start: From where all trained; None: from zeros.
        grid_bits: Of the grid to which values are rounded on the way in.
        seed: For rules that draw.
        any_base: Names of base models may differ: they are one under several names.
        out: The folder. ``exact-residual`` writes its residual to ``residual`` below it.

    Raises:
        ConfigError: A file cannot be read, or the weights are not one for each, or more than the rule knows.
        BlobError: A file is no adapter, has problems, another shape or another base; or the rule does not allow these
            inputs.
        StorageError: The folder cannot be written.
    """
    if weights and len(weights) != len(paths):
        raise ConfigError(f"--weight: wanted one for each of {len(paths)} adapters, or none, got {len(weights)}")
    if weights and isinstance(rule, TrimmedMean | Median):
        raise ConfigError(f"--weight: in {rule.name} every adapter counts once; leave it out")
    weights = weights or [1] * len(paths)
    adapters = [load_sound(path) for path in paths]
    spec, begun = adapters[0].spec(grid_bits), load_sound(start) if start else None
    if not any_base:
        check_bases([*adapters, begun] if begun else adapters)
    begin = _grid(begun, spec) if begun else _zeros(spec)
    # Names in the order of the arguments: rules sort by them.
    deltas = [
        Delta(f"{i:06d}", weight, Held(make_delta(begin, _grid(adapter, spec), spec)))
        for i, (adapter, weight) in enumerate(zip(adapters, weights, strict=True))
    ]
    made = _apply(rule, spec, begin, deltas, seed)
    base = next((a.config.base_model_name_or_path for a in adapters if a.config), None) or ""
    save_adapter(out, made.spec, made.adapter, base)
    if made.residual:
        save_adapter(out / "residual", *made.residual, base)
    error = squared_error(spec, begin, deltas, made.adapter, Fraction(spec.rank, made.spec.rank))
    return MergeReport(
        rule=rule if isinstance(rule, str) else rule.name,
        inputs=tuple(
            Counted(path=str(p), weight=w, counted_micros=c)
            for p, w, c in zip(paths, weights, made.counted_micros, strict=True)
        ),
        error_micros=None if error is None else error_micros(error),
        diversity_micros=diversity_micros(gram(begin, [d.rows for d in deltas])),
        rank=made.spec.rank,
        adapter_sha256=digest_of(write_adapter(made.adapter, made.spec)),
    )


def _apply(
    rule: AnyRule | WideRule, spec: AdapterSpec, start: GridTensors, deltas: Sequence[Delta], seed: str
) -> _Result:
    weights = [d.weight for d in deltas]
    shares = [weight * 10**6 // sum(weights) for weight in weights]
    if rule == "stack":
        return _Result(*stack(spec, start, deltas), shares)
    if rule == "exact-residual":
        mean, residual_spec, residual = exact_residual(spec, start, deltas)
        return _Result(spec, mean, shares, (residual_spec, residual))
    made = merge(rule, spec, start, deltas, round_seed=seed)
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
