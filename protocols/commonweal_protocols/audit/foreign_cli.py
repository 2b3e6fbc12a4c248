"""``commonweal audit foreign``: what a log says of other consortia's releases. No logic here; see ``foreign_job``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commonweal_protocols.audit.arithmetic import load_recompute
from commonweal_protocols.audit.foreign_job import ForeignCheck, check_foreign
from commonweal_protocols.audit.vocabulary import describe_foreign
from commonweal_protocols.base import canonical
from commonweal_protocols.base.text import printable
from commonweal_protocols.records.source import open_source


def foreign(
    place: Annotated[str, typer.Argument(help="The log's public records: an address, or a folder.")],
    other: Annotated[
        list[str] | None, typer.Option(help="Another consortium's records, likewise; may be repeated.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM of the authorities behind the addresses; the system's if not given.")
    ] = None,
    no_recompute: Annotated[
        bool, typer.Option("--no-recompute", help="Leave the bytes of contributions unchecked; needs no numpy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Hold what a log says of other consortia's releases to those consortia's own records.

    Institutions adopt such releases, and a consortium that is a member of another gives its own. Exit 1: something is
    not as it was said. What no records are given for is not checked. Whether those logs' own merges are right is for
    `commonweal audit run`, for each log by itself.
    """
    sources = [open_source(p, ca) for p in other or ()]
    recompute = None if no_recompute else load_recompute()
    checks = check_foreign(open_source(place, ca), sources, recompute)
    if as_json:
        typer.echo(canonical.encode([c.model_dump(mode="json") for c in checks]).decode())
    else:
        _print(checks, Console(highlight=False, markup=False, soft_wrap=True))
    if any(c.verdict == "fails" for c in checks):
        raise typer.Exit(1)


def _print(checks: tuple[ForeignCheck, ...], console: Console) -> None:
    if not checks:
        console.print("no entry names a release of another consortium")
    for c in checks:
        named, release = c.named, printable(describe_foreign(c.named.release))
        console.print(f"{named.index:>7}  {named.institution}: {named.what} of {release}")
        console.print(f"         {c.verdict}: {printable(c.sentence)}")
        if c.withdrawn:
            console.print("         its own consortium has withdrawn it since")
        if c.in_both and named.what == "contribution":
            console.print(f"         members of both by name, who may have a voice twice: {', '.join(c.in_both)}")
