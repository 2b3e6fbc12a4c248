"""The value types that all predicates share.

A predicate is one closed schema for one kind of fact, versioned by URI. It holds integers, text and digests only, so
that it has one canonical encoding. Units are in the names: ``_micronats``
are 1e-6 nats for each supervised token, ``_micros`` 1e-6, ``_millis`` 1e-3. Adapter values lie on a fixed-point grid:
an integer q stands for q · 2^-grid_bits. Digests are lower-case hex SHA-256. What a predicate may say in which state
is ``fold``'s concern, not this module's.
"""

from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints

from commonweal_protocols.base.schema import Closed

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A raw Ed25519 public key, 32 bytes as lower-case hex."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""An institution's or a consortium's short name; safe in a file name."""
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500)]
MAX_COUNT = 10**9
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Field(ge=0, le=2**53 - 1)]
Micronats = Annotated[int, Field(ge=0, le=10**9)]

MAX_BLOB_BYTES = 1 << 34
"""The upper bound of any compact's own bound; 16 GiB."""


class Blob(Closed):
    """Bytes that lie outside the log."""

    sha256: Digest
    size_bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)]


class Subject(NamedTuple):
    """What a statement is about (in-toto ResourceDescriptor); matched by digest, the name is advisory."""

    name: str
    sha256: Digest


class Seen(Closed):
    """A checkpoint that somebody has verified: who states it vouches that the log stood so."""

    origin: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    size: Natural
    root: Digest
