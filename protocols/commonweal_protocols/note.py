"""Signed notes (C2SP signed-note v1): a text, and the lines of those who signed it.

::

    text, ends in LF | LF | one or more of: em dash, space, key name, space, base64(key ID[4] || signature), LF

Only signature type 0x01 (Ed25519 over the text) is known here; a line of any other type is a line of an unknown key.
Opening verifies first and returns the very text that was signed. No I/O, no clock.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from commonweal_protocols.canonical import parse_base64
from commonweal_protocols.errors import MalformedError, SignatureError

MAX_NOTE_BYTES = 1_000_000
"""Go's bound (x/mod sumdb/note); one post-quantum line is 3.2 KB."""
MAX_SIGNATURES = 100
"""Go's bound. The specification asks for at least 16."""

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Verifier:
    """A signer that is known by name. ``key_id`` is 4 bytes: a hint which key signed, never a proof of it."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class OpenedNote:
    """A verified text, and those of the given verifiers that signed it, in the order of their lines."""

    text: str
    signers: tuple[Verifier, ...]


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


def _key_id(name: str, public_key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]


def make_verifier(name: str, public_key: Ed25519PublicKey) -> Verifier:
    """Return the verifier of ``name`` and its key.

    Raises:
        MalformedError: See :func:`check_key_name`.
    """
    check_key_name(name)
    return Verifier(name, _key_id(name, public_key.public_bytes_raw()), public_key)


def format_vkey(name: str, public_key: bytes) -> str:
    """Return the verifier key of ``name``: its public spelling for configuration files.

    Args:
        name: The key's name; for a log, its origin.
        public_key: 32 bytes, RFC 8032.

    Raises:
        MalformedError: The name or the length is wrong.
    """
    check_key_name(name)
    if len(public_key) != 32:
        raise MalformedError(f"vkey {name}: wanted a public key of 32 bytes, got {len(public_key)}")
    return f"{name}+{_key_id(name, public_key).hex()}+{base64.b64encode(_ED25519 + public_key).decode()}"


def parse_vkey(text: str) -> Verifier:
    """Parse a verifier key in its one accepted spelling.

    Raises:
        MalformedError: Another spelling, another signature type than Ed25519, or a key ID that is not the key's.
    """
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise MalformedError(f"vkey: wanted name+keyid+base64, got {text[:120]!r}")
    name, stated_id, encoded = parts
    key = parse_base64(encoded)
    if key[:1] != _ED25519:
        raise MalformedError(f"vkey {name[:80]}: wanted signature type 01 (Ed25519), got {key[:1].hex() or 'nothing'}")
    expected = format_vkey(name, key[1:])
    if text != expected:
        wanted_id = expected.split("+", 2)[1]
        raise MalformedError(f"vkey {name}: wanted key ID {wanted_id}, got {stated_id[:16]!r}")
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
    line = f"\n— {name} {base64.b64encode(verifier.key_id + key.sign(data)).decode()}\n"
    return data + line.encode()


def _parse_line(line: str) -> tuple[str, bytes, bytes]:
    """Return key name, key ID and signature of one signature line (without its newline)."""
    mark, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if mark != "—":
        raise MalformedError(f"note: wanted a signature line, got {line[:80]!r}")
    check_key_name(name)
    blob = parse_base64(encoded)
    if len(blob) <= _KEY_ID_BYTES:
        raise MalformedError(f"note: signature line of {name}: wanted more than a key ID, got {len(blob)} bytes")
    return name, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:]


def open_note(data: bytes, verifiers: Sequence[Verifier]) -> OpenedNote:
    """Verify a note and return its text.

    A line of an unknown (name, key ID) is ignored, and so is the second line of one key. Two verifiers with another
    name but the same public key count as two signers: whoever counts towards a threshold must refuse that in its own
    configuration.

    Raises:
        MalformedError: Not a note, or above a bound.
        SignatureError: A known key's signature does not hold (the whole note is refused: somebody lies, and we do not
            know about what), no known key has signed, or two verifiers cannot be told apart.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for v in verifiers:
        if known.setdefault((v.name, v.key_id), v).public_key != v.public_key:
            raise SignatureError(f"note: two keys of {v.name} have the ID {v.key_id.hex()}; make one of them anew")
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
    signers: list[Verifier] = []
    for line in lines:
        name, key_id, signature = _parse_line(line)
        verifier = known.get((name, key_id))
        if verifier is None or verifier in signers:
            continue
        try:
            verifier.public_key.verify(signature, data[: split + 1])
        except InvalidSignature as e:
            raise SignatureError(f"note: the signature of {name} ({key_id.hex()}) does not hold") from e
        signers.append(verifier)
    if not signers:
        wanted = ", ".join(f"{name} ({key_id.hex()})" for name, key_id in known) or "none known"
        raise SignatureError(f"note: wanted a signature of {wanted}, got none")
    return OpenedNote(text, tuple(signers))
