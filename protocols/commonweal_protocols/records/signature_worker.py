"""A process that checks signatures for the one that started it, until its standard input ends: no clock, no files.

What it reads and writes, with big-endian numbers::

    frame     uint32 length, then so many bytes: claims, up to the end
    claim     uint16 signatures, uint32 message bytes, signatures × (32 bytes key, 64 bytes signature), message
    answer    for each claim of a frame one byte: 1 if every signature holds, 0 if not

Only signatures and the bytes they are on get here, and one bit for each comes back: nothing is parsed that would have
to be trusted, and an answer of a frame always fits into a pipe, so neither side waits for the other in a circle.
"""

import os
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from commonweal_protocols.base.ed25519 import KEY_BYTES, SIGNATURE_BYTES, holds
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.tlog.tiles import BUNDLE_ENTRIES, MAX_ENTRY_BYTES

MAX_CLAIMS = BUNDLE_ENTRIES
MAX_FRAME_BYTES = MAX_CLAIMS * 2 * MAX_ENTRY_BYTES
"""Whatever stands in an envelope is shorter here, where it is not base64."""
HOLDS, HOLDS_NOT = 1, 0

_LENGTH = struct.Struct(">I")
_CLAIM = struct.Struct(">HI")
_SIGNED_BYTES = KEY_BYTES + SIGNATURE_BYTES


class Claim(NamedTuple):
    """A message, and who is said to have signed it: key (32 bytes) and signature (64 bytes) behind one another."""

    message: bytes
    signatures: tuple[bytes, ...]


def encode_frame(claims: Sequence[Claim]) -> bytes:
    """Return the frame of 1 to :data:`MAX_CLAIMS` claims.

    Raises:
        ValueError: Fewer, or more, or larger than a frame may be (the caller's mistake).
    """
    parts = [b""]
    for message, signatures in claims:
        parts += (_CLAIM.pack(len(signatures), len(message)), *signatures, message)
    parts[0] = _LENGTH.pack(length := sum(map(len, parts)))
    if not 1 <= len(claims) <= MAX_CLAIMS or length > MAX_FRAME_BYTES:
        raise ValueError(f"frame: wanted 1 to {MAX_CLAIMS} claims of {MAX_FRAME_BYTES} bytes, got {len(claims)}")
    return b"".join(parts)


def read_frame(stream: BinaryIO) -> list[Claim] | None:
    """Read one frame; None at the end of the stream.

    Raises:
        MalformedError: Cut off, larger than a frame may be, or not of the form.
    """
    if not (head := stream.read(_LENGTH.size)):
        return None
    length = int.from_bytes(head, "big")
    if len(head) < _LENGTH.size or length > MAX_FRAME_BYTES:
        raise MalformedError(f"frame: wanted a length of at most {MAX_FRAME_BYTES}, got {length}")
    frame = stream.read(length)
    if len(frame) < length:
        raise MalformedError(f"frame: wanted {length} bytes, got {len(frame)}")
    claims = list(_split(frame))
    if not 1 <= len(claims) <= MAX_CLAIMS:
        raise MalformedError(f"frame: wanted 1 to {MAX_CLAIMS} claims, got {len(claims)}")
    return claims


def _split(frame: bytes) -> Iterator[Claim]:
    at = 0
    while at < len(frame):
        start = at + _CLAIM.size
        if start > len(frame):
            raise MalformedError("frame: a claim is cut off")
        count, size = _CLAIM.unpack_from(frame, at)
        middle = start + count * _SIGNED_BYTES
        at = middle + size
        if not count or at > len(frame):
            raise MalformedError(f"frame: a claim of {count} signatures and {size} bytes is cut off")
        yield Claim(frame[middle:at], tuple(frame[i : i + _SIGNED_BYTES] for i in range(start, middle, _SIGNED_BYTES)))


def answer(claims: Sequence[Claim]) -> bytes:
    """Return the answer to a frame's claims."""
    return bytes(
        HOLDS if all(holds(s[:KEY_BYTES], s[KEY_BYTES:], message) for s in signatures) else HOLDS_NOT
        for message, signatures in claims
    )


def main() -> int:
    """Answer until there is no more to read; 1 if what was read is not of the form."""
    # Ctrl-C reaches the whole group of processes; anyone who started this one ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # All workers wait for the one process that started them, so it comes first where they share a core.
    os.nice(1)
    try:
        while (claims := read_frame(sys.stdin.buffer)) is not None:
            sys.stdout.buffer.write(answer(claims))
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Nobody is there any more to be told; nor may the interpreter's own flush at the end complain of it.
        sys.stdout = None
    except MalformedError as e:
        print(f"signature worker: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
