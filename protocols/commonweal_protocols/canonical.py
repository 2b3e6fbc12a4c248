"""One accepted byte spelling for each value.

Encodes RFC 8785 (JCS) and parses strictly: parse, re-encode, compare. Python's own parsers accept several spellings
of one value (``int("+1_0")``, a repeated JSON key, ``b64decode("AB==")``); whoever signs bytes must not.
No I/O, no clock.
"""

import base64
import binascii
import hashlib
import json
import re
from typing import NoReturn

import rfc8785

from commonweal_protocols.errors import MalformedError

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]
"""A JSON value as records use it: no floating-point numbers, so that no number has two spellings."""

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_HEX32 = re.compile(r"[0-9a-f]{64}")


def encode(value: Json) -> bytes:
    """Return the RFC 8785 bytes of ``value``.

    Raises:
        MalformedError: An integer beyond ±(2^53 − 1), or text that is not valid Unicode.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as e:
        raise MalformedError(f"canonical JSON: {e}") from e


def _no_float(text: str) -> NoReturn:
    raise MalformedError(f"canonical JSON: wanted an integer, got {text[:40]!r}")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedError("canonical JSON: a key is repeated")
    return value


def parse(data: bytes, *, max_bytes: int) -> Json:
    """Parse bytes that must be their own RFC 8785 encoding.

    Raises:
        MalformedError: Larger than ``max_bytes``, not JSON, a float, a repeated key, or any other spelling.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"canonical JSON: wanted at most {max_bytes} bytes, got {len(data)}")
    try:
        value: Json = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float
        )
    # RecursionError: a few thousand "[" fit into any sensible bound.
    except (ValueError, RecursionError) as e:
        raise MalformedError(f"canonical JSON: {e}") from e
    if encode(value) != data:
        raise MalformedError("canonical JSON: these bytes are another spelling of the value; wanted RFC 8785")
    return value


def parse_decimal(text: str) -> int:
    """Parse an unsigned decimal below 2^63 without sign, zeros in front, or foreign digits.

    Raises:
        MalformedError: Any other spelling.
    """
    if not _DECIMAL.fullmatch(text) or (value := int(text)) >= 1 << 63:
        raise MalformedError(f"decimal: wanted 0 to 2^63 - 1 in plain digits, got {text[:40]!r}")
    return value


def parse_base64(text: str, *, size: int | None = None) -> bytes:
    """Parse padded base64 (RFC 4648 section 4) in its one canonical spelling.

    Raises:
        MalformedError: Another spelling, or not ``size`` bytes where a size is given.
    """
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise MalformedError(f"base64: {e}") from e
    # b64decode ignores the unused low bits of the last character; we must not.
    if base64.b64encode(value).decode() != text:
        raise MalformedError("base64: not the canonical spelling")
    if size is not None and len(value) != size:
        raise MalformedError(f"base64: wanted {size} bytes, got {len(value)}")
    return value


def parse_digest(text: str) -> bytes:
    """Parse 64 lower-case hex digits as the 32 bytes of a SHA-256.

    Raises:
        MalformedError: Any other spelling.
    """
    if not _HEX32.fullmatch(text):
        raise MalformedError(f"sha256: wanted 64 lower-case hex digits, got {text[:70]!r}")
    return bytes.fromhex(text)


def digest_of(data: bytes) -> str:
    """Return the SHA-256 by which records name bytes, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()
