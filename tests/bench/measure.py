"""What every figure of the log needs: the best of several runs, a folder on a real disk, and valid entries."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.merkle import leaf_hash
from tests.kit.author import Author
from tests.kit.federation import NAMES, Federation

Row = tuple[str, float, str]
"""A figure: what it is, its value, and its unit."""


def best(run: Callable[[], int], repeat: int) -> float:
    """The highest rate of several runs; ``run`` does its work once and says how many things that was."""
    rates = []
    for _ in range(repeat):
        began = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - began))
    return max(rates)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on the disk that the checkout is on: a memory file system would make every sync free."""
    path = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[2]))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_entries(f: Federation, count: int) -> list[bytes]:
    """Valid entries of a founded consortium: its members announce themselves over and over, each in its own chain."""
    entries = []
    chains: dict[str, tuple[int, str | None]] = dict.fromkeys(NAMES, (-1, None))
    checkpoint = f.replica.checkpoint()
    seen = (Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex()),)
    for i in range(count):
        name = NAMES[i % len(NAMES)]
        seq, prev = chains[name]
        identity = Identity(institution=name, transport_key=f"{i:040d}" + "A" * 120)
        data = Author(f.keys[name], f.state.consortium).sign(identity, seq=seq + 1, prev=prev, seen=seen)
        entries.append(data)
        chains[name] = (seq + 1, leaf_hash(data).hex())
    return entries
