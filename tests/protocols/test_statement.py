"""Statements: closed schemas, one encoding, and a subject that cannot disagree with the predicate."""

import json
import re
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import parse_envelope, sign_envelope
from commonweal_protocols.statements.governance import Charter
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import PREDICATES
from commonweal_protocols.statements.rounds import Refusal
from commonweal_protocols.statements.statement import Header, Statement, open_entry, parse_statement
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from tests.kit.federation import Federation, key_of, two_rounds
from tests.kit.json_values import JSON

STATEMENT = Statement(
    Header(consortium="c" * 64, seq=3, prev="d" * 64, seen=()), Identity(institution="clinic", transport_key="A" * 44)
)


def test_every_statement_of_two_rounds_is_parsed_back() -> None:
    for data in two_rounds().entries:
        statement = open_entry(data).statement
        assert parse_statement(statement.payload()) == statement


def _edit(path: tuple[str | int, ...], value: object) -> bytes:
    whole = json.loads(STATEMENT.payload())
    at = whole
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return canonical.encode(whole)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (_edit(("_type",), "https://in-toto.io/Statement/v0.1"), "another statement type"),
        (_edit(("predicateType",), "urn:commonweal:identity:v2"), "an unknown predicate"),
        (_edit(("subject", 0, "digest", "sha256"), "0" * 64), "a subject that the predicate does not have"),
        (_edit(("subject", 0, "name"), "school"), "another subject name"),
        (_edit(("extra",), 1), "an unknown key in the statement"),
        (_edit(("predicate", "extra"), 1), "an unknown key beside header and body"),
        (_edit(("predicate", "body", "extra"), 1), "an unknown key in the body"),
        (_edit(("predicate", "header", "extra"), 1), "an unknown key in the header"),
        (_edit(("predicate", "header", "seq"), "3"), "a number as text"),
        (_edit(("predicate", "header", "seq"), True), "a truth value as a number"),
        (_edit(("predicate", "header", "seq"), -1), "a negative number"),
        (_edit(("predicate", "header", "prev"), "D" * 64), "a digest in upper case"),
        (_edit(("predicate", "header"), None), "no header on what is not the founding compact"),
        (_edit(("predicate", "body", "institution"), "../clinic"), "a name that is a path"),
        (b"[]", "not an object"),
    ],
)
def test_a_statement_with_one_thing_wrong_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(MalformedError):
        parse_statement(payload)


def test_a_compact_has_no_header() -> None:
    compact = Federation().compact
    payload = Statement(Header(consortium="c" * 64, seq=0, prev=None, seen=()), compact).payload()
    with pytest.raises(MalformedError, match="wanted a header on everything but a compact"):
        parse_statement(payload)


def test_an_entry_names_its_leaf_by_its_own_bytes() -> None:
    a = open_entry(sign_envelope(STATEMENT.payload(), key_of("a")))
    b = open_entry(sign_envelope(STATEMENT.payload(), key_of("b")))
    assert a.payload_sha256 == b.payload_sha256
    assert a.leaf != b.leaf


# -- the same acceptance as a second parser's, which takes JSON apart as Python's standard library does


def second_parse(payload: bytes) -> Statement:
    """Parse the value first, in its one encoding, then its parts; and hold the whole against what they make."""
    value = canonical.parse(payload, max_bytes=MAX_ENTRY_BYTES)
    match value:
        case {"predicateType": str(uri), "predicate": {"header": header, "body": body}} if uri in PREDICATES:
            pass
        case _:
            raise MalformedError("not a statement")
    try:
        statement = Statement(
            None if header is None else Header.model_validate_json(json.dumps(header)),
            PREDICATES[uri].model_validate_json(json.dumps(body)),
        )
    except ValidationError as e:
        raise MalformedError(str(e)) from e
    if (header is None) != isinstance(statement.predicate, Compact):
        raise MalformedError("header")
    # As bytes: to Python true is 1.
    if canonical.encode(whole(statement)) != payload:
        raise MalformedError("not what its parts make")
    return statement


def whole(statement: Statement) -> canonical.Json:
    """What in-toto's specification says of its form, as a value."""
    subject, header = statement.predicate.subject(), statement.header
    return {
        "predicate": {
            "body": statement.predicate.model_dump(mode="json"),
            "header": header.model_dump(mode="json") if header else None,
        },
        "subject": [{"name": subject.name, "digest": {"sha256": subject.sha256}}],
        "predicateType": statement.predicate.URI,
        "_type": "https://in-toto.io/Statement/v1",
    }


def judged(parse: Callable[[bytes], Statement], payload: bytes) -> Statement | None:
    try:
        return parse(payload)
    except MalformedError:
        return None


PAYLOADS = sorted({parse_envelope(data).payload for data in two_rounds().entries}, key=len)
SEEN = Seen(origin="log.test/é\u2028", size=2**53 - 1, root="0" * 64)
PAYLOADS += [
    Statement(
        Header(consortium="c" * 64, seq=1, prev=None, seen=(SEEN,) * seen),
        Refusal(round=10**9, round_leaf="a" * 64, reason=reason),
    ).payload()
    for seen, reason in ((8, '\\"predicateType":"\x00\x1f\x7f'), (1, "é\n\t\u2028\U0001f600\ufb33"), (0, "/\u0080"))
]
SPLICES = [
    b" ", b"0", b"-", b".0", b"e0", b"\\u0061", b"\\/", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\\ud800", b"\n", b'"',
    b"}", b"[", b",", b"null", b"true", b"NaN", b"1" * 400, b"[" * 300, b'"a":1,', b'"seq":0,', b'"predicateType":"x",',
]  # fmt: skip
PART = re.compile(rb'"[^"\\]*"|-?[0-9]+|null|[{}\[\],:]')


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """A good payload in which some parts are put in, left out, doubled or exchanged."""
    payload = draw(st.sampled_from(PAYLOADS))
    for _ in range(draw(st.integers(0, 2))):
        parts = list(PART.finditer(payload))
        one, two = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        new = draw(st.sampled_from([*SPLICES, b"", one[0] * 2, two[0], b"1.0", b"1e0", b"-0", b"9007199254740992"]))
        at, to = draw(st.sampled_from([one.span(), (one.start(), one.start()), (one.end(), one.end())]))
        payload = payload[:at] + new + payload[to:]
        if not PART.search(payload):
            break
    return payload


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A good payload with one value in it exchanged for one of any type, canonically encoded."""
    whole = json.loads(draw(st.sampled_from(PAYLOADS)))
    at = whole
    while True:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not at[key] or not isinstance(at[key], dict | list) or draw(st.integers(0, 4)) == 0:
            break
        at = at[key]
    if draw(st.booleans()):
        at[key] = draw(JSON | st.sampled_from([-1, 0, 1, 2, True, "", "A" * 64, "a" * 64, "clinic", "é"]))
    elif isinstance(at, dict):
        at[draw(st.sampled_from(["extra", "_type", "seq", "é"]))] = draw(JSON)
    else:
        at.append(at[key])
    try:
        return canonical.encode(whole)
    except MalformedError:
        return b""


@settings(max_examples=600, deadline=None)
@given(spliced() | edited())
def test_two_parsers_take_the_same_payloads_for_the_same_statements(payload: bytes) -> None:
    assert judged(parse_statement, payload) == judged(second_parse, payload)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_the_two_parsers_are_not_merely_at_one_in_refusing(payload: bytes) -> None:
    statement = parse_statement(payload)
    assert statement == second_parse(payload)
    assert statement.payload() == payload


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"seq":3', b'"seq":3.0', "a float that is an integer"),
        (b'"seq":3', b'"seq":3,"seq":3', "a key twice, with one value"),
        (b'"seq":3', b'"seq":30e-1', "an exponent"),
        (b'"seq":3', b'"seq":9007199254740993', "beyond 2^53 - 1"),
        (b'"seq":3', b'"seq":' + b"3" * 5000, "a very long integer"),
        (b'"seq":3', b'"seq":NaN', "no JSON"),
        (b"clinic", b"clini\\u0063", "an escape that is not needed"),
        (b"clinic", b"clini\\ud800", "half a surrogate pair"),
        (b"clinic", b"clini\xed\xa0\x80", "half a surrogate pair, as bytes"),
        (b'"_type"', b'"\xff":1,"_type"', "no UTF-8"),
        (b'"_type"', b'"Z":' + b"[" * 30_000 + b"]" * 30_000 + b',"_type"', "nesting without end"),
        (b"{", b" {", "white space"),
    ],
)
def test_a_payload_in_any_other_encoding_is_refused(old: bytes, new: bytes, why: str) -> None:
    payload = STATEMENT.payload().replace(old, new)
    assert payload != STATEMENT.payload()
    for parse in (parse_statement, second_parse):
        with pytest.raises(MalformedError):
            parse(payload)


PLAIN = {
    "bool", "default", "definition-ref", "definitions", "dict", "function-after", "int", "literal", "model",
    "model-field", "model-fields", "no-info", "none", "nullable", "str", "tagged-union", "tuple", "union",
}  # fmt: skip


def nodes(schema: object) -> Iterator[dict[str, object]]:
    """Every node of pydantic's own schema of a model: a mapping that says its type."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema
        for value in schema.values():
            yield from nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value)


@pytest.mark.parametrize("model", [Header, *PREDICATES.values()], ids=lambda m: m.__name__)
def test_no_schema_has_what_pydantic_would_write_otherwise_than_rfc8785(model: type[BaseModel]) -> None:
    for node in nodes(model.__pydantic_core_schema__):
        assert node["type"] in PLAIN
        if node["type"] == "int":
            assert -(2**53) < cast(int, node["ge"]) <= cast(int, node["le"] if "le" in node else node["lt"]) < 2**53
        if node["type"] == "str":
            assert {"pattern", "max_length"} & node.keys()
        # Only mappings that a validator sorts: see the test of the objectives below.
        if node["type"] == "dict":
            assert cast(dict[str, str], node["keys_schema"])["pattern"] == r"^[a-z0-9_]{1,40}$"
        if isinstance(fields := node.get("fields"), dict):
            assert list(fields) == sorted(fields)


def test_objectives_in_another_order_are_refused() -> None:
    charter = Charter(
        institution="clinic", version=1, previous=None, safety_items=0, community=None, bars=None,
        objectives={"z": 1, "a": 2, "_": 3}, data_policy=None, dissent=None, principles=(), safety=(), addenda=(),
        sealed=(),
    )  # fmt: skip
    payload = Statement(STATEMENT.header, charter).payload()
    for parse in (parse_statement, second_parse):
        assert parse(payload).predicate == charter
        with pytest.raises(MalformedError):
            parse(payload.replace(b'"_":3,"a":2,"z":1', b'"z":1,"a":2,"_":3'))


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_bounded_text_that_is_not_unicode_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="unable to parse raw data as a unicode string"):
        Refusal(round=1, round_leaf="a" * 64, reason=text)


def test_a_payload_larger_than_an_entry_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedError, match="statement: wanted at most 65535 bytes, got 65536"):
        parse_statement(b"{" * 65536)
