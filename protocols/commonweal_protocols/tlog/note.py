"""Signed notes (C2SP signed-note v1): a text, and the lines of those who signed it.

::

    text, ends in LF | LF | one or more of: em dash, space, key name, space, base64(key ID[4] || signature), LF

A key has one signature type: the byte in front of it in a vkey. This module has 0x01 (Ed25519 over the text, a log's
own type); ``cosignature`` has 0x04 and 0x06, the witnesses' types. Opening knows none: it asks a :class:`NoteVerifier`.
Opening verifies first and returns the very text that was signed. No I/O, no clock.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from commonweal_protocols.base.canonical import parse_base64
from commonweal_protocols.base.errors import MalformedError, SignatureError

MAX_NOTE_BYTES = 1_000_000
"""Go's bound (x/mod sumdb/note); one post-quantum line is 3.2 KB."""
MAX_SIGNATURES = 100
"""Go's bound. The specification asks for at least 16."""

ED25519 = 0x01
"""The signature type of Ed25519 over the note's text."""

_KEY_ID_BYTES = 4


class NoteVerifier(Protocol):
    """A signer that is known by name, of any signature type. Immutable, and safe to use from several threads."""

    @property
    def name(self) -> str:
        """The key's name."""

    @property
    def key_id(self) -> bytes:
        """4 bytes: a hint which key signed, never a proof of it."""

    @property
    def key(self) -> bytes:
        """The signature type's byte and the public key behind it: what a vkey holds."""

    def verify(self, text: str, signature: bytes) -> int | None:
        """Check the signature field of a line, without its key ID.

        Returns:
            When it was signed, in seconds since the epoch; None for a type whose signatures have no time.

        Raises:
            InvalidSignature: It does not hold for this text.
            MalformedError: The text is not of the only form that this type signs.
        """


@dataclass(frozen=True, slots=True)
class Verifier:
    """A log's key, known by name: Ed25519 over the text (type 0x01). See :class:`NoteVerifier`."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey

    @property
    def key(self) -> bytes:
        return bytes([ED25519]) + self.public_key.public_bytes_raw()

    def verify(self, text: str, signature: bytes) -> None:
        """See :class:`NoteVerifier`; there is no time in a signature of this type."""
        self.public_key.verify(signature, text.encode())


@dataclass(frozen=True, slots=True)
class VerifiedLine:
    """A signature that holds: who signed, when (seconds since the epoch, or None), and the line with its newline."""

    signer: NoteVerifier
    at: int | None
    line: str


@dataclass(frozen=True, slots=True)
class OpenedNote:
    """A verified text, and the lines of the given verifiers, in their order."""

    text: str
    lines: tuple[VerifiedLine, ...]

    @property
    def signers(self) -> tuple[NoteVerifier, ...]:
        """Those of the given verifiers that signed, in the order of their lines."""
        return tuple(line.signer for line in self.lines)


def check_key_name(name: str) -> None:
    """Check that ``name`` may stand in a vkey and in a signature line.

    Raises:
        MalformedError: Empty, or with a Unicode space, a plus sign, a control character or a lone surrogate.
    """
    # A lone surrogate is text to Python, but has no UTF-8.
    if not name or "+" in name or any(c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in name):
        raise MalformedError(f"key name: wanted text without spaces, plus signs and controls, got {name[:80]!r}")


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any(c < " " and c != "\n" for c in text):
        raise MalformedError("note: wanted text that ends in a newline and has no other control character")


def make_key_id(name: str, key: bytes) -> bytes:
    """Return the 4 bytes by which signature lines name a key (signed-note, "Signatures").

    Args:
        name: The key's name, already checked.
        key: The signature type's byte and the public key behind it.
    """
    return hashlib.sha256(name.encode() + b"\n" + key).digest()[:_KEY_ID_BYTES]


def encode_vkey(name: str, key: bytes) -> str:
    """Return the one encoding of a verifier key of any type (signed-note, "Verifier keys").

    Raises:
        MalformedError: See :func:`check_key_name`.
    """
    check_key_name(name)
    return f"{name}+{make_key_id(name, key).hex()}+{base64.b64encode(key).decode()}"


def decode_vkey(text: str) -> tuple[str, bytes]:
    """Parse a verifier key of any type in its one accepted encoding; the public key is looked at by nobody yet.

    Returns:
        The name, and the signature type's byte with the public key behind it.

    Raises:
        MalformedError: Another encoding, no key, or a key ID that is not the key's.
    """
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise MalformedError(f"vkey: wanted name+keyid+base64, got {text[:120]!r}")
    name, stated_id, encoded = parts
    key = parse_base64(encoded)
    if len(key) < 2:
        raise MalformedError(f"vkey {name[:80]}: wanted a signature type and a public key, got {len(key)} bytes")
    expected = encode_vkey(name, key)
    if text != expected:
        wanted_id = expected.split("+", 2)[1]
        raise MalformedError(f"vkey {name}: wanted key ID {wanted_id}, got {stated_id[:16]!r}")
    return name, key


def make_verifier(name: str, public_key: Ed25519PublicKey) -> Verifier:
    """Return the verifier of ``name`` and its key, for a log (type 0x01).

    Raises:
        MalformedError: See :func:`check_key_name`.
    """
    check_key_name(name)
    return Verifier(name, make_key_id(name, bytes([ED25519]) + public_key.public_bytes_raw()), public_key)


def format_vkey(name: str, public_key: bytes) -> str:
    """Return a log's verifier key: its public encoding for configuration files.

    Args:
        name: The key's name; for a log, its origin.
        public_key: 32 bytes, RFC 8032.

    Raises:
        MalformedError: The name or the length is wrong.
    """
    check_key_name(name)
    if len(public_key) != 32:
        raise MalformedError(f"vkey {name}: wanted a public key of 32 bytes, got {len(public_key)}")
    return encode_vkey(name, bytes([ED25519]) + public_key)


def parse_vkey(text: str) -> Verifier:
    """Parse a log's verifier key in its one accepted encoding.

    A witness's is ``cosignature.parse_cosigner_vkey``'s: one key has one role, so neither takes the other's.

    Raises:
        MalformedError: Another encoding, another signature type than 0x01, or a key ID that is not the key's.
    """
    name, key = decode_vkey(text)
    if key[0] != ED25519 or len(key) != 33:
        raise MalformedError(
            f"vkey {name}: wanted a log's key (01 and 32 bytes), got {key[0]:02x} and {len(key) - 1} bytes"
        )
    return make_verifier(name, Ed25519PublicKey.from_public_bytes(key[1:]))


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> bytes:
    """Return the note of ``text`` with one signature. Ed25519 is deterministic: equal arguments, equal bytes.

    Raises:
        MalformedError: The text or the name may not stand in a note.
    """
    _check_text(text)
    verifier = make_verifier(name, key.public_key())
    try:
        data = text.encode()
    except UnicodeEncodeError as e:
        raise MalformedError(f"note: not valid Unicode: {e.reason}") from e
    return data + b"\n" + format_line(verifier, key.sign(data)).encode()


def format_line(signer: NoteVerifier, signature: bytes) -> str:
    """Return a signature line with its newline, from a signature field without its key ID."""
    return f"— {signer.name} {base64.b64encode(signer.key_id + signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class UnverifiedLine:
    """A signature line that nobody has checked: what it says of itself, and the line with its newline."""

    name: str
    key_id: bytes
    signature: bytes
    line: str


def _parse_line(line: str) -> UnverifiedLine:
    mark, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if mark != "—":
        raise MalformedError(f"note: wanted a signature line, got {line[:80]!r}")
    check_key_name(name)
    blob = parse_base64(encoded)
    if len(blob) <= _KEY_ID_BYTES:
        raise MalformedError(f"note: signature line of {name}: wanted more than a key ID, got {len(blob)} bytes")
    return UnverifiedLine(name, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:], line + "\n")


def split_note(data: bytes) -> tuple[str, tuple[UnverifiedLine, ...]]:
    """Split a note into its text and its signature lines. Nothing is verified.

    Raises:
        MalformedError: Not a note, or above a bound.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise MalformedError(f"note: wanted at most {MAX_NOTE_BYTES} bytes, got {len(data)}")
    # The text may hold empty lines itself, so the last one divides.
    split = data.rfind(b"\n\n")
    try:
        text, block = data[: split + 1].decode(), data[split + 2 :].decode()
    except UnicodeDecodeError as e:
        raise MalformedError(f"note: not UTF-8: {e.reason}") from e
    if split < 0:
        raise MalformedError("note: wanted text, an empty line and signatures; got no empty line")
    _check_text(text)
    _check_text(block)
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedError(f"note: wanted at most {MAX_SIGNATURES} signatures, got {len(lines)}")
    return text, tuple(_parse_line(line) for line in lines)


def open_note(data: bytes, verifiers: Sequence[NoteVerifier]) -> OpenedNote:
    """Verify a note and return its text.

    A line of an unknown (name, key ID) is ignored, and so is the second line of one key. Two verifiers with another
    name but the same public key count as two signers: anyone who counts towards a threshold must refuse that in its own
    configuration, as ``policy`` does.

    Raises:
        MalformedError: Not a note, or above a bound.
        SignatureError: A known key's signature does not hold (the whole note is refused: somebody lies, and we do not
            know about what), no known key has signed, or two verifiers cannot be told apart.
    """
    known: dict[tuple[str, bytes], NoteVerifier] = {}
    for v in verifiers:
        if known.setdefault((v.name, v.key_id), v).key != v.key:
            raise SignatureError(f"note: two keys of {v.name} have the ID {v.key_id.hex()}; make one of them anew")
    text, lines = split_note(data)
    verified: dict[tuple[str, bytes], VerifiedLine] = {}
    for line in lines:
        which = line.name, line.key_id
        verifier = known.get(which)
        if verifier is None or which in verified:
            continue
        try:
            at = verifier.verify(text, line.signature)
        except InvalidSignature as e:
            raise SignatureError(f"note: the signature of {line.name} ({line.key_id.hex()}) does not hold") from e
        verified[which] = VerifiedLine(verifier, at, line.line)
    if not verified:
        wanted = ", ".join(f"{name} ({key_id.hex()})" for name, key_id in known) or "none known"
        raise SignatureError(f"note: wanted a signature of {wanted}, got none")
    return OpenedNote(text, tuple(verified.values()))
