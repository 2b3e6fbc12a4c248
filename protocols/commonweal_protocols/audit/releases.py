"""The checks of releases: every blob that a release names is there, and every release is the merge of its inputs.

``audit`` calls this after it has replayed the log and checked the checkpoint: the entries are taken as they stand here.
"""

from collections.abc import Callable
from typing import Protocol

from commonweal_protocols.audit.memory import Memory
from commonweal_protocols.audit.report import Check, ReleaseReport, RoundReport
from commonweal_protocols.base.errors import BlobError, PeerError
from commonweal_protocols.fold.masked_round import Masking, explain
from commonweal_protocols.fold.state import RoundState
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_blob
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.rounds import Release
from commonweal_protocols.statements.values import Blob, Digest
from commonweal_protocols.tlog.merkle import HASH_BYTES


class Recompute(Protocol):
    """The arithmetic of adapters, which an auditor may do without (``commonweal_adapters.recompute`` offers it)."""

    def recompute_start(self, spec: AdapterSpec) -> bytes:
        """Return the bytes of the first round's start."""

    def recompute_release(
        self, spec: AdapterSpec, release: Release, fetch: Callable[[Digest], bytes], masking: Masking | None
    ) -> Release:
        """Return the release with the adapter, the state and the figures that its logged inputs make.

        ``masking`` is the round's.

        Raises:
            BlobError: An input is not what its entry says, or the masks do not come off.
        """


def _difference(release: Release, made: Release) -> str:
    """Return which field of a release is not what its inputs make, with both values."""
    for name in ("state_after", "figures"):
        if (got := getattr(release, name)) != (wanted := getattr(made, name)):
            return f"{name} {wanted}, got {got}"
    return "the same fields"


class ReleaseChecks:
    """The checks of one audit. ``recomputed`` grows by the leaf of each entry whose blobs came out the same."""

    def __init__(
        self,
        source: Source,
        replica: Replica,
        memory: Memory | None,
        recompute: Recompute | None,
        blame: Callable[[str, int], None],
    ) -> None:
        """Prepare the checks of a replayed log.

        Args:
            source: Where the blobs are read.
            replica: All entries of the log.
            memory: The audit that this one resumes; None: every blob is checked.
            recompute: The arithmetic of adapters; None checks digests only.
            blame: Called with a sentence against the coordinator and the index of its entry.
        """
        self._source = source
        self._replica = replica
        self._memory = memory
        self._recompute = recompute
        self._blame = blame
        self.recomputed: set[Digest] = set()
        self._index: dict[bytes, int] = {}

    def rounds(self, on_release: Callable[[int, int], None]) -> tuple[RoundReport, ...]:
        """Check and report every round. ``on_release`` is called with how many of how many releases are done."""
        rounds = self._replica.state.rounds
        total = sum(r.release is not None for r in rounds)
        reports, done = [], 0
        self._check_start()
        for r in rounds:
            check: Check | None = None
            if r.release is not None:
                check = self._check_release(r.release.release, r.release.leaf)
                done += 1
                on_release(done, total)
            reports.append(self._round_report(r, check))
        return tuple(reports)

    def _place(self, leaf: Digest) -> int:
        """The index of an entry."""
        if not self._index:
            leaves = self._replica.tree.nodes(0, 0, self._replica.size)
            self._index = {leaves[i : i + HASH_BYTES]: i // HASH_BYTES for i in range(0, len(leaves), HASH_BYTES)}
        return self._index[bytes.fromhex(leaf)]

    def _is_known(self, index: int, leaf: Digest) -> bool:
        """Whether an earlier audit has checked what this entry names, as far as this one is asked to."""
        if self._memory is None or index >= self._memory.tree.size:
            return False
        return self._recompute is None or leaf in self._memory.recomputed

    def _blob(self, blob: Blob, index: int, what: str) -> bytes | None:
        """Return a blob that an entry names, or None and a finding."""
        try:
            return read_blob(self._source, blob)
        except PeerError as e:
            self._blame(f"{what}: {e}", index)
            return None

    def _check_start(self) -> None:
        """Check the first round's start."""
        compact, leaf = self._replica.state.compact, self._replica.tree.node(0, 0).hex()
        if self._is_known(0, leaf):
            return
        start = self._blob(compact.start, 0, "the first round's start")
        fork = compact.forked_from
        # A fork that starts from a release starts from what another log proves: only its digest is checked here.
        if start is None or self._recompute is None or (fork is not None and fork.release_leaf is not None):
            return
        if self._recompute.recompute_start(compact.adapter) == start:
            self.recomputed.add(leaf)
        else:
            self._blame(f"the first round's start {compact.start.sha256} is not what its seed makes", 0)

    def _check_release(self, release: Release, leaf: Digest) -> Check:
        """Check a release's blobs, and re-compute it."""
        index = self._place(leaf)
        if self._is_known(index, leaf):
            return "recomputed" if self._recompute else "digests only"
        blobs: dict[Digest, bytes] = {}
        named = [(release.start, index, "the release's start")]
        for i in release.inputs:
            author = self._replica.state.key(i.institution)
            what = f"update of round {release.round} by {i.institution} (key {author})"
            named.append((i.delta, self._place(i.leaf), what))
        named += [
            (blob, index, f"state of round {release.round}") for blob in (*release.state_before, *release.state_after)
        ]
        named.append((release.adapter, index, f"release of round {release.round}"))
        missing = False
        for blob, at, what in named:
            if (data := self._blob(blob, at, what)) is not None:
                blobs[blob.sha256] = data
            else:
                missing = True
        if missing:
            return "failed"
        if self._recompute is None:
            return "digests only"
        sentence = ""
        try:
            spec, masking = self._replica.state.compact.adapter, self._replica.state.rounds[release.round - 1].masking
            made = self._recompute.recompute_release(spec, release, blobs.__getitem__, masking)
            if made.adapter != release.adapter:
                sentence = (
                    f"release of round {release.round}: adapter {release.adapter.sha256} is not the "
                    f"{release.rule.name} of its {len(release.inputs)} inputs"
                )
            elif made != release:
                sentence = f"release of round {release.round}: wanted {_difference(release, made)}"
        except BlobError as e:
            sentence = f"release of round {release.round}: {e}"
        if sentence:
            self._blame(sentence, index)
            return "failed"
        self.recomputed.add(leaf)
        return "recomputed"

    def _round_report(self, r: RoundState, check: Check | None) -> RoundReport:
        release = None
        if r.release is not None and check is not None:
            release = ReleaseReport(
                index=self._place(r.release.leaf),
                adapter_sha256=r.release.release.adapter.sha256,
                inputs=tuple(i.institution for i in r.release.release.inputs),
                ratified_by=tuple(sorted(r.release.ratified_by)),
                adoptions={name: a.decision for name, a in sorted(r.release.adoptions.items())},
                probes={name: a.probes for name, a in sorted(r.release.adoptions.items()) if a.probes},
                recalled_by=self._replica.state.motions[motion].index if (motion := r.release.recalled_by) else None,
                check=check,
            )
        updates = [(name, logged.update) for name, logged in sorted(r.updates.items())]
        return RoundReport(
            round=r.round.round,
            cohort=r.round.cohort,
            updates=tuple(sorted(r.updates)),
            data_leaves={name: u.data_leaf for name, u in updates if u.data_leaf is not None},
            membership_auc_micros={
                name: u.membership_auc_micros for name, u in updates if u.membership_auc_micros is not None
            },
            refusals=dict(sorted(r.refusals.items())),
            rejections={name: x.reason for name, x in sorted(r.rejected.items())},
            incident=r.incident,
            release=release,
            masked=explain(r.masking, {i.institution: i.weight for i in r.release.release.inputs})
            if r.masking is not None and r.release is not None
            else (),
        )
