"""One accepted encoding for each value."""

import base64
import binascii
import itertools

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import MalformedError
from tests.kit.json_values import JSON


@given(JSON)
def test_what_is_encoded_parses_to_the_same_value(value: canonical.Json) -> None:
    try:
        data = canonical.encode(value)
    except MalformedError:
        return  # text that is not Unicode (a lone surrogate) has no bytes at all
    assert canonical.parse(data, max_bytes=1 << 20) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"b":1,"a":2}', "keys not sorted"),
        (b'{"a": 1}', "white space"),
        (b'{"a":1,"a":1}', "a repeated key"),
        (b'{"a":1.0}', "a float"),
        (b'{"a":1e3}', "a float by exponent"),
        (b'{"a":-0}', "minus zero"),
        (b'{"a":NaN}', "not JSON, though Python reads it"),
        (b'{"a":9007199254740992}', "beyond 2^53 - 1"),
        (b'"\\u0041"', "an escape that is not needed"),
        (b'"\xff"', "not UTF-8"),
        (b"[" * 5000 + b"]" * 5000, "nesting without end"),
        (b"", "nothing"),
    ],
)
def test_any_other_encoding_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError):
        canonical.parse(data, max_bytes=1 << 20)


def test_rfc8785_section_3_2_3_sorts_keys_by_utf16_units() -> None:
    # The RFC's own example of key order: U+1F600 (a surrogate pair) sorts before U+FB33.
    value: canonical.Json = {"\ufb33": 7, "\U0001f600": 6, "\u20ac": 5, "\u00f6": 4, "\u0080": 3, "1": 2, "\r": 1}
    order = list(canonical.parse(canonical.encode(value), max_bytes=1000))  # type: ignore[arg-type]
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_a_value_larger_than_its_bound_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedError, match="wanted at most 4 bytes, got 5"):
        canonical.parse(b"[[[[[", max_bytes=4)


@pytest.mark.parametrize("text", ["+1", "01", " 1", "1_0", "١", "-1", "", "9223372036854775808", "1\n"])
def test_a_decimal_has_one_encoding(text: str) -> None:
    with pytest.raises(MalformedError):
        canonical.parse_decimal(text)


@given(st.integers(0, 2**63 - 1))
def test_every_decimal_below_2_63_parses(value: int) -> None:
    assert canonical.parse_decimal(str(value)) == value


@pytest.mark.parametrize("text", ["AB==", "AAAA====", "AA", "A A=", "AA==\n", "-_=="])
def test_base64_has_one_encoding(text: str) -> None:
    with pytest.raises(MalformedError):
        canonical.parse_base64(text)


@pytest.mark.parametrize("length", range(9))
def test_base64_is_taken_exactly_where_encoding_it_again_gives_the_same(length: int) -> None:
    # The last four bits of A, Q, g and w are zero, the last two of E, and of B not even the last one.
    for text in map("".join, itertools.product("AQgwEB=" if length < 6 else "AB=", repeat=length)):
        try:
            own = base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
        except binascii.Error:
            own = False
        try:
            canonical.parse_base64(text)
        except MalformedError:
            assert not own, text
        else:
            assert own, text


@given(st.binary(max_size=100))
def test_canonical_base64_parses(data: bytes) -> None:
    assert canonical.parse_base64(base64.b64encode(data).decode(), size=len(data)) == data


def test_base64_of_another_size_is_refused() -> None:
    with pytest.raises(MalformedError, match="wanted 2 bytes, got 1"):
        canonical.parse_base64("AA==", size=2)


@pytest.mark.parametrize("text", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_a_digest_is_64_lower_case_hex_digits(text: str) -> None:
    with pytest.raises(MalformedError):
        canonical.parse_digest(text)


ASCII = st.text(st.characters(max_codepoint=127), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8) | ASCII,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | ASCII, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_rfc8785_writes_is_taken_and_gives_the_value_back(value: canonical.Json) -> None:
    data = rfc8785.dumps(value)
    assert canonical.parse(data, max_bytes=len(data)) == value


@given(VALUES, st.data())
def test_every_other_encoding_is_refused_whatever_the_alphabet(value: canonical.Json, data: st.DataObject) -> None:
    one = rfc8785.dumps(value)
    at = data.draw(st.integers(0, len(one)))
    other = one[:at] + data.draw(st.sampled_from([b" ", b"0", b"\\u0061", b"+", b"e0", b".0", b"\n"])) + one[at:]
    try:
        again = canonical.parse(other, max_bytes=len(other))
    except MalformedError:
        return
    assert rfc8785.dumps(again) == other, "what is taken is its own encoding"


@pytest.mark.parametrize("text", ["9007199254740992", "-9007199254740992", "1" * 5000, "-0", "00", "1e3"])
def test_an_integer_out_of_range_or_spelled_otherwise_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        canonical.parse(text.encode(), max_bytes=10_000)
