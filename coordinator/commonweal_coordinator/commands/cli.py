"""``commonweal coordinator``: the coordinator's commands. No logic here."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commonweal_coordinator import daemon
from commonweal_coordinator.commands.home import check_settings, make_home, save_settings, second_vkey
from commonweal_coordinator.commands.options import (
    BasePort,
    Cards,
    Host,
    OtherTerms,
    PublicHost,
    Remove,
    Revoke,
    Rounds,
)
from commonweal_coordinator.commands.succession_cli import fork, lint_compact, print_warnings, standby, succeed
from commonweal_coordinator.config import LogSettings, load_config
from commonweal_coordinator.home import DEFAULT_HOME, CoordinatorHome
from commonweal_coordinator.log.storage import StorageSource
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.status import CoordinatorStatus
from commonweal_coordinator.succession.compact_draft import amend_compact, draft_compact, load_terms, parse_revocation
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.base.keys import load_passphrase
from commonweal_protocols.base.logs import log_to_stderr
from commonweal_protocols.base.options import AsJson, DryRun, Home, PassphraseFile
from commonweal_protocols.base.report import print_report
from commonweal_protocols.base.status_file import load_status, now
from commonweal_protocols.fold.amendment import describe_changes
from commonweal_protocols.records.replay import replay
from commonweal_protocols.statements.invite import Card, CoordinatorCard

app = typer.Typer(no_args_is_help=True, help="Sequence a consortium's log, run its rounds, publish its releases.")
for command in (standby, succeed, fork, lint_compact):
    app.command()(command)
Successor = Annotated[
    list[Path] | None,
    typer.Option(help="The card of a coordinator that is to follow should this one fail; in their order."),
]


@app.command()
def init(
    compact: Annotated[Path, typer.Option(help="The compact's terms (TOML).")],
    card: Annotated[list[Path], typer.Option(help="A member's card; once for each member.")],
    home: Home = DEFAULT_HOME,
    name: Annotated[str, typer.Option(help="This coordinator's short name.")] = "coordinator",
    host: Host = "127.0.0.1",
    public_host: PublicHost = None,
    base_port: BasePort = 7400,
    rounds: Rounds = 1,
    successor: Successor = None,
    log_store: Annotated[str, typer.Option(help="s3://BUCKET/PREFIX for the log's tiles; a folder if not given.")] = "",
    log_endpoint: Annotated[str | None, typer.Option(help="The S3 server, where it is not Amazon's.")] = None,
    log_region: Annotated[str | None, typer.Option(help="Its region, where it is not in the environment.")] = None,
    post_quantum: Annotated[bool, typer.Option(help="Sign checkpoints with an ML-DSA-44 key too.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Draft the founding compact and make this coordinator's keys, certificate and settings.

    Then send invite.json to the members, and start `commonweal coordinator run`. The log begins once all have signed.
    """
    files = CoordinatorHome(home)
    terms = load_terms(compact)
    cards = [Card.load(path) for path in card]
    successors = [CoordinatorCard.load(path).coordinator for path in successor or ()]
    passphrase = load_passphrase(passphrase_file)
    store = LogSettings(store=log_store, endpoint=log_endpoint, region=log_region, post_quantum=post_quantum)
    own, config = make_home(
        home, check_settings(name, host, public_host, base_port, rounds, store), terms.consortium, passphrase
    )
    if post_quantum:
        typer.echo(f"the log's ML-DSA-44 key: {second_vkey(home, config.origin, passphrase)}")
    made, start = draft_compact(terms, cards, own.coordinator, successors)
    BlobStore(files.public).put_bytes(start)
    consortium = Draft.store(files.founding, made)
    own.invite(consortium, terms.consortium).save(files.invite)
    save_settings(home, config)
    print_warnings(made)
    typer.echo(f"consortium {terms.consortium} {consortium}: {len(cards)} members have to sign")
    typer.echo(f"next: send {files.invite} to each of them, and run: commonweal coordinator run --home {home}")


@app.command()
def amend(
    home: Home = DEFAULT_HOME,
    compact: OtherTerms = None,
    card: Cards = None,
    remove: Remove = None,
    revoke: Revoke = None,
    successor: Successor = None,
    dry_run: DryRun = False,
) -> None:
    """Draft the next version of the compact. It is in force once the thresholds of both versions have signed it.

    Members see and sign it with `commonweal node amend`, and one who joins with `commonweal node join`. A new draft
    takes the place of an older one that has not found its signatures. Example, after a stolen laptop:

    commonweal coordinator amend --card clinic-new.json --revoke "clinic@57:laptop stolen"
    """
    files = CoordinatorHome(home)
    settings = load_config(files.settings).log
    state = replay(StorageSource(daemon.open_storage(files.public, settings))).state
    revocations = [parse_revocation(text, state) for text in revoke or ()]
    terms = load_terms(compact) if compact else None
    heirs = [CoordinatorCard.load(path).coordinator for path in successor] if successor else None
    made = amend_compact(
        state, terms, [Card.load(path) for path in card or ()], remove or [], revocations, successors=heirs
    )
    typer.echo(f"version {made.version} of the compact of {made.consortium}:")
    for line in describe_changes(state.compact, made):
        typer.echo(f"  {line}")
    typer.echo(
        f"wanted: {state.compact.quorum.amendments} signatures of the members of version {state.compact.version}, "
        f"{made.quorum.amendments} of those of version {made.version}, and of every key that joins"
    )
    print_warnings(made)
    if dry_run:
        return
    Draft.discard(files.amendment)
    typer.echo(f"draft {Draft.store(files.amendment, made)}: members sign it with `commonweal node amend`")


@app.command()
def run(
    home: Home = DEFAULT_HOME,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: found the consortium, keep its log, run its rounds."""
    config = load_config(CoordinatorHome(home).settings)
    log_to_stderr()
    daemon.run(home.resolve(), config, load_passphrase(passphrase_file))


@app.command()
def status(
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Say what a coordinator is doing: which round, who is awaited, what is in the way."""
    found = load_status(home, CoordinatorStatus, "coordinator")
    alive = found.phase != "stopped" and _alive(found.pid)
    if as_json:
        print_report(found, as_json)
        return
    console = Console(highlight=False)
    console.print(f"consortium  {found.consortium}")
    console.print(f"phase       {found.phase if alive else 'not running'} (as of {now() - found.written_at:.0f} s ago)")
    console.print(f"log         {found.size} entries, {found.ratified} ratified releases")
    patience = f" {found.patience(now())}" if alive and found.waiting_since else ""
    console.print(f"round       {found.round or 'none yet'}: {found.step} {found.why}{patience}", markup=False)
    if found.amendment:
        console.print(f"amendment   {found.amendment}", markup=False)
    if found.trouble:
        console.print(f"trouble     {found.trouble}", style="red", markup=False)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
