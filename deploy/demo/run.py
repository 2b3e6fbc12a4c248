"""The demo federation: one coordinator and three institutions as separate processes on this machine, then an audit.

Everything goes through the same commands that an operator would type; this script only types them, watches, and stops
what it started. A second run finds what the first one left and skips it.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live
from rich.table import Table

from commonweal_coordinator.status import CoordinatorStatus
from commonweal_node.connection.status import NodeStatus, describe_gap
from commonweal_protocols.base.errors import CommonwealError, UnavailableError
from commonweal_protocols.base.status_file import load_status
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import (
    DirectorySource,
    blob_path,
    read_checkpoint,
    read_entries,
    unverified_size,
)

HERE = Path(__file__).resolve().parent
PROGRAM = str(Path(sys.executable).with_name("commonweal"))
_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 15.0
_QUIET_SECONDS = 10.0
"""Off a terminal: a line at every change of phase, and at least this often."""


@dataclass
class Plan:
    """What to run, and where."""

    home: Path
    data: Path
    communities: Sequence[str]
    rounds: int
    compact: Path
    cache: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.home / "coordinator"

    def node(self, community: str) -> Path:
        """An institution's folder."""
        return self.home / "nodes" / community


def _die_with_parent() -> None:
    """Have the kernel stop this child when the demo goes, even by SIGKILL (Linux)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def command(*args: str | Path) -> None:
    """Run one command to its end, showing it.

    Raises:
        SystemExit: It failed; its own words are on the screen.
    """
    console.print(f"[dim]$ commonweal {' '.join(str(a) for a in args)}[/]", soft_wrap=True, highlight=False)
    code = subprocess.call([PROGRAM, *map(str, args)])
    if code:
        raise SystemExit(code)


def start(plan: Plan, name: str, home: Path, *args: str | Path) -> None:
    """Start a daemon, its output in its own folder."""
    console.print(f"[dim]$ commonweal {' '.join(str(a) for a in args)} &[/]", soft_wrap=True, highlight=False)
    with (home / "daemon.log").open("ab") as out:
        plan.processes[name] = subprocess.Popen(
            [PROGRAM, *map(str, args)],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def stop(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Stop daemons and whatever they started: politely, then not."""
    for p in processes.values():
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for p in processes.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(max(0.1, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    processes.clear()


def free_ports(count: int) -> int:
    """Return the first of ``count`` free ports in a row."""
    for first in range(17400, 30000, 10):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise SystemExit("demo: found no free ports on 127.0.0.1")


def set_up(plan: Plan) -> None:
    """Make keys, cards, the draft compact; skip what is there."""
    command("node", "fetch-base", "--compact", plan.compact, "--cache", plan.cache)
    ports = free_ports(2 + len(plan.communities))
    for i, community in enumerate(plan.communities):
        home = plan.node(community)
        if (home / "node.toml").exists():
            continue
        charter, probes = plan.data / f"{community}.charter.toml", plan.data / community / "probes"
        if probes.is_dir():
            shutil.copytree(probes, home / "probes", dirs_exist_ok=True)
        command(
            *("node", "init", "--home", home, "--institution", community),
            *("--data", plan.data / f"{community}.jsonl", "--cache", plan.cache),
            *(("--charter", charter) if charter.exists() else ()),
            *("--threads", "1", "--max-heldout-rows", "64"),
            *("--witness-port", str(ports + 2 + i)),
        )
    if not (plan.coordinator / "coordinator.toml").exists():
        cards = [arg for c in plan.communities for arg in ("--card", plan.node(c) / "card.json")]
        command(
            *("coordinator", "init", "--home", plan.coordinator, "--compact", plan.compact, *cards),
            *("--base-port", str(ports), "--rounds", str(plan.rounds)),
        )


def serve(plan: Plan) -> None:
    """Start the coordinator, and wait until its public records are served."""
    start(plan, "coordinator", plan.coordinator, "coordinator", "run", "--home", plan.coordinator)
    records = urlsplit(json.loads((plan.coordinator / "invite.json").read_text())["records"])
    while True:
        check_alive(plan)
        with contextlib.suppress(OSError), socket.create_connection((records.hostname, records.port), timeout=1):
            return
        time.sleep(0.1)


def launch(plan: Plan) -> None:
    """Start every node; the founders sign the compact if they have not."""
    for community in plan.communities:
        home = plan.node(community)
        if not (home / "invite.json").exists():
            command("node", "join", plan.coordinator / "invite.json", "--home", home, "--yes")
        start(plan, community, home, "node", "run", "--home", home)


def read_state(plan: Plan) -> State | None:
    """Replay the public records as they stand; None before the founding."""
    replica = Replica()
    try:
        source = DirectorySource(plan.coordinator / "public")
        for data in read_entries(source, 0, unverified_size(read_checkpoint(source))):
            replica.add(data)
    except CommonwealError:
        return None
    return replica.state if replica.size else None


def finished(plan: Plan, state: State | None) -> bool:
    """Whether every release is ratified and every member has decided on the newest one."""
    if state is None:
        return False
    ratified = sum(r.release is not None and r.release.is_ratified for r in state.rounds)
    newest = state.ratified()
    is_over = ratified >= plan.rounds or state.is_burst_over()
    return is_over and newest is not None and set(newest.adoptions) == set(plan.communities)


def screen(plan: Plan, began: float) -> tuple[Table, str, str]:
    """Return what is going on: as a table, as one line, and as what must change before that line is worth another."""
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    table = Table("who", "phase", "doing", "step", "loss", "tok/s", "ETA", "sent", "received", expand=True)
    table.title = f"{len(plan.communities)} institutions, one coordinator – {minutes}:{seconds:02d}"
    words, stages = [], []
    coordinator: CoordinatorStatus | None = None
    with contextlib.suppress(UnavailableError):
        coordinator = load_status(plan.coordinator, CoordinatorStatus, "coordinator")
    if coordinator is not None:
        doing = f"round {coordinator.round or '–'}: {coordinator.step} {coordinator.why}"
        table.add_row(
            "coordinator",
            coordinator.phase,
            coordinator.trouble or doing,
            "",
            "",
            "",
            "",
            f"{coordinator.size} entries",
        )
        words.append(coordinator.trouble or doing)
        stages.append(f"{coordinator.round} {coordinator.step} {coordinator.trouble}")
    for community in plan.communities:
        node: NodeStatus | None = None
        with contextlib.suppress(UnavailableError):
            node = load_status(plan.node(community), NodeStatus, "node")
        if node is None:
            table.add_row(community, "starting")
            continue
        table.add_row(
            community,
            f"[red]{node.phase}[/]" if node.trouble else node.phase,
            node.trouble or node.doing,
            f"{node.step}/{node.steps}" if node.steps else "",
            ", ".join(f"{loss:.3f}" for loss in node.losses.values()),
            f"{node.tokens_per_second:.0f}" if node.tokens_per_second else "",
            f"{node.eta_seconds:.0f} s" if node.eta_seconds is not None else "",
            f"{node.sent_bytes / 1e6:.1f} MB",
            f"{node.received_bytes / 1e6:.1f} MB",
        )
        losses = ", ".join(f"{name} loss {loss:.3f}" for name, loss in node.losses.items())
        step = f" {node.step}/{node.steps}, {losses}" if losses else ""
        left = f", {node.eta_seconds:.0f} s left" if step and node.eta_seconds else ""
        words.append(f"{community}: {node.trouble or node.phase + step + left}")
        stages.append(f"{node.phase} {node.trouble}")
    return table, " | ".join(words), " | ".join(stages)


def check_alive(plan: Plan) -> None:
    """Check that every daemon runs.

    Raises:
        SystemExit: One ended before its time; with its last words.
    """
    for name, p in plan.processes.items():
        if p.poll() is not None:
            home = plan.coordinator if name == "coordinator" else plan.node(name)
            tail = (home / "daemon.log").read_text("utf-8", "replace").splitlines()[-8:]
            raise SystemExit(f"demo: {name} ended with exit code {p.returncode}:\n" + "\n".join(tail))


def watch(plan: Plan) -> State:
    """Show progress until the federation is finished.

    Raises:
        SystemExit: A daemon ended before its time.
    """
    began, last, said = time.monotonic(), "", 0.0
    with Live(console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            state = read_state(plan)
            table, line, stage = screen(plan, began)
            at = time.monotonic() - began
            if live is not None:
                live.update(table)
            elif stage != last or at > said + _QUIET_SECONDS:
                console.print(f"{at:5.0f} s  {line}", soft_wrap=True, highlight=False)
                last, said = stage, at
            if state is not None and finished(plan, state):
                return state
            check_alive(plan)
            time.sleep(0.5)


def result(plan: Plan, state: State | None) -> None:
    """Print the table of held-out losses, and where everything lies."""
    newest = state.ratified() if state else None
    if newest is None:
        raise SystemExit("demo: no release was ratified")
    table = Table(
        "community", "base", "best alone", "this release", "what serves", "against alone [95 %]", "which is",
        title=f"held-out loss, nats per token (after {newest.release.round} rounds)",
    )  # fmt: skip
    rows = []
    for community, adoption in sorted(newest.adoptions.items()):
        h, status = adoption.heldout, load_status(plan.node(community), NodeStatus, "node")
        cells = [f"{x / 1e6:.3f}" for x in (h.base_micronats, h.local_micronats, h.shared_micronats, h.blend_micronats)]
        told = describe_gap(*status.over_alone) if status.over_alone else ""
        table.add_row(community, *cells, told, status.serves)
        over = {"over_alone": status.over_alone, "serves": status.serves}
        rows.append({"community": community, "decision": adoption.decision, **h.model_dump(), **over})
    console.print(table)
    console.print("A lower held-out loss is a proxy: it is not flourishing, and it says nothing about values.")
    (plan.home / "result.json").write_text(json.dumps(rows, indent=2) + "\n")
    public = plan.coordinator / "public"
    console.print(f"log      {public}", highlight=False, soft_wrap=True)
    console.print(f"release  {public / blob_path(newest.release.adapter.sha256)}", highlight=False, soft_wrap=True)
    for community in plan.communities:
        if (folder := plan.node(community) / "adopted").exists():
            console.print(f"adopted  {folder}", highlight=False, soft_wrap=True)
    home = plan.node(plan.communities[0])
    console.print(
        f"ask it   commonweal node ask 'YOUR QUESTION' --home {home} --beside-base", highlight=False, soft_wrap=True
    )
    for name in ("audit.json", "audit.html"):
        console.print(f"audit    {plan.home / name}", highlight=False, soft_wrap=True)


def audit(plan: Plan) -> int:
    """Audit over the public address only; return the auditor's exit code."""
    records = json.loads((plan.coordinator / "invite.json").read_text())["records"]
    args = ["audit", "run", records, "--ca", str(plan.coordinator / "tls/ca.pem")]
    args += ["--report", str(plan.home / "audit.json"), "--html", str(plan.home / "audit.html")]
    args += ["--memory", str(plan.home / "auditor.json")]
    console.print(f"[dim]$ commonweal {' '.join(args)}[/]", soft_wrap=True, highlight=False)
    return subprocess.call([PROGRAM, *args])


@contextlib.contextmanager
def stopping(plan: Plan) -> Iterator[None]:
    """Stop every process that was started, however this ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell that starts this in the background has it ignore Ctrl-C, and then nothing would be stopped by one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        stop(plan.processes)


def choose(data: Path, wanted: Sequence[str]) -> list[str]:
    """Return the communities to take from a folder.

    Raises:
        SystemExit: The folder or a community is not there.
    """
    found = sorted(p.stem for p in data.glob("*.jsonl"))
    if missing := sorted(set(wanted) - set(found)):
        raise SystemExit(f"demo: {data}: wanted {', '.join(missing)}, found {', '.join(found) or 'no *.jsonl'}")
    if not wanted and len(found) < 2:
        raise SystemExit(f"demo: {data}: wanted two or more *.jsonl files, found {len(found)}")
    if not wanted and len(found) > 3:
        console.print(f"{data} has {len(found)} communities; taking the first three. Others: COMMUNITIES='a b c'")
    return list(wanted) or found[:3]


def main() -> int:
    """Run the demo; the exit code is the auditor's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "communities", help="a folder of *.jsonl files")
    parser.add_argument("--communities", nargs="*", default=[], help="which of them (default: the first three)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--compact", type=Path, default=HERE / "compact.toml")
    parser.add_argument("--home", type=Path, default=None, help="default: .demo/<name of the data>")
    parser.add_argument("--cache", type=Path, default=Path(".demo/cache"), help="where base models are kept")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier run left")
    args = parser.parse_args()
    data: Path = args.data.resolve()
    communities = choose(data, args.communities)
    consortium = tomllib.loads(args.compact.read_text("utf-8"))["consortium"]
    name = consortium if data == HERE / "communities" else "-".join(communities)
    home: Path = (args.home or Path(".demo") / name).resolve()
    if args.fresh:
        shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    plan = Plan(home, data, communities, args.rounds, args.compact.resolve(), args.cache.resolve())
    with stopping(plan):
        state = read_state(plan)
        if finished(plan, state):
            console.print(f"{home}: the rounds are done; auditing again (--fresh starts anew)", soft_wrap=True)
            serve(plan)
        else:
            set_up(plan)
            serve(plan)
            launch(plan)
            state = watch(plan)
        code = audit(plan)
    result(plan, state)
    return code


# Off a terminal rich would fold everything at 80 columns.
console = Console() if sys.stdout.isatty() else Console(width=120)

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        console.print("\ndemo: interrupted; everything it started is stopped. Run it again to go on.")
        sys.exit(130)
