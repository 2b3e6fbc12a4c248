"""Founding: collect every member's signature on the first compact. Before it is complete there is no log.

The draft and the signatures lie in one folder, so a restart loses none. What the members sign is the compact's payload,
whose digest names the consortium for good; this module can therefore not change a letter of it.
"""

import threading
from pathlib import Path

from commonweal_protocols.canonical import digest_of
from commonweal_protocols.envelope import Signature, format_envelope, parse_envelope, verify_envelope
from commonweal_protocols.errors import RuleError, StorageError
from commonweal_protocols.files import write_atomic
from commonweal_protocols.predicates import Compact
from commonweal_protocols.statement import Statement, parse_statement


class Founding:
    """The draft, and who has signed it. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        try:
            self.payload = (directory / "compact.json").read_bytes()
        except OSError as e:
            raise StorageError(f"{directory}/compact.json: the draft cannot be read: {e.strerror}") from e
        predicate = parse_statement(self.payload).predicate
        if not isinstance(predicate, Compact):
            raise StorageError(f"{directory}/compact.json: wanted a compact, got {type(predicate).__name__}")
        self.compact = predicate
        self.consortium = digest_of(self.payload)

    @staticmethod
    def draft(directory: Path, compact: Compact) -> str:
        """Store a draft and return the consortium's name for good: the digest of what members will sign."""
        payload = Statement(None, compact).payload()
        write_atomic(directory / "compact.json", payload)
        return digest_of(payload)

    def _signatures(self) -> list[Signature]:
        found: list[Signature] = []
        for path in sorted(self._directory.glob("*.dsse")):
            envelope = parse_envelope(path.read_bytes())
            # What an earlier draft has left here are signatures on something else.
            if envelope.payload == self.payload:
                found += envelope.signatures
        return found

    def missing(self) -> tuple[str, ...]:
        """The members that have not signed yet."""
        signed = {s.key for s in self._signatures()}
        return tuple(m.institution for m in self.compact.members if m.key not in signed)

    def sign(self, data: bytes) -> tuple[int, int]:
        """Take one member's signature; again is harmless. Returns how many there are, and how many are wanted.

        Raises:
            PeerError: Another payload, a signature that does not hold, or somebody who is not a member.
        """
        verified = verify_envelope(parse_envelope(data))
        if verified.payload != self.payload:
            raise RuleError(f"founding: wanted a signature on the compact of consortium {self.consortium}, got another")
        members = {m.key: m.institution for m in self.compact.members}
        if len(verified.signers) != 1 or verified.signers[0] not in members:
            raise RuleError(f"founding: wanted one member's signature, got {list(verified.signers)}")
        with self._lock:
            write_atomic(self._directory / f"{members[verified.signers[0]]}.dsse", data)
        return len(members) - len(self.missing()), len(members)

    def envelope(self) -> bytes:
        """The complete founding compact: the log's first entry.

        Raises:
            RuleError: A signature is missing.
        """
        if missing := self.missing():
            raise RuleError(f"founding: wanted every member's signature, missing: {', '.join(missing)}")
        return format_envelope(self.payload, self._signatures())
