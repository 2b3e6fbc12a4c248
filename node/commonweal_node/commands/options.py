"""The options that several of a node's commands have."""

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option(help="The node's folder: settings, keys, adapters, data.")]
PassphraseFile = Annotated[Path | None, typer.Option(help="The file with the key's passphrase.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
