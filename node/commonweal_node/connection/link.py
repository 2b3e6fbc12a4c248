"""The way to the coordinator, as ``invite.json`` says; it may become another one while the daemon runs.

Members who have signed a succession have another invite. From then on everything goes to the successor: what is in
progress to the old coordinator and is not answered is sent again.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from commonweal_node.connection.client import CoordinatorClient
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.connection.status import StatusBoard
from commonweal_node.home import NodeHome
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.records.source import HttpSource
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.values import Blob

T = TypeVar("T")


class _Way(NamedTuple):
    invite: Invite
    client: CoordinatorClient
    source: HttpSource


class Link:
    """The way there, under this institution's key; counts what goes over it. Thread-safe; close it.

    Satisfies ``institution.Consortium``, and ``records.Source`` for the public records.
    """

    def __init__(self, home: Path, keys: KeyRing, board: StatusBoard) -> None:
        """Read the invite.

        Raises:
            ConfigError: There is none.
        """
        self._home = home
        self._keys = keys
        self._board = board
        self.ca = NodeHome(home).ca
        """Whom to trust for TLS; for those who want a file."""
        self._refreshing = threading.Lock()
        self._clients: list[CoordinatorClient] = []  # the older ones too: calls over them may be in progress
        self._way = self._open(Invite.load(NodeHome(home).invite))
        self._is_hurried = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for client in self._clients:
            client.close()

    @property
    def invite(self) -> Invite:
        """Where the way leads now."""
        return self._way.invite

    def refresh(self) -> bool:
        """Look at the invite again; whether it leads elsewhere now.

        Raises:
            ConfigError: It is damaged, or to another consortium; the way stays as it was.
        """
        with self._refreshing:
            invite = Invite.load(NodeHome(self._home).invite)
            if invite == self._way.invite:
                return False
            if invite.consortium != self._way.invite.consortium:
                raise ConfigError(
                    f"{NodeHome(self._home).invite}: wanted consortium {self._way.invite.consortium}, got "
                    f"{invite.consortium}; a node's home is for one consortium: make another for this one"
                )
            before, self._way = self._way, self._open(invite)
            before.client.end_waiting()
            return True

    def hurry(self) -> None:
        """Have nobody wait for checkpoints any more; everything else is done as before."""
        self._is_hurried.set()
        self._way.client.end_waiting()

    def _open(self, invite: Invite) -> _Way:
        write_atomic(self.ca, invite.ca_pem.encode())
        client = CoordinatorClient(invite.exchange, invite.ca_pem)
        self._clients.append(client)
        return _Way(invite, client, HttpSource(invite.records, self.ca))

    def _over(self, call: Callable[[_Way], T]) -> T:
        while True:
            way = self._way
            try:
                return call(way)
            except UnavailableError:
                if way is self._way:
                    raise

    def submit(self, envelope: bytes) -> bytes:
        """Have an envelope logged; returns its proof."""
        self._board.set(sent_bytes=self._board.sent_bytes + len(envelope))
        return self._over(lambda way: way.client.submit(envelope))

    def put_blob(self, data: bytes) -> Blob:
        """Store bytes in the exchange."""
        before = self._board.sent_bytes

        def report(at: int) -> None:
            self._board.set(sent_bytes=before + at)

        return self._over(lambda way: way.client.put_blob(data, self._keys.present, way.invite.consortium, report))

    def get_blob(self, blob: Blob) -> bytes:
        """Fetch bytes from the exchange, checked against their name."""
        before = self._board.received_bytes

        def report(at: int) -> None:
            self._board.set(received_bytes=before + at)

        return self._over(lambda way: way.client.get_blob(blob.sha256, blob.size_bytes, report))

    def wait_for_checkpoint(self, larger_than: int, timeout_seconds: int) -> None:
        """Wait until the published tree is larger, or for the time, or until :meth:`hurry`.

        Raises:
            UnavailableError: No answer.
        """
        try:
            self._over(lambda way: way.client.wait_for_checkpoint(larger_than, timeout_seconds))
        except UnavailableError:
            if not self._is_hurried.is_set():
                raise

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """See ``records.Source``."""
        return self._over(lambda way: way.source.read(path, max_bytes=max_bytes))
