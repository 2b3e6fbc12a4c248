"""Checkpoints (C2SP tlog-checkpoint v1): what a log claims about itself, in three lines.

::

    origin | LF | tree size in decimal | LF | base64(root hash) | LF

There are no extension lines: cosigners disagree whether they cover them. No I/O.
"""

import base64
from dataclasses import dataclass

from commonweal_protocols.base.canonical import parse_base64, parse_decimal
from commonweal_protocols.base.errors import MalformedError, SignatureError
from commonweal_protocols.tlog.merkle import EMPTY_ROOT, HASH_BYTES
from commonweal_protocols.tlog.note import Verifier, check_key_name, open_note

MAX_ORIGIN_BYTES = 255
"""The length field of an ML-DSA cosignature holds no more."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's size and root hash. ``origin`` names the log for its whole life, and is its key's name."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def check_origin(origin: str) -> None:
    """Check that ``origin`` can name a log.

    Raises:
        MalformedError: Not a key name, or too long.
    """
    check_key_name(origin)
    if len(origin.encode()) > MAX_ORIGIN_BYTES:
        raise MalformedError(f"origin: wanted at most {MAX_ORIGIN_BYTES} bytes, got {len(origin.encode())}")


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a note whose signature the caller has verified.

    One claim has one accepted encoding, so all who saw the same claim hold the same bytes.

    Raises:
        MalformedError: Not exactly three lines in that encoding, or size 0 with another root than the empty tree's.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise MalformedError(f"checkpoint: wanted 3 lines, got {text[:200]!r}")
    check_origin(lines[0])
    checkpoint = Checkpoint(lines[0], parse_decimal(lines[1]), parse_base64(lines[2], size=HASH_BYTES))
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise MalformedError(f"checkpoint {lines[0]}: size 0 has the root {EMPTY_ROOT.hex()}, got another")
    return checkpoint


def open_checkpoint(data: bytes, log: Verifier) -> Checkpoint:
    """Verify a signed checkpoint of ``log``; its name is the origin that is wanted.

    Raises:
        MalformedError: Not a note with a checkpoint in it.
        SignatureError: Not signed by the log's key, or signed for another origin.
    """
    checkpoint = parse_checkpoint(open_note(data, [log]).text)
    if checkpoint.origin != log.name:
        raise SignatureError(f"checkpoint: wanted origin {log.name}, got {checkpoint.origin}")
    return checkpoint
