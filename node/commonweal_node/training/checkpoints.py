"""A training's state on disk: what a killed run needs to go on to the same bytes, on the same machine.

Guarantees: the file is whole or absent; a state is given back only to the very training that it is of (its
``identity`` covers start, rows, recipe, objectives, seed and machine); it is no pickle. There is no random state in it
because training has none: the order of the rows follows from the seed and the step.

The file is safetensors with one metadata entry in JSON. It holds an unfinished adapter and digests of rows, so it is
readable by its owner only, and it is gone once the training has ended.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import read_if_there, write_atomic
from commonweal_protocols.statements.values import MAX_BLOB_BYTES

MAX_BYTES = 4 * MAX_BLOB_BYTES + (1 << 28)
"""Four times the largest adapter, and the course of the longest training that a recipe allows."""
_KEY = "commonweal.training"
_KINDS = ("values", "means", "squares", "best")


class Course(BaseModel):
    """How a training went so far. A loss is in nats; ``heldout`` has (step, loss) pairs."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: dict[str, list[float]] = {}
    heldout: list[tuple[int, float]] = []
    best_step: int = 0


@dataclass(slots=True, eq=False)
class TrainingState:
    """A course, and the arrays that go with it: parameters, their moments, and the best parameters if they are kept."""

    course: Course
    values: Sequence[NDArray[np.float32]] = ()
    means: Sequence[NDArray[np.float32]] = ()
    squares: Sequence[NDArray[np.float32]] = ()
    best: Sequence[NDArray[np.float32]] = field(default=())


class CheckpointFile:
    """One training's file. Owned by the thread that trains."""

    def __init__(self, path: Path, every_seconds: float) -> None:
        self._path = path
        self.every_seconds = every_seconds

    def save(self, identity: str, state: TrainingState) -> None:
        """Replace what is kept; durable on return.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        tensors = {f"{kind}.{i}": a for kind in _KINDS for i, a in enumerate(getattr(state, kind))}
        metadata = {_KEY: json.dumps({"identity": identity, "course": state.course.model_dump()})}
        write_atomic(self._path, save(tensors, metadata), mode=0o600)

    def load(self, identity: str) -> bytes:
        """Return what is kept of this very training, for :func:`decode`; nothing where there is none.

        Raises:
            StorageError: The file is there and cannot be read as a checkpoint.
        """
        if (data := read_if_there(self._path, MAX_BYTES, "a training's checkpoint")) is None:
            return b""
        try:
            decode(data)
            return data if _metadata(data)["identity"] == identity else b""
        except (SafetensorError, ValueError, KeyError, TypeError) as e:
            raise StorageError(
                f"{self._path}: wanted a training's checkpoint, got {type(e).__name__}; remove the file to train anew"
            ) from e

    def remove(self) -> None:
        """Forget it: the training has ended.

        Raises:
            StorageError: The folder cannot be written.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"{self._path}: cannot be removed: {e.strerror}") from e


def decode(data: bytes) -> TrainingState:
    """Return the state that is in a checkpoint's bytes, which :meth:`CheckpointFile.load` has found to be whole."""
    tensors = load(data)
    course = Course.model_validate(_metadata(data)["course"])
    return TrainingState(course, *(_ordered(tensors, kind) for kind in _KINDS))


def _metadata(data: bytes) -> dict[str, Any]:
    """Of a safetensors file: after the header's length, 8 bytes little-endian, comes its JSON."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
    return found


def _ordered(tensors: Mapping[str, NDArray[np.float32]], kind: str) -> list[NDArray[np.float32]]:
    count = sum(name.startswith(f"{kind}.") for name in tensors)
    return [tensors[f"{kind}.{i}"] for i in range(count)]
