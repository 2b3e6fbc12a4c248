"""Proofs that an entry is in a log, in one file (C2SP tlog-proof@v1): what an author keeps as a receipt. No I/O.

::

    c2sp.org/tlog-proof@v1 | LF
    extra <base64> | LF                  optional, unauthenticated: skipped here, never written
    index <decimal> | LF
    <base64 hash> | LF                   0 to 63 times, the leaf's sibling first
    LF
    the signed checkpoint, verbatim
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from commonweal_protocols.base.canonical import parse_base64, parse_decimal
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.merkle import HASH_BYTES, MAX_PATH, leaf_hash, verify_inclusion
from commonweal_protocols.tlog.note import MAX_NOTE_BYTES, Verifier
from commonweal_protocols.tlog.policy import Cosigned, Policy

_HEADER = "c2sp.org/tlog-proof@v1"
_MAX_EXTRA_BYTES = 65536
MAX_PROOF_BYTES = MAX_NOTE_BYTES + _MAX_EXTRA_BYTES + 4096
"""A note of the largest size, an extra line, and 63 hashes."""


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An unverified proof: an index, hashes of 32 bytes, and the signed checkpoint."""

    index: int
    path: tuple[bytes, ...]
    checkpoint_note: bytes


def format_proof(index: int, path: Sequence[bytes], checkpoint_note: bytes) -> bytes:
    """Return the file's bytes."""
    lines = [_HEADER, f"index {index}", *(base64.b64encode(h).decode() for h in path)]
    return "\n".join(lines).encode() + b"\n\n" + checkpoint_note


def parse_proof(data: bytes) -> TlogProof:
    """Parse a proof that nobody has verified.

    Raises:
        MalformedError: Another format, another encoding, or above a bound.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise MalformedError(f"proof: wanted at most {MAX_PROOF_BYTES} bytes, got {len(data)}")
    head, divider, note = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as e:
        raise MalformedError("proof: wanted ASCII up to the checkpoint") from e
    if not divider or lines[0] != _HEADER:
        raise MalformedError(f"proof: wanted {_HEADER!r} and a checkpoint, got {lines[0][:80]!r}")
    rest = lines[1:]
    if rest and rest[0].startswith("extra "):
        parse_base64(rest[0].removeprefix("extra "))
        rest = rest[1:]
    if not rest or not rest[0].startswith("index "):
        raise MalformedError(f"proof: wanted an index line, got {rest[0][:80] if rest else 'nothing'!r}")
    if len(rest) - 1 > MAX_PATH:
        raise MalformedError(f"proof: wanted at most {MAX_PATH} hashes, got {len(rest) - 1}")
    index = parse_decimal(rest[0].removeprefix("index "))
    return TlogProof(index, tuple(parse_base64(line, size=HASH_BYTES) for line in rest[1:]), note)


def open_proof(data: bytes, entry: bytes, log: Verifier) -> tuple[int, Checkpoint]:
    """Verify that ``log`` has ``entry``, from the entry's own bytes: nothing that the proof says is taken for it.

    Returns:
        The entry's index, and the log's tree that it is in.

    Raises:
        MalformedError: Not a proof.
        SignatureError: The checkpoint is not the log's.
        LogError: The entry is not in the tree at that place.
    """
    proof = parse_proof(data)
    checkpoint = open_checkpoint(proof.checkpoint_note, log)
    verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.path, checkpoint.root)
    return proof.index, checkpoint


def open_cosigned_proof(data: bytes, entry: bytes, policy: Policy) -> tuple[int, Cosigned]:
    """Verify that a log of ``policy`` has ``entry``, and that the policy's quorum of witnesses has seen that tree.

    Returns:
        The entry's index, and the cosigned checkpoint that it is in.

    Raises:
        MalformedError: Not a proof.
        SignatureError: The checkpoint is of no log of the policy, or its quorum is not met.
        LogError: The entry is not in the tree at that place.
    """
    proof = parse_proof(data)
    cosigned = policy.open(proof.checkpoint_note)
    tree = cosigned.checkpoint
    verify_inclusion(leaf_hash(entry), proof.index, tree.size, proof.path, tree.root)
    return proof.index, cosigned
