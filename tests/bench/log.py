"""The log's speed, beside what others do on this machine and what the machine can do: ``python -m tests.bench.log``.

Each figure is the best of several runs in one process, on an otherwise idle machine; nothing is asserted here. Programs
to compare with are used where they are installed (``pip install pymerkle``) and named as absent where not.
"""

import argparse
import hashlib
import importlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from commonweal_coordinator.log.cosigner import Cosigner
from commonweal_coordinator.log.log import Log, no_witness
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.envelope import parse_envelope, verify_envelope
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.tlog.cosignature import parse_cosigner_vkey
from commonweal_protocols.tlog.merkle import Tree, verify_inclusion
from commonweal_protocols.tlog.note import format_vkey, make_verifier
from commonweal_protocols.tlog.policy import NO_QUORUM, Group, Policy, PolicyLog, PolicyWitness
from tests.bench import verification
from tests.bench.measure import Row, best, folder, make_entries
from tests.kit.federation import NAMES, ORIGIN, Federation

console = Console(width=120)
PROGRAM = str(Path(sys.executable).with_name("commonweal"))


# -- the machine's limits


def limits(repeat: int) -> list[Row]:
    node = os.urandom(65)

    def hash_nodes() -> int:
        sha = hashlib.sha256
        for _ in range(200_000):
            sha(node).digest()
        return 200_000

    def sync() -> int:
        with folder() as home:
            fd = os.open(home / "f", os.O_WRONLY | os.O_CREAT)
            for _ in range(200):
                os.write(fd, b"x" * 4096)
                os.fsync(fd)
            os.close(fd)
        return 200

    return [
        ("limit: SHA-256 of a 65-byte node, one core", best(hash_nodes, repeat), "/s"),
        ("limit: write 4 KiB and fsync", best(sync, repeat), "/s"),
    ]


# -- ours


def trees(repeat: int) -> list[Row]:
    leaves = [hashlib.sha256(i.to_bytes(8)).digest() for i in range(200_000)]

    def grow() -> int:
        tree = Tree()
        for leaf in leaves:
            tree.append(leaf)
        tree.root(tree.size)
        return tree.size

    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    root = tree.root(tree.size)
    proofs = [(i, tree.inclusion_path(i, tree.size)) for i in range(0, tree.size, 23)]

    def check() -> int:
        for i, path in proofs:
            verify_inclusion(leaves[i], i, tree.size, path, root)
        return len(proofs)

    return [
        ("tree re-hash, entries", best(grow, repeat), "/s"),
        ("inclusion checks in 200,000 entries", best(check, repeat), "/s"),
    ]


def appends(f: Federation, entries: Sequence[bytes], repeat: int) -> list[Row]:
    def durable() -> int:
        with folder() as home:
            log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key)
            for at in range(0, len(entries), 256):
                log.append(entries[at : at + 256])
            log.close()
        return len(entries)

    def verified() -> int:
        with folder() as home:
            log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key)
            for at in range(0, len(entries), 256):
                batch = entries[at : at + 256]
                for data in batch:
                    verify_envelope(parse_envelope(data))
                log.append(batch)
            log.close()
        return len(entries)

    def opened() -> int:
        for data in entries:
            open_entry(data)
        return len(entries)

    return [
        ("durable appends in batches of 256", best(durable, repeat), "/s"),
        ("author-verified durable appends, one core", best(verified, repeat), "/s"),
        ("entries parsed strictly and verified, one core", best(opened, repeat), "/s"),
    ]


@contextmanager
def witnesses(f: Federation, home: Path, count: int) -> Iterator[Policy]:
    """Witnesses as processes of their own, by the program's own commands; the policy wants more than half of them."""
    vkey = format_vkey(ORIGIN, f.log_key.public_key().public_bytes_raw())
    running, found = [], []
    try:
        for i in range(count):
            where = str(home / f"w{i}")
            init = [PROGRAM, "witness", "init", "--home", where, "--name", f"w{i}", "--log", vkey]
            subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
            process = subprocess.Popen(
                [PROGRAM, "witness", "run", "--home", where, "--port", "0"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            running.append(process)
            assert process.stdout is not None
            line = next(
                line for line in process.stdout if line.startswith("witness w") and "http://" in line and "+" in line
            )
            _, name, key, url = line.split()
            found.append(PolicyWitness(name, parse_cosigner_vkey(key), url))
        names = tuple(w.name for w in found)
        groups = (Group("most", count // 2 + 1, names),) if count else ()
        log = PolicyLog(make_verifier(ORIGIN, f.log_key.public_key()))
        yield Policy((log,), tuple(found), groups, "most" if count else NO_QUORUM)
    finally:
        for process in running:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def receipts(f: Federation, entries: Sequence[bytes], count: int) -> list[Row]:
    """The whole way: signatures, fold, batch, sync, cosignatures, proof; each institution sends one after the other."""
    latencies: list[float] = []
    lock = threading.Lock()
    with folder() as home, witnesses(f, home, count) as policy, closing(Cosigner(policy)) as cosigner:
        log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key, cosigner if count else no_witness)
        log.append(f.entries)
        sequencer = Sequencer.load(log, DirectorySource(home / "public"), f.coordinator)

        def send(chain: Sequence[bytes]) -> None:
            for data in chain:
                began = time.perf_counter()
                sequencer.submit(data)
                with lock:
                    latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(send, [entries[i :: len(NAMES)] for i in range(len(NAMES))]))
        seconds = time.perf_counter() - began
        sequencer.close()
    latencies.sort()
    what = f"{count} witnesses" if count else "no witness"
    return [
        (f"receipts to {len(NAMES)} institutions at once, {what}", len(latencies) / seconds, "/s"),
        (f"receipt latency p50, {what}", latencies[len(latencies) // 2] * 1e3, " ms"),
        (f"receipt latency p99, {what}", latencies[len(latencies) * 99 // 100] * 1e3, " ms"),
    ]


def memory(count: int) -> list[Row]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tree = Tree()
    for i in range(count):
        tree.append(hashlib.sha256(i.to_bytes(8)).digest())
    return [
        (
            f"memory for the tree of {count:,} entries",
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
            " MiB",
        )
    ]


# -- others


def others(entries: Sequence[bytes], repeat: int) -> list[Row]:
    def hash_chain() -> int:
        with folder() as home:
            db = sqlite3.connect(home / "chain.db", isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("CREATE TABLE chain (i INTEGER PRIMARY KEY, hash BLOB, entry BLOB)")
            last = b""
            for at in range(0, len(entries), 256):
                db.execute("BEGIN")
                for i, data in enumerate(entries[at : at + 256], at):
                    last = hashlib.sha256(last + data).digest()
                    db.execute("INSERT INTO chain VALUES (?, ?, ?)", (i, last, data))
                db.execute("COMMIT")
            db.close()
        return len(entries)

    found = [("SQLite hash chain, batches of 256, no proofs", best(hash_chain, repeat), "/s")]
    try:
        pymerkle = importlib.import_module("pymerkle")
    except ModuleNotFoundError:
        return [*found, ("pymerkle", 0.0, ": not installed")]

    def pymerkle_grow() -> int:
        tree = pymerkle.InmemoryTree(algorithm="sha256")
        for data in entries:
            tree.append_entry(data)
        tree.get_root()
        return len(entries)

    def pymerkle_sqlite() -> int:
        with folder() as home:
            tree = pymerkle.SqliteTree(str(home / "tree.db"), algorithm="sha256")
            tree.append_entries(list(entries), chunksize=256)
            tree.get_root()
        return len(entries)

    return [
        *found,
        ("pymerkle in memory, appends", best(pymerkle_grow, repeat), "/s"),
        ("pymerkle on SQLite, appends in bulk", best(pymerkle_sqlite, repeat), "/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=6000)
    parser.add_argument("--verified-entries", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory-entries", type=int, default=1_000_000)
    args = parser.parse_args()
    f = Federation()
    entries = make_entries(f, args.entries)
    size = sum(map(len, entries)) // len(entries)
    table = Table("figure", "value", title=f"log: {args.entries} entries of {size} bytes, {os.cpu_count()} cores")
    for rows in (
        limits(args.repeat),
        verification.rows(f, make_entries(f, args.verified_entries), args.repeat),
        trees(args.repeat),
        appends(f, entries, args.repeat),
        receipts(f, entries[:3000], 0),
        receipts(f, entries[:1500], 5),
        memory(args.memory_entries),
        others(entries, args.repeat),
    ):
        for name, value, unit in rows:
            table.add_row(name, f"{value:,.1f}{unit}" if value < 1000 else f"{value:,.0f}{unit}")
    console.print(table)


if __name__ == "__main__":
    main()
