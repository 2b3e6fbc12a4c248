"""How a compact follows another: who must sign, what may change, and which keys end. Pure; no I/O, no clock.

This is TUF's root rule (TUF specification 5.3): version N + 1 is believed if the threshold of version N *and* its own
have signed it, counted over distinct keys. So neither yesterday's members alone nor tomorrow's alone can change who
decides. Three things are stricter here: a key that joins must sign too, since nobody is a member without knowing it; a
key that a version revokes does not count for that version; and a key that has once ended never comes back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from commonweal_protocols.base.errors import MalformedError, RuleError
from commonweal_protocols.statements.compact import Compact, Member, Witness
from commonweal_protocols.statements.values import Digest, Name, PublicKey
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.note import parse_vkey

_FIXED = ("consortium", "base", "adapter", "start", "forked_from")
"""What makes a consortium this one: with another base or shape no release could follow the last."""


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that signs no more."""

    owner: Name
    at_index: int
    """The entry that ended it."""
    suspect_from_index: int | None
    """If it was revoked: the first index at which its entries are suspect."""
    reason: str


def is_expired(member: Member, index: int) -> bool:
    """Whether a member's key may not sign the entry at ``index``."""
    return member.expires_at_index is not None and index >= member.expires_at_index


def unsigned(current: Compact | None, compact: Compact, signers: Collection[PublicKey]) -> tuple[Name, ...]:
    """Return the institutions of either version whose key has not signed; not all of them need to."""
    members = {m.institution: m.key for m in (current.members if current else ())}
    members |= {m.institution: m.key for m in compact.members}
    return tuple(name for name, key in sorted(members.items()) if key not in signers)


def signing_keys(current: Compact, compact: Compact, index: int) -> dict[PublicKey, Name]:
    """Return the keys of the version in force whose signatures count for the one that is to come."""
    revoked = {r.key for r in compact.revocations}
    return {m.key: m.institution for m in current.members if m.key not in revoked and not is_expired(m, index)}


def check_signers(
    current: Compact | None,
    compact: Compact,
    signers: Collection[PublicKey],
    index: int,
    approving: Collection[PublicKey] = (),
) -> None:
    """Check that enough members have signed ``compact``, and nobody else but a coordinator that carries it.

    Args:
        current: The version in force; None where ``compact`` is to found a consortium.
        compact: The version that is to come.
        signers: The keys whose signatures hold.
        index: Where in the log it stands: keys expire by index.
        approving: The keys of members who have signed a yes to it in a motion that passed.

    Raises:
        RuleError: Somebody is missing, or is no member.
    """
    new = {m.key: m.institution for m in compact.members}
    if current is None:
        if set(signers) != new.keys():
            missing = sorted(name for key, name in new.items() if key not in signers)
            raise RuleError(f"compact: wanted the signature of every member and no other; missing: {missing}")
        return
    old = signing_keys(current, compact, index)
    carriers = {current.coordinator.key, compact.coordinator.key}
    if strangers := sorted(set(signers) - old.keys() - new.keys() - carriers):
        raise RuleError(f"compact: wanted signatures of members in good standing only, got that of {strangers[0]}")
    held = {m.key for m in current.members}
    if silent := sorted(name for key, name in new.items() if key not in held and key not in signers):
        raise RuleError(f"compact: wanted the signature of every key that joins; missing: {silent}")
    standing = set(signers) | set(approving)
    for which, keys, wanted in (
        (current.version, old, current.quorum.amendments),
        (compact.version, new, compact.quorum.amendments),
    ):
        if (got := len(keys.keys() & standing)) < wanted:
            missing = sorted(name for key, name in keys.items() if key not in standing)
            raise RuleError(
                f"compact: wanted {wanted} signatures of the members of version {which}, got {got}; missing: {missing}"
            )


def check_amendment(
    current: Compact, digest: Digest, compact: Compact, retired: Mapping[PublicKey, Retired], index: int
) -> None:
    """Check that ``compact`` may be the next version, no matter who has signed it.

    Args:
        current: The version in force, with its members' present keys.
        digest: The digest of the statement that it was.
        compact: The version that is to come.
        retired: The keys that have ended.
        index: Where in the log it would stand.

    Raises:
        RuleError: It does not follow ``current``, changes what may not change, brings an ended key back, revokes
            what never was a key, or its witnesses make no policy.
    """
    if compact.version != current.version + 1:
        raise RuleError(f"compact: wanted version {current.version + 1}, got {compact.version}")
    if compact.previous != digest:
        raise RuleError(f"compact: wanted {digest} as the version before, got {compact.previous}")
    for name in _FIXED:
        if getattr(compact, name) != getattr(current, name):
            raise RuleError(f"compact: wanted the same {name} as before; with another one, found another consortium")
    _check_succession(current, compact, index)
    keys = _keys(compact)
    if back := sorted(keys.keys() & retired.keys()):
        raise RuleError(f"compact: wanted no key that has ended, got {back[0]}: {retired[back[0]].reason}")
    known = _keys(current).keys() | retired.keys()
    for r in compact.revocations:
        if r.key not in known:
            raise RuleError(f"compact: wanted a revocation of a key that is or was in use, got {r.key}")
        if r.key in keys:
            raise RuleError(f"compact: {keys[r.key]} keeps key {r.key}, which it revokes; wanted a new one, or none")
        if r.from_index > index:
            raise RuleError(f"compact: wanted a revocation from an index up to {index}, got {r.from_index}")
        if (old := retired.get(r.key)) is not None and old.suspect_from_index is not None:
            raise RuleError(f"compact: key {r.key} is revoked already, from index {old.suspect_from_index}")
    try:
        policy_of(compact)
    except MalformedError as e:
        raise RuleError(f"compact: {e}") from e


def _check_succession(current: Compact, compact: Compact, index: int) -> None:
    """A log has one key for its life, so anyone who has another is another coordinator, with another log."""
    old, new = current.coordinator, compact.coordinator
    if (new.name, new.log) == (old.name, old.log):
        if compact.succeeds is not None:
            raise RuleError("compact: succeeds: wanted nothing, since the log stays the same")
        return
    if new.name == old.name or new.log == old.log or new.key == old.key:
        raise RuleError("compact: wanted another name, key and log of another coordinator")
    origin = parse_vkey(old.log).name
    if compact.succeeds is None or compact.succeeds.origin != origin or compact.succeeds.size != index:
        raise RuleError(
            f"compact: succeeds: wanted the last checkpoint of {origin}, of the {index} entries that are carried over, "
            f"got {compact.succeeds}"
        )


def not_in(compact: Compact) -> str:
    """Return the reason for which a key has ended that this version does not name any more."""
    return f"not in version {compact.version}"


def ended_keys(
    current: Compact, compact: Compact, retired: Mapping[PublicKey, Retired], index: int
) -> dict[PublicKey, Retired]:
    """Return the keys that end with a new version: those it revokes, and those that it does not name any more."""
    keys = _keys(compact)
    ended = {
        key: Retired(owner, index, None, not_in(compact)) for key, owner in _keys(current).items() if key not in keys
    }
    for r in compact.revocations:
        known = ended.get(r.key) or retired[r.key]
        ended[r.key] = Retired(known.owner, known.at_index, r.from_index, f"revoked: {r.reason}")
    return ended


def successors(current: Compact, compact: Compact) -> dict[PublicKey, PublicKey]:
    """Return which new key stands where an old one stood: an owner's chain of statements continues under it."""
    keys = {owner: key for key, owner in _keys(compact).items()}
    return {key: keys[owner] for key, owner in _keys(current).items() if keys.get(owner, key) != key}


def with_key(compact: Compact, owner: Name, key: PublicKey) -> Compact:
    """Return the compact with another key for one member or the coordinator; a rotated key does not expire."""
    if owner == compact.coordinator.name:
        return compact.model_copy(update={"coordinator": compact.coordinator.model_copy(update={"key": key})})
    return compact.model_copy(
        update={
            "members": tuple(
                m.model_copy(update={"key": key, "expires_at_index": None}) if m.institution == owner else m
                for m in compact.members
            )
        }
    )


def without_member(compact: Compact, name: Name) -> Compact:
    """Return the compact without a member and its witness. A quorum is at most all who are left."""
    members = tuple(m for m in compact.members if m.institution != name)
    witnesses = tuple(w for w in compact.witnesses if w.name != name)
    quorum = compact.quorum
    return compact.model_copy(
        update={
            "members": members,
            "witnesses": witnesses,
            "quorum": quorum.model_copy(
                update={
                    "updates": min(quorum.updates, len(members)),
                    "ratifications": min(quorum.ratifications, len(members)),
                    "amendments": min(quorum.amendments, len(members)),
                    "witnesses": min(quorum.witnesses, len(witnesses)),
                }
            ),
        }
    )


def with_member(compact: Compact, member: Member, witness: Witness | None) -> Compact:
    """Return the compact with one more member; or with another key, or another witness, of one that it has."""
    members = {m.institution: m for m in (*compact.members, member)}
    witnesses = {w.name: w for w in (*compact.witnesses, *([witness] if witness else ()))}
    return compact.model_copy(
        update={"members": tuple(m for _, m in sorted(members.items())), "witnesses": tuple(witnesses.values())}
    )


def describe_changes(current: Compact, compact: Compact) -> list[str]:
    """Return what a new version changes, a line each, for people who are to sign it."""
    before, after = _flat(current), _flat(compact)
    lines = [
        f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return lines + [f"revoked: key {r.key} from entry {r.from_index} on: {r.reason}" for r in compact.revocations]


def describe_thresholds(compact: Compact) -> list[str]:
    """Return what a compact asks of its members, and a warning where one of them alone could end every amendment."""
    n, quorum, lost = len(compact.members), compact.quorum, spare_keys(compact)
    said = [
        f"of {n} members {quorum.updates} updates make a release, {quorum.ratifications} ratify it, and "
        f"{quorum.amendments} change the compact: that survives {lost} lost key{'s' * (lost != 1)}"
    ]
    return said if lost else [*said, "warning: one lost key, or one no, would end every later amendment"]


def spare_keys(compact: Compact) -> int:
    """Return how many members may lose their keys before the compact can never change again."""
    return len(compact.members) - compact.quorum.amendments


def _flat(compact: Compact) -> dict[str, str]:
    """Every term under its dotted name; members and witnesses under their own, successors under their place."""
    flat: dict[str, str] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else key, inner)
        else:
            flat[name] = str(value)

    terms = compact.model_dump(exclude={"previous", "members", "witnesses", "revocations", "successors", "succeeds"})
    terms["member"] = {m.institution: m.model_dump(exclude={"institution"}) for m in compact.members}
    terms["successor"] = {str(place): s.model_dump() for place, s in enumerate(compact.successors, 1)}
    terms["witness"] = {w.name: w.model_dump(exclude={"name"}) for w in compact.witnesses}
    walk("", terms)
    return flat


def _keys(compact: Compact) -> dict[PublicKey, Name]:
    keys = {m.key: m.institution for m in compact.members}
    keys[compact.coordinator.key] = compact.coordinator.name
    return keys
