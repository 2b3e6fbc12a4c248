"""Cosignatures (C2SP tlog-cosignature v1): a witness says when a checkpoint was the largest consistent one it had seen.

::

    signature field   uint64 timestamp, big-endian seconds since the epoch || signature
    0x04 Ed25519      over "cosignature/v1" LF "time " decimal LF, and the checkpoint's three lines
    0x06 ML-DSA-44    over "subtree/v1" LF NUL || u8 len, cosigner's name || u64 timestamp || u8 len, origin
                           || u64 start = 0 || u64 end = size || root[32]          pure mode, empty context

Ed25519 is always there; ML-DSA-44 is a second line beside it for those who want it. The Ed25519 message does not hold
the cosigner's name, so one key is for one witness and for nothing else. What is signed is a checkpoint that was parsed
and is encoded anew, never bytes that were received. No I/O, no clock: the caller gives the time.
"""

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.tlog.checkpoint import Checkpoint, check_origin, parse_checkpoint
from commonweal_protocols.tlog.note import check_key_name, decode_vkey, encode_vkey, format_line, make_key_id

ED25519_COSIGNATURE = 0x04
ML_DSA_44_COSIGNATURE = 0x06
MAX_NAME_BYTES = 255
"""The length field of an ML-DSA cosignature holds no more; demanded of every cosigner, so that it can add that key."""
MAX_TIME_SECONDS = (1 << 63) - 1

CosignerKey = Ed25519PrivateKey | MLDSA44PrivateKey
_TIME_BYTES = 8
_SUBTREE_LABEL = b"subtree/v1\n\x00"


def _message(kind: int, name: str, checkpoint: Checkpoint, at: int) -> bytes:
    """The bytes that a cosigner signs."""
    if kind == ED25519_COSIGNATURE:
        return f"cosignature/v1\ntime {at}\n{checkpoint.text()}".encode()
    cosigner, origin = name.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            _SUBTREE_LABEL,
            struct.pack(">B", len(cosigner)) + cosigner,
            struct.pack(">Q", at),
            struct.pack(">B", len(origin)) + origin,
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        )
    )


@dataclass(frozen=True, slots=True)
class CosignatureVerifier:
    """A witness's key, known by name: type 0x04 or 0x06 by the kind of its public key. See ``note.NoteVerifier``."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey | MLDSA44PublicKey

    @property
    def key(self) -> bytes:
        """The signature type's byte and the public key behind it (32 or 1,312 bytes)."""
        return bytes([_kind(self.public_key)]) + self.public_key.public_bytes_raw()

    @property
    def vkey(self) -> str:
        """The public encoding for policies and configuration files."""
        return encode_vkey(self.name, self.key)

    def verify(self, text: str, signature: bytes) -> int:
        """Check a cosignature of a checkpoint's text; returns its time, in seconds since the epoch.

        Raises:
            InvalidSignature: It does not hold, or its time is 0 (no statement that this is the largest tree) or above
                2^63 - 1. Times in the future are the caller's to judge: there is no clock here.
            MalformedError: The text is not a checkpoint.
        """
        at = int.from_bytes(signature[:_TIME_BYTES], "big")
        if len(signature) <= _TIME_BYTES or not 0 < at <= MAX_TIME_SECONDS:
            raise InvalidSignature
        message = _message(_kind(self.public_key), self.name, parse_checkpoint(text), at)
        self.public_key.verify(signature[_TIME_BYTES:], message)
        return at


def _kind(key: Ed25519PublicKey | MLDSA44PublicKey) -> int:
    return ED25519_COSIGNATURE if isinstance(key, Ed25519PublicKey) else ML_DSA_44_COSIGNATURE


def make_cosignature_verifier(name: str, public_key: Ed25519PublicKey | MLDSA44PublicKey) -> CosignatureVerifier:
    """Return the verifier of the witness ``name`` and its key.

    Raises:
        MalformedError: Not a key name, or above 255 bytes.
    """
    check_key_name(name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedError(f"cosigner: wanted a name of at most {MAX_NAME_BYTES} bytes, got {len(name.encode())}")
    key = bytes([_kind(public_key)]) + public_key.public_bytes_raw()
    return CosignatureVerifier(name, make_key_id(name, key), public_key)


def parse_cosigner_vkey(text: str) -> CosignatureVerifier:
    """Parse a witness's verifier key, of either type, in its one accepted encoding.

    Raises:
        MalformedError: Another encoding, another signature type than 04 or 06, a key of another length, or a key ID
            that is not the key's.
    """
    name, key = decode_vkey(text)
    public_key: Ed25519PublicKey | MLDSA44PublicKey
    if key[0] == ED25519_COSIGNATURE and len(key) == 1 + 32:
        public_key = Ed25519PublicKey.from_public_bytes(key[1:])
    elif key[0] == ML_DSA_44_COSIGNATURE and len(key) == 1 + 1312:
        public_key = MLDSA44PublicKey.from_public_bytes(key[1:])
    else:
        raise MalformedError(
            f"vkey {name}: wanted a witness's key (04 and 32 bytes, or 06 and 1312), "
            f"got {key[0]:02x} and {len(key) - 1} bytes"
        )
    return make_cosignature_verifier(name, public_key)


def cosign(checkpoint: Checkpoint, name: str, key: CosignerKey, *, at: int) -> str:
    """Return the signature line, with its newline, of one cosignature.

    The caller has checked that the checkpoint is consistent with everything it cosigned before, and has made it durable
    before the line leaves the machine: see ``witness``.

    Args:
        checkpoint: What to cosign.
        name: The witness's name.
        key: The witness's key of either type, used for nothing else.
        at: Now, in seconds since the epoch; 1 to 2^63 - 1.

    Raises:
        MalformedError: The name, the origin or the time has no place in a cosignature.
    """
    if not 0 < at <= MAX_TIME_SECONDS:
        raise MalformedError(f"cosignature: wanted a time of 1 to 2^63 - 1 seconds, got {at}")
    check_origin(checkpoint.origin)
    verifier = make_cosignature_verifier(name, key.public_key())
    message = _message(_kind(verifier.public_key), name, checkpoint, at)
    return format_line(verifier, struct.pack(">Q", at) + key.sign(message))
