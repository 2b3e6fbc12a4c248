"""``coordinator.toml``: one frozen model, read once. An unknown key is an error; units are in the names."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from commonweal_protocols.base.settings import load_toml

_RETIRED = frozenset({"fleet_port"})
Port = Annotated[int, Field(ge=1, le=65535)]


class LogSettings(BaseModel):
    """Where the log's tiles lie. Its lock database is always on the local disk (see ``object_storage``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    store: Annotated[str, Field(pattern=r"^(s3://[a-z0-9.-]+(/[A-Za-z0-9._/-]+)?)?$")] = ""
    """``s3://BUCKET/PREFIX``; empty: the home's ``public`` folder. Fixed when the log is founded. The credentials come
    from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, a role of the machine), never from here."""
    endpoint: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")] | None = None
    """The S3 server's address, where it is not Amazon's."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None
    post_quantum: bool = False
    """Sign checkpoints with an ML-DSA-44 key too (``keys/log-ml-dsa.pem``)."""
    republish_seconds: Annotated[int, Field(ge=0)] = 600
    """When nothing new has come for so long, the witnesses are asked to say again that this is the newest; 0: never."""


class CoordinatorConfig(BaseModel):
    """A coordinator's settings. Everything that binds others is in the compact, not here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    origin: str
    """The log's name for life: a schema-less address, at most 255 bytes."""
    host: str = "127.0.0.1"
    public_host: str = "127.0.0.1"
    """The name or address by which nodes and auditors reach this host; the TLS certificate is made for it."""
    exchange_port: Port = 7400
    """gRPC: submissions and blobs."""
    records_port: Port = 7401
    """HTTPS: the public records."""
    log: LogSettings = LogSettings()
    rounds: Annotated[int, Field(ge=0)] = 0
    """Open rounds until this many releases are ratified; 0 opens none."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Blobs are refused when the disk has less than this left, so that the log can always be written."""


def load_config(path: Path) -> CoordinatorConfig:
    """Read ``coordinator.toml``.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return load_toml(
        path, CoordinatorConfig, if_missing=f"run: commonweal coordinator init --home {path.parent}", retired=_RETIRED
    )
