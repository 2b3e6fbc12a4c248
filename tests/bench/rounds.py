"""What a round costs beside its training, and what a daemon costs at rest: ``python -m tests.bench.rounds``.

Three institutions and a coordinator as real processes, with the tiny model and one training step in a round. Times are
those at which this script, which follows the log, first saw an entry under a published checkpoint. Beside them stands
what the machine itself takes for the two things of which a round consists: a write that is on disk, and a signature. At
rest means that all wanted releases are ratified and decided on, and nothing is left to do but to follow the log.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from commonweal_protocols.statements.rounds import Ratification, Release, Round, Update
from tests.bench.measure import folder
from tests.kit.log_watch import LogWatch
from tests.kit.proc import descendants
from tests.kit.processes import Processes, tiny_terms

console = Console(width=120)
_LOOK_SECONDS = 0.002
_PATIENCE_SECONDS = 120
_QUORUM = 2


def milliseconds(run: Callable[[], object], repeat: int = 200) -> float:
    """The median time of one call."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def physical(home: Path) -> Mapping[str, float]:
    """Milliseconds that the disk and the processor take for what each entry needs."""
    key, message = Ed25519PrivateKey.generate(), os.urandom(600)
    signature, public = key.sign(message), key.public_key()
    fd = os.open(home / "synced", os.O_WRONLY | os.O_CREAT)

    def write() -> None:
        os.write(fd, bytes(4096))
        os.fsync(fd)

    try:
        return {
            "write 4 KiB and fsync": milliseconds(write),
            "sign": milliseconds(lambda: key.sign(message)),
            "verify": milliseconds(lambda: public.verify(signature, message)),
        }
    finally:
        os.close(fd)


# -- rounds


def watch_until(p: Processes, watch: LogWatch, releases: int) -> None:
    """Look at the log all the time, until so many releases are ratified."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while (s := watch.look()) is None or sum(bool(r.release and r.release.is_ratified) for r in s.rounds) < releases:
        ended = [name for name, process in p.running.items() if process.poll() is not None]
        if ended or time.monotonic() > until:
            raise TimeoutError(f"{len(watch.entries)} entries; ended: {ended}")
        time.sleep(_LOOK_SECONDS)


def round_times(watch: LogWatch, number: int) -> Mapping[str, float]:
    """Seconds from one thing in a round to the next."""
    seen: dict[type, list[float]] = {kind: [] for kind in (Round, Update, Release, Ratification)}
    for e in watch.entries:
        if isinstance(e.predicate, Round | Update | Release | Ratification) and e.predicate.round == number:
            seen[type(e.predicate)].append(e.at)
    opened, released, ratified = seen[Round][0], seen[Release][0], seen[Ratification][_QUORUM - 1]
    return {
        "opening to first update": seen[Update][0] - opened,
        "opening to last update": seen[Update][-1] - opened,
        "last update to release": released - seen[Update][-1],
        "release to ratified": ratified - released,
        "opening to ratified": ratified - opened,
    }


# -- rest


@dataclass(frozen=True, slots=True)
class Usage:
    """What a daemon has used so far, with all its threads and whatever it has started."""

    cpu_seconds: float
    switches: int


def usage(pid: int) -> Usage:
    """Read it. A process's own count is its first thread's alone, so threads are added up here."""
    cpu, switches = 0.0, 0
    for member in (pid, *descendants(pid)):
        times = psutil.Process(member).cpu_times()
        cpu += times.user + times.system
        for status in Path(f"/proc/{member}/task").glob("*/status"):
            line = next(x for x in status.read_text().splitlines() if x.startswith("voluntary_ctxt_switches"))
            switches += int(line.split()[1])
    return Usage(cpu, switches)


def at_rest(p: Processes, seconds: float) -> Table:
    """What each daemon uses in so many seconds in which nothing is asked of it."""
    table = Table("at rest", "CPU, s", "wake-ups /s", "RSS, MB", "PSS, MB", "processes")
    before = {name: usage(process.pid) for name, process in p.running.items()}
    time.sleep(seconds)
    for name, process in p.running.items():
        now, pids = usage(process.pid), (process.pid, *descendants(process.pid))
        memory = [psutil.Process(pid).memory_full_info() for pid in pids]
        table.add_row(
            name,
            f"{now.cpu_seconds - before[name].cpu_seconds:.2f}",
            f"{(now.switches - before[name].switches) / seconds:.1f}",
            f"{sum(m.rss for m in memory) / 1e6:.0f}",
            f"{sum(m.pss for m in memory) / 1e6:.0f}",
            str(len(pids)),
        )
    return table


def report(home: Path, rounds: int, seconds: float) -> None:
    """Run everything, and print it."""
    # The first round is another: everything in it is done for the first time.
    with Processes(home, terms=tiny_terms(home, steps=1), rounds=rounds + 1) as p:
        p.start_all()
        watch = LogWatch(p.public)
        watch_until(p, watch, rounds + 1)
        print_rounds([round_times(watch, n) for n in range(2, rounds + 2)], physical(home))
        p.wait("everybody's decision", lambda: p.finished(rounds + 1))
        p.wait("everybody to be done", lambda: all(p.status(n).get("phase") == "waiting" for n in p.names))
        console.print(at_rest(p, seconds))


def print_rounds(rounds: Sequence[Mapping[str, float]], costs: Mapping[str, float]) -> None:
    table = Table(f"median of {len(rounds)} rounds, 3 members, 1 step", "ms", "least", "most")
    for what in rounds[0]:
        times = [1000 * r[what] for r in rounds]
        table.add_row(what, f"{statistics.median(times):.0f}", f"{min(times):.0f}", f"{max(times):.0f}")
    for what, ms in costs.items():
        table.add_row(f"the machine: {what}", f"{ms:.2f}", "", "")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=20, help="seconds")
    args = parser.parse_args()
    with folder() as home:
        report(home, args.rounds, args.rest)


if __name__ == "__main__":
    main()
