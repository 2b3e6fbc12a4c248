"""DSSE v1.0.2 envelopes: the one form in which a statement is signed and logged.

An envelope's bytes are RFC 8785 JSON with signatures sorted by key and unique, so that one signed fact has one leaf.
``keyid`` is the signer's public key itself; whether that key may say so is ``fold``'s concern. Verification hands out
the payload that was verified, and there is no other way to a payload. No I/O.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import parse_base64
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.keys import public_hex, verify_signature
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

PAYLOAD_TYPE = "application/vnd.in-toto+json"

# Nothing in an envelope ever needs an escape, so its RFC 8785 encoding is a regular language: what matches, and has
# canonical base64 in it, is what ``format_envelope`` writes.
_SIGNATURE = re.compile(rb'\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]{86}==)"\}')
_ITEM = _SIGNATURE.pattern.replace(b"(", b"(?:")
_FORM = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]*={0,2})","payloadType":"%s","signatures":\[(%s(?:,%s)*)\]\}'
    % (re.escape(PAYLOAD_TYPE).encode(), _ITEM, _ITEM)
)
_SHOWN = f'{{"payload":"…","payloadType":"{PAYLOAD_TYPE}","signatures":[{{"keyid":"…","sig":"…"}}]}}'


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: the signer's public key in hex, and 64 bytes."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedEnvelope:
    """A well-formed envelope whose signatures nobody has checked."""

    payload: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """A payload, and the distinct public keys (hex, sorted) that signed exactly these bytes."""

    payload: bytes
    signers: tuple[str, ...]


def pae(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding of a payload of our one type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def sign(payload: bytes, key: Ed25519PrivateKey) -> Signature:
    """Sign one payload with one key."""
    return Signature(public_hex(key), key.sign(pae(payload)))


def format_envelope(payload: bytes, signatures: Sequence[Signature]) -> bytes:
    """Return the canonical bytes of an envelope: a log entry.

    Raises:
        MalformedError: No signature, two by one key, or larger than an entry may be.
    """
    ordered = sorted(signatures, key=lambda s: s.key)
    if not ordered or len({s.key for s in ordered}) != len(ordered):
        raise MalformedError("envelope: wanted one or more signatures of distinct keys")
    data = canonical.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": s.key, "sig": base64.b64encode(s.value).decode()} for s in ordered],
        }
    )
    if len(data) > MAX_ENTRY_BYTES:
        raise MalformedError(f"envelope: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    return data


def sign_envelope(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign a payload with one key and return the envelope's bytes."""
    return format_envelope(payload, [sign(payload, key)])


def parse_envelope(data: bytes) -> UnverifiedEnvelope:
    """Parse an envelope without checking a signature.

    Raises:
        MalformedError: Not the one accepted encoding, another payload type, or larger than an entry may be.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise MalformedError(f"envelope: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    if (form := _FORM.fullmatch(data)) is None:
        raise MalformedError(
            f"envelope: wanted canonical JSON of the form {_SHOWN}; got another value, or another encoding of the value"
        )
    payload, items = form.groups()
    signatures = tuple(
        Signature(key.decode(), parse_base64(value.decode(), size=64)) for key, value in _SIGNATURE.findall(items)
    )
    # Order and distinctness are part of the one encoding.
    keys = [s.key for s in signatures]
    if keys != sorted(set(keys)):
        raise MalformedError("envelope: wanted one or more signatures, of distinct keys and sorted by key")
    return UnverifiedEnvelope(parse_base64(payload.decode()), signatures)


def verify_envelope(envelope: UnverifiedEnvelope) -> Verified:
    """Check every signature; a single bad one spoils the envelope.

    Raises:
        SignatureError: A signature does not hold.
    """
    message = pae(envelope.payload)
    for s in envelope.signatures:
        verify_signature(s.key, s.value, message)
    return Verified(envelope.payload, tuple(s.key for s in envelope.signatures))
