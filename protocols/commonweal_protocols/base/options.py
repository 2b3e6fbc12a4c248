"""The arguments and options that several rooms' commands have: each has one name, one type and one help text."""

from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="Public records: an address, https://HOST:PORT, or a folder.")
]
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="PLACE...", help="Public records: addresses, https://HOST:PORT, or folders."),
]
Ca = Annotated[Path | None, typer.Option(help="PEM of the authority behind the address; the system's if not given.")]
Home = Annotated[Path, typer.Option(help="The folder with this role's settings, keys and all that it keeps.")]
PassphraseFile = Annotated[Path | None, typer.Option(help="The file with the keys' passphrase, if they have one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be done; keep nothing.")]
