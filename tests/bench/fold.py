"""How fast the fold is, of entries that were opened beforehand, on one core: ``python -m tests.bench.fold``.

In the processor's time, since the fold waits for nothing: what else the machine is doing has less of a say.
"""

import argparse
import time

from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.statement import Entry, open_entry
from tests.bench.measure import Row, make_entries
from tests.kit.federation import Federation
from tests.kit.year import a_year


def rate(entries: list[Entry], repeat: int) -> float:
    """Entries folded in a second, from the first to the last; the best of several runs."""
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        state: State | None = None
        for entry in entries:
            state = fold(state, entry)
        seconds.append(time.process_time() - began)
    return len(entries) / min(seconds)


def rows(count: int, repeat: int) -> list[Row]:
    f = Federation()
    announcements = [open_entry(data) for data in (*f.entries, *make_entries(f, count))]
    year = [open_entry(data) for data in a_year().federation.entries]
    return [
        (f"{len(announcements)} announcements of three members", rate(announcements, repeat), "entries/s"),
        (f"a year of seven members, {len(year)} entries", rate(year, repeat), "entries/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    for name, value, unit in rows(args.entries, args.repeat):
        print(f"{name:50} {value:12,.0f} {unit}")


if __name__ == "__main__":
    main()
