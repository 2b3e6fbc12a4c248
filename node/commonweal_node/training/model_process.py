"""The model side of a node in a process of its own: torch, the base and the rows are in memory while there is work.

It is what an institution takes for its ``Learner``: each call is asked of the process, which is started where none runs
and ends when it has had nothing to do for a while, so that nothing of a training stays in the daemon. It is given no
key. Where it dies (out of memory, a fault in native code) the call fails, the node stays up and says so, and the next
call starts another, in which a training continues from its checkpoint.

Of a team started by a launcher this process is the first, and its end is the team's.
"""

import io
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from numpy.typing import NDArray

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.probes.probe import Probe
from commonweal_node.training.board import Board
from commonweal_node.training.launch import launched_size
from commonweal_node.training.model_messages import (
    REPLIES,
    AskProbe,
    Attack,
    Begin,
    Doing,
    Export,
    Failed,
    Figure,
    Half,
    Loaded,
    Measure,
    Reply,
    Request,
    Tensors,
    Train,
    read_frame,
    write_frame,
)
from commonweal_protocols.base import errors
from commonweal_protocols.base.errors import CommonwealError, UnavailableError
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact, Recipe
from commonweal_protocols.statements.data_manifest import DataManifest

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_END_SECONDS = 20.0
"""How long a process that was told to end may take: one step of a training."""


class ModelProcess:
    """Owned by the institution's thread; not thread-safe."""

    def __init__(
        self,
        compact: Compact,
        config: NodeConfig,
        weights: ObjectiveWeights,
        home: Path,
        board: Board,
        stopping: threading.Event,
    ) -> None:
        """Start the process, which loads the base and the rows.

        Args:
            compact: The rules in force.
            config: This node's settings.
            weights: The charter's objectives.
            home: The node's folder.
            board: Told what is being done.
            stopping: Once set, whatever is being done ends with an error.

        Raises:
            BaseModelError: The base cannot be had, or is not the one that the compact names.
            ConfigError: A row is malformed, there is nothing to train or to evaluate on, too little memory, a
                package that a setting needs is missing, or a worker has other rows.
            UnavailableError: The process, or one of its team, has ended.
        """
        self._begin = Begin(compact=compact, config=config, weights=weights, home=home)
        self._board, self._stopping = board, stopping
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: BinaryIO = io.BytesIO()
        self._replies: BinaryIO = io.BytesIO()
        self._told_to_end: float | None = None
        self._used = time.monotonic()
        self._loaded: Loaded | None = None
        self._start()

    @property
    def num_examples(self) -> int:
        """How many training rows the community has, of all kinds that its objectives train on."""
        return self._loaded.num_examples if self._loaded else 0

    @property
    def manifest(self) -> DataManifest | None:
        """What the rows went through, where they were curated."""
        return self._loaded.manifest if self._loaded else None

    @property
    def release(self) -> None:
        """None: what is given was trained here."""

    def objection(self, state: State, start: GridTensors, frozen: Literal["A", "B"] | None) -> str:
        """Return nothing: these rows can train from any start."""
        return ""

    def train(
        self, start: GridTensors, recipe: Recipe, what: str, frozen: Literal["A", "B"] | None = None
    ) -> GridTensors:
        """Train from ``start`` and return the trained adapter, on the grid. A report of it is kept for the operator.

        Raises:
            ConfigError: A loss is not finite, or another trainer of the settings has failed.
            StorageError: The checkpoint or the report cannot be written.
            UnavailableError: The node is stopping, or a process has ended.
        """
        _, (made,) = self._ask(Train(recipe=recipe, what=what, frozen=frozen), start)
        return GridTensors(made)

    def membership(self, adapter: GridTensors) -> int | None:
        """Return how well the attack does on a trained adapter, in millionths; None where there are too few rows.

        Raises:
            LocalError: A loss is not finite, or the process has ended.
        """
        return self._figure(Attack(), adapter)

    def reported(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> RowLosses:
        """Return the losses of a blend on the half that is told of.

        Raises:
            LocalError: A loss is not finite.
            UnavailableError: The node is stopping, or the process has ended.
        """
        return self._losses("report", shared, own, weights, what)

    def choosing(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> RowLosses:
        """Return the losses of a blend on the half that choices are made on.

        Raises:
            LocalError: A loss is not finite.
            UnavailableError: The node is stopping, or the process has ended.
        """
        return self._losses("tune", shared, own, weights, what)

    def _losses(self, half: Half, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> RowLosses:
        _, (found,) = self._ask(Measure(half=half, blend=weights, what=what), shared, own)
        return RowLosses(found["nats"], found["tokens"])

    def probe(self, probe: Probe, shared: GridTensors, own: GridTensors, weights: BlendWeights, what: str) -> int:
        """Return what a probe measures under a blend, in millionths.

        Raises:
            ConfigError: A question is too long.
            LocalError: A score is not finite.
            UnavailableError: The node is stopping, or the process has ended.
        """
        # A probe has a question at least, so there is a figure.
        return cast(int, self._figure(AskProbe(probe=probe, blend=weights, what=what), shared, own))

    def _figure(self, request: Attack | AskProbe, *sets: Tensors) -> int | None:
        reply, _ = self._ask(request, *sets)
        return cast(Figure, reply).micros

    def export(self, shared: GridTensors, own: GridTensors, weights: BlendWeights, directory: Path) -> None:
        """Write a blend as a PEFT folder, and have ``directory`` lead to it in one step.

        Raises:
            StorageError: It cannot be written.
            UnavailableError: The process has ended.
        """
        self._ask(Export(blend=weights, directory=directory), shared, own)

    # -- the process

    def check(self) -> None:
        """Make sure that there can be work.

        Raises:
            UnavailableError: The process of a team has ended: all of the team must be started again.
        """
        if launched_size() > 1 and (self._process is None or self._process.poll() is not None):
            raise UnavailableError("processes: wanted all that train together, got none: start all of them again")

    def rest(self) -> None:
        """End the process if it has had nothing to do for as long as the settings say. One of a team stays."""
        idle = time.monotonic() - self._used
        if self._process and launched_size() == 1 and idle >= self._begin.config.unload_after_seconds:
            log.info("model: unloaded after %.0f s without work", idle)
            self.end()

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            self._requests.close()
            process.wait(_END_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        self._replies.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # Without -P a module of the folder that the daemon was started in could take another's place.
        command = [sys.executable, "-P", "-m", "commonweal_node.training.model_main", str(os.getpid())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process, self._told_to_end = process, None
        self._requests = cast(BinaryIO, process.stdin)
        self._replies = cast(BinaryIO, io.BufferedReader(_Replies(cast(BinaryIO, process.stdout), self._look)))
        try:
            loaded, _ = self._exchange(process, self._begin)
        except CommonwealError:
            self.end()
            raise
        stated, self._loaded = self._loaded, cast(Loaded, loaded)
        if stated is not None and stated.manifest != self._loaded.manifest:
            raise UnavailableError("rows: they were curated anew; that is stated first")
        return process

    def _look(self) -> None:
        """While an answer is waited for: have the process end once the node does."""
        if self._process is None or not self._stopping.is_set():
            return
        if self._told_to_end is None:
            self._told_to_end = time.monotonic()
            self._process.terminate()
        elif time.monotonic() - self._told_to_end > _END_SECONDS:
            self._process.kill()

    def _ask(self, request: Request, *sets: Tensors) -> tuple[Reply, tuple[Mapping[str, NDArray[Any]], ...]]:
        return self._exchange(self._process or self._start(), request, *sets)

    def _exchange(
        self, process: subprocess.Popen[bytes], request: Begin | Request, *sets: Tensors
    ) -> tuple[Reply, tuple[Mapping[str, NDArray[Any]], ...]]:
        """Ask, and wait for the answer.

        Raises:
            CommonwealError: What the process raised.
            UnavailableError: It has ended.
        """
        try:
            write_frame(self._requests, request, *sets)
            while (frame := read_frame(self._replies)) is not None:
                reply = REPLIES.validate_json(frame.text)
                if isinstance(reply, Doing):
                    self._board.set(**reply.fields)
                    continue
                self._used = time.monotonic()
                if isinstance(reply, Failed):
                    raise _error(reply)
                return reply, frame.tensors
        except BrokenPipeError:
            pass
        status = process.wait()
        self.end()
        if self._stopping.is_set():
            raise UnavailableError("model: the node is stopping")
        how = "was killed (by the kernel, where memory ran out)" if status == -9 else f"ended with status {status}"
        raise UnavailableError(
            f"model: the process that holds it {how}, see the log; the next work starts another, and a training "
            "continues from its checkpoint"
        )


class _Replies(io.RawIOBase):
    """What the process writes, with a look around every now and then while nothing comes."""

    def __init__(self, source: BinaryIO, look: Callable[[], None]) -> None:
        self._source, self._on_look = source, look

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        fd = self._source.fileno()
        # Also where there is something to read: a training of short steps writes all the time.
        self._on_look()
        while not select.select([fd], [], [], _LOOK_SECONDS)[0]:
            self._on_look()
        data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def _error(failed: Failed) -> CommonwealError:
    kind: type[CommonwealError] = getattr(errors, failed.error)
    return kind(failed.message)
