"""The options that several of a coordinator's commands have, beside those of every role (``base/options.py``)."""

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str, typer.Option(help="The address to listen on.")]
PublicHost = Annotated[str | None, typer.Option(help="How others reach this host; --host if not given.")]
BasePort = Annotated[int, typer.Option(help="The first of two ports in a row: exchange and records.")]
Rounds = Annotated[int, typer.Option(help="How many ratified releases to reach, the old ones too; 0: open no rounds.")]
OtherTerms = Annotated[Path | None, typer.Option("--compact", help="Other terms (TOML); those in force if not given.")]
Cards = Annotated[
    list[Path] | None, typer.Option("--card", help="The card of a member that joins, or has a new key or witness.")
]
Remove = Annotated[list[str] | None, typer.Option(help="An institution that leaves.")]
Revoke = Annotated[
    list[str] | None,
    typer.Option(help="INSTITUTION@INDEX:REASON. Its key ends; what it signed from that entry on is suspect."),
]
