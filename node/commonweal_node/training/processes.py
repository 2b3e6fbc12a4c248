"""A team of several processes, over torch.distributed: the one module that knows it, and ``accelerate``.

What is said goes over gloo between CPUs as text and raw numbers; nothing is pickled. Gradients go the way of the
device: gloo, or NCCL between GPUs. Neither is encrypted, and anyone who reaches the launcher's port could join: this is
for one host, or a private network.

A process that has died closes its connections, which the others notice at their next word to it; they then end too, so
the news goes round. Between two trainings a worker waits for as long as it takes.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from numpy.typing import NDArray
from torch import nn

from commonweal_node.training.team import Alone, Team
from commonweal_protocols.base.errors import ConfigError, MalformedError, UnavailableError

STEP_TIMEOUT = timedelta(minutes=30)
"""How long the others are waited for within a training: far more than a step takes, and an end where a host is gone."""
WAIT_TIMEOUT = timedelta(days=365)
"""How long a worker waits for work: rounds may be weeks apart."""
MAX_SAID_BYTES = 1 << 28
"""Of one thing that process 0 says: the course of the longest training that a recipe allows takes about half."""
_HOST_BYTES = 64

T = TypeVar("T")


def meet() -> Team:
    """Meet the other processes, as the launcher's environment says; one process alone takes its device from it only.

    Raises:
        UnavailableError: They do not come together.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # What is said has to go between CPUs even where gradients go between GPUs.
    options = {"backend": "gloo" if on_cpu else "cpu:gloo,cuda:nccl", "timeout": STEP_TIMEOUT} if several else {}
    try:
        state = PartialState(cpu=on_cpu, **options)
        # A CPU has no number.
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        return Processes(device) if several else Alone(device)
    except (RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UnavailableError(
            f"processes: wanted all {os.environ.get('WORLD_SIZE')} of them at {where}, got: {e} "
            "(look at what each of them said; the launcher must run on every host)"
        ) from e


class Processes:
    """See :class:`team.Team`. The process group has been made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._broken = ""
        self._waiting = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        name = socket.gethostname().encode("utf-8", "replace")[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
        self._hosts = [found.rstrip(b"\0").decode("utf-8", "replace") for found in self._gather(name)]

    def takes(self, part: int) -> bool:
        return part % self.size == self.rank

    def check(self) -> None:
        if self._broken:
            raise UnavailableError(self._broken)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Around whatever asks the others. Once it has failed nobody knows who has heard what: nothing more is said."""
        self.check()
        try:
            yield
        except RuntimeError as e:
            self._broken = (
                f"processes: wanted an answer of all {self.size}, got none: one of them has ended or is out of reach "
                f"(see what it said last, and start all of them again; a training continues from its checkpoint): {e}"
            )
            raise UnavailableError(self._broken) from e

    def _gather(self, data: bytes) -> list[bytes]:
        """What each process said, in their order; all say equally much."""
        own = torch.tensor(list(data), dtype=torch.uint8)
        found = [torch.zeros_like(own) for _ in range(self.size)]
        with self._speaking():
            dist.all_gather(found, own)
        return [bytes(f.tolist()) for f in found]

    def sum(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        with self._speaking():
            dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        # One buffer and one call: what a call costs does not depend on how little it carries.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        with self._speaking():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def lead(self, action: Callable[[], T]) -> T | None:
        done = torch.zeros(1, dtype=torch.uint8)
        result = None
        try:
            if self.rank == 0:
                result = action()
                done.fill_(1)
        finally:
            # Also where it raised, whatever it was: the others wait for this.
            with self._speaking():
                dist.broadcast(done, 0)
        if not done:
            raise UnavailableError("training: process 0 has ended it")
        return result

    def agree(self, what: str, digest: bytes, fix: str) -> None:
        found = self._gather(digest)
        if odd := [k for k in range(self.size) if found[k] != found[0]]:
            names = ", ".join(f"process {k} on {self._hosts[k]}" for k in odd)
            raise ConfigError(
                f"{what}: wanted the same in every process as in process 0, got another in {names}: {fix}"
            )

    def spread(self, data: bytes, seconds: float | None = None) -> bytes:
        """See :class:`team.Team`.

        Raises:
            MalformedError: What process 0 says is too long.
        """
        within = WAIT_TIMEOUT if seconds is None else timedelta(seconds=seconds)
        length = torch.tensor([len(data)])
        self._broadcast(length, within)
        if not 0 <= (size := int(length)) <= MAX_SAID_BYTES:
            raise MalformedError(f"process 0: wanted at most {MAX_SAID_BYTES} bytes at once, got {size}")
        if not size:
            return b""
        said = np.frombuffer(data, np.uint8).copy() if self.rank == 0 else np.zeros(size, np.uint8)
        self._broadcast(torch.from_numpy(said), within)
        return said.tobytes()

    def _broadcast(self, tensor: torch.Tensor, within: timedelta) -> None:
        with self._speaking():
            dist.broadcast(tensor, 0, group=self._waiting, async_op=True).wait(within)

    def spread_arrays(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        flat = torch.from_numpy(np.concatenate([a.ravel() for a in arrays]))
        with self._speaking():
            dist.broadcast(flat, 0)
        if self.rank:
            values = flat.numpy()
            for array, part in zip(arrays, np.split(values, np.cumsum([a.size for a in arrays])[:-1]), strict=True):
                array[...] = part.reshape(array.shape)

    def leave(self) -> None:
        # Threads of an open group may be at work while the interpreter is taken down, which aborts the process. NCCL
        # would wait for the others to leave too, and after an error they may not.
        if not self._broken or self.device == "cpu":
            dist.destroy_process_group()
