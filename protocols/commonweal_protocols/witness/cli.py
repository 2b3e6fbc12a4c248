"""``commonweal witness``: a witness's commands. No logic here; ``witness`` and ``witness_server`` do the work."""

import json
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from commonweal_protocols.base.errors import ConfigError, MalformedError
from commonweal_protocols.base.keys import create_ml_dsa_key_file, load_or_create_key_file, load_passphrase
from commonweal_protocols.base.logs import log_to_stderr
from commonweal_protocols.base.options import AsJson, Home, PassphraseFile
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.note import check_key_name
from commonweal_protocols.witness.config import (
    FILE,
    KEY_FILE,
    ML_DSA_KEY_FILE,
    STORE_FILE,
    WitnessConfig,
    load_config,
    load_keys,
    parse_log,
    policy_lines,
    save_config,
)
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import Witness

app = typer.Typer(no_args_is_help=True, help="Cosign the checkpoints of logs that keep their history.")
DEFAULT_HOME = Path("witness-home")


@app.command()
def init(
    name: Annotated[str, typer.Option(help="This witness's name for its whole life, like witness.example/w1.")],
    home: Home = DEFAULT_HOME,
    log: Annotated[list[str] | None, typer.Option(help="A log's vkey; once for each log to watch.")] = None,
    url: Annotated[str | None, typer.Option(help="How logs reach this witness; goes into the policy line.")] = None,
    ml_dsa: Annotated[
        bool, typer.Option("--ml-dsa", help="Add a post-quantum key (ML-DSA-44) beside Ed25519.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make this witness's keys, its empty store and its settings, and print what a log's operator needs."""
    if (home / FILE).exists():
        raise ConfigError(f"{home / FILE}: exists already; a witness is set up once, for another take another --home")
    try:
        check_key_name(name)
    except MalformedError as e:
        raise ConfigError(f"--name: {e}") from e
    if "#" in name:
        raise ConfigError(f"--name: wanted no '#', which policies cannot hold, got {name!r}")
    config = WitnessConfig(name=name, ml_dsa=ml_dsa, logs=tuple(dict.fromkeys(log or ())))
    config.verifiers()
    passphrase = load_passphrase(passphrase_file)
    # Without settings nothing has run here yet, so what an earlier set-up left when it was cut off is taken.
    load_or_create_key_file(home / KEY_FILE, passphrase)
    if ml_dsa and not (home / ML_DSA_KEY_FILE).exists():
        create_ml_dsa_key_file(home / ML_DSA_KEY_FILE, passphrase)
    if not (home / STORE_FILE).exists():
        WitnessStore.create(home / STORE_FILE)
    keys = load_keys(home, config, passphrase)
    save_config(home, config)
    typer.echo(f"witness {name} is set up in {home} and watches {len(config.logs)} logs.")
    for key in keys:
        typer.echo(f"vkey: {make_cosignature_verifier(name, key.public_key()).vkey}")
    typer.echo("For the policy of a log's operator:")
    for line in policy_lines(name, keys, url or "https://HOST:PORT"):
        typer.echo(line)
    typer.echo(f"Leave {home / STORE_FILE} out of backups: an older copy would let this witness cosign a fork.")
    typer.echo(f"next: commonweal witness run --home {home}")


@app.command()
def add_log(
    vkey: Annotated[str, typer.Argument(help="The log's vkey, as its operator gives it.")], home: Home = DEFAULT_HOME
) -> None:
    """Watch one more log. A witness that is running reads it at its next start."""
    config = load_config(home)
    verifier = parse_log(vkey)
    if vkey in config.logs:
        typer.echo(f"{verifier.name} is watched already, with this key; nothing was changed.")
        return
    known = verifier.name in {v.name for v in config.verifiers()}
    save_config(home, config.model_copy(update={"logs": (*config.logs, vkey)}))
    typer.echo(f"{verifier.name} is watched" + (", now with one key more." if known else "."))
    typer.echo(f"next: start again, commonweal witness run --home {home}")


@app.command()
def run(
    home: Home = DEFAULT_HOME,
    host: Annotated[str | None, typer.Option(help="The address to listen on; the settings' if not given.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the certificate chain: serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key, if that is another file.")] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    log_to_stderr()
    config = load_config(home)
    keys = load_keys(home, config, load_passphrase(passphrase_file))
    if tls_key and not tls_cert:
        raise ConfigError("witness run: wanted --tls-cert with --tls-key")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = WitnessStore(home / STORE_FILE)
    try:
        witness = Witness(config.name, keys, config.verifiers(), store, time.time)
        server = WitnessServer(
            witness,
            host or config.host,
            config.port if port is None else port,
            prefix=config.prefix,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        with server:
            typer.echo(f"witness {config.name} serves {server.url} and watches {len(witness.origins)} logs")
            for line in policy_lines(config.name, keys, server.url):
                typer.echo(line)
            stop.wait()
    finally:
        store.close()
    typer.echo("stopped")


@app.command()
def status(
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Say who this witness is, and what it has cosigned last of each log. The witness may be running."""
    config = load_config(home)
    keys = load_keys(home, config, load_passphrase(passphrase_file))
    store = WitnessStore(home / STORE_FILE)
    try:
        witness = Witness(config.name, keys, config.verifiers(), store, time.time)
        latest = witness.latest_by_origin()
    finally:
        store.close()
    vkeys = [v.vkey for v in witness.verifiers]
    if as_json:
        logs = [
            {"origin": origin, "size": s.size, "root": s.root.hex(), "cosigned_at": s.at} if s
            else {"origin": origin, "size": None, "root": None, "cosigned_at": None}
            for origin, s in latest.items()
        ]  # fmt: skip
        typer.echo(json.dumps({"name": config.name, "vkeys": vkeys, "logs": logs}, indent=2))
        return
    typer.echo(f"witness {config.name}")
    for vkey in vkeys:
        typer.echo(f"vkey {vkey}")
    if not latest:
        typer.echo(f"no log is watched yet; run: commonweal witness add-log VKEY --home {home}")
    for origin, s in latest.items():
        if s is None:
            typer.echo(f"log {origin}: nothing was cosigned yet; its operator has to add this witness to its policy")
        else:
            when = datetime.fromtimestamp(s.at, UTC).isoformat(timespec="seconds")
            typer.echo(f"log {origin}: cosigned {s.size} entries at {when}, root {s.root.hex()}")
