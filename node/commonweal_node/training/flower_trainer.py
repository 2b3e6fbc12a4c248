"""Training by the operator's own Flower ClientApp, in a process of its own that is given no key.

Guarantees: the app gets files and returns files, never a pickle; what it returns is read within a bound and checked
like anyone's adapter; when a training ends, its process and its working folder are gone. If the node is
killed, the process is killed too, and the next training removes the folder.

It is no sandbox: the app runs as the node's user and can read all that this user can. Its environment holds none of
the node's variables but those in ``_KEPT``.

The working folder::

    request.json          what is wanted, see Request      examples.jsonl   the training examples, and no held-out one
    start.safetensors     where the training starts        result.safetensors, metrics.json   what came of it
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from commonweal_adapters.files.delta import GridTensors, to_grid, write_adapter
from commonweal_adapters.files.lora_file import read_floats
from commonweal_node.config import NodeConfig
from commonweal_node.home import NodeHome
from commonweal_node.model.tensors import Factor, slots
from commonweal_node.rows.row import format_row, read_rows
from commonweal_node.training.run_report import run_name
from commonweal_protocols.base.errors import BlobError, ConfigError, StorageError, UnavailableError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.base.text import printable
from commonweal_protocols.statements.compact import AdapterSpec, Recipe

REQUEST, EXAMPLES, START = "request.json", "examples.jsonl", "start.safetensors"
RESULT, METRICS = "result.safetensors", "metrics.json"
NOT_FOUND = 3
"""The worker's exit status where it cannot import the app."""

MAX_REQUEST_BYTES = 1 << 20

_POLL_SECONDS = 0.1
_LAST_LINES, _LAST_BYTES = 5, 4096
_MAX_METRICS_BYTES = 1 << 16
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME")

_METRICS: TypeAdapter[dict[str, float]] = TypeAdapter(
    Annotated[dict[Annotated[str, Field(max_length=200)], FiniteFloat], Field(max_length=256)]
)


def _app(config: NodeConfig) -> str:
    return config.trainer.removeprefix("flower:")


class Request(BaseModel):
    """What an app is asked to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str
    """``module:attribute``."""
    base: Path
    """The base model, a folder in transformers' layout."""
    adapter: AdapterSpec
    recipe: Recipe
    seed: int
    frozen: Factor | None
    """The factor that must stay what it is in the start."""
    run_config: dict[str, bool | int | float | str]
    """The app's own settings."""


@dataclass(frozen=True, slots=True, eq=False)
class AppResult:
    """What an app made, and what it reported of it."""

    adapter: GridTensors
    metrics: dict[str, float]
    seconds: float


def check_trainer(config: NodeConfig, processes: int = 1) -> None:
    """Make sure that a ClientApp can train here, if the settings name one: it is imported, in a process of its own.

    Raises:
        ConfigError: Flower is not installed, the app cannot be imported, or several processes are to train together.
    """
    if not config.trainer:
        return
    if find_spec("flwr") is None:
        raise ConfigError("trainer: wanted the package flwr, got none: pip install 'commonweal[flower]'")
    if processes > 1:
        raise ConfigError(f"trainer: wanted one process, since a ClientApp starts its own, got {processes}")
    with tempfile.TemporaryDirectory() as folder:
        _run(config, Path(folder), Path(folder) / "log", threading.Event(), _app(config))


@dataclass(frozen=True, slots=True)
class FlowerTrainer:
    """Has the ClientApp train that the settings name.

    Attributes:
        config: The node's settings.
        adapter: The shape of every adapter.
        base: The base model's files, in transformers' layout.
        data: The community's rows; those of the training split are handed over.
        home: Where the working folder and the app's output are; whatever is in the former is removed.
        stopping: Once set, a training ends with an error.
    """

    config: NodeConfig
    adapter: AdapterSpec
    base: Path
    data: Path
    home: NodeHome
    stopping: threading.Event

    def train(self, start: GridTensors, recipe: Recipe, what: str, frozen: Factor | None) -> AppResult:
        """Have the app train from ``start``, and return its result on the grid.

        Raises:
            ConfigError: The app cannot be imported, crashes, takes too long, or returns no adapter of the spec, one
                that is not finite, or one with another frozen factor.
            StorageError: The folder cannot be written.
            UnavailableError: The node is stopping.
        """
        config, folder = self.config, self.home.app
        log = self.home.runs / f"{run_name(what)}.log"
        request = Request(
            app=_app(config),
            base=self.base,
            adapter=self.adapter,
            recipe=recipe,
            seed=config.seed,
            frozen=frozen,
            run_config=config.trainer_config,
        )
        with _working_folder(folder, log):
            sent = write_adapter(start, self.adapter)
            (folder / REQUEST).write_text(request.model_dump_json())
            (folder / START).write_bytes(sent)
            with (folder / EXAMPLES).open("wb") as f:
                f.writelines(format_row(row) for row in read_rows(self.data) if row.split != "heldout")
            begun = time.monotonic()
            _run(config, folder, log, self.stopping)
            seconds = time.monotonic() - begun
            try:
                adapter = _read_result(folder / RESULT, self.adapter, 2 * len(sent))
                _check_frozen(self.adapter, start, adapter, frozen)
                return AppResult(adapter, _read_metrics(folder / METRICS), seconds)
            except BlobError as e:
                raise ConfigError(f"{config.trainer}: its result: {e}") from e


@contextmanager
def _working_folder(folder: Path, log: Path) -> Iterator[None]:
    """Within the block there is an empty folder, readable by its owner only; after it there is none."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        # An app may print what it trains on.
        log.touch(mode=0o600)
        yield
    except OSError as e:
        raise StorageError(f"{folder}: cannot be used as the trainer's working folder: {e.strerror}") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(config: NodeConfig, folder: Path, log: Path, stopping: threading.Event, *arguments: str) -> None:
    """Run the worker to its end.

    Raises:
        ConfigError: It cannot import the app, crashes, or takes too long.
        UnavailableError: The node is stopping.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"TMPDIR": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    environment |= {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    # -P: an app is a package that was installed, or lies on PYTHONPATH; what lies in the folder is no code.
    command = [sys.executable, "-P", "-m", "commonweal_node.training.flower_worker", str(os.getpid()), *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + config.trainer_timeout_seconds
        while (status := _wait(process)) is None:
            if stopping.is_set():
                raise UnavailableError("training: the node is stopping; a ClientApp begins anew")
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{config.trainer}: wanted an end within {config.trainer_timeout_seconds} s "
                    f"(trainer_timeout_seconds in node.toml), got none: {_last_words(log)}"
                )
    finally:
        if process.poll() is None:
            # It leads a session of its own, so its own children are killed with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        wanted = "a ClientApp of that name" if status == NOT_FOUND else "it to end well"
        raise ConfigError(f"{config.trainer}: wanted {wanted}, got exit status {status}: {_last_words(log)}")


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status; None if the process still runs after a moment."""
    try:
        return process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _last_words(log: Path) -> str:
    """Return the end of the app's output, in one line, and where all of it is."""
    with log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = f.read(_LAST_BYTES).decode("utf-8", "replace").splitlines()
    last = [printable(line.strip()) for line in lines if line.strip()][-_LAST_LINES:]
    return f"{' / '.join(last) or 'it printed nothing'} ({log})"


def _read_result(path: Path, spec: AdapterSpec, max_bytes: int) -> GridTensors:
    data = read_bounded(path, max_bytes, "the result", error=BlobError)
    return to_grid(read_floats(data, spec), spec.grid_bits)


def _check_frozen(spec: AdapterSpec, start: GridTensors, adapter: GridTensors, frozen: Factor | None) -> None:
    for slot in slots(spec) if frozen else ():
        name = slot.name_a if frozen == "A" else slot.name_b
        if not np.array_equal(start[name], adapter[name]):
            raise BlobError(f"tensor {name}: wanted it as it was, since the rule freezes factor {frozen}, got another")


def _read_metrics(path: Path) -> dict[str, float]:
    try:
        return _METRICS.validate_json(read_bounded(path, _MAX_METRICS_BYTES, "metrics", error=BlobError))
    except ValidationError as e:
        raise BlobError("metrics: wanted up to 256 finite figures by name, got something else") from e
