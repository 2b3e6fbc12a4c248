"""The audit: replay a log from its public records alone, and re-compute every release to the same bytes.

What is checked, in this order: the first entry founds the consortium that was asked for; the checkpoint is signed by
the log key that the founders named; every entry is in its one spelling, signed, in its author's chain and allowed by
the compact (``replica``); the entries hash to the signed root; nothing that this auditor saw earlier is gone; every
blob that a release names is there; every release is the merge of its inputs. The report is a pure function of the
records (no clock, no path, no host), so two auditors of one log hold equal bytes.

A report proves who said what, and that the published adapters are the merges of what was said. It does not prove
honest training or good values.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from commonweal_protocols import canonical
from commonweal_protocols.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.errors import BlobError, LogError, PeerError
from commonweal_protocols.fold import RoundState, State
from commonweal_protocols.predicates import AdapterSpec, Blob, Closed, Digest, Name, PublicKey, Release
from commonweal_protocols.records import Source, read_blob, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.replica import Replica
from commonweal_protocols.statement import Seen


class Recompute(Protocol):
    """The arithmetic of adapters, which an auditor may do without (``commonweal_adapters.recompute`` offers it)."""

    def recompute_start(self, spec: AdapterSpec) -> bytes:
        """Return the bytes of the first round's start."""

    def recompute_release(self, spec: AdapterSpec, release: Release, fetch: Callable[[Digest], bytes]) -> bytes:
        """Return the bytes of the release's adapter, from its logged inputs.

        Raises:
            BlobError: An input is not what its entry says.
        """


class Finding(Closed):
    """One thing that is wrong, the entry where it shows, and whose key answers for it."""

    index: int | None
    culprit: str
    key: PublicKey
    sentence: str


class ReleaseReport(Closed):
    """A release, and how it stands."""

    index: int
    adapter_sha256: Digest
    inputs: tuple[Name, ...]
    ratified_by: tuple[Name, ...]
    adoptions: dict[Name, str]
    check: Literal["recomputed", "digests only", "failed"]


class RoundReport(Closed):
    """A round and its outcome."""

    round: int
    cohort: tuple[Name, ...]
    updates: tuple[Name, ...]
    refusals: dict[Name, str]
    rejections: dict[Name, str]
    incident: str | None
    release: ReleaseReport | None


class Report(Closed):
    """The verdict and what it rests on."""

    format: Literal["urn:commonweal:audit-report:v1"] = "urn:commonweal:audit-report:v1"
    verdict: Literal["pass", "fail"]
    consortium: Digest | None
    name: Name | None
    origin: str | None
    size: int
    root: Digest | None
    entries: dict[str, int]
    rounds: tuple[RoundReport, ...]
    findings: tuple[Finding, ...]

    def to_bytes(self) -> bytes:
        """The report's one spelling (RFC 8785), and a line end."""
        return canonical.encode(self.model_dump(mode="json")) + b"\n"


@dataclass(frozen=True, slots=True)
class Progress:
    """What an audit is doing: ``done`` of ``total`` entries or releases."""

    stage: Literal["entries", "releases"]
    done: int
    total: int


class _Audit:
    """One run. The replica holds what has been verified so far; findings only grow."""

    def __init__(self, source: Source, on_progress: Callable[[Progress], None]) -> None:
        self.source = source
        self.on_progress = on_progress
        self.replica = Replica()
        self.index: dict[Digest, int] = {}
        self.kinds: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.checkpoint: Checkpoint | None = None

    @property
    def state(self) -> State | None:
        return self.replica.state if self.replica.size else None

    def blame_coordinator(self, sentence: str, index: int | None = None) -> None:
        """Add a finding against whoever sequenced and published the records."""
        state = self.state
        name = state.compact.coordinator.name if state else "unknown"
        key = state.compact.coordinator.key if state else "0" * 64
        where = "" if index is None else f"entry {index}: "
        sentence = f"{where}{sentence}; answerable: coordinator {name}, key {key}"
        self.findings.append(Finding(index=index, culprit=f"coordinator {name}", key=key, sentence=sentence))

    def replay(self, consortium: Digest | None) -> bool:
        """Replay every entry. False at the first one that does not hold: whatever follows rests on it."""
        note = read_checkpoint(self.source)
        # The size is only a bound on how much to read: the root below decides whether it was true.
        size = unverified_size(note)
        i = 0
        try:
            for data in read_entries(self.source, 0, size):
                entry = self.replica.add(data)
                self.index[entry.leaf] = i
                self.kinds[type(entry.statement.predicate).__name__.lower()] += 1
                if i == 0 and consortium is not None and consortium != self.replica.state.consortium:
                    raise LogError(f"consortium: wanted {consortium}, got {self.replica.state.consortium}")
                i += 1
                if i % 256 == 0 or i == size:
                    self.on_progress(Progress("entries", i, size))
        except PeerError as e:
            self.blame_coordinator(f"{e}; it was sequenced all the same", i)
            return False
        if not i:
            self.blame_coordinator("log: wanted a founded consortium, got an empty log")
            return False
        try:
            self.checkpoint = open_checkpoint(note, self.replica.log)
            self.replica.check_checkpoint(self.checkpoint)
        except PeerError as e:
            self.blame_coordinator(f"checkpoint of {size} entries: {e}", i - 1)
            return False
        return True

    def compare(self, earlier: Seen | None) -> None:
        """Check that nothing which this auditor saw earlier is gone or changed."""
        if earlier is None:
            return
        if earlier.origin != self.replica.log.name:
            self.blame_coordinator(f"log: wanted origin {earlier.origin} as before, got {self.replica.log.name}")
            return
        try:
            self.replica.check_seen(earlier)
        except LogError as e:
            self.blame_coordinator(str(e), self.replica.size - 1)

    def blob(self, blob: Blob, index: int, what: str) -> bytes | None:
        """Return a blob that an entry names, or None and a finding."""
        try:
            return read_blob(self.source, blob)
        except PeerError as e:
            self.blame_coordinator(f"{what}: {e}", index)
            return None

    def check_start(self, recompute: Recompute | None) -> None:
        """Check the first round's start."""
        compact = self.replica.state.compact
        start = self.blob(compact.start, 0, "the first round's start")
        if start is not None and recompute is not None and recompute.recompute_start(compact.adapter) != start:
            self.blame_coordinator(f"the first round's start {compact.start.sha256} is not what its seed makes", 0)

    def check_release(self, r: RoundState, recompute: Recompute | None) -> ReleaseReport:
        """Check a release's blobs, and re-compute it."""
        logged = r.release
        if logged is None:
            raise LogError(f"round {r.round.round}: has no release")
        release, index, before = logged.release, self.index[logged.leaf], len(self.findings)
        blobs: dict[Digest, bytes] = {}
        named = [(release.start, index, "the release's start")]
        for i in release.inputs:
            author = self.replica.state.key(i.institution)
            what = f"update of round {release.round} by {i.institution} (key {author})"
            named.append((i.delta, self.index[i.leaf], what))
        named.append((release.adapter, index, f"release of round {release.round}"))
        for blob, at, what in named:
            if (data := self.blob(blob, at, what)) is not None:
                blobs[blob.sha256] = data
        check: Literal["recomputed", "digests only", "failed"] = "digests only"
        if len(self.findings) > before:
            check = "failed"
        elif recompute is not None:
            check = "recomputed"
            sentence = ""
            try:
                made = recompute.recompute_release(self.replica.state.compact.adapter, release, blobs.__getitem__)
                if made != blobs[release.adapter.sha256]:
                    sentence = (
                        f"release of round {release.round}: adapter {release.adapter.sha256} is not the "
                        f"{release.rule.name} of its {len(release.inputs)} inputs"
                    )
            except BlobError as e:
                sentence = f"release of round {release.round}: {e}"
            if sentence:
                self.blame_coordinator(sentence, index)
                check = "failed"
        return ReleaseReport(
            index=index,
            adapter_sha256=release.adapter.sha256,
            inputs=tuple(i.institution for i in release.inputs),
            ratified_by=tuple(sorted(logged.ratified_by)),
            adoptions={name: a.decision for name, a in sorted(logged.adoptions.items())},
            check=check,
        )

    def rounds(self, recompute: Recompute | None) -> tuple[RoundReport, ...]:
        """Check and report every round."""
        state = self.replica.state
        total = sum(r.release is not None for r in state.rounds)
        reports, done = [], 0
        self.check_start(recompute)
        for r in state.rounds:
            release = None
            if r.release is not None:
                release = self.check_release(r, recompute)
                done += 1
                self.on_progress(Progress("releases", done, total))
            reports.append(
                RoundReport(
                    round=r.round.round,
                    cohort=r.round.cohort,
                    updates=tuple(sorted(r.updates)),
                    refusals=dict(sorted(r.refusals.items())),
                    rejections={name: x.reason for name, x in sorted(r.rejected.items())},
                    incident=r.incident,
                    release=release,
                )
            )
        return tuple(reports)


def audit(
    source: Source,
    *,
    consortium: Digest | None = None,
    earlier: Seen | None = None,
    recompute: Recompute | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Audit a log and everything it names.

    Args:
        source: The public records.
        consortium: The consortium that is expected (digest of the founding compact's payload); None trusts the log.
        earlier: The newest checkpoint that this auditor has verified before.
        recompute: The arithmetic of adapters; None checks digests only.
        on_progress: Called as entries and releases are done.

    Raises:
        UnavailableError: The source does not answer.
        StorageError: The source's folder cannot be read.
    """
    run = _Audit(source, on_progress)
    rounds: tuple[RoundReport, ...] = ()
    try:
        if run.replay(consortium):
            run.compare(earlier)
            rounds = run.rounds(recompute)
    except PeerError as e:
        run.blame_coordinator(str(e))
    state = run.state
    return Report(
        verdict="fail" if run.findings else "pass",
        consortium=state.consortium if state else None,
        name=state.compact.consortium if state else None,
        origin=run.checkpoint.origin if run.checkpoint else None,
        size=run.replica.size,
        root=run.checkpoint.root.hex() if run.checkpoint else None,
        entries=dict(sorted(run.kinds.items())),
        rounds=rounds,
        findings=tuple(run.findings),
    )
