"""Joining and amending: read a draft compact, check what can be checked here, and sign it. And the base it names."""

import tomllib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from commonweal_adapters.recompute import recompute_start
from commonweal_node.client import CoordinatorClient
from commonweal_protocols.amendment import check_amendment
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.envelope import sign_envelope
from commonweal_protocols.errors import CommonwealError, ConfigError, RuleError
from commonweal_protocols.files import write_atomic
from commonweal_protocols.follow import Follower
from commonweal_protocols.join import Invite
from commonweal_protocols.predicates import BaseModelRef, Compact
from commonweal_protocols.records import HttpSource
from commonweal_protocols.state import State
from commonweal_protocols.statement import parse_statement


def _fetch_draft(invite: Invite) -> tuple[bytes, Compact]:
    with CoordinatorClient(invite.exchange, invite.ca_pem) as client:
        payload = client.get_draft()
    compact = parse_statement(payload).predicate
    if not isinstance(compact, Compact):
        raise RuleError(f"compact: wanted a compact, got {type(compact).__name__}")
    return payload, compact


def _follow(home: Path, invite: Invite) -> State:
    ca = home / "run/ca.pem"
    write_atomic(ca, invite.ca_pem.encode())
    follower = Follower(HttpSource(invite.records, ca), invite.consortium, home / "memory.json")
    follower.sync()
    return follower.state


def check_amendment_draft(home: Path, invite: Invite) -> tuple[bytes, Compact, State]:
    """Fetch the draft of the compact's next version; returns it with the state, verified here, that it would amend.

    Raises:
        PeerError: There is no such draft, or it cannot follow the compact in force; or the log does not hold.
        UnavailableError: The coordinator does not answer.
    """
    payload, compact = _fetch_draft(invite)
    state = _follow(home, invite)
    check_amendment(state.compact, state.compact_sha256, compact, state.retired, state.size)
    return payload, compact, state


def check_draft(home: Path, invite: Invite, institution: str, key: str) -> tuple[bytes, Compact]:
    """Fetch the draft and check it: the invite's consortium, with us in it, and with the start that its seed makes.

    A draft of a later version is held to the consortium's log, which is read and verified for that.

    Raises:
        PeerError: It is another compact, or does not hold together.
        UnavailableError: The coordinator does not answer.
    """
    payload, compact = _fetch_draft(invite)
    if compact.version > 1:
        payload, compact, _ = check_amendment_draft(home, invite)
    elif (got := digest_of(payload)) != invite.consortium:
        raise RuleError(f"compact: wanted that of consortium {invite.consortium} (the invite), got {got}")
    if key not in {m.key for m in compact.members if m.institution == institution}:
        raise RuleError(f"compact: wanted {institution} with key {key} among the members, got no such member")
    if (got := digest_of(recompute_start(compact.adapter))) != compact.start.sha256:
        raise RuleError(f"compact: wanted the start that its seed makes ({got}), got {compact.start.sha256}")
    return payload, compact


def sign_draft(invite: Invite, payload: bytes, key: Ed25519PrivateKey) -> tuple[int, int]:
    """Sign the compact and hand the signature in; returns how many there are, and how many are wanted.

    Raises:
        PeerError: The coordinator does not take it.
        UnavailableError: The coordinator does not answer.
    """
    with CoordinatorClient(invite.exchange, invite.ca_pem) as client:
        return client.sign(sign_envelope(payload, key))


def known_base(home: Path, invite: Invite) -> BaseModelRef | None:
    """Return the base that the consortium's compact names, or None while its log does not answer."""
    try:
        return _follow(home, invite).compact.base
    except CommonwealError:
        return None


def read_base(terms: Path) -> BaseModelRef:
    """Return the base that a compact's terms (TOML) name.

    Raises:
        ConfigError: No such file, or no such table in it.
    """
    try:
        return BaseModelRef.model_validate(tomllib.loads(terms.read_text("utf-8"))["base"])
    except OSError as e:
        raise ConfigError(f"{terms}: the compact's terms cannot be read: {e.strerror}") from e
    except (KeyError, tomllib.TOMLDecodeError, ValidationError) as e:
        raise ConfigError(f"{terms}: wanted a [base] table with reference and sha256: {e}") from e
