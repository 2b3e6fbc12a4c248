"""``commonweal node exit``: leaving a consortium. No logic here; see ``leaving``."""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_node.commands.options import Home, PassphraseFile
from commonweal_node.config import load_config
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base.keys import load_passphrase


def leave(
    reason: Annotated[str, typer.Option(help="Why; it is in the log for everybody.")],
    out: Annotated[Path, typer.Option(help="Where to write what this institution takes along.")] = Path("departure"),
    home: Home = DEFAULT_HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Leave without asking.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Leave the consortium, and write a folder with all that this institution has said there, proven to be complete.

    What it gave to releases stays in them. To leave is final: the key never signs there again. Run again, it only
    writes the folder.
    """
    from commonweal_node.institution.departure import leave as leave_consortium
    from commonweal_node.institution.departure import write_departure

    config = load_config(NodeHome(home).settings)
    if not yes:
        typer.confirm(f"Leave the consortium as {config.institution}, for good?", abort=True)
    entry = leave_consortium(home, config, load_passphrase(passphrase_file), reason)
    if entry is not None:
        typer.echo(f"the exit of {config.institution} is logged: entry {entry}")
    checked = write_departure(home, config, out)
    tree = checked.checkpoint
    typer.echo(f"{out}: {len(checked.departure.entries)} entries of {config.institution}, proven by {tree.origin}")
    typer.echo(f"anybody can check that: commonweal audit departure {out}")
