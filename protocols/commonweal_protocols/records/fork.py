"""A fork: another consortium that begins where an old one stood. What it may say of that, and how it is checked. Pure.

A fork names the old log's tree at the place where the ways part, and the release that it takes over as its start.
That place need not be one at which the old log signed: anyone who has the old records replays all of them, up to a
checkpoint that is signed and cosigned, and hashes the first entries again. So the old log's own signature stands behind
every fork, and no note has to be kept for each of its entries.
"""

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.records.replay import replay_at
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source
from commonweal_protocols.statements.compact import Compact, Fork
from commonweal_protocols.statements.values import Blob, Seen


def fork_of(replica: Replica) -> tuple[Fork, Blob]:
    """Return what a consortium that forks off here has to say of it, and the adapter that it starts from."""
    state, checkpoint = replica.state, replica.checkpoint()
    release = state.ratified()
    fork = Fork(
        consortium=state.consortium,
        log=state.compact.coordinator.log,
        at=Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex()),
        release_leaf=release.leaf if release else None,
    )
    return fork, state.next_start()


def check_fork(compact: Compact, source: Source) -> None:
    """Check a founding compact against the log that it says it comes from.

    Args:
        compact: With ``forked_from``.
        source: The old log's records.

    Raises:
        RuleError: It comes from elsewhere, or starts from another adapter than the newest that was ratified there.
        PeerError: The old log does not hold.
        LocalError: The records cannot be read now.
    """
    if compact.forked_from is None:
        raise RuleError("fork: wanted a compact that says where it comes from, got one that does not")
    (replica,) = replay_at(source, compact.forked_from.at.size)
    fork, start = fork_of(replica)
    old = replica.state.compact
    for what, wanted, got in (
        ("forked_from", fork, compact.forked_from),
        ("start", start, compact.start),
        ("base", old.base, compact.base),
        ("adapter", old.adapter, compact.adapter),
    ):
        if got != wanted:
            raise RuleError(f"fork: {what}: wanted {wanted}, as the old log says, got {got}")
