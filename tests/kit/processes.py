"""A federation of real processes on loopback: the program's own commands, a tiny model, and a way to kill things.

Everything that it starts is gone when its ``with`` block ends, however that ends.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

from commonweal_protocols.base.errors import CommonwealError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from tests.kit.proc import descendants, is_alive
from tests.kit.tiny_model import base_and_adapter

T = TypeVar("T")
PROGRAM = str(Path(sys.executable).with_name("commonweal"))
CANARY = "the-heron-keeps-its-own-counsel"
"""Stands in every community row, and must stand nowhere else."""
NAMES = ("clinic", "coop", "school")

_TERMS = """\
consortium = "three"
round_deadline_seconds = 120
max_update_bytes = 1_000_000

{tables}
[recipe]
steps = {steps}
batch_size = 4
learning_rate_micros = 5000
max_tokens = 120

[rule]
name = "factor-mean"
weights = "equal"

[quorum]
amendments = 2
updates = 2
ratifications = 2
witnesses = 2
"""


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that are free now."""
    for first in range(20000 + os.getpid() % 200 * 50, 60000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


def tiny_terms(home: Path, steps: int) -> str:
    """A compact's terms for the tiny model, which is written into ``home``."""
    return _TERMS.format(tables=base_and_adapter(home), steps=steps)


def write_rows(path: Path, name: str) -> Path:
    """Sixteen rows to train on and eight to be held out, with the canary in each answer."""
    rows = []
    for i in range(24):
        split = "train" if i < 16 else "heldout"
        answer = f"{name} says {i * 7 % 11} {CANARY}"
        turns = [{"role": "user", "content": f"what of {i}?"}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns, "split": split})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


class Processes:
    """One coordinator and three institutions below a folder."""

    def __init__(
        self, home: Path, *, terms: str = "", rows: Mapping[str, Path] | None = None, cache: Path | None = None,
        rounds: int = 2, steps: int = 60, coordinator_options: Sequence[str] = (),
        node_options: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Make keys, cards and the draft; nothing runs yet. By default: a tiny model, and rows made here."""
        self.home = home
        self.coordinator = home / "coordinator"
        self.public = self.coordinator / "public"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = free_ports(11)
        self.spare_ports = self._ports + 5
        """Six, for two other coordinators."""
        self.names = tuple(sorted(rows or NAMES))
        (home / "compact.toml").write_text(terms or tiny_terms(home, steps))
        cards: list[str] = []
        for i, name in enumerate(self.names):
            data = rows[name] if rows else write_rows(home / f"{name}.jsonl", name)
            options = ["--home", str(self.node(name)), "--institution", name, "--data", str(data), "--threads", "1"]
            options += ["--cache", str(cache)] if cache else []
            options += node_options.get(name, ())
            self.command(
                "node",
                "init",
                *options,
                "--witness-port",
                str(self._ports + 2 + i),
            )
            cards += ["--card", str(self.node(name) / "card.json")]
        options = [
            "--home",
            str(self.coordinator),
            "--compact",
            str(home / "compact.toml"),
            *cards,
            *coordinator_options,
        ]
        self.command("coordinator", "init", *options, "--base-port", str(self._ports), "--rounds", str(rounds))

    def node(self, name: str) -> Path:
        return self.home / "nodes" / name

    def home_of(self, name: str) -> Path:
        """A daemon's folder: an institution's, the coordinator's, or that of another coordinator by its own name."""
        if name == "coordinator":
            return self.coordinator
        return self.node(name) if self.node(name).is_dir() else self.home / name

    # -- processes

    def command(self, *args: str | Path, code: int = 0) -> str:
        """Run one command to its end; its stdout."""
        done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str) -> None:
        """Start a daemon: ``coordinator``, or an institution."""
        self.launch(name, "coordinator" if name == "coordinator" else "node", "run", "--home", self.home_of(name))

    def launch(self, name: str, *args: str | Path) -> None:
        """Start a daemon by its command."""
        with (self.home_of(name) / "daemon.log").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [PROGRAM, *map(str, args)], stdout=out, stderr=out, start_new_session=True
            )

    def start_all(self) -> None:
        """Start everything, and have every institution sign the compact."""
        self.start("coordinator")
        self.wait("the coordinator to answer", lambda: self.status("coordinator").get("phase"))
        for name in self.names:
            invite = self.coordinator / "invite.json"
            self.command("node", "join", invite, "--home", self.node(name), "--yes")
            self.start(name)

    def kill(self, name: str) -> None:
        """kill -9; what the daemon has started must go by itself."""
        process = self.running.pop(name)
        children = descendants(process.pid)
        process.kill()
        process.wait()
        self.wait(f"the children of {name} to go", lambda: not any(is_alive(pid) for pid in children))

    def stop(self, name: str) -> int:
        """SIGTERM, as an operator or an init system would; the exit code."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(30)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it stands still, as on a machine that is suspended or starved."""
        self.running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.running[name].send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    # -- looking

    def status(self, name: str) -> dict[str, object]:
        """What a daemon says of itself; empty before it says anything."""
        home = self.home_of(name)
        try:
            value: dict[str, object] = json.loads((home / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return value

    def trouble(self, name: str) -> str:
        """What a node complains of."""
        return str(self.status(name).get("trouble", ""))

    def state(self) -> State | None:
        """The state of the public records as they lie there."""
        replica = Replica()
        try:
            source = DirectorySource(self.public)
            for data in read_entries(source, 0, unverified_size(read_checkpoint(source))):
                replica.add(data)
        except CommonwealError:
            return None
        return replica.state if replica.size else None

    def finished(self, releases: int) -> State | None:
        """The state, once so many releases are ratified and everybody has decided on the newest."""
        state = self.state()
        if state is None:
            return None
        ratified = [r.release for r in state.rounds if r.release and r.release.is_ratified]
        done = len(ratified) >= releases and len(ratified[-1].adoptions) == len(self.names)
        return state if done else None

    def released(self, number: int) -> State | None:
        """The state, once the round of this number has a release."""
        state = self.state()
        return state if state and len(state.rounds) >= number and state.rounds[number - 1].release else None

    def wait(self, what: str, look: Callable[[], T | None], *, seconds: float = 150) -> T:
        """Poll until ``look`` gives something; every daemon that was not stopped must stay up meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := look():
                return found
            for name, process in self.running.items():
                assert process.poll() is None, f"{name} has ended with {process.returncode}:\n{self.last_words(name)}"
            time.sleep(0.05)
        words = "\n".join(f"{name}: {self.status(name)}\n{self.last_words(name)}" for name in self.running)
        raise AssertionError(f"waited {seconds:.0f} s for {what}, in vain:\n{words}")

    def last_words(self, name: str) -> str:
        home = self.home_of(name)
        return "\n".join((home / "daemon.log").read_text("utf-8", "replace").splitlines()[-15:])
