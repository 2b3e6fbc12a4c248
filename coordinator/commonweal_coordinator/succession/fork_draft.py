"""From a place in an old log to the founding compact of those who go another way. Pure."""

from collections.abc import Sequence

from pydantic import ValidationError

from commonweal_coordinator.succession.compact_draft import CompactTerms
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.settings import describe
from commonweal_protocols.fold.amendment import without_member
from commonweal_protocols.records.fork import fork_of
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.compact import Compact, Coordinator
from commonweal_protocols.statements.invite import Card
from commonweal_protocols.statements.values import Name


# Long because each field of the forked compact is decided here, one after the other.
def draft_fork(
    replica: Replica,
    name: Name,
    members: Sequence[Name],
    cards: Sequence[Card],
    coordinator: Coordinator,
    terms: CompactTerms | None,
) -> Compact:
    """Return the founding compact of a fork.

    Args:
        replica: The old log up to where the ways part.
        name: What the new consortium is called.
        members: Those who go along under the keys, and with the witnesses, that they have in the old one.
        cards: Those who go along, or join, under keys of these cards.
        coordinator: Who is to coordinate.
        terms: Other terms; None keeps the old ones, with quorums that the members can reach. Base and adapter stay.

    Raises:
        ConfigError: Nobody of that name, or the terms do not fit these members.
    """
    old = replica.state.compact
    if unknown := sorted(set(members) - {m.institution for m in old.members}):
        raise ConfigError(f"fork: wanted members of {old.consortium} at entry {replica.size}, got {unknown[0]}")
    mine = {
        # An expiry is an index of the old log.
        m.institution: m.model_copy(update={"expires_at_index": None})
        for m in old.members
        if m.institution in members
    }
    witnesses = {w.name: w for w in old.witnesses if w.name in members}
    for card in cards:
        mine[card.institution] = card.member()
        if card.witness is not None:
            witnesses[card.witness.name] = card.witness
    kept = old
    for m in old.members:
        if m.institution not in mine:
            kept = without_member(kept, m.institution)
    fork, start = fork_of(replica)
    changes = {} if terms is None else {key: getattr(terms, key) for key in type(terms).model_fields}
    changes |= {
        "consortium": name,
        "version": 1,
        "previous": None,
        "base": old.base,
        "adapter": old.adapter,
        "members": tuple(m for _, m in sorted(mine.items())),
        "witnesses": tuple(witnesses.values()),
        "coordinator": coordinator,
        "start": start,
        "revocations": (),
        "successors": (),
        "succeeds": None,
        "forked_from": fork,
    }
    if terms is None:
        wanted = min(kept.quorum.witnesses, len(witnesses))
        changes["quorum"] = kept.quorum.model_copy(update={"witnesses": wanted})
    try:
        return Compact(**{key: getattr(old, key) for key in Compact.model_fields} | changes)
    except ValidationError as e:
        raise ConfigError(f"compact: {describe(e)}") from e
