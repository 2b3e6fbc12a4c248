"""``commonweal coordinator standby | succeed | fork | lint-compact``: when a coordinator is gone, or left. No logic."""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_coordinator.commands.home import check_settings, make_home, save_settings
from commonweal_coordinator.commands.lint import choke_points
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
from commonweal_coordinator.config import LogSettings, load_config
from commonweal_coordinator.home import DEFAULT_HOME, CoordinatorHome
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.succession import standby as core
from commonweal_coordinator.succession.compact_draft import amend_compact, load_terms, parse_revocation
from commonweal_coordinator.succession.draft_signatures import Draft, draft_file
from commonweal_coordinator.succession.fork_draft import draft_fork
from commonweal_coordinator.succession.succession import (
    carry_blobs,
    keep_history,
    longest,
    read_history,
)
from commonweal_protocols.base.errors import ConfigError, MalformedError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.base.keys import load_passphrase
from commonweal_protocols.base.logs import log_to_stderr
from commonweal_protocols.base.options import Ca, Home, PassphraseFile, Place, Places
from commonweal_protocols.fold.amendment import describe_changes
from commonweal_protocols.records.replay import replay, replay_at
from commonweal_protocols.records.source import DirectorySource, Source, open_source, read_blob
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.invite import Card, CoordinatorCard
from commonweal_protocols.statements.statement import parse_statement
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES


def print_warnings(compact: Compact) -> bool:
    """Print what is a choke point in a compact; whether anything was."""
    found = list(choke_points(compact))
    for sentence in found:
        typer.echo(f"warning: {sentence}")
    return bool(found)


def standby(
    place: Annotated[
        str | None, typer.Argument(metavar="PLACE", help="The records of the coordinator in office: whom to mirror.")
    ] = None,
    home: Home = DEFAULT_HOME,
    name: Annotated[str, typer.Option(help="This coordinator's short name, unlike the one's in office.")] = "standby",
    host: Host = "127.0.0.1",
    public_host: PublicHost = None,
    base_port: BasePort = 7400,
    rounds: Rounds = 1,
    consortium: Annotated[str, typer.Option(help="Whose log to mirror: the digest of its founding compact.")] = "",
    ca: Ca = None,
    once: Annotated[bool, typer.Option("--once", help="Mirror what is there now, and end.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a coordinator that waits, and mirror the log and blobs of the one in office until SIGTERM or Ctrl-C.

    The first time, keys, certificate and coordinator-card.json are made: the consortium names that card as a successor
    (commonweal coordinator amend --successor). Without PLACE that is all.
    """
    files = CoordinatorHome(home)
    if not files.settings.exists():
        settings = check_settings(name, host, public_host, base_port, rounds, LogSettings())
        card, config = make_home(home, settings, name, load_passphrase(passphrase_file))
        save_settings(home, config)
        typer.echo(f"coordinator {name}, key {card.coordinator.key}; its card: {files.card}")
    if place is None:
        return
    if not consortium:
        raise ConfigError("standby: wanted --consortium SHA256 with PLACE, or any log would do")
    if files.succession.exists():
        raise ConfigError(f"{home}: a succession is drafted here; run: commonweal coordinator run --home {home}")
    config = load_config(files.settings)
    mirroring = core.Standby(home, open_source(place, ca), consortium, config.min_free_bytes)
    if once:
        mirroring.step()
        typer.echo(f"mirrored: {mirroring.size} entries, {len(mirroring.missing)} blobs are missing")
        return
    log_to_stderr()
    core.run(home, mirroring, consortium)


def succeed(
    consortium: Annotated[str, typer.Option(help="Which consortium: the digest of its founding compact.")],
    home: Home = DEFAULT_HOME,
    places: Places = None,
    ca: Ca = None,
    compact: OtherTerms = None,
    card: Cards = None,
    remove: Remove = None,
    revoke: Revoke = None,
) -> None:
    """Draft the version of the compact under which this standby follows the coordinator that is gone.

    It continues from the longest history that it finds, in its own mirror and in the copies given: a member's, an
    auditor's. Members sign with
    `commonweal node amend --invite INVITE`, while `commonweal coordinator run` serves the draft; with enough signatures
    the new log begins, with all that was in the old one.
    """
    files = CoordinatorHome(home)
    if files.lock.exists():
        raise ConfigError(f"{home}: a log has begun here already; a coordinator succeeds once")
    own = CoordinatorCard.load(files.card)
    sources: dict[str, Source] = {place: open_source(place, ca) for place in places or ()}
    if (files.mirror / "checkpoint").exists():
        sources[str(files.mirror)] = DirectorySource(files.mirror)
    if not sources:
        raise ConfigError(f"succeed: wanted a history, got none: {files.mirror} is empty; give the PLACE of a copy")
    history = longest({place: read_history(source, consortium) for place, source in sources.items()})
    state = history.replica.state
    made = amend_compact(
        state,
        load_terms(compact) if compact else None,
        [Card.load(path) for path in card or ()],
        remove or [],
        [parse_revocation(text, state) for text in revoke or ()],
        succession=(own.coordinator, history.last),
    )
    core.link_blobs(home)
    missing = carry_blobs(BlobStore(files.public), history, list(sources.values()))
    Draft.discard(files.succession)
    keep_history(home, history)
    Draft.store(files.founding, history.founding)
    own.invite(consortium, state.compact.consortium).save(files.invite)
    digest = Draft.store(files.succession, made)
    typer.echo(f"history: {history.last.size} entries of log {history.last.origin}, root {history.last.root}")
    for blob in missing:
        typer.echo(
            f"missing: blob {blob.sha256} ({blob.size_bytes} bytes); nobody asked has it, its author may send it"
        )
    for line in describe_changes(state.compact, made):
        typer.echo(f"  {line}")
    if state.compact.successors[:1] != (own.coordinator,):
        typer.echo("warning: this coordinator is not the first that the compact names as a successor")
    print_warnings(made)
    typer.echo(f"draft {digest}: members sign it with `commonweal node amend --invite {files.invite}`")
    typer.echo(f"next: commonweal coordinator run --home {home}")


def fork(
    place: Place,
    name: Annotated[str, typer.Option(help="What the new consortium is called.")],
    home: Home = DEFAULT_HOME,
    at: Annotated[
        int | None, typer.Option(help="How many of its entries are common history; all if not given.")
    ] = None,
    member: Annotated[list[str] | None, typer.Option(help="A member that goes along, with its old key.")] = None,
    card: Cards = None,
    compact: OtherTerms = None,
    coordinator: Annotated[str, typer.Option(help="This coordinator's short name.")] = "coordinator",
    host: Host = "127.0.0.1",
    public_host: PublicHost = None,
    base_port: BasePort = 7400,
    rounds: Rounds = 1,
    ca: Ca = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Draft the founding compact of a consortium that goes its own way from a place in an old log.

    It starts from the newest release that was ratified there. Members sign with `commonweal node join --fork-source`,
    each from a home of its own for this consortium, and thereby check that the old log says the same.
    """
    files = CoordinatorHome(home)
    records = open_source(place, ca)
    replica = replay(records) if at is None else replay_at(records, at)[0]
    settings = check_settings(coordinator, host, public_host, base_port, rounds, LogSettings())
    own, config = make_home(home, settings, name, load_passphrase(passphrase_file))
    made = draft_fork(
        replica,
        name,
        member or [],
        [Card.load(path) for path in card or ()],
        own.coordinator,
        load_terms(compact) if compact else None,
    )
    BlobStore(files.public).put_bytes(read_blob(records, made.start))
    consortium = Draft.store(files.founding, made)
    own.invite(consortium, name).save(files.invite)
    save_settings(home, config)
    print_warnings(made)
    typer.echo(f"consortium {name} {consortium}: forks off {replica.log.name} after {replica.size} entries")
    typer.echo(f"next: send {files.invite} to each member, and run: commonweal coordinator run --home {home}")


def lint_compact(
    file: Annotated[
        Path | None, typer.Argument(help="A compact as a statement: founding/compact.json, a node's compact.json.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Name the choke points of a compact, with the numbers. Exit 1: there are some.

    Without a file: of the newest draft in the coordinator's home.
    """
    where = CoordinatorHome(home)
    drafts = [draft_file(folder) for folder in (where.succession, where.amendment, where.founding)]
    path = file or next((p for p in drafts if p.exists()), drafts[-1])
    data = read_bounded(path, MAX_ENTRY_BYTES, "a compact", error=ConfigError, too_large=MalformedError)
    predicate = parse_statement(data).predicate
    if not isinstance(predicate, Compact):
        raise ConfigError(f"{path}: wanted a compact, got {type(predicate).__name__}")
    if print_warnings(predicate):
        raise typer.Exit(1)
    typer.echo("no choke points")
