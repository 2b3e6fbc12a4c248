"""One accepted byte encoding for each value.

Encodes RFC 8785 (JCS) and parses strictly: parse, re-encode, compare. Python's own parsers accept several encodings
of one value (``int("+1_0")``, a repeated JSON key, ``b64decode("AB==")``); anyone who signs bytes must not.
No I/O, no clock.
"""

import binascii
import hashlib
import json
import re
from typing import NoReturn

import rfc8785

from commonweal_protocols.base.errors import MalformedError

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]
"""A JSON value as records use it: no floating-point numbers, so that no number has two encodings."""

# Of ASCII, and of any text, it writes the same bytes as rfc8785, several times faster.
_PLAIN = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_INTEGER = 2**53 - 1
_PADDED = {1: frozenset("AEIMQUYcgkosw048"), 2: frozenset("AQgw")}
"""The last characters before so many "=" whose unused low bits are zero."""
_HEX32 = re.compile(r"[0-9a-f]{64}")


def encode(value: Json) -> bytes:
    """Return the RFC 8785 bytes of ``value``.

    Raises:
        MalformedError: An integer beyond ±(2^53 − 1), text that is not valid Unicode, or nesting without end.
    """
    try:
        return rfc8785.dumps(value)
    # RecursionError: what json can parse may be too deep for rfc8785, from Python 3.12 on by thousands of levels.
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as e:
        raise MalformedError(f"canonical JSON: {e}") from e


def _no_float(text: str) -> NoReturn:
    raise MalformedError(f"canonical JSON: wanted an integer, got {text[:40]!r}")


def _integer(text: str) -> int:
    # Digits are counted first: int() of a very long text is slow.
    if len(text) > 17 or not -_MAX_INTEGER <= (value := int(text)) <= _MAX_INTEGER:
        raise MalformedError(f"canonical JSON: wanted an integer within ±(2^53 - 1), got {text[:40]}")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedError("canonical JSON: a key is repeated")
    return value


def encode_text(text: str) -> bytes:
    """Return the RFC 8785 bytes of a text.

    Raises:
        MalformedError: Not valid Unicode.
    """
    try:
        return _PLAIN.encode(text).encode()
    except UnicodeEncodeError as e:
        raise MalformedError(f"canonical JSON: {e}") from e


def parse(data: bytes, *, max_bytes: int) -> Json:
    """Parse bytes that must be their own RFC 8785 encoding.

    Raises:
        MalformedError: Larger than ``max_bytes``, not JSON, a float, a repeated key, or any other encoding.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"canonical JSON: wanted at most {max_bytes} bytes, got {len(data)}")
    try:
        value: Json = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
        # Only where a key is not ASCII does RFC 8785 section 3.2.3 (by UTF-16 code units) sort otherwise.
        again = _PLAIN.encode(value).encode() if data.isascii() else encode(value)
    # RecursionError: a few thousand "[" fit into any sensible bound; what can just be read may be too deep to write.
    except (ValueError, RecursionError) as e:
        raise MalformedError(f"canonical JSON: {e}") from e
    if again != data:
        raise MalformedError("canonical JSON: these bytes are another encoding of the value; wanted RFC 8785")
    return value


def parse_decimal(text: str) -> int:
    """Parse an unsigned decimal below 2^63 without sign, zeros in front, or foreign digits.

    Raises:
        MalformedError: Any other encoding.
    """
    if not _DECIMAL.fullmatch(text) or (value := int(text)) >= 1 << 63:
        raise MalformedError(f"decimal: wanted 0 to 2^63 - 1 in plain digits, got {text[:40]!r}")
    return value


def parse_base64(text: str, *, size: int | None = None) -> bytes:
    """Parse padded base64 (RFC 4648 section 4) in its one canonical encoding.

    Raises:
        MalformedError: Another encoding, or not ``size`` bytes where a size is given.
    """
    try:
        value = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as e:
        raise MalformedError(f"base64: {e}") from e
    # Strict mode passes over unused low bits that are not zero, and padding behind a whole group; we must not.
    end = text.endswith("=") + text.endswith("==")
    if len(text) % 4 or (end and text[-1 - end] not in _PADDED[end]):
        raise MalformedError("base64: not the canonical encoding")
    if size is not None and len(value) != size:
        raise MalformedError(f"base64: wanted {size} bytes, got {len(value)}")
    return value


def parse_digest(text: str) -> bytes:
    """Parse 64 lower-case hex digits as the 32 bytes of a SHA-256.

    Raises:
        MalformedError: Any other encoding.
    """
    if not _HEX32.fullmatch(text):
        raise MalformedError(f"sha256: wanted 64 lower-case hex digits, got {text[:70]!r}")
    return bytes.fromhex(text)


def digest_of(data: bytes) -> str:
    """Return the SHA-256 by which records name bytes, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()
