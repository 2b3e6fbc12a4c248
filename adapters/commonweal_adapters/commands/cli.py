"""``commonweal adapter``: look at adapters, compare, merge, re-compute and compress them. No logic here.

Works on PEFT folders and safetensors files of anybody, not only on a consortium's.
"""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_adapters.commands.compress import decode_file, encode_file
from commonweal_adapters.commands.inspection import diff_files, inspect_file
from commonweal_adapters.commands.merge import RULES, merge_files, named_rule
from commonweal_adapters.commands.recompute import recompute_release
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Ca, Place
from commonweal_protocols.base.report import print_report
from commonweal_protocols.records.source import open_source

app = typer.Typer(
    no_args_is_help=True,
    help="Look at LoRA adapters, compare, merge, re-compute and compress them: PEFT folders and safetensors files.",
)

AdapterPath = Annotated[Path, typer.Argument(help="A PEFT folder, or a safetensors file of an adapter or a delta.")]
GridBits = Annotated[int, typer.Option(min=8, max=23, help="Values are multiples of 2^-BITS, up to 2^(24 - BITS).")]


@app.command()
def inspect(path: AdapterPath, grid_bits: GridBits = 20, as_json: AsJson = False) -> None:
    """Say what an adapter is: rank, modules, norms, how it sits on a grid, and what is wrong with it.

    Exit 0: a consortium could take it. 1: it could not, and the problems say why.

    \b
    commonweal adapter inspect ./my-adapter
    commonweal adapter inspect adapter_model.safetensors --grid-bits 18 --json
    """  # noqa: D301 - \b keeps the lines apart
    found = inspect_file(path, grid_bits)
    print_report(found, as_json)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def diff(
    one: AdapterPath,
    other: Annotated[Path, typer.Argument(help="Another one, of the same layers and modules.")],
    as_json: AsJson = False,
) -> None:
    """Say how alike two adapters are, in all and module by module.

    Cosines of products B·A tell what the two do to the model; those of the factors alone also see how each encodes it.

    \b
    commonweal adapter diff ./clinic ./school
    """  # noqa: D301 - \b keeps the lines apart
    print_report(diff_files(one, other), as_json)


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
    made = merge_files(paths, weight or [], named_rule(rule, rule_param or []), start, grid_bits, seed, any_base, out)
    print_report(made, as_json)


@app.command()
def recompute(
    place: Place,
    ca: Ca = None,
    number: Annotated[int | None, typer.Option("--round", min=1, help="Which round; the newest if not given.")] = None,
    without: Annotated[str | None, typer.Option(help="Leave this institution out, and say what that moves.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the adapter here, as a PEFT folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a release again from its logged inputs; or make what it would be without a member.

    Exit 0: the published adapter is the merge of its inputs. 1: it is not, or the log does not hold. Of a masked round
    neither error nor diversity is known: they need single deltas.

    \b
    commonweal adapter recompute /media/records
    commonweal adapter recompute https://HOST:7401 --ca ca.crt --round 3 --without clinic --out ./without
    """  # noqa: D301 - \b keeps the lines apart
    made = recompute_release(open_source(place, ca), number, without, out)
    print_report(made, as_json)
    if not made.holds:
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
        made = decode_file(path, like, grid_bits, out)
    else:
        made = encode_file(path, start, grid_bits, bits, keep_millis, out)
    print_report(made, as_json)
