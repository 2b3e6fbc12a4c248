"""The compact's next version, as a member proposes it: who joins, who leaves, and which terms are other ones."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.settings import describe
from commonweal_protocols.fold.amendment import (
    check_amendment,
    describe_changes,
    describe_thresholds,
    with_member,
    without_member,
)
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Amendment
from commonweal_protocols.statements.invite import Card
from commonweal_protocols.statements.statement import Statement
from commonweal_protocols.statements.values import Name

Table = Mapping[str, object]


def parse_terms(settings: Sequence[str], terms: Table) -> Table:
    """Return terms, as a file has them, with those besides that settings like ``quorum.updates=3`` name.

    A value is TOML; what is not TOML is text as it stands, and ``none`` takes an optional term away.

    Raises:
        ConfigError: Not of that form.
    """
    for setting in settings:
        name, is_set, text = setting.partition("=")
        if not is_set or not all(name.split(".")) or "\n" in text:
            raise ConfigError(f"--set: wanted TERM=VALUE, such as quorum.updates=3, got {setting!r}")
        try:
            value: object = None if text == "none" else tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for part in reversed(name.split(".")):
            value = {part: value}
        terms = _merged(terms, value if isinstance(value, dict) else {})
    return terms


def next_compact(state: State, terms: Table, *, add: Sequence[Card] = (), remove: Sequence[Name] = ()) -> Compact:
    """Return the compact in force with changes, as its next version.

    Args:
        state: Where the consortium stands.
        terms: Other terms. Of a table only what is named changes; one of another ``name`` takes the old one's place.
        add: Institutions that join, or that have another key or witness.
        remove: Institutions that leave, with their witnesses. A quorum is at most all who are left.

    Raises:
        ConfigError: A term that there is not, a value out of range, another coordinator now, or no such member.
        RuleError: It cannot follow the compact in force.
    """
    compact = current = state.compact
    if {"coordinator", "succeeds"} & terms.keys():
        # Its compact names where this log ends, and the motion itself makes this log longer.
        raise ConfigError(
            "terms: wanted the same coordinator, got coordinator or succeeds; name who is to follow (--successor), and "
            "once this log has ended sign that one's draft: commonweal node amend --invite"
        )
    if unknown := sorted(set(terms) - set(Compact.model_fields)):
        raise ConfigError(f"terms: wanted terms of a compact, got {unknown[0]}")
    members = [m.institution for m in current.members]
    for name in remove:
        if name not in members:
            raise ConfigError(f"--remove: wanted one of {', '.join(members)}, got {name}")
        compact = without_member(compact, name)
    for card in add:
        compact = with_member(compact, card.member(), card.witness)
    after = {"version": current.version + 1, "previous": state.compact_sha256, "revocations": (), "succeeds": None}
    try:
        changed = _merged(compact.model_dump(mode="json") | after, terms)
        compact = Compact.model_validate_json(json.dumps(changed))
    except ValidationError as e:
        raise ConfigError(f"terms: {describe(e)}") from e
    check_amendment(current, state.compact_sha256, compact, state.retired, state.size)
    return compact


def _merged(table: Table, changes: Table) -> dict[str, object]:
    """A table with changes, which merge below it as well."""
    if {"name"} <= table.keys() & changes.keys() and table["name"] != changes["name"]:
        return dict(changes)
    merged = dict(table)
    for key, value in changes.items():
        before = table.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def describe_consequences(current: Compact, compact: Compact) -> Iterator[str]:
    """Yield what a next version changes, which thresholds follow, and whether those who are to leave could stop it."""
    yield from describe_changes(current, compact)
    yield from describe_thresholds(compact)
    removed = sorted({m.institution for m in current.members} - {m.institution for m in compact.members})
    if removed and len(current.members) - len(removed) < current.quorum.amendments:
        yield f"warning: wants {current.quorum.amendments} yes: it cannot pass without one of {', '.join(removed)}"


def propose_compact(home: OpenedHome, compact: Compact) -> Amendment:
    """Put a compact's statement into the exchange, for everybody to read, and return the proposal of it.

    Raises:
        PeerError: The exchange does not take it.
        LocalError: No key, or no answer.
    """
    key = home.keys.present
    with home.client() as client:
        blob = client.put_blob(Statement(None, compact).payload(), key, home.invite.consortium)
    return Amendment(kind="amendment", compact=blob)
