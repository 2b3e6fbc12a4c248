"""The upload permit: a member's signature that lets exactly one blob into its consortium's exchange.

::

    commonweal-upload-permit/v1
    <consortium, 64 hex digits>
    <sha256, 64 hex digits>
    <size in bytes, decimal>

Every line ends with a newline. The first line keeps a permit from ever being read as another signed thing: an
envelope's signature covers a DSSE encoding, which begins with ``DSSEv1``.

A permit has no nonce and no date, because a replay does no harm: it allows only the very bytes that the member vouched
for, once they are there the exchange takes no more, and an unfinished upload counts against the same member's few
places. Anyone who replays one without the bytes can at most make that member send them again.

Pure: no I/O, no clock.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.canonical import parse_digest
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.keys import verify_signature
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Blob, Digest, PublicKey

_DOMAIN = "commonweal-upload-permit/v1"


def parse_blob(sha256: str, size_bytes: int) -> Blob:
    """Return the blob that a peer names by two loose values.

    Raises:
        MalformedError: Not a digest, or a size out of range.
    """
    parse_digest(sha256)
    if not 1 <= size_bytes <= MAX_BLOB_BYTES:
        raise MalformedError(f"blob {sha256}: wanted 1 to {MAX_BLOB_BYTES} bytes, got {size_bytes}")
    return Blob(sha256=sha256, size_bytes=size_bytes)


def _message(consortium: Digest, blob: Blob) -> bytes:
    parse_digest(consortium)
    return f"{_DOMAIN}\n{consortium}\n{blob.sha256}\n{blob.size_bytes}\n".encode()


def sign_permit(key: Ed25519PrivateKey, consortium: Digest, blob: Blob) -> bytes:
    """Return the 64 bytes of a member's Ed25519 signature on the permit.

    Raises:
        MalformedError: ``consortium`` is not a digest.
    """
    return key.sign(_message(consortium, blob))


def verify_permit(public_key: PublicKey, signature: bytes, consortium: Digest, blob: Blob) -> None:
    """Check a permit under a public key; whether that key is a member's is the caller's question.

    Raises:
        MalformedError: The key or ``consortium`` is not 64 hex digits.
        SignatureError: The signature is not this key's on this consortium, digest and size.
    """
    verify_signature(public_key, signature, _message(consortium, blob))
