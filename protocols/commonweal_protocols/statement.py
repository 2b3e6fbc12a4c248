"""Statements (in-toto Statement v1) and log entries: what an author said, bound to its place in the author's chain.

Every statement but the founding compact carries a header: the consortium, the author's own sequence number, the leaf
hash of the author's previous entry, and the newest checkpoints that the author has seen. A dropped or re-ordered
entry is thereby a visible gap, and every author carries gossip. The subject follows from the predicate, so a
statement cannot be about one thing and say another. No I/O.
"""

import json
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, ValidationError

from commonweal_protocols import canonical
from commonweal_protocols.canonical import Json, digest_of
from commonweal_protocols.envelope import parse_envelope, sign_envelope, verify_envelope
from commonweal_protocols.errors import MalformedError
from commonweal_protocols.merkle import leaf_hash
from commonweal_protocols.predicates import PREDICATES, Closed, Compact, Digest, Natural, Predicate
from commonweal_protocols.tiles import MAX_ENTRY_BYTES

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


class Seen(Closed):
    """A checkpoint that an author has verified: the author vouches that the log stood so."""

    origin: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    size: Natural
    root: Digest


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

    def to_json(self) -> Json:
        """Return the statement as in-toto writes it."""
        subject = self.predicate.subject()
        body: Json = self.predicate.model_dump(mode="json")
        header: Json = self.header.model_dump(mode="json") if self.header else None
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": subject.name, "digest": {"sha256": subject.sha256}}],
            "predicateType": self.predicate.URI,
            "predicate": {"header": header, "body": body},
        }

    def payload(self) -> bytes:
        """Return the statement's canonical bytes: what is signed."""
        return canonical.encode(self.to_json())


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified log entry: signatures hold. Whether the compact allows it is for the fold to say."""

    leaf: Digest
    signers: tuple[str, ...]
    statement: Statement
    payload_sha256: Digest


def _first(e: ValidationError) -> str:
    error = e.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else error["msg"]


def parse_statement(payload: bytes) -> Statement:
    """Parse the bytes of a statement whose signatures the caller has verified.

    Raises:
        MalformedError: An unknown predicate, a closed schema broken, a subject that is not what the predicate says,
            or another spelling.
    """
    value = canonical.parse(payload, max_bytes=MAX_ENTRY_BYTES)
    match value:
        case {"predicateType": str(uri), "predicate": {"header": header, "body": body}}:
            pass
        case _:
            raise MalformedError("statement: wanted predicateType, and header and body in predicate")
    if (model := PREDICATES.get(uri)) is None:
        raise MalformedError(f"statement: unknown predicateType {uri[:80]!r}")
    try:
        statement = Statement(
            # Strict JSON mode: no coercion, yet lists become tuples.
            None if header is None else Header.model_validate_json(json.dumps(header)),
            model.model_validate_json(json.dumps(body)),
        )
    except ValidationError as e:
        raise MalformedError(f"statement {uri}: {_first(e)}") from e
    if (header is None) != isinstance(statement.predicate, Compact):
        raise MalformedError(f"statement {uri}: wanted a header on everything but the founding compact")
    # The payload is the bytes of ``value`` alone, so equal JSON is equal bytes. As text: to Python true is 1, and to
    # pydantic's Literal[1] too.
    if json.dumps(statement.to_json(), sort_keys=True) != json.dumps(value, sort_keys=True):
        raise MalformedError(f"statement {uri}: its type or subject is not what its predicate says")
    return statement


def open_entry(data: bytes) -> Entry:
    """Parse a log entry and verify its signatures.

    Raises:
        MalformedError: Not the one accepted spelling.
        SignatureError: A signature does not hold.
    """
    verified = verify_envelope(parse_envelope(data))
    return Entry(
        leaf_hash(data).hex(),
        verified.signers,
        parse_statement(verified.payload),
        digest_of(verified.payload),
    )


@dataclass(frozen=True, slots=True)
class Author:
    """Whoever signs statements: a key, and the place of the next one in its chain."""

    key: Ed25519PrivateKey
    consortium: Digest

    def sign(self, predicate: Predicate, *, seq: int, prev: Digest | None, seen: tuple[Seen, ...]) -> bytes:
        """Return the signed envelope of ``predicate`` at place ``seq`` of this author's chain."""
        header = Header(consortium=self.consortium, seq=seq, prev=prev, seen=seen)
        return sign_envelope(Statement(header, predicate).payload(), self.key)
