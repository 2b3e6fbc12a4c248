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

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import write_atomic

_KEY = "commonweal.training"


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
        tensors = {f"{kind}.{i}": a for kind, arrays in _arrays(state).items() for i, a in enumerate(arrays)}
        metadata = {_KEY: json.dumps({"identity": identity, "course": state.course.model_dump()})}
        write_atomic(self._path, save(tensors, metadata), mode=0o600)

    def load(self, identity: str) -> TrainingState | None:
        """Return what is kept of this very training; None where there is nothing, or it is of another one.

        Raises:
            StorageError: The file is there and cannot be read as a checkpoint.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="np") as file:
                kept = json.loads((file.metadata() or {})[_KEY])
                if kept["identity"] != identity:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            course = Course.model_validate(kept["course"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, ValidationError) as e:
            raise StorageError(
                f"{self._path}: wanted a training's checkpoint, got {type(e).__name__}; remove the file to train anew"
            ) from e
        return TrainingState(course, *(_ordered(tensors, kind) for kind in ("values", "means", "squares", "best")))

    def remove(self) -> None:
        """Forget it: the training has ended.

        Raises:
            StorageError: The folder cannot be written.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"{self._path}: cannot be removed: {e.strerror}") from e


def _arrays(state: TrainingState) -> Mapping[str, Sequence[NDArray[np.float32]]]:
    return {"values": state.values, "means": state.means, "squares": state.squares, "best": state.best}


def _ordered(tensors: Mapping[str, NDArray[np.float32]], kind: str) -> list[NDArray[np.float32]]:
    count = sum(name.startswith(f"{kind}.") for name in tensors)
    return [tensors[f"{kind}.{i}"] for i in range(count)]
