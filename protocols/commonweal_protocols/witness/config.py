"""``witness.toml``: a witness's settings, one frozen model. ``witness add-log`` rewrites the file."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from commonweal_protocols.base.errors import ConfigError, MalformedError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.keys import load_key_file, load_ml_dsa_key_file
from commonweal_protocols.base.settings import load_toml
from commonweal_protocols.tlog.cosignature import CosignerKey, make_cosignature_verifier
from commonweal_protocols.tlog.note import Verifier, parse_vkey

FILE = "witness.toml"
KEY_FILE = "keys/witness.pem"
ML_DSA_KEY_FILE = "keys/witness-ml-dsa-44.pem"
STORE_FILE = "store/cosigned.sqlite"

_TEXT = """\
# A witness's settings. `commonweal witness add-log` rewrites this file. Every key: see WitnessConfig.
name = {name}
host = {host}
port = {port}
prefix = {prefix}
ml_dsa = {ml_dsa}
logs = [{logs}]
"""


class WitnessConfig(BaseModel):
    """A witness's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=255)]
    """The key's name: a schema-less URL, fixed for the witness's life."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 7480
    prefix: str = ""
    """In front of every path, like /this."""
    ml_dsa: bool = False
    """Add an ML-DSA-44 line to each cosignature."""
    logs: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()
    """The vkeys of the logs to watch."""

    def verifiers(self) -> tuple[Verifier, ...]:
        """Return the logs' keys.

        Raises:
            ConfigError: One is not a log's vkey.
        """
        return tuple(parse_log(vkey) for vkey in self.logs)


def parse_log(vkey: str) -> Verifier:
    """Parse a vkey that a person gave.

    Raises:
        ConfigError: It is not a log's vkey.
    """
    try:
        return parse_vkey(vkey)
    except MalformedError as e:
        raise ConfigError(f"log: {e}; ask the log's operator for its vkey, name+id+key") from e


def load_config(home: Path) -> WitnessConfig:
    """Read a witness's settings.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return load_toml(home / FILE, WitnessConfig, if_missing=f"run: commonweal witness init --home {home}")


def save_config(home: Path, config: WitnessConfig) -> None:
    """Write a witness's settings, in one step.

    Raises:
        ConfigError: The name is not a key name.
        StorageError: The file cannot be written.
    """
    # TOML's basic strings are JSON's but for DEL, which no name and no vkey has.
    text = _TEXT.format(
        name=json.dumps(config.name, ensure_ascii=False),
        host=json.dumps(config.host),
        port=config.port,
        prefix=json.dumps(config.prefix),
        ml_dsa=json.dumps(config.ml_dsa),
        logs="".join(f"\n    {json.dumps(vkey, ensure_ascii=False)}," for vkey in config.logs)
        + ("\n" if config.logs else ""),
    )
    write_atomic(home / FILE, text.encode())


def load_keys(home: Path, config: WitnessConfig, passphrase: bytes | None) -> tuple[CosignerKey, ...]:
    """Return the witness's keys: Ed25519, and ML-DSA-44 if it has one.

    Raises:
        StorageError: A key file is missing, readable by others, or of another kind.
    """
    keys: tuple[CosignerKey, ...] = (load_key_file(home / KEY_FILE, passphrase),)
    if config.ml_dsa:
        keys += (load_ml_dsa_key_file(home / ML_DSA_KEY_FILE, passphrase),)
    return keys


def policy_lines(name: str, keys: tuple[CosignerKey, ...], url: str | None) -> list[str]:
    """Return the lines for a log operator's policy: one witness for each key, and a group of all if there are two."""
    names = [name, f"{name}/ml-dsa-44"][: len(keys)]
    lines = []
    for which, key in zip(names, keys, strict=True):
        vkey = make_cosignature_verifier(name, key.public_key()).vkey
        lines.append(f"witness {which} {vkey}" + (f" {url}" if url else ""))
    if len(keys) > 1:
        lines.append(f"group {name}/both all {' '.join(names)}")
    return lines
