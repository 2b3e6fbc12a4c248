"""``commonweal node adopt``: another consortium's release, evaluated here. No logic here; see ``foreign_adopting``."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from commonweal_node.commands.train import Screen
from commonweal_node.config import NodeConfig
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.audit.vocabulary import describe_foreign
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Ca, DryRun, Home, PassphraseFile, Place
from commonweal_protocols.base.text import printable
from commonweal_protocols.records.source import open_source

if TYPE_CHECKING:
    from commonweal_node.institution.adoption import Deciding
    from commonweal_node.institution.other_consortium import VerifiedRelease
    from commonweal_protocols.statements.adoption import ForeignAdoption
    from commonweal_protocols.statements.compact import Compact


def adopt(
    records: Place,
    consortium: Annotated[
        str, typer.Option(help="Which consortium that must be: 64 hex digits, from people whom you trust.")
    ],
    ca: Ca = None,
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="The round whose release is meant; the newest if not given.")
    ] = None,
    dry_run: DryRun = False,
    again: Annotated[bool, typer.Option("--again", help="Also if it was decided on already.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Verify another consortium's log, evaluate its newest release by our own rows and charter, and decide.

    The decision is an entry in our own log, which names the release and where it is proved. What is adopted lies in
    HOME/consortia/CONSORTIUM/adopted, beside what serves of our own consortium. Run it again, from a timer, to learn of
    newer releases; what was recalled there is put away here.
    """
    from commonweal_node.institution.foreign_adoption import Adopter, withdraw
    from commonweal_node.institution.opened_home import OpenedHome
    from commonweal_node.institution.other_consortium import verify_release

    home = home.resolve()
    opened = OpenedHome(home, passphrase_file)
    config, state = opened.config, opened.state()
    if consortium == state.consortium:
        raise ConfigError("node adopt: wanted another consortium, got our own, whose releases the daemon decides on")
    console = Console(stderr=True, markup=False, highlight=False)
    with Screen() as screen:
        found = verify_release(
            home,
            open_source(records, ca),
            consortium,
            state.compact,
            number,
            lambda p: screen.set(doing=f"verifying {p.stage}: {p.done} of {p.total}"),
        )
        if not dry_run and (away := withdraw(home, found)) is not None:
            console.print(f"what was adopted of it was recalled there: it lies in {away} now")
        decided = [d.adoption for d in state.foreign.get(config.institution, ()) if _is_of(d.adoption, found)]
        if decided and not again:
            _print(decided[-1], None, as_json)
            return
        deciding = _deciding(home, config, state.compact, screen)
        adopter = Adopter(home, deciding, lambda adoption: opened.submit(lambda _: adoption))
        if dry_run:
            adoption, entry = adopter.decide(found, state.compact), None
        else:
            adoption, entry = adopter.adopt(found, state.compact)
    _print(adoption, entry, as_json)


def _is_of(adoption: "ForeignAdoption", found: "VerifiedRelease") -> bool:
    return adoption.release.release_leaf == found.named.release_leaf


def _deciding(home: Path, config: NodeConfig, compact: "Compact", screen: Screen) -> "Deciding":
    from commonweal_node.charter.charter import load_charter
    from commonweal_node.institution.adoption import Deciding
    from commonweal_node.probes.probe import load_probes
    from commonweal_node.training.learner import Learner

    charter = load_charter(config.charter)
    probes = load_probes(home, charter, [b.probe for b in charter.bars.probes])
    work = NodeHome(home).consortia
    learner = Learner(compact, config, charter.objectives, home, screen, threading.Event(), work=work)
    return Deciding(charter, probes, learner, lambda phase, _, doing: screen.set(doing=f"{phase}: {doing}"))


def _print(adoption: "ForeignAdoption", entry: str | None, as_json: bool) -> None:
    if as_json:
        typer.echo(adoption.to_canonical().decode())
        return
    heldout = adoption.heldout
    typer.echo(f"{adoption.decision}: {printable(describe_foreign(adoption.release))}")
    typer.echo(f"reason: {printable(adoption.reason)}")
    figures = (
        ("base", heldout.base_micronats),
        ("own", heldout.local_micronats),
        ("release", heldout.shared_micronats),
        ("blend", heldout.blend_micronats),
    )
    typer.echo("held-out loss, nats per token: " + ", ".join(f"{what} {m / 1e6:.4f}" for what, m in figures))
    typer.echo(f"logged: entry {entry}" if entry else "nothing new was said")
