"""A curation's manifest (``data_manifest``) on the node: its keyed digests, and the signed file beside the rows.

The key stays on the node (``keys/curation.key``). Whom the institution gives key and rows can check every digest. The
file is canonical JSON, at most 40,000 bytes, in an in-toto statement under the institution's signature; what the log
gets is the same manifest, as an entry. No clock.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from commonweal_node.charter.data_policy import Stage, Trait, Traits
from commonweal_node.home import NodeHome
from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import ConfigError, MalformedError, StorageError
from commonweal_protocols.base.files import read_if_there
from commonweal_protocols.base.keys import read_private, write_private
from commonweal_protocols.statements.data_manifest import (
    MAX_MANIFEST_BYTES,
    DataManifest,
    KeyedDigest,
    Parameter,
    Plain,
)
from commonweal_protocols.statements.envelope import parse_envelope, sign_envelope, verify_envelope
from commonweal_protocols.statements.statement import STATEMENT_TYPE
from commonweal_protocols.statements.values import Digest, Name
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_KEY_BYTES = 32
_CHUNK_BYTES = 1 << 20


def load_curation_key(home: Path) -> bytes:
    """Return the key of this node's keyed digests, made where there is none.

    Raises:
        StorageError: It cannot be read or made, or others may read it.
    """
    path = NodeHome(home).curation_key
    if not path.exists():
        write_private(path, secrets.token_bytes(_KEY_BYTES))
    key = read_private(path, _KEY_BYTES, "the key of this node's keyed digests")
    if len(key) != _KEY_BYTES:
        raise StorageError(f"{path}: wanted {_KEY_BYTES} bytes, got {len(key)}")
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
        MalformedError: Another form or encoding than :func:`sign_manifest` writes.
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


def load_manifest(data: Path, institution: Name, home: Path) -> DataManifest | None:
    """Return the manifest of the rows in use, or None where they come from no curation.

    Args:
        data: The file of the rows, no link.
        institution: Whose manifest it must be.
        home: Where the curation key lies.

    Raises:
        ConfigError: The manifest beside the rows is another institution's, or of other rows.
        MalformedError: It has another form or encoding.
        SignatureError: Its signature does not hold.
        StorageError: It, the rows or the curation key cannot be read.
    """
    path = data.parent / "manifest.dsse"
    signed = read_if_there(path, MAX_ENTRY_BYTES, "the manifest of the rows", too_large=MalformedError)
    if signed is None:
        return None
    manifest, _ = open_manifest(signed)
    digest = hashlib.sha256()
    try:
        with data.open("rb") as f:
            while chunk := f.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as e:
        raise StorageError(f"{data}: the rows cannot be read: {e.strerror}") from e
    if manifest.institution != institution:
        raise ConfigError(f"{path}: wanted a manifest of {institution}, got one of {manifest.institution}")
    if keyed_digest(load_curation_key(home), [digest.hexdigest()]) != manifest.left.rows:
        raise ConfigError(f"{path}: wanted the manifest of {data.name}, got one of other rows or under another key")
    return manifest


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
