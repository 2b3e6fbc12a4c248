"""A founded coordinator on a disk, in this process, and the federation that talks to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commonweal_coordinator.log.log import Cosign, Log, Sequenced, no_witness
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.tlog.note import make_verifier
from commonweal_protocols.tlog.proof import open_proof
from tests.kit.federation import NAMES, ORIGIN, Federation


@dataclass
class Hub:
    """A founded coordinator on a disk, and the federation that talks to it."""

    f: Federation
    home: Path
    log: Log
    sequencer: Sequencer

    @property
    def public(self) -> Path:
        return self.home / "public"

    def catch_up(self) -> None:
        """Let the federation read what is new in the public records."""
        for data in read_entries(DirectorySource(self.public), len(self.f.entries), self.sequencer.state.size):
            self.f.add(data)

    def say(self, who: str, predicate: Predicate) -> Sequenced:
        """Submit the next statement of ``who``."""
        self.catch_up()
        answer = self.sequencer.submit(self.f.signed(who, predicate))
        self.catch_up()
        return answer

    def announce(self) -> None:
        for name in NAMES:
            self.say(name, identity(name))

    def proven(self, data: bytes, answer: Sequenced) -> None:
        verifier = make_verifier(ORIGIN, self.f.log_key.public_key())
        index, checkpoint = open_proof(answer.proof, data, verifier)
        assert index == answer.index
        held = list(read_entries(DirectorySource(self.public), 0, checkpoint.size))
        assert held[index] == data

    def restart(self) -> None:
        """Open everything anew, as a daemon that was killed does."""
        self.sequencer.close()
        self.log = Log.open(self.public, self.home / "lock.db", ORIGIN, self.f.log_key)
        self.sequencer = Sequencer.load(self.log, DirectorySource(self.public), self.f.coordinator)


@contextmanager
def founded(home: Path, f: Federation | None = None, cosign: Cosign = no_witness) -> Iterator[Hub]:
    f = f or Federation()
    log = Log.create(home / "public", home / "lock.db", ORIGIN, f.log_key, cosign)
    hub = Hub(f, home, log, Sequencer(log, Replica(), f.coordinator))
    try:
        for data in f.entries:
            hub.sequencer.submit(data)
        yield hub
    finally:
        hub.sequencer.close()


def identity(name: str, letter: str = "A") -> Identity:
    return Identity(institution=name, transport_key=letter * 44)
