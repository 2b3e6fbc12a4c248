"""``commonweal node``: an institution's commands. No logic here; torch is loaded only by ``run``."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from commonweal_node.commands.adopt import adopt
from commonweal_node.commands.ask import ask
from commonweal_node.commands.compact_text import describe_terms
from commonweal_node.commands.data import data_app
from commonweal_node.commands.evaluate import evaluate
from commonweal_node.commands.leave import leave
from commonweal_node.commands.train import train
from commonweal_node.config import NodeConfig, SpeaksFor, add_witness, format_config, load_config
from commonweal_node.connection.status import NodeStatus, describe_gap
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base.errors import ConfigError, RuleError, UnavailableError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.keys import load_key_file, load_or_create_key_file, load_passphrase, public_hex
from commonweal_protocols.base.logs import log_to_stderr
from commonweal_protocols.base.options import AsJson, Ca, Home, PassphraseFile, Yes
from commonweal_protocols.base.settings import describe
from commonweal_protocols.base.status_file import load_status, now
from commonweal_protocols.base.text import printable
from commonweal_protocols.fold.amendment import describe_changes, signing_keys
from commonweal_protocols.records.source import is_address, open_source
from commonweal_protocols.statements.compact import BaseModelRef
from commonweal_protocols.statements.invite import Card, Invite

app = typer.Typer(no_args_is_help=True, help="Run an institution's node: train, sign, ratify, adopt.")
app.add_typer(data_app, name="data")
app.command(name="train")(train)
app.command(name="evaluate")(evaluate)
app.command(name="ask")(ask)
app.command()(adopt)
app.command(name="exit")(leave)


def _speaks_for(consortium: str | None, records: str | None, ca: Path | None) -> SpeaksFor | None:
    """The options of a node that speaks for a consortium.

    Raises:
        ConfigError: Only some of them are given, or there is no such folder or PEM.
        ValidationError: Not a digest.
    """
    if consortium is None or records is None:
        if (consortium, records, ca) != (None, None, None):
            raise ConfigError("node init: wanted --speaks-for and --speaks-for-records, got only some of them")
        return None
    open_source(records, ca)
    place = records if is_address(records) else str(Path(records).resolve())
    return SpeaksFor(consortium=consortium, records=place, ca=ca.resolve() if ca else None)


def _with_what_is_missing(path: Path, wanted: NodeConfig) -> str:
    """Return the settings of a home that is there, with the witness that it has not.

    Raises:
        ConfigError: It has all that is wanted, or is another one's.
    """
    there = load_config(path)
    for name in ("institution", "data", "speaks_for"):
        if (got := getattr(wanted, name)) != (held := getattr(there, name)):
            raise ConfigError(f"{path}: exists already, with {name} {held}; wanted the same, got {got}")
    if there.witness_port or not wanted.witness_port:
        raise ConfigError(f"{path}: exists already; a node is set up once, and only a witness can be added")
    return add_witness(path, wanted.witness_host, wanted.witness_port)


@app.command()
def init(
    institution: Annotated[str, typer.Option(help="The institution's short name: a-z, 0-9 and -.")],
    data: Annotated[Path, typer.Option(help="The community's rows (JSONL); they never leave this host.")],
    home: Home = DEFAULT_HOME,
    charter: Annotated[Path | None, typer.Option(help="The community's charter (TOML).")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where base models are kept; HOME/cache if not given.")] = None,
    threads: Annotated[int, typer.Option(help="Threads for training; 0: as many as cores.")] = 0,
    max_heldout_rows: Annotated[int, typer.Option(help="How many held-out rows evaluation uses at most.")] = 256,
    witness_port: Annotated[int, typer.Option(help="Cosign the log's checkpoints on this port; 0: do not.")] = 0,
    witness_host: Annotated[str, typer.Option(help="The address on which to listen for them.")] = "127.0.0.1",
    witness_url: Annotated[
        str | None, typer.Option(help="How the coordinator reaches it; http://HOST:PORT if not given.")
    ] = None,
    speaks_for: Annotated[
        str | None, typer.Option(help="A consortium (64 hex digits) to speak for in another.")
    ] = None,
    speaks_for_records: Annotated[str | None, typer.Option(help="Its public records: an address, or a folder.")] = None,
    speaks_for_ca: Ca = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make this institution's keys, card and settings. Then send card.json to anyone who drafts the compact.

    Run again with --witness-port, it adds a witness to a home that has none; nothing that is there is replaced.
    """
    from commonweal_node.connection.witness import create_witness

    files = NodeHome(home)
    try:
        # Before a key is made, and before a file is written that could not be read again.
        config = NodeConfig(
            institution=institution,
            data=data.resolve(),
            charter=charter.resolve() if charter else None,
            cache=(cache or files.default_cache).resolve(),
            threads=threads,
            max_heldout_rows=max_heldout_rows,
            witness_host=witness_host,
            witness_port=witness_port,
            speaks_for=_speaks_for(speaks_for, speaks_for_records, speaks_for_ca),
        )
    except ValidationError as e:
        raise ConfigError(f"node init: {describe(e)}") from e
    for path in (data, charter):
        if path and not path.is_file():
            raise ConfigError(f"{path}: wanted a file, got none")
    text = _with_what_is_missing(files.settings, config) if files.settings.exists() else format_config(config)
    passphrase = load_passphrase(passphrase_file)
    make = load_key_file if files.settings.exists() else load_or_create_key_file
    key, witness = make(files.key, passphrase), None
    if witness_port:
        witness = create_witness(home, institution, witness_url or f"http://{witness_host}:{witness_port}", passphrase)
    Card(institution=institution, key=public_hex(key), witness=witness, consortium=speaks_for).save(files.card)
    write_atomic(files.settings, text.encode())
    typer.echo(f"institution {institution}, key {public_hex(key)}")
    typer.echo(f"next: give {files.card} to the coordinator, and join with its invite")


@app.command()
def join(
    invite: Annotated[Path, typer.Argument(help="The coordinator's invite.json.")],
    home: Home = DEFAULT_HOME,
    fork_source: Annotated[
        str | None, typer.Option(help="The records that a fork comes from: an address, or a folder.")
    ] = None,
    fork_ca: Ca = None,
    yes: Yes = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Read the consortium's compact, check it, and sign it."""
    from commonweal_node.institution.delegate import check_speaks_for
    from commonweal_node.institution.join import check_draft, sign_draft
    from commonweal_node.institution.opened_home import OpenedHome

    opened = OpenedHome(home, passphrase_file, Invite.load(invite))
    config, key = opened.config, opened.keys.present
    source = open_source(fork_source, fork_ca) if fork_source else None
    payload, compact = check_draft(opened, source)
    check_speaks_for(config, compact)
    console = Console(highlight=False, markup=False)
    console.print(f"compact of {compact.consortium}, {opened.invite.consortium}")
    for name, what in describe_terms(compact):
        console.print(f"  {name:<12} {what}", soft_wrap=True)
    if not (yes or typer.confirm(f"Sign this compact as {config.institution}?")):
        typer.echo("nothing was signed")
        return
    signatures, wanted = sign_draft(opened, payload, key)
    write_atomic(opened.files.compact, payload)
    opened.invite.save(opened.files.invite)
    typer.echo(f"signed: {signatures} of {wanted}; next: commonweal node run --home {home}")


@app.command()
def amend(
    home: Home = DEFAULT_HOME,
    invite: Annotated[
        Path | None, typer.Option(help="The invite of a coordinator that is to succeed ours; ours if not given.")
    ] = None,
    yes: Yes = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Read the draft of the compact's next version, see what it changes, and sign it.

    It is checked against the log as this host verifies it, and is in force once enough members of both versions have
    signed. With the invite of a successor this node, running or not, says and cosigns nothing more under the old
    coordinator.
    """
    from commonweal_node.institution.join import change_over, check_amendment_draft, sign_draft, succeeded_by
    from commonweal_node.institution.opened_home import OpenedHome

    own = Invite.load(NodeHome(home).invite)
    opened = OpenedHome(home, passphrase_file, Invite.load(invite) if invite else own)
    if (got := opened.invite.consortium) != own.consortium:
        raise ConfigError(f"{invite}: wanted an invite to consortium {own.consortium}, got one to {got}")
    institution = opened.config.institution
    if invite and (following := succeeded_by(opened)) is not None:
        if not (yes or typer.confirm(f"Enough have signed: take {following.coordinator.name} as the coordinator?")):
            typer.echo("nothing was changed")
            return
        change_over(opened, following)
        typer.echo(f"in force already: version {following.version}; coordinator {following.coordinator.name}")
        return
    ring = opened.keys
    payload, compact, state = check_amendment_draft(opened)
    named = {m.key for m in compact.members} | signing_keys(state.compact, compact, state.size).keys()
    keys = [key for key in (ring.present, ring.next()) if key is not None and public_hex(key) in named]
    if not keys:
        raise RuleError(f"amend: wanted a key of {institution} in one of the two versions, got none")
    console = Console(highlight=False, markup=False)
    console.print(f"version {compact.version} of the compact of {compact.consortium}")
    for line in describe_changes(state.compact, compact):
        console.print(f"  {printable(line)}")
    if (last := compact.succeeds) is not None:
        console.print(f"  another log: all {last.size} entries of {printable(last.origin)} are carried over to it")
    if not (yes or typer.confirm(f"Sign this version as {institution}?")):
        typer.echo("nothing was signed")
        return
    signed = [sign_draft(opened, payload, key) for key in keys]
    if compact.succeeds is not None:
        change_over(opened, compact)
    typer.echo(f"signed: {signed[-1][0]} signatures so far")


@app.command(name="rotate-key")
def rotate_key(home: Home = DEFAULT_HOME, passphrase_file: PassphraseFile = None) -> None:
    """Make this institution's next signing key. The node has it logged and uses it from then on; the old one is gone.

    If the old key was stolen, do this first. Then give card-next.json to the coordinator's operator, so that a new
    version of the compact can revoke what a thief may have signed (commonweal coordinator amend --revoke).
    """
    from commonweal_node.connection.keyring import KeyRing

    files = NodeHome(home)
    config = load_config(files.settings)
    key = KeyRing(home, load_passphrase(passphrase_file)).make_next()
    card = Card.load(files.card).model_copy(update={"key": public_hex(key)})
    card.save(files.next_card)
    typer.echo(f"institution {config.institution}, next key {public_hex(key)}; see {files.next_card}")
    typer.echo(f"it is logged by the node as soon as that runs: commonweal node run --home {home}")


@app.command()
def run(home: Home = DEFAULT_HOME, passphrase_file: PassphraseFile = None) -> None:
    """Follow the log, answer rounds, ratify and decide, until SIGTERM or Ctrl-C.

    Started by accelerate launch, several processes train together; those but the first do nothing else.
    """
    from commonweal_node import daemon
    from commonweal_node.training.launch import launched_rank

    if find_spec("torch") is None:
        # The daemon imports none, but the process that it starts does: better told here than in its log.
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    config = load_config(NodeHome(home).settings)
    log_to_stderr()
    if launched_rank():
        from commonweal_node.training.jobs import work
        from commonweal_node.training.team import join_team

        work(join_team(), config)
    else:
        daemon.run(home.resolve(), config, load_passphrase(passphrase_file))


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Say what a node is doing, how far it is, and what is in the way."""
    found = load_status(home, NodeStatus, "node")
    if as_json:
        typer.echo(found.model_dump_json())
        return
    try:
        os.kill(found.pid, 0)
        phase: str = found.phase
    except OSError:
        phase = "not running"
    console = Console(highlight=False, markup=False)
    console.print(f"institution  {found.institution}")
    console.print(f"phase        {phase} {found.doing} (as of {now() - found.written_at:.0f} s ago)")
    if found.steps:
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in found.losses.items()) or "none yet"
        left = "" if found.eta_seconds is None else f", {found.eta_seconds:.0f} s left"
        console.print(f"training     step {found.step} of {found.steps}, loss: {losses}{left}")
    if found.membership_auc is not None:
        console.print(f"membership   AUC {found.membership_auc:.3f} of the newest adapter (0.5 is chance)")
    console.print(f"traffic      {found.sent_bytes} bytes sent, {found.received_bytes} received")
    if found.decision:
        console.print(f"decision     round {found.round}: {found.decision}")
    if found.serves:
        console.print(f"serves       {found.serves}", highlight=False)
    if found.over_alone:
        console.print(f"against our best alone  {describe_gap(*found.over_alone)}", highlight=False)
    if found.trouble:
        console.print(f"trouble      {found.trouble}", style="red", markup=False)


@app.command()
def doctor(
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Check keys, rows, charter, probes, disk, memory, ports, clock and base, and say what fixes each.

    Exit 4: something is ill.
    """
    from commonweal_node.commands.doctor import examine
    from commonweal_node.institution.join import known_compact
    from commonweal_node.institution.opened_home import OpenedHome

    opened = OpenedHome(home, passphrase_file)
    invite = opened.invite if opened.files.invite.exists() else None
    compact = known_compact(opened) if invite else None
    checks = list(examine(home, opened.config, invite, compact, load_passphrase(passphrase_file)))
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(c) for c in checks]))
    else:
        table = Table("check", "", "found", "what to do")
        for c in checks:
            word = "[green]ok[/]" if c.ok else "[red]ill[/]"
            table.add_row(c.name, word, escape(c.found), "" if c.ok else escape(c.fix))
        Console().print(table)
    if not all(c.ok for c in checks):
        raise typer.Exit(4)


@app.command(name="fetch-base")
def fetch_base(
    cache: Annotated[
        Path | None, typer.Option(help="Where base models are kept; the node's cache if not given.")
    ] = None,
    home: Home = DEFAULT_HOME,
    compact: Annotated[Path | None, typer.Option(help="Take the base that these terms (TOML) name.")] = None,
) -> None:
    """Fetch the base model that the compact names, check its digest, and keep it. Done once; again costs nothing."""
    from commonweal_node.institution.join import known_compact, read_base
    from commonweal_node.institution.opened_home import OpenedHome
    from commonweal_node.model.base_model import fetch_base as fetch

    base: BaseModelRef
    if compact is not None:
        base = read_base(compact)
    else:
        found = known_compact(OpenedHome(home))
        if found is None:
            raise UnavailableError("base model: the consortium's log does not answer; give --compact TERMS.toml")
        base = found.base
    where = cache or load_config(NodeHome(home).settings).cache
    path = fetch(base, where.resolve(), lambda line: typer.echo(f"base model: {line}", err=True))
    typer.echo(f"base model {base.reference}: {path}")
