"""``commonweal compact``: the rules of a consortium, as its log has them."""

from typing import Annotated

import typer

from commonweal_node.commands.compact_text import describe_terms
from commonweal_node.home import DEFAULT_HOME
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Ca, Home
from commonweal_protocols.base.report import Report, print_report
from commonweal_protocols.records.replay import replay_compacts
from commonweal_protocols.records.source import Source, open_source
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.values import Digest

app = typer.Typer(no_args_is_help=True, help="Read the rules that a consortium has agreed on.")


@app.callback()
def _group() -> None:
    """Read the rules that a consortium has agreed on."""


class CompactReport(Report):
    """A version of a compact, and the entry that put it in force."""

    version: int
    in_force: bool
    index: int
    """Of the entry."""
    leaf: Digest
    """The entry's leaf hash."""
    compact: Compact
    """As it stood at the entry; of the version in force as it stands now, after exits and with rotated keys."""


@app.command()
def show(
    place: Annotated[
        str | None, typer.Argument(metavar="PLACE", help="Public records, an address or a folder; else the home's.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="An earlier version; the one in force if not given.")
    ] = None,
    home: Home = DEFAULT_HOME,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Show the rules in force, or those of an earlier version, and the entry that put them in force.

    The log is verified from its first entry on. A member's own copy of it, HOME/records, is a PLACE too.
    """
    source: Source
    if place is None:
        from commonweal_node.institution.opened_home import OpenedHome

        opened = OpenedHome(home)
        opened.state()  # so that the log is checked against what was seen of it before
        source = opened.source
    else:
        source = open_source(place, ca)
    replica, versions = replay_compacts(source)
    newest = max(versions)
    if version is not None and version not in versions:
        raise ConfigError(f"--version: wanted 1 to {newest}, got {version}")
    shown = version or newest
    logged = versions[shown]
    compact = replica.state.compact if shown == newest else logged.compact
    if as_json:
        report = CompactReport(
            version=shown, in_force=shown == newest, index=logged.index, leaf=logged.leaf, compact=compact
        )
        print_report(report, as_json)
        return
    standing = "in force" if shown == newest else f"until version {shown + 1}, entry {versions[shown + 1].index}"
    typer.echo(f"compact of {compact.consortium}, {replica.state.consortium}")
    typer.echo(f"  {'version':<12} {shown}, {standing}; since entry {logged.index}, leaf {logged.leaf}")
    for name, what in describe_terms(compact):
        typer.echo(f"  {name:<12} {what}")
