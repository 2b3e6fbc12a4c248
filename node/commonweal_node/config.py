"""``node.toml``: one frozen model, read once. An unknown key is an error; units are in the names."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from commonweal_protocols.predicates import Name
from commonweal_protocols.settings import load_toml


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
    """How often a training's state is kept, so that a killed node goes on from there; 0: after every step."""
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
    flower_port: Annotated[int, Field(ge=1, le=65535)] = 7410
    """Local only: where Flower's SuperNode meets its app."""
    witness_host: str = "127.0.0.1"
    witness_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where this node cosigns its consortium's checkpoints; 0: it is no witness."""
    tensorboard: bool = False
    """Write each training's course as a TensorBoard event file below ``runs/`` too. Needs the extra ``tensorboard``."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where Prometheus finds this node's figures, on loopback only; 0: nowhere."""
    refuse: Annotated[str, Field(max_length=500)] = ""
    """Decline every round with this reason, while it is set."""


def load_config(path: Path) -> NodeConfig:
    """Read ``node.toml``; relative paths become absolute.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    config = load_toml(path, NodeConfig, if_missing=f"run: commonweal node init --home {path.parent}")
    folder = path.resolve().parent
    return config.model_copy(
        update={
            "data": folder / config.data,
            "charter": folder / config.charter if config.charter else None,
            "cache": folder / config.cache,
        }
    )
