"""``commonweal node exit``: leaving a consortium. No logic here; see ``leaving``."""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_node.home import DEFAULT_HOME
from commonweal_protocols.base.options import Home, PassphraseFile, Yes
from commonweal_protocols.fold.amendment import describe_thresholds, without_member


def leave(
    reason: Annotated[str, typer.Option(help="Why; it is in the log for everybody.")],
    out: Annotated[Path, typer.Option(help="Where to write what this institution takes along.")] = Path("departure"),
    home: Home = DEFAULT_HOME,
    yes: Yes = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Leave the consortium, and write a folder with all that this institution has said there, proven to be complete.

    What it gave to releases stays in them. To leave is final: the key never signs there again. Run again, it only
    writes the folder.
    """
    from commonweal_node.institution.departure import leave as leave_consortium
    from commonweal_node.institution.departure import write_departure
    from commonweal_node.institution.opened_home import OpenedHome

    opened = OpenedHome(home, passphrase_file)
    institution = opened.config.institution
    state = opened.state()
    if state.member(institution) is not None and len(state.compact.members) > 1:
        for line in describe_thresholds(without_member(state.compact, institution)):
            typer.echo(f"once {institution} has left: {line}", err=True)
    if not (yes or typer.confirm(f"Leave the consortium as {institution}, for good?")):
        typer.echo("nothing was signed")
        return
    entry = leave_consortium(opened, reason)
    if entry is not None:
        typer.echo(f"the exit of {institution} is logged: entry {entry}")
    checked = write_departure(opened, out)
    tree = checked.checkpoint
    typer.echo(f"{out}: {len(checked.departure.entries)} entries of {institution}, proven by {tree.origin}")
    typer.echo(f"anybody can check that: commonweal audit departure {out}")
