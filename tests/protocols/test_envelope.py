"""DSSE envelopes."""

import base64
import json
import re
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import parse_base64, parse_digest
from commonweal_protocols.base.errors import MalformedError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.envelope import (
    PAYLOAD_TYPE,
    Signature,
    UnverifiedEnvelope,
    format_envelope,
    pae,
    parse_envelope,
    sign,
    sign_envelope,
    verify_envelope,
)
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from tests.kit.federation import key_of

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
        (_edit(payload="eB=="), MalformedError, "another encoding of the payload"),
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


def test_signatures_in_another_order_are_another_encoding() -> None:
    value = json.loads(format_envelope(b"x", [sign(b"x", A), sign(b"x", B)]))
    value["signatures"].reverse()
    with pytest.raises(MalformedError, match="sorted by key"):
        parse_envelope(canonical.encode(value))


def test_an_envelope_larger_than_an_entry_is_refused() -> None:
    with pytest.raises(MalformedError, match="wanted at most 65535 bytes"):
        sign_envelope(bytes(60_000), A)


# -- the same acceptance as a second parser's, which takes JSON apart as Python's standard library does


def second_parse(data: bytes) -> UnverifiedEnvelope:
    value = canonical.parse(data, max_bytes=MAX_ENTRY_BYTES)
    match value:
        case {"payload": str(payload), "payloadType": str(kind), "signatures": list(items), **rest} if not rest:
            pass
        case _:
            raise MalformedError("not an envelope")
    if kind != PAYLOAD_TYPE:
        raise MalformedError("another type")
    signatures = []
    for item in items:
        match item:
            case {"keyid": str(key), "sig": str(sig), **rest} if not rest:
                parse_digest(key)
                signatures.append(Signature(key, parse_base64(sig, size=64)))
            case _:
                raise MalformedError("not a signature")
    if not signatures or [s.key for s in signatures] != sorted({s.key for s in signatures}):
        raise MalformedError("not sorted")
    return UnverifiedEnvelope(parse_base64(payload), tuple(signatures))


def judged(parse: Callable[[bytes], UnverifiedEnvelope], data: bytes) -> UnverifiedEnvelope | None:
    try:
        return parse(data)
    except MalformedError:
        return None


ENVELOPES = [
    format_envelope(p, [sign(p, k) for k in keys]) for p in (b"", b"x", b"xy", b"\0" * 9) for keys in ([A], [A, B])
]
SPLICES = [
    b"", b" ", b"=", b"==", b"A", b"/", b"+", b"_", b"\\/", b"\\u0041", b"\xff", b'"', b"1", b"null", b"{}", b",",
    b'"a":1,', b"\n", b"[]",
]  # fmt: skip


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """A good envelope in which some parts are put in, left out, doubled or exchanged."""
    data = draw(st.sampled_from(ENVELOPES))
    for _ in range(draw(st.integers(0, 2))):
        parts = list(re.finditer(rb'"[^"]*"|\{[^{}]*\}|[{}\[\],:]', data))
        one, two = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        new = draw(st.sampled_from([one[0] * 2, one[0] + b"," + one[0], two[0]]) | st.sampled_from(SPLICES))
        at, to = draw(st.sampled_from([one.span(), (one.start(), one.start()), (one.end(), one.end())]))
        data = data[:at] + new + data[to:]
    return data


@settings(max_examples=600, deadline=None)
@given(spliced())
def test_two_parsers_take_the_same_bytes_for_the_same_envelopes(data: bytes) -> None:
    assert judged(parse_envelope, data) == judged(second_parse, data)


@given(st.binary(max_size=300), st.sets(st.integers(0, 255), min_size=1, max_size=5))
def test_every_envelope_that_is_written_is_parsed_by_both(payload: bytes, seeds: set[int]) -> None:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in seeds]
    data = format_envelope(payload, [sign(payload, key) for key in keys])
    assert parse_envelope(data) == second_parse(data)
    assert parse_envelope(data).payload == payload


def test_an_envelope_larger_than_an_entry_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedError, match="envelope: wanted at most 65535 bytes, got 65536"):
        parse_envelope(b"{" * 65536)
