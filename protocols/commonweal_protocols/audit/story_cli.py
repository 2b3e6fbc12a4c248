"""``commonweal audit story``: what happened in some logs, in plain words. No logic here; see ``story_job``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commonweal_protocols.audit.story_job import Story, read_story, story_html, story_json
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.text import printable
from commonweal_protocols.records.source import DirectorySource, HttpSource, Source


def story(
    urls: Annotated[
        list[str] | None, typer.Option("--url", help="Where public records are served; may be repeated.")
    ] = None,
    directories: Annotated[
        list[Path] | None, typer.Option("--dir", help="A folder of public records; may be repeated.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM of the authority behind --url; the system's if not given.")
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Also what happens in every round.")] = False,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write it as one page: each claim with its entry and proof.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every claim as JSON, with its entry and its tlog-proof.")
    ] = False,
) -> None:
    """Tell what happened, from the logs alone, each sentence with the entry that bears it out.

    A log that breaks its compact is not told: exit 1, and what is wrong. Give the log of a fork, or the one that a
    consortium had before, beside its own.
    """
    sources: list[Source] = [DirectorySource(d) for d in directories or ()]
    sources += [HttpSource(url, ca) for url in urls or ()]
    if not sources:
        raise ConfigError("audit story: wanted at least one --dir or --url")
    stories = [read_story(source) for source in sources]
    if html_file is not None:
        write_atomic(html_file, story_html(stories))
    if as_json:
        typer.echo(story_json(stories).decode(), nl=False)
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for told in stories:
        _print(told, whole, console)


def _print(told: Story, whole: bool, console: Console) -> None:
    checkpoint = told.replica.checkpoint()
    console.print(f"{told.replica.state.compact.consortium}, log {checkpoint.origin}, {checkpoint.size} entries")
    for claim in told.claims:
        if whole or not claim.is_routine:
            console.print(f"{claim.index:>7}  {printable(claim.sentence)}")
