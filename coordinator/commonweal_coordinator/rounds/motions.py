"""The coordinator's part in motions: it ends those whose time has come, and carries what was voted for.

It decides nothing by that. Any member may end a motion as well, and what comes of it is the fold's; a compact that was
voted for is in force by its members' ballots, no matter who brings it.
"""

import logging
from pathlib import Path

from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.base.errors import BlobError, PeerError, RuleError
from commonweal_protocols.fold.amendment import check_amendment
from commonweal_protocols.fold.motions import due_closing
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Amendment
from commonweal_protocols.statements.statement import parse_statement
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

log = logging.getLogger(__name__)


class Clerk:
    """Does what is due; owned by the thread that drives rounds."""

    def __init__(self, sequencer: Sequencer, blobs: BlobStore, drafts: Path) -> None:
        """Set up.

        Args:
            sequencer: The log.
            blobs: Where the statements lie that motions propose.
            drafts: The folder of the next version's draft, which members who join have yet to sign.
        """
        self._sequencer = sequencer
        self._blobs = blobs
        self._drafts = drafts
        self._settled: set[Digest] = set()

    def step(self) -> None:
        """End what is over, and put the newest compact that was voted for in the place of any draft.

        Raises:
            StorageError: Something could not be made durable.
            UnavailableError: Too few witnesses answer; step again later.
        """
        for leaf, m in self._sequencer.state.motions.items():
            if m.is_open:
                self._end(leaf)
            elif leaf not in self._settled and isinstance(m.motion.proposal, Amendment):
                if m.outcome is not None and m.outcome.result == "passed":
                    self._carry(self._sequencer.state, m.motion.proposal)
                self._settled.add(leaf)

    def _end(self, leaf: Digest) -> None:
        closing = due_closing(self._sequencer.state, leaf, self._sequencer.checkpoint)
        if closing is None:
            return
        try:
            self._sequencer.say(closing)
        except RuleError as e:
            # A member has ended it, or somebody has acted, between our look and our word.
            log.info("motion %s: %s", leaf, e)

    def _carry(self, state: State, proposal: Amendment) -> None:
        try:
            compact = self._read(proposal)
            check_amendment(state.compact, state.compact_sha256, compact, state.retired, state.size)
        except PeerError as e:
            # In force already, overtaken by another version, or never a compact: then nobody can carry it.
            log.info("compact %s, which was voted for: %s", proposal.compact.sha256, e)
            return
        Draft.store(self._drafts, compact)

    def _read(self, proposal: Amendment) -> Compact:
        if proposal.compact.size_bytes > MAX_ENTRY_BYTES:
            raise BlobError(f"compact: wanted a statement of at most {MAX_ENTRY_BYTES} bytes")
        predicate = parse_statement(self._blobs.read(proposal.compact.sha256)).predicate
        if not isinstance(predicate, Compact):
            raise RuleError(f"motion: wanted a compact, got {type(predicate).__name__}")
        return predicate
