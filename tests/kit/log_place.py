"""A log on a disk under a fixed key, and the bytes that it must hold.

Trees, tiles and paths are computed here a second time, straight from RFC 6962 and C2SP tlog-tiles.
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.log import Log, Sequenced
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.merkle import Frontier
from commonweal_protocols.tlog.note import format_vkey, parse_vkey
from commonweal_protocols.tlog.proof import open_proof

ORIGIN = "log.test/sequencer"
KEY, OTHER_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
VERIFIER = parse_vkey(format_vkey(ORIGIN, KEY.public_key().public_bytes_raw()))


def entry(n: int) -> bytes:
    return b"entry %d " % n * (1 + n % 5)


def entries(start: int, end: int) -> list[bytes]:
    return [entry(n) for n in range(start, end)]


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def expected_tiles(held: Sequence[bytes]) -> dict[str, bytes]:
    """Every tile and bundle of a tree of fewer than 256 000 entries, by path."""
    files: dict[str, bytes] = {}
    row, span, level = [leaf(e) for e in held], 1, 0
    while row:
        for n in range(-(-len(row) // 256)):
            part = row[256 * n : 256 * n + 256]
            name = f"{n:03d}" + (f".p/{len(part)}" if len(part) < 256 else "")
            files[f"tile/{level}/{name}"] = b"".join(part)
            if level == 0:
                files[f"tile/entries/{name}"] = b"".join(
                    len(e).to_bytes(2, "big") + e for e in held[256 * n : 256 * n + 256]
                )
        row = [mth(row[i : i + 256]) for i in range(0, len(row) - 255, 256)]
        span, level = span * 256, level + 1
    return files


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@dataclass
class Place:
    """Where a log lies, and the proofs that it has answered with."""

    home: Path
    receipts: list[tuple[bytes, Sequenced]] = field(default_factory=list)

    @property
    def public(self) -> Path:
        return self.home / "public"

    @property
    def lock(self) -> Path:
        return self.home / "private/lock.db"

    def create(self, *batches: Sequence[bytes]) -> "Place":
        with closing(Log.create(self.public, self.lock, ORIGIN, KEY)) as log:
            for batch in batches:
                self.append(log, batch)
        return self

    def append(self, log: Log, batch: Sequence[bytes]) -> list[Sequenced]:
        answers = log.append(batch)
        self.receipts += zip(batch, answers, strict=True)
        return answers

    def open(self) -> Log:
        return Log.open(self.public, self.lock, ORIGIN, KEY)

    def copy(self, home: Path) -> "Place":
        shutil.copytree(self.home, home)
        return Place(home, [*self.receipts])

    def snapshot(self) -> dict[str, bytes]:
        """Every byte that counts; SQLite's shared memory and the flock's empty file come and go."""
        return {p: data for p, data in files_below(self.home).items() if not p.endswith((".flock", "-shm"))}

    def audit(self, held: Sequence[bytes], *, every: int = 1) -> None:
        """Check all that is public against ``held``, and every ``every``-th receipt."""
        note = read_checkpoint(DirectorySource(self.public))
        assert open_checkpoint(note, VERIFIER) == Checkpoint(ORIGIN, len(held), mth([leaf(e) for e in held]))
        frontier = Frontier()
        read = list(read_entries(DirectorySource(self.public), 0, len(held)))
        for data in read:
            frontier.append(leaf(data))
        assert read == list(held)
        assert frontier.root() == open_checkpoint(note, VERIFIER).root
        files = files_below(self.public)
        assert files.pop("checkpoint") == note
        wanted = expected_tiles(held)
        assert {p: files.get(p) for p in wanted} == wanted
        for path, data in files.items():
            if path not in wanted:
                # Only earlier widths of a tile that is partial still.
                now = next(p for p in wanted if p.split(".p/")[0] == path.split(".p/")[0])
                assert ".p/" in now
                assert wanted[now].startswith(data)
        for data, answer in self.receipts[::every]:
            index, seen = open_proof(answer.proof, data, VERIFIER)
            assert held[index] == data
            assert index == answer.index
            assert seen.root == mth([leaf(e) for e in held[: seen.size]]), "what was seen is the present tree's start"

    def audit_open(self, held: Sequence[bytes], *, every: int = 1) -> None:
        """Open the log, check that it holds ``held`` and still answers and grows; leave it one entry larger."""
        with closing(self.open()) as log:
            self.audit(held, every=every)
            assert log.size == len(held)
            for data, earlier in self.receipts[::every]:
                found = log.find(data)
                assert found is not None
                assert found.index == earlier.index
                assert open_proof(found.proof, data, VERIFIER) == (
                    earlier.index,
                    open_checkpoint(log.checkpoint, VERIFIER),
                )
            more = b"one more after %d" % len(held)
            (answer,) = self.append(log, [more])
            assert answer.index == len(held)
            self.audit([*held, more], every=every)
