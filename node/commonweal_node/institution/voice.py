"""Saying something in an institution's name from a command, beside its daemon if that runs.

Both sign at the end of the same chain. The one that comes second gets a ChainConflictError from the coordinator; then
the log is followed again, and the statement is signed for its next place.
"""

from collections.abc import Callable
from pathlib import Path

from commonweal_node.connection.client import CoordinatorClient
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.connection.records import open_records
from commonweal_node.home import NodeHome
from commonweal_node.institution.submission import submit
from commonweal_protocols.base.errors import ChainConflictError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import Statement
from commonweal_protocols.statements.values import Digest

_ATTEMPTS = 5


def speak(home: Path, passphrase: bytes | None, make: Callable[[State], Predicate]) -> Digest:
    """Sign what ``make`` returns for the state as it is, have it logged, and keep the proof; returns the entry's leaf.

    Raises:
        PeerError: The log does not hold, or it does not take the statement.
        LocalError: No key, no answer, or the proof cannot be kept.
    """
    invite, keys = Invite.load(NodeHome(home).invite), KeyRing(home, passphrase)
    follower, _ = open_records(home, invite)
    with CoordinatorClient(invite.exchange, invite.ca_pem) as client:
        for attempt in range(1, _ATTEMPTS + 1):
            follower.sync()
            state = follower.state
            statement = Statement(state.next_header(public_hex(keys.present), follower.seen), make(state))
            try:
                return submit(sign_envelope(statement.payload(), keys.present), client.submit, follower, home)
            except ChainConflictError:
                if attempt == _ATTEMPTS:
                    raise
    raise AssertionError("the last attempt returns or raises")
