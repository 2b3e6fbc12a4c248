"""Statements: closed schemas, one spelling, and a subject that cannot disagree with the predicate."""

import json

import pytest

from commonweal_protocols import canonical
from commonweal_protocols.envelope import sign_envelope
from commonweal_protocols.errors import MalformedError
from commonweal_protocols.predicates import Identity
from commonweal_protocols.statement import Header, Statement, open_entry, parse_statement
from tests.federation import Federation, key_of, two_rounds

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


def test_the_founding_compact_has_no_header() -> None:
    compact = Federation().compact
    payload = Statement(Header(consortium="c" * 64, seq=0, prev=None, seen=()), compact).payload()
    with pytest.raises(MalformedError, match="wanted a header on everything but the founding compact"):
        parse_statement(payload)


def test_an_entry_names_its_leaf_by_its_own_bytes() -> None:
    a = open_entry(sign_envelope(STATEMENT.payload(), key_of("a")))
    b = open_entry(sign_envelope(STATEMENT.payload(), key_of("b")))
    assert a.payload_sha256 == b.payload_sha256
    assert a.leaf != b.leaf
