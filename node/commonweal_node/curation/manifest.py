"""The manifest of a curation: what was done to a community's rows, in counts and digests, and not a word of them.

Every digest of rows in it is an HMAC-SHA256 under a key that stays on the node (``keys/curation.key``): whoever sees
the manifest cannot try texts against it, however short the rows are. Whom the institution gives key and rows can check
every digest. Reasons are words of this program or of the charter; of what a trait is known by, only the number is told.

Canonical JSON, at most 40,000 bytes, in an in-toto statement under the institution's signature. No clock.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, ValidationError

from commonweal_node.curation.policy import Stage, Trait, Traits
from commonweal_protocols import canonical
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.closed import Closed
from commonweal_protocols.envelope import parse_envelope, sign_envelope, verify_envelope
from commonweal_protocols.errors import MalformedError, StorageError
from commonweal_protocols.keys import write_private
from commonweal_protocols.predicates import Digest, Name, Natural, Subject
from commonweal_protocols.statement import STATEMENT_TYPE

MAX_MANIFEST_BYTES = 40_000
"""So that its envelope is small enough for a log entry."""
_KEY_BYTES = 32

KeyedDigest = Digest
"""HMAC-SHA256 under the node's curation key, over the SHA-256 (hex, a line end each) of the files that are meant."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Plain = bool | int | str
Parameter = Plain | tuple[int, ...] | tuple[str, ...] | tuple[dict[str, Plain], ...]


class Taken(Closed):
    """What went in."""

    sources: Natural
    conversations: Natural
    texts: Natural
    preferences: Natural
    rows: KeyedDigest


class StageRecord(Closed):
    """One stage: its parameters, what came of how many rows, and how often each reason was given."""

    stage: Label
    parameters: dict[str, Parameter]
    by: Annotated[str, StringConstraints(max_length=200)]
    rows_in: Natural
    rows_out: Natural
    reasons: dict[Label, Natural]
    rows: KeyedDigest


class Left(Closed):
    """What came out. A row that is seen three times counts three times."""

    train_rows: Natural
    heldout_rows: Natural
    train_groups: Natural
    heldout_groups: Natural
    conversations: Natural
    texts: Natural
    preferences: Natural
    synthetic: Natural
    characters: Natural
    rows: KeyedDigest


class DataManifest(Closed):
    """A whole curation."""

    URI: ClassVar[str] = "urn:commonweal:data-manifest:v1"
    institution: Name
    charter_version: Annotated[int, Field(ge=1)]
    charter: Digest
    """The SHA-256 of the charter's canonical JSON."""
    digests: Literal["hmac-sha256"] = "hmac-sha256"
    key: Digest
    """The SHA-256 of the curation key, to tell under which one the digests are."""
    taken: Taken
    stages: Annotated[tuple[StageRecord, ...], Field(min_length=1, max_length=20)]
    left: Left

    def subject(self) -> Subject:
        """The rows that came out, by their keyed digest as it is written."""
        return Subject(name="curated rows", sha256=digest_of(self.left.rows.encode()))

    def to_bytes(self) -> bytes:
        """Return its canonical JSON.

        Raises:
            MalformedError: It is larger than a manifest may be.
        """
        data = canonical.encode(self.model_dump(mode="json"))
        if len(data) > MAX_MANIFEST_BYTES:
            raise MalformedError(f"manifest: wanted at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
        return data


def load_curation_key(home: Path) -> bytes:
    """Return the key of this node's keyed digests, made where there is none.

    Raises:
        StorageError: It cannot be read or made, or others may read it.
    """
    path = home / "keys/curation.key"
    if not path.exists():
        write_private(path, secrets.token_bytes(_KEY_BYTES))
    try:
        with path.open("rb") as f:
            key = f.read(_KEY_BYTES + 1)
        mode = path.stat().st_mode & 0o777
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}") from e
    if mode & 0o077 or len(key) != _KEY_BYTES:
        raise StorageError(f"{path}: wanted {_KEY_BYTES} bytes of mode 0600, got {len(key)} of mode {mode:04o}")
    return key


def keyed_digest(key: bytes, files: Iterable[Digest]) -> KeyedDigest:
    """Return the keyed digest of files by their SHA-256, in their order."""
    return hmac.new(key, "".join(f"{sha256}\n" for sha256 in files).encode(), hashlib.sha256).hexdigest()


def public_parameters(stage: Stage) -> dict[str, Parameter]:
    """Return a stage's parameters for the manifest: all but the words that a trait is known by."""
    parameters: dict[str, Parameter] = stage.model_dump(exclude={"stage"})
    if isinstance(stage, Traits):
        parameters["traits"] = tuple(_public_trait(t) for t in stage.traits)
    return parameters


def _public_trait(trait: Trait) -> dict[str, Plain]:
    measures: dict[str, Plain] = trait.model_dump(exclude={"phrases", "patterns"})
    return measures | {"phrases": len(trait.phrases), "patterns": len(trait.patterns)}


def sign_manifest(manifest: DataManifest, key: Ed25519PrivateKey) -> bytes:
    """Return the signed envelope of a manifest, canonical.

    Raises:
        MalformedError: It is larger than a manifest may be.
    """
    manifest.to_bytes()
    return sign_envelope(_payload(manifest), key)


def open_manifest(data: bytes) -> tuple[DataManifest, str]:
    """Verify a manifest's envelope and return the manifest, and the public key (hex) that signed it.

    Raises:
        MalformedError: Another form or spelling than :func:`sign_manifest` writes.
        SignatureError: A signature does not hold.
    """
    verified = verify_envelope(parse_envelope(data))
    match canonical.parse(verified.payload, max_bytes=2 * MAX_MANIFEST_BYTES):
        case {"predicate": dict(body)}:
            pass
        case _:
            raise MalformedError(f"manifest: wanted a statement of {DataManifest.URI}, got another")
    try:
        manifest = DataManifest.model_validate_json(canonical.encode(body))
    except ValidationError as e:
        raise MalformedError(
            f"manifest: wanted {DataManifest.URI}, got another schema: {e.error_count()} errors"
        ) from e
    if _payload(manifest) != verified.payload or len(verified.signers) != 1:
        raise MalformedError("manifest: wanted one signature over what this program writes, got something else")
    return manifest, verified.signers[0]


def _payload(manifest: DataManifest) -> bytes:
    subject = manifest.subject()
    return canonical.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": subject.name, "digest": {"sha256": subject.sha256}}],
            "predicateType": DataManifest.URI,
            "predicate": manifest.model_dump(mode="json"),
        }
    )
