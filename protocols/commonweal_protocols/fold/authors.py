"""Who may sign an entry, and whether it is the next one in its author's chain. Pure."""

from commonweal_protocols.base.errors import ChainConflictError, RuleError
from commonweal_protocols.fold.amendment import Retired, is_expired, not_in
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.governance import Amendment
from commonweal_protocols.statements.statement import Entry, Header
from commonweal_protocols.statements.values import PublicKey


def check_author(state: State, entry: Entry, header: Header) -> PublicKey:
    """Check the author's standing, and the header against the author's chain; return the one author.

    Raises:
        RuleError: Several signatures, a key that has ended or expired, or not the next place in its chain.
    """
    kind = entry.statement.predicate.kind()
    if len(entry.signers) != 1:
        raise RuleError(f"{kind}: wanted one author, got {len(entry.signers)} signatures")
    (author,) = entry.signers
    check_standing(state, kind, author)
    check_place(state, kind, author, header)
    return author


def check_standing(state: State, kind: str, author: PublicKey) -> None:
    """Check that a key may sign an entry here.

    Raises:
        RuleError: It has ended, or has expired.
    """
    if (ended := state.retired.get(author)) is not None:
        raise RuleError(f"{kind}: wanted a key in force, got {author} of {ended.owner}, {describe_end(state, ended)}")
    member = next((m for m in state.compact.members if m.key == author), None)
    if member is not None and is_expired(member, state.size):
        raise RuleError(
            f"{kind}: the key of {member.institution} has expired at index {member.expires_at_index}; wanted a new "
            "one, which the next version of the compact can name"
        )


def describe_end(state: State, ended: Retired) -> str:
    """Return at which entry a key ended and why; where members have voted for that, also by which motion."""
    text = f"ended at entry {ended.at_index}: {ended.reason}"
    if ended.reason != not_in(state.compact):
        return text
    for m in state.motions.values():
        proposal = m.motion.proposal
        if isinstance(proposal, Amendment) and proposal.compact.sha256 == state.compact_sha256:
            return f"{text}, for which the members voted: {m.motion.title!r}, the motion in entry {m.index}"
    return text


def check_place(state: State, kind: str, author: PublicKey, header: Header) -> None:
    """Check that a header is the next one in its author's chain.

    Raises:
        RuleError: Of another consortium.
        ChainConflictError: A gap, a repeat, or after another entry.
    """
    if header.consortium != state.consortium:
        raise RuleError(f"{kind}: wanted consortium {state.consortium}, got {header.consortium}")
    chain = state.chain(author)
    if header.seq != chain.seq + 1:
        who = _called(state, author)
        raise ChainConflictError(f"{kind}: wanted number {chain.seq + 1} in the chain of {who}, got {header.seq}")
    if header.prev != (chain.leaf or None):
        who = _called(state, author)
        raise ChainConflictError(
            f"{kind}: wanted {chain.leaf or None} as the entry of {who} before it, got {header.prev}"
        )


def _called(state: State, author: PublicKey) -> str:
    return state.institution(author) or "the coordinator" * (author == state.compact.coordinator.key) or author
