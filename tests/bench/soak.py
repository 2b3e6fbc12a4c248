"""Rounds of real processes under faults: ``python -m tests.bench.soak --rounds 100 --busy 4 --seed 1``.

Three institutions and a coordinator with the tiny model; in each round one of them is killed, ended, or stands still
for 5 to 90 seconds, while busy loops compete for the cores. It prints how rounds ended, and asserts what the test of
rounds that survive does: each ends, whoever was hit is heard of again, and the log audits. With ``--minutes`` it draws
no further fault once the time is over.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from tests.bench.measure import folder
from tests.kit.faults import Outcome, back_after, draw_faults, survive
from tests.kit.log_watch import LogWatch
from tests.kit.processes import NAMES, Processes, tiny_terms

console = Console(width=120)
DEADLINE_SECONDS = 60
FROZEN_SECONDS = (5.0, 90.0)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that never sleep."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def soak(home: Path, rounds: int, seed: int, minutes: float) -> None:
    """Run the rounds and print how each ended, and then what that comes to."""
    terms = tiny_terms(home, steps=20)
    terms = terms.replace("round_deadline_seconds = 120", f"round_deadline_seconds = {DEADLINE_SECONDS}")
    until = time.monotonic() + 60 * minutes
    with Processes(home, terms=terms, rounds=rounds + 1) as p:
        p.start_all()
        watch, outcomes = LogWatch(p.public), []
        drawn = draw_faults(Random(seed), NAMES, rounds, FROZEN_SECONDS)
        for o in survive(p, watch, takewhile(lambda _: time.monotonic() < until, drawn)):
            outcomes.append(o)
            held = f"{o.fault.seconds:.0f} s" if o.fault.kind == "frozen" else ""
            console.print(
                f"round {o.round}: {o.fault.name} {o.fault.kind} {held}, after {o.fault.after_entries} entries: "
                f"{o.seconds:.1f} s, {o.reason or ', '.join(o.answered)}",
                markup=False,
            )
        console.print(summary(watch, outcomes))
        report = json.loads(p.command("audit", "run", p.public, "--no-memory", "--json"))
        console.print(f"audit: {report['verdict']}, {len(watch.entries)} entries")
        assert report["verdict"] == "pass"


def summary(watch: LogWatch, outcomes: Sequence[Outcome]) -> Table:
    """One line for each kind of fault and whom it hit."""
    table = Table("fault", "whom", "rounds", "released", "all answered", "round, median s", "heard of after, max s")
    kinds = sorted({(o.fault.kind, "coordinator" if o.fault.name == "coordinator" else "node") for o in outcomes})
    for kind, whom in kinds:
        group = [o for o in outcomes if o.fault.kind == kind and (o.fault.name == "coordinator") == (whom != "node")]
        table.add_row(
            kind,
            whom,
            str(len(group)),
            str(sum(not o.reason for o in group)),
            str(sum(len(o.answered) == len(NAMES) for o in group)),
            f"{statistics.median(o.seconds for o in group):.1f}",
            f"{max(back_after(watch, o) or 0 for o in group):.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--busy", type=int, default=0, help="busy loops beside the daemons")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=24 * 60, help="no further fault after this")
    parser.add_argument("--home", type=Path, help="a new folder, which stays; by default one that goes")
    args = parser.parse_args()
    if args.home:
        args.home.mkdir(parents=True)
    with nullcontext(args.home) if args.home else folder() as home, busy_loops(args.busy):
        soak(home, args.rounds, args.seed, args.minutes)


if __name__ == "__main__":
    main()
