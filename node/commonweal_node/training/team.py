"""The processes that train one update together, met over torch.distributed; the one module that knows ``accelerate``.

Process 0 is the node: it alone has keys, talks to the coordinator, writes files and prints. The others, its workers,
compute their share of each step and nothing else.

What is said goes over gloo between CPUs as bytes and raw numbers; nothing is pickled. Gradients go the way of the
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

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from commonweal_node.training.launch import launched_size
from commonweal_protocols.base.errors import ConfigError, UnavailableError

STEP_TIMEOUT = timedelta(minutes=30)
"""How long the others are waited for within a training: far more than a step takes, and an end where a host is gone."""
WAIT_TIMEOUT = timedelta(days=365)
"""How long a worker waits for work: rounds may be weeks apart."""
_HOST_BYTES = 64


def join_team() -> "Team":
    """Meet the other processes that ``accelerate launch`` has started with this one; without a launcher, be alone.

    Raises:
        UnavailableError: The others cannot be met.
    """
    size = launched_size()
    # The launcher says so to whatever it starts, with one process or several.
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and size == 1:
        return ALONE
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    # What is said has to go between CPUs even where gradients go between GPUs.
    options = {"backend": "gloo" if on_cpu else "cpu:gloo,cuda:nccl", "timeout": STEP_TIMEOUT} if size > 1 else {}
    try:
        state = PartialState(cpu=on_cpu, **options)
        # A CPU has no number.
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        return Team(device, state.process_index, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except (RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UnavailableError(
            f"processes: wanted all {size} of them at {where}, got: {e} "
            "(look at what each of them said; the launcher must run on every host)"
        ) from e


class Team:
    """All processes of a training, as one of them sees it; with ``size`` 1 nothing is shared, asked or copied.

    Every method but ``takes`` and ``check`` is called by all processes in the same order, by one thread of each at a
    time. One that asks the others raises UnavailableError where one has ended or does not answer; then the team is
    broken for good, and all of its processes must be started again.

    Attributes:
        device: Where this process computes, as torch names it.
        rank: Which process this is, from 0.
        size: How many there are.
        local_size: How many of them are on this host, and share its memory.
    """

    def __init__(self, device: str = "cpu", rank: int = 0, size: int = 1, local_size: int = 1) -> None:
        self.device, self.rank, self.size, self.local_size = device, rank, size, local_size
        self._broken = ""
        self._patient = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT) if size > 1 else None

    def takes(self, part: int) -> bool:
        """Whether the part with this number, from 0, is this process's; each part is exactly one process's."""
        return part % self.size == self.rank

    def check(self) -> None:
        """Raise UnavailableError if the team is broken; asks nobody."""
        if self._broken:
            raise UnavailableError(self._broken)

    @contextmanager
    def _asking(self) -> Iterator[None]:
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

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up each value over all processes, in float64; the same bits in every process. Zeros change no value."""
        summed = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            with self._asking():
                dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up each parameter's gradient over all processes, in float32; the same bits in every process."""
        if self.size == 1:
            return
        # One buffer and one call: what a call costs does not depend on how little it carries.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        with self._asking():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def lead(self, say: Callable[[], bytes], within: timedelta = STEP_TIMEOUT) -> bytes:
        """Run ``say`` in process 0 alone, and return there and everywhere what it returned.

        Args:
            say: What process 0 does, and has to say about it.
            within: How long this process waits for the others to come to this point.

        Raises:
            UnavailableError: In a worker, that ``say`` raised in process 0, where what it raised passes through.
        """
        if self.size == 1:
            return say()
        said, length = b"", torch.tensor([-1])
        try:
            if self.rank == 0:
                said = say()
                length.fill_(len(said))
        finally:
            # Also where it raised, whatever it was: the others wait for this.
            self._broadcast(length, within)
        if length < 0:
            raise UnavailableError("training: process 0 has ended it")
        if not length:
            return b""
        # A bytearray, since torch shares its memory.
        buffer = bytearray(said) if self.rank == 0 else bytearray(int(length))
        self._broadcast(torch.frombuffer(buffer, dtype=torch.uint8), within)
        return bytes(buffer)

    def _broadcast(self, tensor: torch.Tensor, within: timedelta) -> None:
        with self._asking():
            dist.broadcast(tensor, 0, group=self._patient, async_op=True).wait(within)

    def agree(self, what: str, digest: bytes, fix: str) -> None:
        """Hold the digests of all processes, which are equally long, to be the same.

        Raises:
            ConfigError: In every process: they are not. It names those that differ from process 0, and says ``fix``.
        """
        if self.size == 1:
            return
        host = socket.gethostname().encode("utf-8", "replace")[:_HOST_BYTES].ljust(_HOST_BYTES)
        own = torch.frombuffer(bytearray(digest + host), dtype=torch.uint8)
        gathered = [torch.zeros_like(own) for _ in range(self.size)]
        with self._asking():
            dist.all_gather(gathered, own)
        found = [bytes(g.tolist()) for g in gathered]
        if odd := [
            f"process {k} on {said[len(digest) :].decode('utf-8', 'replace').rstrip()}"
            for k, said in enumerate(found)
            if said[: len(digest)] != found[0][: len(digest)]
        ]:
            raise ConfigError(
                f"{what}: wanted the same in every process as in process 0, got another in {', '.join(odd)}: {fix}"
            )

    def leave(self) -> None:
        """Part from the others, who may be gone; nothing else may be called afterwards."""
        # Threads of an open group may be at work while the interpreter is taken down, which aborts the process. NCCL
        # would wait for the others to leave too, and after an error they may not.
        if self.size > 1 and (not self._broken or self.device == "cpu"):
            dist.destroy_process_group()


ALONE = Team()
"""A process that no launcher has started: it computes on the CPU."""
