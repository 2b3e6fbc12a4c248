"""The arguments and options that several rooms' commands have: each has one name, one type and one help text."""

from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="Public records: an address, https://HOST:PORT, or a folder.")
]
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="PLACE...", help="Public records, one or more: addresses, https://HOST:PORT, or folders."),
]
Ca = Annotated[Path | None, typer.Option(help="PEM of the authority behind the address; the system's if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="The file with the passphrase of the keys, if they have one.")
]
Terms = Annotated[Path | None, typer.Option("--compact", help="Other terms (TOML); those in force if not given.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be done; write nothing.")]
