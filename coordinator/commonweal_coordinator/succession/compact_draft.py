"""From a compact as people write it (TOML) and the members' cards to the compact, or its next version, to be signed."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from commonweal_adapters.recompute import recompute_start
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.base.settings import describe, load_toml
from commonweal_protocols.fold.amendment import check_amendment
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import (
    AdapterSpec,
    BaseModelRef,
    Compact,
    Coordinator,
    Quorum,
    Recipe,
    Revocation,
)
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.invite import Card
from commonweal_protocols.statements.privacy_budget import PrivacyTerms
from commonweal_protocols.statements.rules import Rule
from commonweal_protocols.statements.secure_terms import SecureTerms
from commonweal_protocols.statements.values import Blob, Name, PublicKey, Seen


class CompactTerms(Closed):
    """``compact.toml``: all that founders negotiate. Members come from their cards, keys from ``init``."""

    consortium: Name
    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe
    rule: Rule
    quorum: Quorum
    round_deadline_seconds: int
    stop_after: int | None = None
    max_update_bytes: int
    encoding: Encoding | None = None
    privacy: PrivacyTerms | None = None
    secure: SecureTerms | None = None


def load_terms(path: Path) -> CompactTerms:
    """Read ``compact.toml``.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return load_toml(path, CompactTerms)


def draft_compact(
    terms: CompactTerms, cards: Sequence[Card], coordinator: Coordinator, successors: Sequence[Coordinator] = ()
) -> tuple[Compact, bytes]:
    """Return the compact, and the bytes of the first round's start that it names.

    Raises:
        ConfigError: Too few members for the quorums, a repeated key, or another contradiction.
    """
    start = recompute_start(terms.adapter)
    cards = sorted(cards, key=lambda c: c.institution)
    members = tuple(c.member() for c in cards)
    try:
        compact = Compact(
            consortium=terms.consortium,
            version=1,
            base=terms.base,
            adapter=terms.adapter,
            recipe=terms.recipe,
            rule=terms.rule,
            quorum=terms.quorum,
            members=members,
            coordinator=coordinator,
            witnesses=tuple(c.witness for c in cards if c.witness is not None),
            start=Blob(sha256=digest_of(start), size_bytes=len(start)),
            successors=tuple(successors),
            round_deadline_seconds=terms.round_deadline_seconds,
            stop_after=terms.stop_after,
            max_update_bytes=terms.max_update_bytes,
            encoding=terms.encoding,
            privacy=terms.privacy,
            secure=terms.secure,
        )
    except ValidationError as e:
        raise ConfigError(f"compact: {describe(e)}") from e
    return compact, start


def amend_compact(
    state: State,
    terms: CompactTerms | None,
    cards: Sequence[Card],
    remove: Sequence[Name],
    revocations: Sequence[Revocation],
    *,
    successors: Sequence[Coordinator] | None = None,
    succession: tuple[Coordinator, Seen] | None = None,
) -> Compact:
    """Return the next version of the compact in force.

    Args:
        state: Where the consortium stands.
        terms: Other terms; None keeps those in force.
        cards: Institutions that join, or that get another key or witness.
        remove: Institutions that leave, and their witnesses with them.
        revocations: Keys that are no longer their owners' alone.
        successors: Who is to follow this coordinator, in their order; None keeps those in force.
        succession: Another coordinator that is to follow now, and the last checkpoint of the log that was. It is no
            successor any more.

    Raises:
        ConfigError: Nobody of that name, too few members for the quorums, or another contradiction.
        RuleError: It cannot follow the compact in force.
    """
    now = state.compact
    if unknown := sorted(set(remove) - {m.institution for m in now.members}):
        raise ConfigError(f"amend: wanted a member to remove, got {unknown[0]}")
    keys = {m.institution: m for m in now.members if m.institution not in remove}
    witnesses = {w.name: w for w in now.witnesses if w.name not in remove}
    for card in cards:
        keys[card.institution] = card.member()
        if card.witness is not None:
            witnesses[card.witness.name] = card.witness
    changes = {} if terms is None else {name: getattr(terms, name) for name in type(terms).model_fields}
    changes |= {
        "version": now.version + 1,
        "previous": state.compact_sha256,
        "members": tuple(m for _, m in sorted(keys.items())),
        "witnesses": tuple(witnesses.values()),
        "revocations": tuple(revocations),
        "successors": now.successors if successors is None else tuple(successors),
        "succeeds": None,
    }
    if succession is not None:
        changes["coordinator"], changes["succeeds"] = succession
        changes["successors"] = tuple(s for s in now.successors if s.name != succession[0].name)
    try:
        # Through the constructor, which holds the parts to one another; a copy would not.
        compact = Compact(**{name: getattr(now, name) for name in Compact.model_fields} | changes)
    except ValidationError as e:
        raise ConfigError(f"compact: {describe(e)}") from e
    check_amendment(now, state.compact_sha256, compact, state.retired, state.size)
    return compact


def parse_revocation(text: str, state: State) -> Revocation:
    """Parse ``INSTITUTION@INDEX:REASON`` (its key in force), or the same with a public key in hex.

    Raises:
        ConfigError: Not of that form, or nobody of that name.
    """
    whom, at, rest = text.partition("@")
    index, colon, reason = rest.partition(":")
    if not at or not colon or not re.fullmatch("0|[1-9][0-9]{0,15}", index):
        raise ConfigError(f"revocation: wanted INSTITUTION@INDEX:REASON, got {text[:100]!r}")
    key: PublicKey | None = state.key(whom) if state.key(whom) else whom if len(whom) == 64 else None
    if key is None:
        raise ConfigError(f"revocation: wanted a member's name or a public key in hex, got {whom!r}")
    try:
        return Revocation(key=key, from_index=int(index), reason=reason.strip())
    except ValidationError as e:
        raise ConfigError(f"revocation: {describe(e)}") from e
