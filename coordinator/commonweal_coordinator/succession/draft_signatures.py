"""A compact's draft, and who has signed it: the founding one before there is a log, and each later version.

The draft and the signatures lie in one folder, so a restart loses none. What members sign is the draft's payload, and
this module cannot change a letter of it. Of the founding draft the payload's digest names the consortium for good.
Whether the signatures are enough is :mod:`amendment`'s rule, which the fold applies again when they enter the log.
"""

import shutil
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import RuleError, StorageError
from commonweal_protocols.base.files import read_bounded, read_if_there, write_atomic
from commonweal_protocols.fold.amendment import check_amendment, check_signers, signing_keys, unsigned
from commonweal_protocols.fold.motions import approving
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import Signature, format_envelope, parse_envelope, sign, verify_envelope
from commonweal_protocols.statements.statement import Statement, parse_statement
from commonweal_protocols.statements.values import Digest, Name, PublicKey
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_DRAFT = "compact.json"


def draft_file(directory: Path) -> Path:
    """Where the draft in a folder lies."""
    return directory / _DRAFT


class Draft:
    """A draft, and its signatures. Thread-safe."""

    def __init__(self, directory: Path, state: State | None = None) -> None:
        """Read what is in the folder.

        Args:
            directory: The draft's folder.
            state: What the draft is to amend; None where it is to found a consortium.

        Raises:
            StorageError: There is no draft, or it is none.
            RuleError: It cannot follow the compact in force.
        """
        self._directory = directory
        self._state = state
        self._lock = threading.Lock()
        self.payload = read_bounded(directory / _DRAFT, MAX_ENTRY_BYTES, "a compact's draft")
        predicate = parse_statement(self.payload).predicate
        if not isinstance(predicate, Compact):
            raise StorageError(f"{directory / _DRAFT}: wanted a compact, got {type(predicate).__name__}")
        self.compact = predicate
        self.digest = digest_of(self.payload)
        if state is not None:
            check_amendment(state.compact, state.compact_sha256, self.compact, state.retired, state.size)

    @staticmethod
    def store(directory: Path, compact: Compact) -> Digest:
        """Store a draft, in the place of any earlier one; returns the digest of what members will sign."""
        payload = Statement(None, compact).payload()
        write_atomic(directory / _DRAFT, payload)
        return digest_of(payload)

    @staticmethod
    def discard(directory: Path) -> None:
        """Remove a draft and its signatures, if they are there.

        Raises:
            StorageError: They cannot be removed.
        """
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as e:
            raise StorageError(f"{directory}: cannot be removed: {e.strerror}") from e

    @staticmethod
    def open_amendment(directory: Path, state: State) -> "Draft | None":
        """Return the draft of the next version, if there is one. One that is in force already is removed.

        Raises:
            StorageError: It is none, or cannot be removed.
            RuleError: It cannot follow the compact in force.
        """
        payload = read_if_there(directory / _DRAFT, MAX_ENTRY_BYTES, "a compact's draft")
        if payload is None:
            return None
        if digest_of(payload) == state.compact_sha256:
            Draft.discard(directory)
            return None
        return Draft(directory, state)

    @property
    def _current(self) -> Compact | None:
        return self._state.compact if self._state else None

    def _signatures(self) -> list[Signature]:
        found: list[Signature] = []
        for path in sorted(self._directory.glob("*.dsse")):
            envelope = parse_envelope(read_bounded(path, MAX_ENTRY_BYTES, "a signature on the draft"))
            # What an earlier draft has left here are signatures on something else.
            if envelope.payload == self.payload:
                found += [s for s in envelope.signatures if s.key in self._members()]
        return found

    def _signers(self) -> set[PublicKey]:
        return {s.key for s in self._signatures()}

    def missing(self) -> tuple[Name, ...]:
        """The institutions that have not signed yet. A founding wants them all, an amendment its two thresholds."""
        return unsigned(self._current, self.compact, self._signers())

    def sign(self, data: bytes) -> tuple[int, int]:
        """Take one member's signature; again is harmless. Returns how many there are, and of how many institutions.

        Raises:
            PeerError: Another payload, a signature that does not hold, or somebody who is not a member.
        """
        verified = verify_envelope(parse_envelope(data))
        if verified.payload != self.payload:
            raise RuleError(f"draft: wanted a signature on the compact {self.digest}, got one on another")
        members = self._members()
        if len(verified.signers) != 1 or verified.signers[0] not in members:
            raise RuleError(f"draft: wanted one member's signature, got {list(verified.signers)}")
        with self._lock:
            write_atomic(self._directory / f"{verified.signers[0]}.dsse", data)
        return len(self._signers()), len(set(members.values()))

    def _members(self) -> dict[PublicKey, Name]:
        """Whose signature counts; that of a key which the draft revokes would spoil it."""
        members = {m.key: m.institution for m in self.compact.members}
        if self._state is not None:
            members |= signing_keys(self._state.compact, self.compact, self._state.size)
        return members

    def envelope(self, carrier: Ed25519PrivateKey | None = None) -> bytes:
        """The signed compact, as it enters the log.

        Args:
            carrier: The coordinator's key: it brings what members have voted for, and its signature counts for nothing.

        Raises:
            RuleError: Signatures are missing; says whose.
        """
        voters = approving(self._state, self.digest) if self._state else frozenset()
        index, signatures = self._state.size if self._state else 0, self._signatures()
        check_signers(self._current, self.compact, self._signers(), index, voters)
        if carrier is not None and voters:
            signatures.append(sign(self.payload, carrier))
        return format_envelope(self.payload, signatures)
