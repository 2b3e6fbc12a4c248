"""Which blobs a statement names: whoever keeps a copy of a log keeps those too. Pure."""

from collections.abc import Iterator

from pydantic import BaseModel

from commonweal_protocols.envelope import parse_envelope
from commonweal_protocols.predicates import Blob
from commonweal_protocols.statement import parse_statement


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
