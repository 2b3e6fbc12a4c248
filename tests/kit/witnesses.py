"""Logs and witnesses in memory, for the tests of witnesses: fixed keys, a clock that is set by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import Verifier, encode_vkey, format_vkey, make_verifier, sign_note
from commonweal_protocols.tlog.policy import Policy, PolicyLog, PolicyWitness, parse_policy
from commonweal_protocols.witness.client import Collector
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import Witness, format_request

ORIGIN = "log.example/one"
T0 = 1_800_000_000


def ed25519(seed: str) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(seed.encode().ljust(32, b"."))


@dataclass
class TestLog:
    """A log that can sign anything, also what it must not."""

    __test__ = False

    origin: str = ORIGIN
    label: str = "entry"
    """Two logs of one origin whose labels differ are forks of each other."""
    key: Ed25519PrivateKey = field(default_factory=lambda: ed25519("log"))
    tree: Tree = field(default_factory=Tree)

    @property
    def verifier(self) -> Verifier:
        return make_verifier(self.origin, self.key.public_key())

    @property
    def vkey(self) -> str:
        return format_vkey(self.origin, self.key.public_key().public_bytes_raw())

    def grow(self, size: int) -> None:
        for i in range(self.tree.size, size):
            self.tree.append(leaf_hash(f"{self.label} {i}".encode()))

    def checkpoint(self, size: int) -> Checkpoint:
        self.grow(size)
        return Checkpoint(self.origin, size, self.tree.root(size))

    def note(self, size: int) -> bytes:
        return sign_note(self.checkpoint(size).text(), self.origin, self.key)

    def path(self, old_size: int, size: int) -> list[bytes]:
        self.grow(size)
        return self.tree.consistency_path(old_size, size)

    def request(self, old_size: int, size: int) -> bytes:
        """An honest request."""
        return format_request(old_size, self.path(old_size, size), self.note(size))


@dataclass
class Clock:
    """Seconds since the epoch; moves only by hand."""

    now: float = T0

    def __call__(self) -> float:
        return self.now


def open_store(path: Path) -> WitnessStore:
    """The store at ``path``, made if it is not there yet."""
    if not path.exists():
        WitnessStore.create(path)
    return WitnessStore(path)


def make_witness(store: WitnessStore, log: TestLog, clock: Clock, name: str = "w.example/1") -> Witness:
    return Witness(name, [ed25519(name)], [log.verifier], store, clock)


def make_policy(log: TestLog, servers: Sequence[tuple[Witness, WitnessServer | str]], quorum: str) -> Policy:
    """A policy of these witnesses, called w0, w1, …; ``quorum`` is what stands behind ``group q``."""
    lines = [f"log {log.vkey}"]
    for i, (witness, server) in enumerate(servers):
        url = server if isinstance(server, str) else server.url
        lines.append(f"witness w{i} {witness.verifiers[0].vkey} {url}")
    names = " ".join(f"w{i}" for i in range(len(servers)))
    return parse_policy("\n".join([*lines, f"group q {quorum} {names}", "quorum q"]) + "\n")


def policy_text(policy: Policy) -> str:
    """A policy's file, as the specification of C2SP tlog-policy says it; for logs with one key each."""
    lines = [f"log {encode_vkey(x.verifier.name, x.verifier.key)} {x.url or ''}" for x in policy.logs]
    lines += [f"witness {x.name} {x.verifier.vkey} {x.url or ''}" for x in policy.witnesses]
    lines += [f"group {x.name} {x.threshold} {' '.join(x.members)}" for x in policy.groups]
    return "\n".join([*lines, f"quorum {policy.quorum}"]) + "\n"


def collector_of(log: Verifier, url: str, verifier: CosignatureVerifier, ca_file: Path | None = None) -> Collector:
    """A collector that asks one witness, which its policy calls w."""
    policy = Policy((PolicyLog(log),), (PolicyWitness("w", verifier, url),), (), "w")
    return Collector(policy, timeout_seconds=20, ca_file=ca_file)


def cosignature_of(collector: Collector, log: TestLog, size: int, note: bytes | None = None) -> str:
    """The line with which the one witness of ``collector`` cosigns; what is wrong with its answer is raised."""
    collected = collector.collect(note or log.note(size), log.path, deadline_seconds=60)
    if error := collected.errors.get("w"):
        raise error
    (cosigned,) = collected.cosignatures
    return cosigned.line
