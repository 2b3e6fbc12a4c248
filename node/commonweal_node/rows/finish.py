"""The end of a curation: the rows as one file, the signed manifest and the report, in a folder that is whole or absent.

::

    curations/ID/rows.jsonl       what training takes; gone once a later curation is there
    curations/ID/manifest.dsse    the manifest, signed by the institution
    curations/ID/report.json      the manifest's own JSON
    curations/ID/report.html      the same for people
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_node.charter.charter import Charter
from commonweal_node.rows.engine import Finished
from commonweal_node.rows.ledger import open_ledger
from commonweal_node.rows.manifest import keyed_digest, open_manifest, public_parameters, sign_manifest
from commonweal_node.rows.report import to_html
from commonweal_node.rows.row import Row, format_row
from commonweal_node.rows.shards import make_private, read_shard
from commonweal_node.rows.stages import whole_text
from commonweal_node.rows.store import KINDS, Source, Store, kind_of
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.base.files import read_bounded, sync_directory, write_atomic
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.data_manifest import DataManifest, Left, ReasonCount, StageRecord, Taken
from commonweal_protocols.statements.values import Name
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_OPEN = ".open"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who answers for a curation: the institution, its signing key, and the key of its keyed digests."""

    institution: Name
    key: Ed25519PrivateKey
    curation_key: bytes


def complete(store: Store, sources: list[Source], charter: Charter, stages: list[Finished], signer: Signer) -> Path:
    """Write a curation's folder, make it the newest, and return it. One that is there already is left as it is.

    Raises:
        ConfigError: Nothing is left for training, or nothing is held out.
        StorageError: The disk is full, or has changed a shard.
    """
    last = stages[-1]
    identity = canonical.encode([last.key, charter.digest(), signer.institution, public_hex(signer.key)])
    folder = store.curations / digest_of(identity)
    if not (folder / "rows.jsonl").is_file():
        work = store.curations / _OPEN
        try:
            shutil.rmtree(work, ignore_errors=True)
            make_private(work)
            left = _write_rows(work / "rows.jsonl", last, signer)
            manifest = _manifest(sources, charter, stages, left, signer)
            write_atomic(work / "manifest.dsse", sign_manifest(manifest, signer.key), mode=0o600)
            write_reports(work)
            # An earlier curation's: its rows are gone, and what else is in it is recomputed.
            shutil.rmtree(folder, ignore_errors=True)
            # The commit point: a curation's folder is whole from its first moment on.
            work.rename(folder)
            sync_directory(store.curations)
        except OSError as e:
            raise StorageError(f"{store.curations}: the curation cannot be written: {e.strerror}") from e
    _point(store, folder)
    return folder


def write_reports(folder: Path) -> DataManifest:
    """Write a curation's report, as a page and as JSON, from its signed manifest.

    Raises:
        PeerError: The manifest does not hold.
        StorageError: It cannot be read, or the report cannot be written.
    """
    manifest, signed_by = open_manifest(
        read_bounded(folder / "manifest.dsse", MAX_ENTRY_BYTES, "a curation's manifest")
    )
    write_atomic(folder / "report.json", manifest.to_bytes(), mode=0o600)
    write_atomic(folder / "report.html", to_html(manifest, signed_by), mode=0o600)
    return manifest


def _point(store: Store, folder: Path) -> None:
    """Let ``curated`` lead to a curation, in one step."""
    link = store.root / ".curated"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(folder.relative_to(store.root))
        link.replace(store.curated)
        sync_directory(store.root)
    except OSError as e:
        raise StorageError(f"{store.curated}: cannot be written: {e.strerror}") from e


def _write_rows(path: Path, last: Finished, signer: Signer) -> Left:
    """Write the rows that are left as one file, and count them."""
    digest, counts = hashlib.sha256(), Counter[str]()
    with open_ledger(None) as groups, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
        for row in _rows(last):
            line = format_row(row)
            f.write(line)
            digest.update(line)
            counts.update((kind_of(row), f"{row.split} rows", *(("synthetic",) if row.synthetic else ())))
            counts["characters"] += len(whole_text(row.body))
            counts[f"{row.split} groups"] += groups.add(hashlib.sha256(row.body.group.encode()).digest())
        f.flush()
        os.fsync(f.fileno())
    if not counts["train rows"] or not counts["heldout rows"]:
        raise ConfigError(
            f"curation: wanted rows for training and rows held out, got {counts['train rows']} and "
            f"{counts['heldout rows']} (give more groups, or let the stages before leave more)"
        )
    return Left(
        train_rows=counts["train rows"],
        heldout_rows=counts["heldout rows"],
        train_groups=counts["train groups"],
        heldout_groups=counts["heldout groups"],
        conversations=counts["conversation"],
        texts=counts["text"],
        preferences=counts["preference"],
        synthetic=counts["synthetic"],
        characters=counts["characters"],
        rows=keyed_digest(signer.curation_key, [digest.hexdigest()]),
    )


def _rows(last: Finished) -> Iterator[Row]:
    for shard in last.shards:
        yield from read_shard(last.folder, shard)


def _manifest(
    sources: list[Source], charter: Charter, stages: list[Finished], left: Left, signer: Signer
) -> DataManifest:
    taken = {kind: sum(s.kinds.get(kind, 0) for s in sources) for kind in KINDS}
    return DataManifest(
        institution=signer.institution,
        charter_version=charter.version,
        charter=keyed_digest(signer.curation_key, [charter.digest()]),
        key=hashlib.sha256(signer.curation_key).hexdigest(),
        taken=Taken(
            sources=len(sources),
            conversations=taken["conversation"],
            texts=taken["text"],
            preferences=taken["preference"],
            rows=keyed_digest(signer.curation_key, [s.sha256 for source in sources for s in source.shards]),
        ),
        stages=tuple(
            StageRecord(
                stage=done.stage.stage,
                parameters=public_parameters(done.stage),
                by=done.by,
                rows_in=done.rows_in,
                rows_out=done.rows_out,
                reasons=tuple(ReasonCount(reason=why, rows=n) for why, n in sorted(done.reasons.items())),
                rows=keyed_digest(signer.curation_key, [s.sha256 for s in done.shards]),
            )
            for done in stages
        ),
        left=left,
    )
