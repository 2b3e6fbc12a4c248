"""What an institution takes along when it leaves: everything it has said, each with its proof, and nothing missing.

::

    departure.json              what is here: the entries by index, the files by SHA-256
    compact.json                the compact in force when it had left: the log's key, and its witnesses
    entries/<index>.dsse        an entry as it stands in the log
    entries/<index>.tlog-proof  that it does, under one cosigned checkpoint
    README.md, charter.toml, own/, adopted/   for people; and what the institution had made

The header of each entry names the author's own number and the entry before, so a folder without a gap from number 0 to
the exit is everything. This module reads; ``commonweal node exit`` writes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import ConfigError, LogError, MalformedError, RuleError
from commonweal_protocols.base.files import read_if_there
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.statements.values import Digest, Name, Natural
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.policy import Policy
from commonweal_protocols.tlog.proof import MAX_PROOF_BYTES, open_cosigned_proof
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

MANIFEST, COMPACT = "departure.json", "compact.json"
_MAX_MANIFEST_BYTES = 1 << 26
Path_ = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,4}$")]
"""Below the folder, and nowhere else."""


class Departure(Closed):
    """The folder's manifest."""

    format: Literal["urn:commonweal:departure:v1"] = "urn:commonweal:departure:v1"
    consortium: Digest
    institution: Name
    entries: Annotated[tuple[Natural, ...], Field(min_length=1)]
    """By their index in the log, in its order; the last is the exit."""
    files: dict[Path_, Digest]
    """Everything else."""

    def to_bytes(self) -> bytes:
        """The manifest's one encoding (RFC 8785), and a line end."""
        return canonical.encode(self.model_dump(mode="json")) + b"\n"


@dataclass(frozen=True, slots=True)
class Checked:
    """A folder that holds."""

    departure: Departure
    checkpoint: Checkpoint
    last: Exit


def entry_path(index: int, kind: Literal["dsse", "tlog-proof"]) -> str:
    """Where an entry or its proof lies below the folder."""
    return f"entries/{index}.{kind}"


def check_whole(entries: Iterable[Entry], consortium: Digest, institution: Name) -> Exit:
    """Check that entries are all that an institution has said, from its first one to its exit; returns that.

    Signatures and proofs are verified before. That one author has said them, under whatever keys, follows from the log:
    its fold lets nobody continue another's chain, or announce another's exit.

    Raises:
        RuleError: An entry of another consortium, or the last is not this institution's exit.
        LogError: One is missing, or stands in another's place.
    """
    seq, prev, last = 0, None, None
    for entry in entries:
        header = entry.statement.header
        if header is None or header.consortium != consortium:
            raise RuleError(f"departure: wanted an entry in consortium {consortium}, got {entry.leaf}")
        if isinstance(last, Exit) and last.institution == institution and header.seq == 0:
            seq, prev = 0, None  # it had left before, and was admitted anew
        if (header.seq, header.prev) != (seq, prev):
            raise LogError(
                f"departure: wanted number {seq} of the entries of {institution}, after {prev}; got {header.seq}, "
                f"after {header.prev}"
            )
        seq, prev, last = seq + 1, entry.leaf, entry.statement.predicate
    if not isinstance(last, Exit) or last.institution != institution:
        raise RuleError(f"departure: wanted the exit of {institution} as the last entry, got {type(last).__name__}")
    return last


def check_departure(directory: Path, policy: Policy | None = None) -> Checked:
    """Check a folder by itself: every digest, signature, proof and number in it.

    Args:
        directory: The folder.
        policy: Under which signatures the log's checkpoint is believed; None: as the folder's own compact says, which
            is no more than the folder's word for who the log and its witnesses are.

    Raises:
        PeerError: It does not hold; says what does not.
        ConfigError: There is no such folder, or a file cannot be read.
    """
    departure = _manifest(directory)
    for path, digest in departure.files.items():
        if (got := _digest(directory / path)) != digest:
            raise MalformedError(f"{path}: wanted sha256 {digest}, got {got}")
    if COMPACT not in departure.files:
        raise MalformedError(f"departure: wanted {COMPACT} among its files, got none")
    policy = policy or policy_of(_compact(directory))
    entries, checkpoint = [], None
    for index in departure.entries:
        data = _read(directory / entry_path(index, "dsse"), MAX_ENTRY_BYTES)
        proof = _read(directory / entry_path(index, "tlog-proof"), MAX_PROOF_BYTES)
        at, cosigned = open_cosigned_proof(proof, data, policy)
        if at != index or checkpoint not in (None, cosigned.checkpoint):
            raise LogError(f"entry {index}: wanted the proof of this place, all under one checkpoint; got {at}")
        checkpoint = cosigned.checkpoint
        entries.append(open_entry(data))
    last = check_whole(entries, departure.consortium, departure.institution)
    if checkpoint is None:
        raise MalformedError("departure: wanted entries, got none")
    return Checked(departure, checkpoint, last)


def _manifest(directory: Path) -> Departure:
    data = _read(directory / MANIFEST, _MAX_MANIFEST_BYTES)
    try:
        departure = Departure.model_validate_json(data)
    except ValidationError as e:
        raise MalformedError(f"{MANIFEST}: {e.errors(include_url=False)[0]['msg']}") from e
    if departure.to_bytes() != data:
        raise MalformedError(f"{MANIFEST}: wanted its one encoding, got another")
    return departure


def _compact(directory: Path) -> Compact:
    try:
        return Compact.model_validate_json(_read(directory / COMPACT, MAX_ENTRY_BYTES))
    except ValidationError as e:
        raise MalformedError(f"{COMPACT}: {e.errors(include_url=False)[0]['msg']}") from e


def _read(path: Path, max_bytes: int) -> bytes:
    data = read_if_there(path, max_bytes, "a departure's file", error=ConfigError, too_large=MalformedError)
    if data is None:
        raise MalformedError(f"{path.name}: wanted this file in the folder, got none")
    return data


def _digest(path: Path) -> Digest:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except FileNotFoundError as e:
        raise MalformedError(f"{path.name}: wanted this file in the folder, got none") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
