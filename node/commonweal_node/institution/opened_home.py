"""A node's home, opened by a command, beside the daemon that may run there too.

Both sign at the end of the same chain. The one that comes second gets a ChainConflictError from the coordinator; then
the log is followed again, and the statement is signed for its next place.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from commonweal_node.config import NodeConfig, load_config
from commonweal_node.connection.client import CoordinatorClient
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.home import NodeHome
from commonweal_node.institution.submission import submit
from commonweal_protocols.base.errors import ChainConflictError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.keys import load_passphrase, public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.source import HttpSource
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import Statement
from commonweal_protocols.statements.values import Digest

_ATTEMPTS = 5


class OpenedHome:
    """Settings, keys, and the way to the consortium. Each is read when it is first wanted, and then kept."""

    def __init__(self, home: Path, passphrase_file: Path | None = None, invite: Invite | None = None) -> None:
        """Open it; nothing is read yet.

        Args:
            home: The node's folder.
            passphrase_file: The file with its keys' passphrase, if they have one.
            invite: Another way to the consortium than the home's own ``invite.json``.
        """
        self.files = NodeHome(home)
        self._passphrase_file = passphrase_file
        self._invite = invite

    @cached_property
    def config(self) -> NodeConfig:
        """The settings.

        Raises:
            ConfigError: There are none, or one is wrong.
        """
        return load_config(self.files.settings)

    @cached_property
    def invite(self) -> Invite:
        """The way to the consortium.

        Raises:
            ConfigError: None was joined here.
        """
        return self._invite or Invite.load(self.files.invite)

    @cached_property
    def keys(self) -> KeyRing:
        """What this institution signs with.

        Raises:
            LocalError: No key, or it does not open with this passphrase.
        """
        return KeyRing(self.files.root, load_passphrase(self._passphrase_file))

    @cached_property
    def source(self) -> HttpSource:
        """The consortium's public records; nothing is read yet.

        Raises:
            LocalError: The invite's authority is none, or cannot be written down.
        """
        ca = self.files.ca_of(self.invite.ca_pem)
        write_atomic(ca, self.invite.ca_pem.encode())
        return HttpSource(self.invite.records, ca)

    @cached_property
    def follower(self) -> Follower:
        """The consortium's log, checked against what was last seen of it here; nothing is read yet."""
        return Follower(self.source, self.invite.consortium, self.files.memory)

    def state(self) -> State:
        """Read what is new in the log, verify it, and return the state that follows.

        Raises:
            PeerError: The log does not hold.
            LocalError: It cannot be read now.
        """
        self.follower.sync()
        return self.follower.state

    def client(self) -> CoordinatorClient:
        """Return a connection to the coordinator; close it."""
        return CoordinatorClient(self.invite.exchange, self.invite.ca_pem)

    def submit(self, make: Callable[[State], Predicate]) -> Digest:
        """Sign what ``make`` returns for the state as it is, have it logged, and keep the proof; returns the leaf hash.

        Raises:
            PeerError: The log does not hold, or it does not take the statement.
            LocalError: No key, no answer, or the proof cannot be kept.
        """
        key = self.keys.present
        with self.client() as client:
            for attempt in range(1, _ATTEMPTS + 1):
                state = self.state()
                statement = Statement(state.next_header(public_hex(key), self.follower.seen), make(state))
                try:
                    return submit(
                        sign_envelope(statement.payload(), key), client.submit, self.follower, self.files.root
                    )
                except ChainConflictError:
                    if attempt == _ATTEMPTS:
                        raise
        raise AssertionError("the last attempt returns or raises")
