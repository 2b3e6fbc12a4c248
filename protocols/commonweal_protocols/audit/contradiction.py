"""What a log has published, against what was seen of it: forks, rollbacks, stale views, and what no log may sequence.

Works on what the log has *signed*, whether or not its entries may stand there: a log that forks is convicted even if
its second history breaks the compact at the first entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from commonweal_protocols.audit.evidence import (
    Conviction,
    EntryEvidence,
    ForkEvidence,
    LoggedEntry,
    convict_witnesses,
    prove_entry,
    prove_fork,
)
from commonweal_protocols.audit.memory import Line
from commonweal_protocols.base.errors import LogError, PeerError
from commonweal_protocols.records.source import Source, read_entries
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import parse_envelope, verify_envelope
from commonweal_protocols.statements.statement import parse_statement
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.checkpoint import open_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import Verifier, parse_vkey
from commonweal_protocols.tlog.policy import Cosigned


@dataclass(frozen=True, slots=True)
class Published:
    """A signed checkpoint, and the tree of ``size`` entries below it."""

    log: Verifier
    note: bytes
    tree: Tree
    size: int


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What does not fit, the evidence, if the log's own signatures show it, and the witnesses that vouched for both."""

    sentence: str
    fork: ForkEvidence | None
    witnesses: tuple[Conviction, ...] = ()


def read_published(source: Source, note: bytes, log: Verifier, begun: Tree) -> Published | None:
    """Return what the log has signed; None if the entries that it serves are not those, or are not signed.

    Args:
        source: The public records.
        note: The published checkpoint, unverified.
        log: The log's key.
        begun: The tree of the first entries, read before.

    Raises:
        UnavailableError: The source does not answer.
        StorageError: The source's folder cannot be read.
    """
    try:
        checkpoint = open_checkpoint(note, log)
        tree = begun.copy()
        for data in read_entries(source, tree.size, checkpoint.size):
            tree.append(leaf_hash(data))
    except PeerError:
        return None
    if tree.size != checkpoint.size or tree.root(tree.size) != checkpoint.root:
        return None
    return Published(log, note, tree, tree.size)


def contradicts(
    published: Published, note: bytes, own: Tree | None, witnesses: Sequence[CosignatureVerifier]
) -> Contradiction | None:
    """Compare a checkpoint that was seen to the published one; None if the published history continues from it.

    Args:
        published: What the log says now.
        note: A checkpoint that the log signed.
        own: The tree below ``note``, where that was kept.
        witnesses: Those who should have prevented a fork.

    Raises:
        MalformedError, SignatureError: ``note`` is not a checkpoint of this log.
    """
    log, size = published.log, published.size
    seen = open_checkpoint(note, log)
    if seen.size <= size:
        if (fork := prove_fork(note, published.note, published.tree, log)) is None:
            return None
        here = published.tree.root(seen.size).hex()
        sentence = f"log {log.name}: forked: at size {seen.size}, root {seen.root.hex()} was seen, {here} is here"
        return Contradiction(sentence, fork, convict_witnesses(fork, log, witnesses))
    fork = prove_fork(published.note, note, own, log) if own else None
    what = f"{seen.size} entries were seen, {size} are here"
    if fork:
        sentence = f"log {log.name}: forked: {what}, and these are not the first {size} of those"
        return Contradiction(sentence, fork, convict_witnesses(fork, log, witnesses))
    return Contradiction(f"log {log.name}: rolled back: {what}", None)


def earlier_logs(source: Source, journal: Sequence[Line], tree: Tree) -> dict[str, Verifier]:
    """Return the logs that a verified history was in, by name, each under the key that the members named.

    Args:
        source: The public records.
        journal: One line for each entry.
        tree: Of these entries.

    Raises:
        PeerError: An entry is not served any more, or is another one now.
        UnavailableError, StorageError: See :func:`read_published`.
    """
    logs: dict[str, Verifier] = {}
    for index, line in enumerate(journal):
        if line.kind != "compact":
            continue
        data = next(read_entries(source, index, tree.size))
        if leaf_hash(data) != tree.node(0, index):
            raise LogError(f"entry {index}: wanted the one that was verified, got another")
        compact = parse_statement(parse_envelope(data).payload).predicate
        if isinstance(compact, Compact):
            verifier = parse_vkey(compact.coordinator.log)
            logs[verifier.name] = verifier
    return logs


def claimed_origin(note: bytes) -> str:
    """Return the log that an unverified checkpoint says it is of: good for which key to try, for nothing else."""
    return note.partition(b"\n")[0].decode("utf-8", "replace")


def stale(cosigned: Cosigned, not_before: int) -> str:
    """Say that a checkpoint's quorum is older than ``not_before``, in seconds since the epoch; nothing if it is not.

    What happened since may be withheld. The times are the witnesses' word.
    """
    at = cosigned.quorum_at
    if at is not None and at >= not_before:
        return ""
    size = cosigned.checkpoint.size
    got = "no witness's word at all" if at is None else f"a quorum's word of {at}"
    return (
        f"stale: wanted witnesses that say, {not_before} s after 1970 or later, that {size} entries are all; got {got}"
    )


def prove_bad_entry(
    source: Source, published: Published, journal: Sequence[Line], consortium: Digest
) -> EntryEvidence | None:
    """Return the evidence that the first entry after ``journal`` should not be there, if signatures alone show it.

    Args:
        source: The public records.
        published: What the log has signed.
        journal: One line for each entry that holds, by index.
        consortium: The consortium that they are of.

    Raises:
        PeerError: An entry is not served any more.
        UnavailableError, StorageError: See :func:`read_published`.
    """

    def logged(index: int) -> LoggedEntry:
        # Up to the signed size: a partial bundle exists for the sizes that were published, not for any.
        data = next(read_entries(source, index, published.size))
        return prove_entry(data, index, published.tree, published.size, published.note)

    if len(journal) >= published.size:
        return None
    bad = logged(len(journal))
    try:
        verified = verify_envelope(parse_envelope(bad.entry))
    except PeerError:
        return EntryEvidence((bad,))
    try:
        header = parse_statement(verified.payload).header
    except PeerError:
        return None
    # An author's numbers have no gap, so its entry number n is its n-th line.
    own = [i for i, line in enumerate(journal) if line.key and verified.signers == (line.key,)]
    if header is None or header.consortium != consortium or header.seq >= len(own):
        return None
    return EntryEvidence((logged(own[header.seq]), bad))
