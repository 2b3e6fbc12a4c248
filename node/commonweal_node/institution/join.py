"""Joining and amending: read a draft compact, check what can be checked here, and sign it. And the base it names."""

import tomllib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from commonweal_adapters.recompute import recompute_start
from commonweal_node.connection.witness import signed_compact
from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import CommonwealError, ConfigError, RuleError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.base.settings import MAX_TOML_BYTES
from commonweal_protocols.fold.amendment import check_amendment
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.fork import check_fork
from commonweal_protocols.records.source import Source
from commonweal_protocols.statements.compact import BaseModelRef, Compact
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.statement import Statement, parse_statement
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES


def _fetch_draft(home: OpenedHome) -> tuple[bytes, Compact]:
    with home.client() as client:
        payload = client.get_draft()
    compact = parse_statement(payload).predicate
    if not isinstance(compact, Compact):
        raise RuleError(f"compact: wanted a compact, got {type(compact).__name__}")
    return payload, compact


def check_amendment_draft(home: OpenedHome) -> tuple[bytes, Compact, State]:
    """Fetch the draft of the compact's next version; returns it with the state, verified here, that it would amend.

    Where it names another coordinator, the history that this one continues from must have all that was ever seen here.

    Raises:
        PeerError: There is no such draft, or it cannot follow the compact in force; or the log does not hold.
        UnavailableError: The coordinator does not answer.
    """
    payload, compact = _fetch_draft(home)
    state = home.state()
    check_amendment(state.compact, state.compact_sha256, compact, state.retired, state.size)
    if compact.succeeds is not None:
        home.follower.check_carried(compact.succeeds)
    return payload, compact, state


def succeeded_by(home: OpenedHome) -> Compact | None:
    """Return the compact in force at another coordinator's, if enough others have signed its succession already.

    Raises:
        PeerError: Its log does not hold, or lacks what was seen here.
        UnavailableError: It does not answer.
    """
    compact = home.state().compact
    return compact if compact.coordinator.log != signed_compact(home.files.root).coordinator.log else None


def change_over(home: OpenedHome, compact: Compact) -> None:
    """Take another coordinator for ours, as a succession says; a daemon that runs here does so by itself.

    The old invite and compact are kept beside the new ones, in case the others do not sign.

    Args:
        home: The node's home, opened with the successor's invite.
        compact: The version that names it.

    Raises:
        StorageError: A file cannot be read or written.
    """
    # The witness first: without it the new log cannot begin.
    files = home.files
    for path, data in ((files.compact, Statement(None, compact).payload()), (files.invite, home.invite.to_bytes())):
        old = read_bounded(path, MAX_ENTRY_BYTES, "what this institution signed or was sent; join again")
        if old != data:
            write_atomic(path.with_suffix(".before.json"), old)
            write_atomic(path, data)


def check_draft(home: OpenedHome, fork_source: Source | None = None) -> tuple[bytes, Compact]:
    """Fetch the draft and check it: the invite's consortium, with us in it, and with the start that its seed makes.

    A draft of a later version is checked against the consortium's log, which is read and verified for that. One that
    forks off another consortium is checked against that one's log.

    Args:
        home: The node's home, opened with the coordinator's invite.
        fork_source: The records that a fork says it comes from.

    Raises:
        ConfigError: It is a fork, and no source was given.
        PeerError: It is another compact, or does not hold together.
        UnavailableError: The coordinator does not answer.
    """
    institution, key, consortium = home.config.institution, public_hex(home.keys.present), home.invite.consortium
    payload, compact = _fetch_draft(home)
    if compact.version > 1:
        payload, compact, _ = check_amendment_draft(home)
    elif (got := digest_of(payload)) != consortium:
        raise RuleError(f"compact: wanted that of consortium {consortium} (the invite), got {got}")
    if key not in {m.key for m in compact.members if m.institution == institution}:
        raise RuleError(f"compact: wanted {institution} with key {key} among the members, got no such member")
    if compact.forked_from is not None:
        if compact.version == 1:
            if fork_source is None:
                raise ConfigError(
                    f"fork: wanted the records of log {compact.forked_from.at.origin} to check it; give --fork-source"
                )
            check_fork(compact, fork_source)
    elif (got := digest_of(recompute_start(compact.adapter))) != compact.start.sha256:
        raise RuleError(f"compact: wanted the start that its seed makes ({got}), got {compact.start.sha256}")
    return payload, compact


def sign_draft(home: OpenedHome, payload: bytes, key: Ed25519PrivateKey) -> tuple[int, int]:
    """Sign the compact and hand the signature in; returns how many there are, and how many are wanted.

    Raises:
        PeerError: The coordinator does not take it.
        UnavailableError: The coordinator does not answer.
    """
    with home.client() as client:
        return client.sign(sign_envelope(payload, key))


def known_compact(home: OpenedHome) -> Compact | None:
    """Return the consortium's compact in force, or None while its log does not answer."""
    try:
        return home.state().compact
    except CommonwealError:
        return None


def read_base(terms: Path) -> BaseModelRef:
    """Return the base that a compact's terms (TOML) name.

    Raises:
        ConfigError: No such file, or no such table in it.
    """
    data = read_bounded(terms, MAX_TOML_BYTES, "a compact's terms", error=ConfigError)
    try:
        return BaseModelRef.model_validate(tomllib.loads(data.decode("utf-8"))["base"])
    except (KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as e:
        raise ConfigError(f"{terms}: wanted a [base] table with reference and sha256: {e}") from e
