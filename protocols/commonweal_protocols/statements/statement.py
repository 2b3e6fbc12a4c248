"""Statements (in-toto Statement v1) and log entries: what an author said, bound to its place in the author's chain.

Every statement but the founding compact carries a header: the consortium, the author's own sequence number, the leaf
hash of the author's previous entry, and the newest checkpoints that the author has seen. A dropped or re-ordered
entry is thereby a visible gap, and every author carries gossip. The subject follows from the predicate, so a
statement cannot be about one thing and say another. No I/O.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import parse_envelope, verify_envelope
from commonweal_protocols.statements.registry import PREDICATES, Predicate
from commonweal_protocols.statements.values import Blob, Digest, Natural, Seen
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

P = TypeVar("P", bound=Predicate)

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# in-toto's keys, in RFC 8785's order.
_FORM = (
    b'{"_type":"%s","predicate":{"body":%%b,"header":%%b},"predicateType":"%%b",'
    b'"subject":[{"digest":{"sha256":"%%b"},"name":%%b}]}'
) % STATEMENT_TYPE.encode()


class Header(Closed):
    """An entry's place: in which consortium, after which own entry, knowing which checkpoints."""

    consortium: Digest
    seq: Natural
    prev: Digest | None
    seen: Annotated[tuple[Seen, ...], Field(max_length=8)]


@dataclass(frozen=True, slots=True)
class Statement:
    """A header (none only for the founding compact) and a predicate."""

    header: Header | None
    predicate: Predicate

    def payload(self) -> bytes:
        """Return the statement's canonical bytes: what is signed."""
        subject = self.predicate.subject()
        return _FORM % (
            self.predicate.to_canonical(),
            self.header.to_canonical() if self.header else b"null",
            self.predicate.URI.encode(),
            subject.sha256.encode(),
            canonical.encode_text(subject.name),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified log entry: signatures hold. Whether the compact allows it is for the fold to say."""

    leaf: Digest
    signers: tuple[str, ...]
    statement: Statement
    payload_sha256: Digest


class _Said(Closed, Generic[P]):
    header: Header | None
    body: P


class _Shape(BaseModel, Generic[P]):
    """What is taken from a statement. The rest of it follows from this, and is compared."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    predicate: _Said[P]


# Each made once: pydantic then parses, checks and builds a statement of that kind in one pass over its bytes.
_SHAPES: Mapping[bytes, type[_Shape[Predicate]]] = {
    uri.encode(): _Shape[model]  # type: ignore[valid-type]  # a type that is known at run time only
    for uri, model in PREDICATES.items()
}
_URI = re.compile(rb'"predicateType":"([^"\\]*)"')


def _first(e: ValidationError) -> str:
    error = e.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else error["msg"]


def parse_statement(payload: bytes) -> Statement:
    """Parse the bytes of a statement whose signatures the caller has verified.

    What a statement may say follows from its header and body, and it is written in one way: so that these bytes are
    what :meth:`Statement.payload` writes proves at once the encoding, the type, the subject, and that nothing more is
    in them.

    Raises:
        MalformedError: An unknown predicate, a closed schema broken, a subject that is not what the predicate says,
            or another encoding.
    """
    if len(payload) > MAX_ENTRY_BYTES:
        raise MalformedError(f"statement: wanted at most {MAX_ENTRY_BYTES} bytes, got {len(payload)}")
    # A guess at which schema to try, from bytes that nobody has parsed; a wrong one gives other bytes below.
    if (found := _URI.search(payload)) is None:
        raise MalformedError("statement: wanted canonical JSON with a predicateType")
    uri = found[1].decode("utf-8", "replace")[:80]
    if (shape := _SHAPES.get(found[1])) is None:
        raise MalformedError(f"statement: unknown predicateType {uri!r}")
    try:
        said = shape.model_validate_json(payload).predicate
    except ValidationError as e:
        raise MalformedError(f"statement {uri}: {_first(e)}") from e
    statement = Statement(said.header, said.body)
    if (statement.header is None) != isinstance(statement.predicate, Compact):
        raise MalformedError(f"statement {uri}: wanted a header on everything but a compact")
    if statement.payload() != payload:
        raise MalformedError(
            f"statement {uri}: wanted the canonical JSON of its header and body; got another encoding, or a type or "
            "subject that is not what its predicate says"
        )
    return statement


def open_entry(data: bytes) -> Entry:
    """Parse a log entry and verify its signatures.

    Raises:
        MalformedError: Not the one accepted encoding.
        SignatureError: A signature does not hold.
    """
    verified = verify_envelope(parse_envelope(data))
    return Entry(
        leaf_hash(data).hex(),
        verified.signers,
        parse_statement(verified.payload),
        digest_of(verified.payload),
    )


def blobs_of(entry: bytes) -> Iterator[Blob]:
    """Yield the blobs that a verified entry names, of whatever kind it is.

    Raises:
        MalformedError: It is no entry.
    """
    yield from _named(parse_statement(parse_envelope(entry).payload).predicate)


def _named(value: object) -> Iterator[Blob]:
    if isinstance(value, Blob):
        yield value
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from _named(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _named(inner)
