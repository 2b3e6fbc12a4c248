"""The options that several of a coordinator's commands have."""

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option(help="The coordinator's folder: settings, keys, log, public records.")]
NewPassphraseFile = Annotated[Path | None, typer.Option(help="Protect the keys with this file's content.")]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
PublicHost = Annotated[str | None, typer.Option(help="How others reach this host; --host if not given.")]
BasePort = Annotated[int, typer.Option(help="The first of three ports in a row.")]
