"""One auditor's work on one log: audit, keep what was verified, and write what was asked for.

The memory is replaced only by an audit that passed, in one step and before anybody is told: whatever has once been
reported as verified is held against the log from then on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.audit.audit import Outcome, Progress, examine
from commonweal_protocols.audit.evidence import ForkEvidence, format_evidence
from commonweal_protocols.audit.memory import Memory, load_memory, save_memory
from commonweal_protocols.audit.page import render_html
from commonweal_protocols.audit.releases import Recompute
from commonweal_protocols.audit.verdict import sign_verdict
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, MalformedError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.records.signature_pool import usable_cores
from commonweal_protocols.records.source import Source, read_checkpoint
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.note import MAX_NOTE_BYTES
from commonweal_protocols.tlog.proof import parse_proof


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written after each audit; None for what nobody asked for."""

    report: Path | None = None
    html: Path | None = None
    checkpoint: Path | None = None
    """The verified signed checkpoint, for others to compare theirs with."""
    evidence: Path | None = None
    """A folder; a file in it is named by its digest, so the same evidence is one file."""
    verdict: Path | None = None
    key: Ed25519PrivateKey | None = None
    """Signs the verdict."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to audit, and how. See :func:`audit.examine`."""

    source: Source
    consortium: Digest | None = None
    memory: Path | None = None
    """None: nothing is read or kept on disk."""
    full: bool = False
    against: Mapping[str, bytes] = field(default_factory=dict)
    recompute: Recompute | None = None
    jobs: int = field(default_factory=usable_cores)
    max_age_seconds: int | None = None
    """The oldest that a quorum's cosignatures may be; None: any age."""
    outputs: Outputs = field(default_factory=Outputs)


def load_seen(path: Path) -> bytes:
    """Return the signed checkpoint in a file: a checkpoint itself, or an author's receipt (tlog-proof).

    Raises:
        ConfigError: It cannot be read, or is too large.
    """
    data = read_bounded(path, MAX_NOTE_BYTES, "a signed checkpoint", error=ConfigError)
    try:
        return parse_proof(data).checkpoint_note
    except MalformedError:
        # Whether it is a checkpoint is seen once the log's key is known.
        return data


class Auditor:
    """Audits one log again and again. Not thread-safe."""

    def __init__(
        self, job: Job, *, now: Callable[[], datetime], on_progress: Callable[[Progress], None] = lambda _: None
    ) -> None:
        self._job = job
        self._now = now
        self._on_progress = on_progress
        self._memory: Memory | None = load_memory(job.memory) if job.memory else None
        self._full = job.full
        self._note: bytes | None = None

    def look(self) -> Outcome:
        """Audit, and write everything.

        Raises:
            UnavailableError: The source does not answer now.
            StorageError: A file cannot be read or written.
            ConfigError: See :func:`audit.examine`.
        """
        job = self._job
        outcome = examine(
            job.source,
            consortium=job.consortium,
            memory=self._memory,
            full=self._full,
            against=job.against,
            recompute=job.recompute,
            jobs=job.jobs,
            not_before=None if job.max_age_seconds is None else int(self._now().timestamp()) - job.max_age_seconds,
            on_progress=self._on_progress,
        )
        if outcome.memory is not None:
            self._memory, self._full = outcome.memory, False
            if job.memory is not None:
                save_memory(job.memory, outcome.memory)
        # What failed may be fixed under the same checkpoint (a blob that was missing), so it is looked at again.
        self._note = outcome.note if outcome.memory is not None else None
        write_outputs(job.outputs, outcome, self._now)
        return outcome

    def look_if_new(self) -> Outcome | None:
        """Audit unless the published checkpoint is the one that the last audit passed; None if it is.

        Where a greatest age is asked for, time alone can make it wrong, so it is always looked at.

        Raises:
            LogError: There is no checkpoint any more.
            UnavailableError, StorageError, ConfigError: See :meth:`look`.
        """
        seen = self._note is not None and read_checkpoint(self._job.source) == self._note
        if seen and self._job.max_age_seconds is None:
            return None
        return self.look()


def write_outputs(outputs: Outputs, outcome: Outcome, now: Callable[[], datetime]) -> None:
    """Write what was asked for; no verdict on records that name no consortium, for it would be about nothing.

    Raises:
        StorageError: A file cannot be written.
    """
    if outputs.report is not None:
        write_atomic(outputs.report, outcome.report.to_bytes())
    if outputs.html is not None:
        write_atomic(outputs.html, render_html(outcome))
    if outputs.checkpoint is not None and outcome.note is not None:
        write_atomic(outputs.checkpoint, outcome.note)
    if outputs.evidence is not None:
        for evidence in outcome.evidence:
            data = format_evidence(evidence)
            kind = "fork" if isinstance(evidence, ForkEvidence) else "entry"
            write_atomic(outputs.evidence / f"{kind}-evidence-{digest_of(data)[:16]}", data)
    if outputs.verdict is not None and outputs.key is not None and outcome.report.consortium is not None:
        write_atomic(outputs.verdict, sign_verdict(outcome.report, outputs.key, now()))
