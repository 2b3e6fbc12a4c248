"""``node.toml``: one frozen model, read once. An unknown key is an error; units are in the names."""

import json
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.base.settings import MAX_TOML_BYTES, load_toml, parse_toml
from commonweal_protocols.records.source import is_address
from commonweal_protocols.statements.values import Digest, Name

Trainer = Annotated[str, Field(max_length=500, pattern=r"^(flower:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?$")]
_RETIRED = frozenset({"flower_port"})


class SpeaksFor(BaseModel):
    """``[speaks_for]``: the consortium in whose name this node is a member of another. See ``delegate``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    consortium: Digest
    """Which one: the digest of its founding compact."""
    records: Annotated[str, Field(min_length=1, max_length=4096)]
    """Its public records: an address, or a folder."""
    ca: Path | None = None
    """A PEM of the authorities behind that address; None: the system's."""


class NodeConfig(BaseModel):
    """An institution's settings. Paths are taken from the folder of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    institution: Name
    data: Path
    """The community's rows (JSONL); they never leave this host."""
    charter: Path | None = None
    cache: Path = Path("cache")
    """Where base models are kept; several nodes of one host may share it."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """For training and evaluation; 0: as many as there are cores."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_heldout_rows: Annotated[int, Field(ge=4)] = 256
    """Evaluation uses at most this many held-out rows, the same ones every time."""
    batch_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    """Tokens that go forward and backward together. More is no better training: a larger step accumulates."""
    gradient_checkpointing: bool = False
    """Keep less of the forward pass and compute it again: about a third slower, in far less memory."""
    checkpoint_seconds: Annotated[int, Field(ge=0, le=86_400)] = 30
    """How often a training's state is kept, so that a killed node continues from there; 0: after every step."""
    early_stop_every_steps: Annotated[int, Field(ge=0, le=10**6)] = 0
    """How often a training looks at the held-out rows on which blends are chosen; 0: it takes all of its steps."""
    early_stop_patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many such looks without a new best end it."""
    membership_rows: Annotated[int, Field(ge=0, le=4096)] = 32
    """How many rows of each kind the membership attack on an adapter takes, before that is sent; 0: none is made."""
    max_membership_auc_millis: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Refuse a round rather than send an adapter by which the attack does better than this, in thousandths.
    One that could not be attacked, for want of rows, is not sent either. None: there is no bound.
    """
    witness_host: str = "127.0.0.1"
    witness_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where this node cosigns its consortium's checkpoints; 0: it is no witness."""
    unload_after_seconds: Annotated[int, Field(ge=0, le=30 * 86_400)] = 30
    """How long the base and the rows stay in memory after the last work. Loading them again takes some seconds."""
    tensorboard: bool = False
    """Write each training's course as a TensorBoard event file below ``runs/`` too. Needs the extra ``tensorboard``."""
    trainer: Trainer = ""
    """Who trains: empty for the node itself, or ``flower:PACKAGE.MODULE:NAME`` for a Flower ClientApp. An app is given
    no key, but it runs as the same user: name only one that you trust. Needs the extra ``flower``.
    """
    trainer_config: dict[str, bool | int | float | str] = {}
    """The ClientApp's ``run_config``: what its pyproject.toml has below ``[tool.flwr.app.config]``."""
    trainer_timeout_seconds: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    """How long a ClientApp may train before it is killed."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where Prometheus finds this node's figures, on loopback only; 0: nowhere."""
    refuse: Annotated[str, Field(max_length=500)] = ""
    """Decline every round with this reason, while it is set."""
    speaks_for: SpeaksFor | None = None
    """Set, if this node is no institution of its own but speaks for a consortium."""

    @model_validator(mode="after")
    def _bounds_what_it_trains(self) -> Self:
        if self.speaks_for is not None and self.max_membership_auc_millis is not None:
            raise ValueError("max_membership_auc_millis: wanted none with [speaks_for], since nothing is trained here")
        return self


def format_config(config: NodeConfig) -> str:
    """Return a new node's ``node.toml``: what ``node init`` asks for. Every other key has its default."""
    told = ("institution", "data", "charter", "cache", "threads", "max_heldout_rows", "witness_host")
    text = "# A node's settings. Every key: see NodeConfig.\n" + _lines(config, *told, "witness_port")
    if config.speaks_for is not None:
        text += "\n[speaks_for]\n" + _lines(config.speaks_for, "consortium", "records", "ca")
    return text


def add_witness(path: Path, host: str, port: int) -> str:
    """Return the text of a ``node.toml`` with where this node is to cosign; all else stays as people wrote it.

    Raises:
        ConfigError: It cannot be read, or says otherwise in a way that this cannot change.
    """
    data = read_bounded(path, MAX_TOML_BYTES, "a TOML file", error=ConfigError)
    kept = re.sub(r"(?m)^witness_(host|port)\s*=.*\n?", "", data.decode())
    # Before everything else: below a table's head they would be keys of that table.
    text = f"witness_host = {json.dumps(host)}\nwitness_port = {port}\n{kept}"
    parse_toml(text.encode(), NodeConfig, str(path), retired=_RETIRED)
    return text


def _lines(table: BaseModel, *keys: str) -> str:
    """Return keys that have a value as TOML, whose strings have the escapes of JSON's."""
    values = {key: getattr(table, key) for key in keys}
    return "".join(
        f"{key} = {json.dumps(value if isinstance(value, int) else str(value), ensure_ascii=False)}\n"
        for key, value in values.items()
        if value is not None
    )


def load_config(path: Path) -> NodeConfig:
    """Read ``node.toml``; relative paths become absolute.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    config = load_toml(path, NodeConfig, if_missing=f"run: commonweal node init --home {path.parent}", retired=_RETIRED)
    folder = path.resolve().parent
    return config.model_copy(
        update={
            "data": folder / config.data,
            "charter": folder / config.charter if config.charter else None,
            "cache": folder / config.cache,
            "speaks_for": _absolute(folder, config.speaks_for) if config.speaks_for else None,
        }
    )


def _absolute(folder: Path, speaks_for: SpeaksFor) -> SpeaksFor:
    records, ca = speaks_for.records, speaks_for.ca
    return speaks_for.model_copy(
        update={
            "records": records if is_address(records) else str(folder / records),
            "ca": folder / ca if ca else None,
        }
    )
