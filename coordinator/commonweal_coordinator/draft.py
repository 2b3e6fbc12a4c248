"""From a compact as people write it (TOML) and the members' cards to the compact that they will sign."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from commonweal_adapters.recompute import recompute_start
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.errors import ConfigError
from commonweal_protocols.join import Card
from commonweal_protocols.predicates import (
    AdapterSpec,
    BaseModelRef,
    Blob,
    Closed,
    Compact,
    Coordinator,
    Member,
    Name,
    Quorum,
    Recipe,
    Rule,
)
from commonweal_protocols.settings import describe, load_toml


class CompactTerms(Closed):
    """``compact.toml``: all that founders negotiate. Members come from their cards, keys from ``init``."""

    consortium: Name
    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe
    rule: Rule
    quorum: Quorum
    round_deadline_seconds: int
    max_update_bytes: int


def load_terms(path: Path) -> CompactTerms:
    """Read ``compact.toml``.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value out of range.
    """
    return load_toml(path, CompactTerms)


def draft_compact(terms: CompactTerms, cards: Sequence[Card], coordinator: Coordinator) -> tuple[Compact, bytes]:
    """Return the compact, and the bytes of the first round's start that it names.

    Raises:
        ConfigError: Too few members for the quorums, a repeated key, or another contradiction.
    """
    start = recompute_start(terms.adapter)
    cards = sorted(cards, key=lambda c: c.institution)
    members = tuple(Member(institution=c.institution, key=c.key) for c in cards)
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
            round_deadline_seconds=terms.round_deadline_seconds,
            max_update_bytes=terms.max_update_bytes,
        )
    except ValidationError as e:
        raise ConfigError(f"compact: {describe(e)}") from e
    return compact, start
