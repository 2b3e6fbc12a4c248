"""The audit: replay a log from its public records alone, and re-compute every release to the same bytes.

What is checked, in this order: the first entry founds the consortium that was asked for; every entry is in its one
encoding, signed, in its author's chain and allowed by the compact (``replica``); the checkpoint is signed by the log
key that the founders named, cosigned by their quorum of witnesses, and is of these entries; nothing that this auditor,
or another, saw earlier is gone or changed; every blob that a release names is there; every release is the merge of its
inputs. The report is a pure function of the records (no clock, no path, no host), so two auditors of one log hold
equal bytes.

With a memory of the last audit, only what is new is fetched, verified and merged. That shortcut is taken only where
the log's signed root still binds all that was verified; anywhere else the whole log is replayed, so on the same records
an incremental report is equal to a full one, byte for byte. What is not fetched again is not missed either: that a
source has since lost or damaged its copy of an old entry or blob, only a full audit sees.

A report proves who said what, and that the published adapters are the merges of what was said. It does not prove
honest training or good values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from commonweal_protocols.audit.contradiction import (
    Published,
    claimed_origin,
    contradicts,
    earlier_logs,
    prove_bad_entry,
    read_published,
    stale,
)
from commonweal_protocols.audit.evidence import Evidence
from commonweal_protocols.audit.memory import Line, Memory, kinds
from commonweal_protocols.audit.releases import Recompute, ReleaseChecks
from commonweal_protocols.audit.report import (
    Finding,
    Report,
    RoundReport,
    report_data,
    report_foreign,
    report_keys,
    report_motions,
)
from commonweal_protocols.base.errors import ConfigError, LogError, PeerError
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.entries import open_entries
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.signature_pool import verifier_for
from commonweal_protocols.records.source import Source, read_bundles, read_checkpoint, unverified_size
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier
from commonweal_protocols.tlog.merkle import Tree
from commonweal_protocols.tlog.note import Verifier


@dataclass(frozen=True, slots=True)
class Progress:
    """What an audit is doing: ``done`` of ``total`` entries or releases."""

    stage: Literal["entries", "releases"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an audit gave: the report, and what it was made from, as far as that held."""

    report: Report
    replica: Replica
    journal: tuple[Line, ...]
    note: bytes | None
    """The signed checkpoint, if it is the log's and of these entries."""
    log: Verifier | None
    """The log's key, as the founders named it."""
    evidence: tuple[Evidence, ...]
    """What convicts the log's key by itself."""
    memory: Memory | None
    """What to keep for the next audit: None unless the records hold. A failed audit is not remembered as the truth."""


class _Audit:
    """One run. The replica holds what has been verified so far; findings and evidence only grow."""

    def __init__(
        self, source: Source, memory: Memory | None, jobs: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self.source = source
        self.jobs = jobs
        self.memory = memory
        self.on_progress = on_progress
        self.resumed = False
        self.note = b""
        self.replica = Replica()
        self.journal: list[Line] = []
        self.checkpoint: Checkpoint | None = None
        self.log: Verifier | None = None
        self.findings: list[Finding] = []
        self.evidence: list[Evidence] = []
        self.recomputed: set[Digest] = set()

    @property
    def state(self) -> State | None:
        return self.replica.state if self.replica.size else None

    def blame_coordinator(self, sentence: str, index: int | None = None) -> None:
        """Add a finding against anyone who sequenced and published the records."""
        state = self.state
        name = state.compact.coordinator.name if state else "unknown"
        key = state.compact.coordinator.key if state else "0" * 64
        where = "" if index is None else f"entry {index}: "
        sentence = f"{where}{sentence}; answerable: coordinator {name}, key {key}"
        self.findings.append(Finding(index=index, culprit=f"coordinator {name}", key=key, sentence=sentence))

    # -- the log

    def _grow(self, replica: Replica, journal: list[Line], consortium: Digest | None) -> None:
        """Add the published entries that a replica does not have. On an error, the journal's length is its index."""
        # The size is only a bound on how much to read: the signed root decides whether it was true.
        size = unverified_size(self.note)
        if size <= replica.size:
            return
        with verifier_for(size - replica.size, self.jobs) as verify:
            for entry in open_entries(read_bundles(self.source, replica.size, size), verify):
                replica.admit(entry)
                if not journal and consortium not in (None, replica.state.consortium):
                    raise LogError(f"consortium: wanted {consortium}, got {replica.state.consortium}")
                journal.append(_line(entry))
                if len(journal) % 256 == 0 or len(journal) == size:
                    self.on_progress(Progress("entries", len(journal), size))

    def resume(self, consortium: Digest | None) -> bool:
        """Go on from where the last audit ended. False, and nothing is changed, unless all of that still stands."""
        memory = self.memory
        if memory is None or consortium not in (None, memory.consortium) or (replica := memory.replica()) is None:
            return False
        journal = list(memory.journal)
        try:
            self._grow(replica, journal, None)
            checkpoint = replica.policy.open(self.note).checkpoint
            replica.check_checkpoint(checkpoint)
        except PeerError:
            # The whole replay says what is wrong, in the words that an auditor without a memory would use.
            return False
        if checkpoint.size < replica.size:
            return False
        self.replica, self.journal, self.checkpoint, self.resumed = replica, journal, checkpoint, True
        self.recomputed |= memory.recomputed
        return True

    def replay(self, consortium: Digest | None) -> bool:
        """Replay every entry. False at the first one that does not hold: whatever follows rests on it."""
        try:
            self._grow(self.replica, self.journal, consortium)
        except PeerError as e:
            self.blame_coordinator(f"{e}; it was sequenced all the same", len(self.journal))
            return False
        if not self.journal:
            self.blame_coordinator("log: wanted a founded consortium, got an empty log")
            return False
        try:
            checkpoint = self.replica.policy.open(self.note).checkpoint
            self.replica.check_checkpoint(checkpoint)
        except PeerError as e:
            self.blame_coordinator(f"checkpoint of {self.replica.size} entries: {e}", self.replica.size - 1)
            return False
        self.checkpoint = checkpoint
        return True

    # -- contradictions

    def contradict(self, against: Mapping[str, bytes]) -> None:
        """Hold the published log to every checkpoint that was seen of it, and gather what convicts its key."""
        log = self.replica.log if self.journal else self.memory.verifier if self.memory else None
        self.log = log
        if log is None:
            return
        state = self.state
        earlier = earlier_logs(self.source, self.journal, self.replica.tree) if state and state.origins else {}
        held: list[tuple[bytes, Tree | None]] = []
        if self.memory and self.memory.verifier == log:
            held.append((self.memory.note, self.memory.tree))
        elif self.memory and earlier.get(self.memory.verifier.name) == self.memory.verifier:
            self._contradict_earlier(self.memory.checkpoint)
        elif self.memory:
            self.blame_coordinator(f"log: wanted {self.memory.log} as before, got {log.name} with another key")
        for name, note in against.items():
            signer = earlier.get(claimed_origin(note), log)
            try:
                seen = open_checkpoint(note, signer)
            except PeerError as e:
                raise ConfigError(f"{name}: wanted a signed checkpoint of the log {signer.name}: {e}") from e
            if signer != log:
                self._contradict_earlier(seen)
            elif all(note != other for other, _ in held):
                held.append((note, None))
        if self.checkpoint is not None:
            published = Published(log, self.note, self.replica.tree, self.checkpoint.size)
        elif (read := read_published(self.source, self.note, log, self.replica.tree)) is not None:
            published = read
        else:
            return
        for note, own in held:
            if (found := contradicts(published, note, own, self._witnesses())) is not None:
                self.blame_coordinator(found.sentence)
                self.evidence += [found.fork] if found.fork else []
                for liar in found.witnesses:
                    culprit = f"witness {liar.name}"
                    self.findings.append(Finding(index=None, culprit=culprit, key=liar.key, sentence=liar.sentence))
        if self.checkpoint is None and (state := self.state) is not None:
            proof = prove_bad_entry(self.source, published, self.journal, state.consortium)
            self.evidence += [proof] if proof else []

    def _contradict_earlier(self, seen: Checkpoint) -> None:
        """Hold the history to what a log that it was in before had signed."""
        try:
            self.replica.check_checkpoint(seen)
        except LogError as e:
            self.blame_coordinator(str(e))

    def _witnesses(self) -> list[CosignatureVerifier]:
        """Anyone who should have prevented a fork: by the history that is shown here, and by the one that was seen."""
        states = [s for s in (self.state, self.memory.state if self.memory else None) if s is not None]
        return [w.verifier for state in states for w in policy_of(state.compact).witnesses]

    def rounds(self, recompute: Recompute | None) -> tuple[RoundReport, ...]:
        """Check what the entries name, and report every round."""
        memory = self.memory if self.resumed else None
        checks = ReleaseChecks(self.source, self.replica, memory, recompute, self.blame_coordinator)
        reports = checks.rounds(lambda done, total: self.on_progress(Progress("releases", done, total)))
        self.recomputed |= checks.recomputed
        return reports

    # -- the end

    def outcome(self, rounds: tuple[RoundReport, ...]) -> Outcome:
        """What has been found."""
        state, journal = self.state, tuple(self.journal)
        report = Report(
            verdict="fail" if self.findings else "pass",
            consortium=state.consortium if state else None,
            name=state.compact.consortium if state else None,
            origin=self.checkpoint.origin if self.checkpoint else None,
            size=self.replica.size,
            root=self.checkpoint.root.hex() if self.checkpoint else None,
            entries=dict(kinds(journal)),
            compact_version=state.compact.version if state else None,
            motions=report_motions(state) if state else (),
            ended_keys=report_keys(state) if state else (),
            data=report_data(state) if state else {},
            foreign=report_foreign(state) if state else (),
            carried_over=dict(state.origins) if state else {},
            forked_from=state.compact.forked_from if state else None,
            rounds=rounds,
            findings=tuple(self.findings),
        )
        note = self.note if self.checkpoint else None
        memory = None
        if report.verdict == "pass" and state is not None and note is not None:
            log, recomputed = state.compact.coordinator.log, frozenset(self.recomputed)
            memory = Memory(state.consortium, log, note, self.replica.tree, journal, recomputed, state)
        return Outcome(report, self.replica, journal, note, self.log, tuple(self.evidence), memory)


def _line(entry: Entry) -> Line:
    predicate = entry.statement.predicate
    author = entry.signers[0] if len(entry.signers) == 1 else ""
    return Line(predicate.kind(), vars(predicate).get("round", 0), author)


def examine(
    source: Source,
    *,
    consortium: Digest | None = None,
    memory: Memory | None = None,
    full: bool = False,
    against: Mapping[str, bytes] = MappingProxyType({}),
    recompute: Recompute | None = None,
    jobs: int = 1,
    not_before: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Audit a log and everything it names.

    Args:
        source: The public records.
        consortium: The consortium that is expected (digest of the founding compact's payload); None means that of the
            memory, and without one the log names itself.
        memory: What this auditor has verified before.
        full: Verify everything anew, and hold it to the memory's checkpoint all the same.
        against: Signed checkpoints of this log that others have seen, by a name for each (for an error's text).
        recompute: The arithmetic of adapters; None checks digests only.
        jobs: How many processes check signatures, if there are enough of them; 1 means this process alone. What is
            found does not depend on it.
        not_before: In seconds since the epoch: a checkpoint that no quorum has cosigned since then is a finding.
        on_progress: Called as entries and releases are done.

    Raises:
        UnavailableError: The source does not answer.
        StorageError: The source's folder cannot be read.
        ConfigError: One of ``against`` is not a signed checkpoint of this log.
    """
    run = _Audit(source, memory, jobs, on_progress)
    wanted = consortium or (memory.consortium if memory else None)
    rounds: tuple[RoundReport, ...] = ()
    try:
        run.note = read_checkpoint(source)
        holds = (not full and run.resume(wanted)) or run.replay(wanted)
        run.contradict(against)
        if holds and not_before is not None and (old := stale(run.replica.policy.open(run.note), not_before)):
            run.blame_coordinator(old)
        if holds:
            rounds = run.rounds(recompute)
    except PeerError as e:
        run.blame_coordinator(str(e))
    return run.outcome(rounds)


def audit(source: Source, *, consortium: Digest | None = None, recompute: Recompute | None = None) -> Report:
    """Return the report of a full audit by somebody who remembers nothing. See :func:`examine`."""
    return examine(source, consortium=consortium, recompute=recompute).report
