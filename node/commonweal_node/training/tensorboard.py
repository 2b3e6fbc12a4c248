"""A training's course for TensorBoard: losses, tokens per second and learning rate of each step, and held-out losses.

The event file lies below ``runs/``, beside the training's report, and holds numbers, names of objectives and times,
and nothing of a row. A training that was killed and continues begins another file, whose first event hides what the
killed one wrote from that step on. Off unless ``tensorboard`` is set. Needs the extra ``tensorboard``.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from commonweal_node.training.train import Progress, rate_factor
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.statements.compact import Recipe


class EventFile:
    """One training's events. Owned by the thread that trains; the file begins with its first step."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder = folder
        self._rate = recipe.learning_rate_micros / 1e6
        self._writer: EventsWriter | None = None

    def add(self, p: Progress) -> None:
        """Write a step; TensorBoard sees it at once.

        Raises:
            StorageError: The folder cannot be written.
        """
        # Steps count from 1 here and from 0 there.
        rate = self._rate * rate_factor(p.step - 1, p.steps)
        losses = {f"loss/{name}": loss for name, loss in p.losses.items()}
        self._write(p.step, losses | {"tokens_per_second": p.tokens_per_second, "learning_rate": rate})

    def add_heldout(self, half: str, losses: Iterable[tuple[int, float]]) -> None:
        """Write losses of one half of the held-out rows: (step, nats for each supervised token), step 0 for the start.

        Raises:
            StorageError: The folder cannot be written.
        """
        for step, loss in losses:
            self._write(step, {f"loss/heldout-{half}": loss})

    def close(self) -> None:
        """End the file, if there is one.

        Raises:
            StorageError: The disk is full.
        """
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as e:
            raise StorageError(f"{self._folder}: event files cannot be written: {e.strerror}") from e

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # By the step too: the file's own name is of one second, and a killed training may go on within it.
                self._writer = EventsWriter(str(self._folder / "events"), f".{step}")
                begun = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=begun))
            for name, value in values.items():
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._writer.flush()
        except OSError as e:
            raise StorageError(f"{self._folder}: event files cannot be written: {e.strerror}") from e
