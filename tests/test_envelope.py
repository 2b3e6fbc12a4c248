"""DSSE envelopes."""

import base64
import json

import pytest

from commonweal_protocols import canonical
from commonweal_protocols.envelope import (
    PAYLOAD_TYPE,
    format_envelope,
    pae,
    parse_envelope,
    sign,
    sign_envelope,
    verify_envelope,
)
from commonweal_protocols.errors import MalformedError, SignatureError
from commonweal_protocols.keys import public_hex
from tests.federation import key_of

A, B = key_of("a"), key_of("b")


def test_pae_is_that_of_the_dsse_specification() -> None:
    # Protocol.md: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body, lengths in bytes.
    body = "café".encode()
    assert pae(body) == b"DSSEv1 28 application/vnd.in-toto+json 5 caf\xc3\xa9"
    assert len(PAYLOAD_TYPE) == 28


def test_what_two_signed_is_verified_for_both() -> None:
    data = format_envelope(b"x", [sign(b"x", A), sign(b"x", B)])
    verified = verify_envelope(parse_envelope(data))
    assert verified.payload == b"x"
    assert verified.signers == tuple(sorted([public_hex(A), public_hex(B)]))


def test_the_order_of_signing_does_not_change_the_leaf() -> None:
    signatures = [sign(b"x", A), sign(b"x", B)]
    assert format_envelope(b"x", signatures) == format_envelope(b"x", signatures[::-1])


def test_one_key_counts_once() -> None:
    with pytest.raises(MalformedError, match="distinct"):
        format_envelope(b"x", [sign(b"x", A), sign(b"x", A)])


def _edit(**changes: object) -> bytes:
    value = json.loads(format_envelope(b"x", [sign(b"x", A), sign(b"x", B)]))
    value.update(changes)
    return canonical.encode(value)


def _signature(**changes: object) -> bytes:
    value = json.loads(sign_envelope(b"x", A))
    value["signatures"][0].update(changes)
    return canonical.encode(value)


@pytest.mark.parametrize(
    ("data", "error", "why"),
    [
        (_edit(payload=base64.b64encode(b"y").decode()), SignatureError, "another payload"),
        (_edit(payloadType="application/json"), MalformedError, "another type"),
        (_edit(extra=1), MalformedError, "an unknown key"),
        (_edit(signatures=[]), MalformedError, "no signature"),
        (_edit(payload="eB=="), MalformedError, "another spelling of the payload"),
        (_signature(keyid=public_hex(B)), SignatureError, "another key"),
        (_signature(sig=base64.b64encode(bytes(64)).decode()), SignatureError, "another signature"),
        (_signature(sig=base64.b64encode(bytes(63)).decode()), MalformedError, "a short signature"),
        (_signature(extra=1), MalformedError, "an unknown key in a signature"),
        (sign_envelope(b"x", A) + b"\n", MalformedError, "a trailing byte"),
    ],
)
def test_an_envelope_with_one_thing_wrong_is_refused(data: bytes, error: type[Exception], why: str) -> None:
    with pytest.raises(error):
        verify_envelope(parse_envelope(data))


def test_signatures_in_another_order_are_another_spelling() -> None:
    value = json.loads(format_envelope(b"x", [sign(b"x", A), sign(b"x", B)]))
    value["signatures"].reverse()
    with pytest.raises(MalformedError, match="sorted by key"):
        parse_envelope(canonical.encode(value))


def test_an_envelope_larger_than_an_entry_is_refused() -> None:
    with pytest.raises(MalformedError, match="wanted at most 65535 bytes"):
        sign_envelope(bytes(60_000), A)
