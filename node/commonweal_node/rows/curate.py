"""A curation: every source's rows, in one stream, through the stages of the charter's data policy into one folder.

::

    curations/ID/rows.jsonl       what training takes; gone once a later curation is there
    curations/ID/manifest.dsse    the manifest, signed by the institution; ID is its SHA-256
    curations/ID/report.json      the manifest's own JSON
    curations/ID/report.html      the same for people

One row is in memory at a time. The same sources, charter and key end in the same bytes. A curation that is killed
leaves nothing, and is begun anew; what takes long, a model's answers, is kept (``revise``).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_node.charter.charter import Charter
from commonweal_node.charter.data_policy import LanguageFilter, Revise, Scrub, Stage
from commonweal_node.rows.language import identifier_version
from commonweal_node.rows.manifest import (
    keyed_digest,
    load_curation_key,
    open_manifest,
    public_parameters,
    sign_manifest,
)
from commonweal_node.rows.memory import Memory, open_memory
from commonweal_node.rows.report import to_html
from commonweal_node.rows.revise import Reviser, keeping_answers
from commonweal_node.rows.row import Row, format_row
from commonweal_node.rows.scrub import scrubber_version
from commonweal_node.rows.stages import Apply, make_stage, whole_text
from commonweal_node.rows.store import Source, Store, kind_of, write_lines
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded, read_if_there, write_atomic
from commonweal_protocols.statements.data_manifest import DataManifest, Left, ReasonCount, StageRecord, Taken
from commonweal_protocols.statements.values import Digest, Name
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_REPORT_ROWS = 64
Report = Callable[[str, int, int | None], None]
"""What is done, rows done, rows in all (None: not known)."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Who answers for a curation: the institution, its signing key, and the key of its keyed digests."""

    institution: Name
    key: Ed25519PrivateKey
    curation_key: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A stage, and what decides in it, if not this program alone."""

    stage: Stage
    by: str


class _Tally:
    """What went through a step, once all of it has."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.rows_in = self.rows_out = 0
        self.reasons: Counter[str] = Counter()
        self.digest = hashlib.sha256()

    def count(self, rows: Iterator[Row], apply: Apply) -> Iterator[Row]:
        for decision in apply(rows):
            self.rows_in += 1
            self.reasons.update(decision.reasons)
            for row in decision.rows:
                self.rows_out += 1
                self.digest.update(format_row(row))
                yield row

    def record(self, key: bytes) -> StageRecord:
        return StageRecord(
            stage=self.step.stage.stage,
            parameters=public_parameters(self.step.stage),
            by=self.step.by,
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            reasons=tuple(ReasonCount(reason=why, rows=n) for why, n in sorted(self.reasons.items())),
            rows=keyed_digest(key, [self.digest.hexdigest()]),
        )


def plan(charter: Charter, reviser: Reviser | None) -> tuple[Step, ...]:
    """Return the steps of a charter's data policy.

    Raises:
        ConfigError: The charter has no data policy, or its stage ``revise`` has no model.
        ModuleNotFoundError: A stage needs the extra ``data``.
    """
    if charter.data is None:
        raise ConfigError(
            "charter: wanted a table [data] with the stages of a curation, got none; see docs/guides/curate-examples.md"
        )
    return tuple(Step(stage, _decided_by(stage, reviser)) for stage in charter.data.stages)


def _decided_by(stage: Stage, reviser: Reviser | None) -> str:
    match stage:
        case LanguageFilter():
            return identifier_version()
        case Scrub():
            return scrubber_version()
        case Revise():
            if reviser is None:
                raise ConfigError("stage revise: wanted a model, got none; give --base FOLDER")
            return reviser.name
        case _:
            return ""


def curate(store: Store, charter: Charter, reviser: Reviser | None, signer: Signer, report: Report) -> Path:
    """Curate all sources, make it the newest curation, and return its folder. The caller holds the store's lock.

    Raises:
        ConfigError: See :func:`plan`; or there is no source, nothing is left for training, or nothing is held out.
        StorageError: The disk is full, or has changed a row.
        ModuleNotFoundError: A stage needs the extra ``data``.
    """
    steps, sources, folder = plan(charter, reviser), store.sources(), store.new_curation()
    taken, tallies = Counter[str](), [_Tally(step) for step in steps]
    principles = tuple(p.text for p in charter.principles)
    with ExitStack() as opened:
        asked = opened.enter_context(keeping_answers(store.answers, reviser))
        rows = _taken(store, sources, taken, report)
        for tally in tallies:
            memory = opened.enter_context(open_memory())
            rows = tally.count(rows, make_stage(tally.step.stage, memory, principles, asked))
        left = _write_rows(folder / "rows.jsonl", rows, opened.enter_context(open_memory()), signer)
        manifest = DataManifest(
            institution=signer.institution,
            charter_version=charter.version,
            charter=keyed_digest(signer.curation_key, [charter.digest()]),
            key=hashlib.sha256(signer.curation_key).hexdigest(),
            taken=Taken(
                sources=len(sources),
                conversations=taken["conversation"],
                texts=taken["text"],
                preferences=taken["preference"],
                rows=keyed_digest(signer.curation_key, [s.sha256 for s in sources]),
            ),
            stages=tuple(tally.record(signer.curation_key) for tally in tallies),
            left=left,
        )
        signed = sign_manifest(manifest, signer.key)
        write_atomic(folder / "manifest.dsse", signed, mode=0o600)
        write_reports(folder)
        return store.publish(folder, digest_of(signed))


def is_current(store: Store, charter: Charter, steps: tuple[Step, ...], home: Path) -> bool:
    """Whether the newest curation is of the store's sources by this charter, with the same deciding.

    Raises:
        ConfigError: There is no source.
        PeerError: The newest curation's manifest does not hold.
        StorageError: Something cannot be read.
    """
    sources = store.sources()
    signed = read_if_there(store.curated / "manifest.dsse", MAX_ENTRY_BYTES, "a curation's manifest")
    if signed is None:
        return False
    newest, _ = open_manifest(signed)
    key = load_curation_key(home)
    return (newest.taken.rows, newest.charter, [s.by for s in newest.stages]) == (
        keyed_digest(key, [s.sha256 for s in sources]),
        keyed_digest(key, [charter.digest()]),
        [step.by for step in steps],
    )


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


def _taken(store: Store, sources: tuple[Source, ...], kinds: Counter[str], report: Report) -> Iterator[Row]:
    total, n = sum(s.rows for s in sources), 0
    for source in sources:
        for row in store.rows(source):
            if n % _REPORT_ROWS == 0:
                report("curate", n, total)
            n += 1
            kinds[kind_of(row)] += 1
            yield row
    report("curate", n, total)


def _write_rows(path: Path, rows: Iterator[Row], groups: Memory, signer: Signer) -> Left:
    """Write the rows that are left as one file, and count them."""
    counts = Counter[str]()

    def lines() -> Iterator[bytes]:
        for row in rows:
            counts.update((kind_of(row), f"{row.split} rows", *(("synthetic",) if row.synthetic else ())))
            counts["characters"] += len(whole_text(row.body))
            counts[f"{row.split} groups"] += groups.add(hashlib.sha256(row.body.group.encode()).digest())
            yield format_row(row)

    sha256: Digest = write_lines(path, lines())
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
        rows=keyed_digest(signer.curation_key, [sha256]),
    )
