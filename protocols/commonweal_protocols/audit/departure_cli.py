"""``commonweal audit departure``: what an institution took along when it left. No logic here; see ``departure``."""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_protocols.base.text import printable
from commonweal_protocols.records.departure import check_departure
from commonweal_protocols.tlog.policy import load_policy


def departure(
    directory: Annotated[Path, typer.Argument(help="The folder that `commonweal node exit` has written.")],
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="Whom to believe (C2SP tlog-policy); the folder's own compact if not given."),
    ] = None,
) -> None:
    """Check a departure offline: every digest, signature and proof, and that nothing which was said is missing.

    Exit 1: it does not hold.
    """
    checked = check_departure(directory, load_policy(policy_file) if policy_file else None)
    said, tree = checked.departure, checked.checkpoint
    typer.echo(f"{said.institution}: all {len(said.entries)} entries, from its first to its exit, and nothing else")
    typer.echo(f"reason: {printable(checked.last.reason)}")
    typer.echo(
        f"consortium {said.consortium}, log {printable(tree.origin)}, {tree.size} entries, root {tree.root.hex()}"
    )
    if policy_file is None:
        typer.echo(
            "the log and its witnesses are those that the folder names; --policy FILE takes your own word for them"
        )
