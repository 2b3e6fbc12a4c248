"""A coordinator's home, made once: keys, certificate, settings, and the card by which others know it."""

from pathlib import Path

from pydantic import ValidationError

from commonweal_coordinator import daemon
from commonweal_coordinator.config import CoordinatorConfig, LogSettings
from commonweal_coordinator.home import CoordinatorHome
from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.keys import (
    create_ml_dsa_key_file,
    load_ml_dsa_key_file,
    load_or_create_key_file,
    public_hex,
)
from commonweal_protocols.base.settings import describe
from commonweal_protocols.statements.compact import Coordinator
from commonweal_protocols.statements.invite import CoordinatorCard
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.note import format_vkey

_CONFIG = """\
# A coordinator's settings; what binds members is in the compact. Every key: see CoordinatorConfig.
name = "{name}"
origin = "{origin}"
host = "{host}"
public_host = "{public_host}"
exchange_port = {exchange}
records_port = {records}
rounds = {rounds}

{log}"""
_LOG_CONFIG = """\

[log]
store = "{store}"
post_quantum = {post_quantum}
"""


def check_settings(
    name: str, host: str, public_host: str | None, base_port: int, rounds: int, log: LogSettings
) -> CoordinatorConfig:
    """Return a coordinator's settings, but for its log's name, which its key gives.

    Raises:
        ConfigError: A name, a port or a bucket that cannot be.
    """
    reach = public_host or host
    try:
        config = CoordinatorConfig(
            name=Coordinator(name=name, key="0" * 64, log="not made yet").name,
            origin=reach,
            host=host,
            public_host=reach,
            exchange_port=base_port,
            records_port=base_port + 1,
            rounds=rounds,
            log=log,
        )
    except ValidationError as e:
        raise ConfigError(f"coordinator: {describe(e)}") from e
    return config


def make_home(
    home: Path, config: CoordinatorConfig, label: str, passphrase: bytes | None
) -> tuple[CoordinatorCard, CoordinatorConfig]:
    """Make keys, certificate and card. :func:`save_settings` comes last: where settings are, a home is whole.

    Args:
        home: Its folder.
        config: Checked settings.
        label: What the log is called between the host and its key.
        passphrase: Protects the keys; None: nothing does.

    Returns:
        The card, and the settings with the log's name.

    Raises:
        ConfigError: There is a home already, or no such place for its log.
        StorageError: A file cannot be written.
    """
    files = CoordinatorHome(home)
    if files.settings.exists():
        raise ConfigError(f"{files.settings}: exists already; a coordinator is set up once")
    daemon.open_storage(files.public, config.log)
    key = load_or_create_key_file(files.key, passphrase)
    log_key = load_or_create_key_file(files.log_key, passphrase)
    reach = config.public_host
    origin = f"{reach}/{label}/{public_hex(log_key)[:16]}"
    if config.log.post_quantum:
        second_vkey(home, origin, passphrase)
    files.public.mkdir(exist_ok=True)
    tls = load_or_create_tls(files.tls, [reach, config.host])
    card = CoordinatorCard(
        coordinator=Coordinator(
            name=config.name,
            key=public_hex(key),
            log=format_vkey(origin, log_key.public_key().public_bytes_raw()),
        ),
        exchange=f"{reach}:{config.exchange_port}",
        records=f"https://{reach}:{config.records_port}",
        ca_pem=tls.ca_pem(),
    )
    card.save(files.card)
    return card, config.model_copy(update={"origin": origin})


def save_settings(home: Path, config: CoordinatorConfig) -> None:
    """Write ``coordinator.toml``.

    Raises:
        StorageError: It cannot be written.
    """
    write_atomic(CoordinatorHome(home).settings, _format_config(config).encode())


def second_vkey(home: Path, origin: str, passphrase: bytes | None) -> str:
    """Return the vkey of the log's ML-DSA-44 key, which is made if there is none."""
    path = CoordinatorHome(home).ml_dsa_key
    make = load_ml_dsa_key_file if path.exists() else create_ml_dsa_key_file
    return make_cosignature_verifier(origin, make(path, passphrase).public_key()).vkey


def _format_config(config: CoordinatorConfig) -> str:
    log = _LOG_CONFIG.format(store=config.log.store, post_quantum=str(config.log.post_quantum).lower())
    log += f'endpoint = "{config.log.endpoint}"\n' if config.log.endpoint else ""
    log += f'region = "{config.log.region}"\n' if config.log.region else ""
    return _CONFIG.format(
        name=config.name,
        origin=config.origin,
        host=config.host,
        public_host=config.public_host,
        exchange=config.exchange_port,
        records=config.records_port,
        rounds=config.rounds,
        log=log,
    )
