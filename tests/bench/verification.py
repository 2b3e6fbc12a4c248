"""The rows on checking authors' signatures: the machine's limits, and what appends and audits make of them.

The limit of all cores is measured in processes that do nothing else; what shares its cores with parsing, hashing and
the disk cannot reach it.
"""

import subprocess
import sys
from collections.abc import Sequence

from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.base.ed25519 import load_libsodium
from commonweal_protocols.records.signature_pool import usable_cores
from commonweal_protocols.records.source import DirectorySource
from tests.bench.measure import Row, best, folder
from tests.kit.federation import ORIGIN, Federation

_LIMIT = """
import sys, time
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from commonweal_protocols.base import ed25519
check = {"cryptography": ed25519.openssl, "PyNaCl": ed25519.load_libsodium()}[sys.argv[1]]
key = Ed25519PrivateKey.generate()
message = bytes(int(sys.argv[2]))
public, signature = key.public_key().public_bytes_raw(), key.sign(message)
print("ready", flush=True)
input()
began = time.perf_counter()
for _ in range(5000):
    assert check(public, signature, message)
print(5000 / (time.perf_counter() - began))
"""


def _limit(library: str, message_bytes: int, jobs: int) -> float:
    """The rate of so many processes that begin together."""
    command = [sys.executable, "-c", _LIMIT, library, str(message_bytes)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(jobs)
    ]
    for p in processes:
        assert p.stdout is not None
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        assert p.stdin is not None
        p.stdin.write("\n")
        p.stdin.flush()
    return sum(float(p.communicate()[0]) for p in processes)


def limits(message_bytes: int, repeat: int) -> list[Row]:
    rows = []
    for library in ("cryptography", "PyNaCl") if load_libsodium() else ("cryptography",):
        for jobs in sorted({1, usable_cores()}):
            rate = max(_limit(library, message_bytes, jobs) for _ in range(repeat))
            rows.append((f"limit: Ed25519 checks, {library}, {_cores(jobs)}", rate, "/s"))
    return rows


def _cores(jobs: int) -> str:
    return "one core" if jobs == 1 else f"{jobs} cores"


def _sequence(f: Federation, entries: Sequence[bytes]) -> int:
    """The whole way into the log, but for gRPC: signatures, parsing, fold, batch, sync."""
    with folder() as home:
        log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key)
        log.append(f.entries)
        sequencer = Sequencer.load(log, DirectorySource(home / "public"), f.coordinator)
        # An author's entries follow one another, so each caller brings one after another, as members do.
        for data in entries:
            sequencer.submit(data)
        sequencer.close()
    return len(entries)


def appends(f: Federation, entries: Sequence[bytes], repeat: int) -> list[Row]:
    rate = best(lambda: _sequence(f, entries[:2000]), repeat)
    return [("verified, folded, durable entries, one caller, a sync for each", rate, "/s")]


def audits(f: Federation, entries: Sequence[bytes], repeat: int) -> list[Row]:
    with folder() as home:
        log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key)
        every = [*f.entries, *entries]
        for at in range(0, len(every), 256):
            log.append(every[at : at + 256])
        log.close()
        rows = []
        for jobs in sorted({1, usable_cores()}):

            def audit(jobs: int = jobs) -> int:
                outcome = examine(DirectorySource(home / "public"), jobs=jobs)
                assert outcome.report.size == len(every)
                return len(every)

            rows.append((f"full audit of {len(every):,} entries, {_cores(jobs)}", best(audit, repeat), "/s"))
    return rows


def rows(f: Federation, entries: Sequence[bytes], repeat: int) -> list[Row]:
    """All of them, and how far the audit is from the limit."""
    message_bytes = len(entries[0]) * 2 // 3
    found = limits(message_bytes, repeat)
    limit = max(rate for _, rate, _ in found)
    audited = audits(f, entries, repeat)
    return [
        *found,
        *appends(f, entries, repeat),
        *audited,
        ("the limit of all cores is so many times the audit on them", limit / max(r for _, r, _ in audited), " ×"),
    ]
