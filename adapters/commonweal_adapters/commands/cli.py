"""``commonweal adapter``: look at adapters, compare, merge, re-compute and compress them. No logic here.

Works on PEFT folders and safetensors files of anybody, not only on a consortium's.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import TypeAdapter, ValidationError

from commonweal_adapters.commands import cli_text
from commonweal_adapters.commands.compress_job import decode_file, encode_file
from commonweal_adapters.commands.inspect_job import diff_files, inspect_file
from commonweal_adapters.commands.merge_job import MergeJob, WideRule, run_merge
from commonweal_adapters.commands.recompute_job import run_recompute
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.records.source import DirectorySource, HttpSource, Source
from commonweal_protocols.statements import rules
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.rules import AnyRule, Median, TrimmedMean

app = typer.Typer(
    no_args_is_help=True,
    help="Look at LoRA adapters, compare, merge, re-compute and compress them: PEFT folders and safetensors files.",
)

_RULE: TypeAdapter[AnyRule] = TypeAdapter(rules.Rule)
_WIDE: tuple[WideRule, ...] = get_args(WideRule)
RULES = (*sorted(get_args(r.model_fields["name"].annotation)[0] for r in get_args(AnyRule)), *_WIDE)

Path_ = Annotated[Path, typer.Argument(help="A PEFT folder, or a safetensors file of an adapter or a delta.")]
GridBits = Annotated[int, typer.Option(min=8, max=23, help="Values are multiples of 2^-BITS, up to 2^(24 - BITS).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _print_json(value: Any) -> None:  # noqa: ANN401 - whatever a report holds
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:  # noqa: ANN401
    """JSON has no NaN: what is not a number is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@app.command()
def inspect(path: Path_, grid_bits: GridBits = 20, as_json: AsJson = False) -> None:
    """Say what an adapter is: rank, modules, norms, how it sits on a grid, and what is wrong with it.

    Exit 0: a consortium could take it. 1: it could not, and the problems say why.

    \b
    commonweal adapter inspect ./my-adapter
    commonweal adapter inspect adapter_model.safetensors --grid-bits 18 --json
    """  # noqa: D301 - \b keeps the lines apart
    found = inspect_file(path, grid_bits)
    if as_json:
        _print_json(asdict(found))
    else:
        cli_text.print_inspection(found)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def diff(
    one: Path_,
    other: Annotated[Path, typer.Argument(help="Another one, of the same layers and modules.")],
    as_json: AsJson = False,
) -> None:
    """Say how alike two adapters are, in all and module by module.

    Cosines of products B·A tell what the two do to the model; those of the factors alone also see how each encodes it.

    \b
    commonweal adapter diff ./clinic ./school
    """  # noqa: D301 - \b keeps the lines apart
    found = diff_files(one, other)
    if as_json:
        _print_json([asdict(row) for row in found])
    else:
        cli_text.print_diff(one, other, found)


@app.command(
    help=f"""Merge adapters of one shape by any rule, and state the error against the exact merge.

The rules: {", ".join(RULES)}.

\b
commonweal adapter merge ./clinic ./school ./coop --out ./merged
commonweal adapter merge ./clinic ./school --weight 3 --weight 1 --out ./merged
commonweal adapter merge ./a ./b ./c ./d --rule trimmed-mean --rule-param hostile=1 --out ./merged
commonweal adapter merge ./a ./b --start ./round-start --rule ties --rule-param density_millis=200 --out ./merged
"""
)
def merge(
    paths: Annotated[list[Path], typer.Argument(help="PEFT folders or safetensors files. The first decides ties.")],
    out: Annotated[Path, typer.Option(help="The PEFT folder to write.")],
    rule: Annotated[str, typer.Option(help="The rule's name.")] = "factor-mean",
    weight: Annotated[list[int] | None, typer.Option(min=1, max=10**9, help="One for each adapter, in order.")] = None,
    rule_param: Annotated[list[str] | None, typer.Option(help="NAME=INTEGER; once for each parameter.")] = None,
    start: Annotated[Path | None, typer.Option(help="The adapter from which all trained; zeros if not given.")] = None,
    seed: Annotated[str, typer.Option(help="For rules that draw: the same seed, the same bytes.")] = "",
    any_base: Annotated[
        bool, typer.Option("--any-base", help="The bases' names differ, and you know they are one.")
    ] = False,
    grid_bits: GridBits = 20,
    as_json: AsJson = False,
) -> None:
    """Merge adapters. The help is above, where it can name every rule."""
    if weight and len(weight) != len(paths):
        raise ConfigError(f"--weight: wanted one for each of {len(paths)} adapters, or none, got {len(weight)}")
    parsed = _parse_rule(rule, rule_param or [])
    if weight and isinstance(parsed, TrimmedMean | Median):
        raise ConfigError(f"--weight: in {rule} every adapter counts once; leave it out")
    report = run_merge(MergeJob(paths, weight or [1] * len(paths), parsed, start, grid_bits, seed, any_base, out))
    if as_json:
        _print_json(asdict(report))
    else:
        cli_text.print_merge(report, out)


def _parse_rule(name: str, params: list[str]) -> AnyRule | WideRule:
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


@app.command()
def recompute(
    url: Annotated[str | None, typer.Option(help="Where the public records are served, https://HOST:PORT.")] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="A folder of public records.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM of the authority behind --url.")] = None,
    number: Annotated[int | None, typer.Option("--round", min=1, help="Which round; the newest if not given.")] = None,
    without: Annotated[str | None, typer.Option(help="Leave this institution out, and say what that moves.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the adapter here, as a PEFT folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a release again from its logged inputs; or make what it would be without a member.

    Exit 0: the published adapter is the merge of its inputs. 1: it is not, or the log does not hold.

    \b
    commonweal adapter recompute --dir /media/records
    commonweal adapter recompute --url https://HOST:7401 --ca ca.crt --round 3 --without clinic --out ./without
    """  # noqa: D301 - \b keeps the lines apart
    if (url is None) == (directory is None):
        raise ConfigError("adapter recompute: wanted one of --url and --dir")
    source: Source = DirectorySource(directory) if directory else HttpSource(url or "", ca)
    report = run_recompute(source, number, without, out)
    if as_json:
        _print_json({**asdict(report), "holds": report.holds})
    else:
        cli_text.print_recompute(report)
    if not report.holds:
        raise typer.Exit(1)


@app.command()
def compress(
    path: Annotated[Path, typer.Argument(help="A delta or an adapter; with --decode, an encoded delta.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    bits: Annotated[int, typer.Option(help="4, 8 or 32 for each element that is kept.")] = 8,
    keep_millis: Annotated[int, typer.Option(min=1, max=1000, help="How many of 1000 elements are kept.")] = 1000,
    start: Annotated[Path | None, typer.Option(help="An adapter to take away first.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Write the int32 delta that an encoded file holds.")] = False,
    like: Annotated[Path | None, typer.Option(help="With --decode: an adapter or delta of the same shape.")] = None,
    grid_bits: GridBits = 20,
    as_json: AsJson = False,
) -> None:
    """Write a delta in fewer bits, or read it back; and say what that costs in bytes and precision.

    commonweal adapter compress ./trained --start ./round-start --bits 4 --out delta.4bit
    commonweal adapter compress delta.safetensors --bits 8 --keep-millis 100 --out delta.sparse
    commonweal adapter compress delta.4bit --decode --like ./round-start --out delta.safetensors
    """
    if decode != (like is not None):
        raise ConfigError("adapter compress: wanted --like with --decode, and only then: a file of the delta's shape")
    if like is not None:
        report = decode_file(path, like, grid_bits, out)
    else:
        try:
            encoding = Encoding.model_validate({"bits": bits, "keep_millis": keep_millis})
        except ValidationError as e:
            raise ConfigError(f"--bits: wanted 4, 8 or 32, got {bits}") from e
        report = encode_file(path, start, grid_bits, encoding, out)
    if as_json:
        _print_json(asdict(report))
    else:
        cli_text.print_compress(report, out)
