"""The node's daemon: wiring, start-up, and shutdown. What it says is decided in ``institution``.

Home folder::

    node.toml     settings                 keys/      0600, this host; see ``keyring``
    card.json     for whoever drafts       invite.json  the consortium that was joined
    memory.json   newest verified checkpoint (keep it: it is what catches a rollback)
    compact.json  what was signed              witness/     what was cosigned: never restore it from a backup
    answers/ own/ adopted/ receipts/       what was said, the own adapters, what serves now, proofs of being logged
    training/ runs/                        the training that is going on, and a report of each that was
    flower/       Flower's own state       status.json, run/
"""

import base64
import logging
import signal
import threading
from pathlib import Path

from commonweal_node.charter import Charter, load_charter
from commonweal_node.client import CoordinatorClient
from commonweal_node.config import NodeConfig
from commonweal_node.flower import SuperNode, SuperNodeSettings, transport_public_key
from commonweal_node.institution import Institution
from commonweal_node.keyring import KeyRing
from commonweal_node.learner import Learner
from commonweal_node.metrics import MetricsServer
from commonweal_node.status import StatusBoard
from commonweal_node.witnessing import NodeWitness
from commonweal_protocols.errors import BaseModelError, CommonwealError, LocalError, PeerError, UnavailableError
from commonweal_protocols.files import write_atomic
from commonweal_protocols.follow import Follower
from commonweal_protocols.join import Invite
from commonweal_protocols.keys import public_hex
from commonweal_protocols.predicates import Blob, Compact
from commonweal_protocols.records import HttpSource
from commonweal_protocols.state import State

log = logging.getLogger(__name__)

_WAIT_SECONDS = 2
_RETRY_SECONDS = 2.0
_BASE_RETRY_SECONDS = 30.0


class Link:
    """The way to the coordinator, under this institution's key; counts what goes over it."""

    def __init__(self, client: CoordinatorClient, keys: KeyRing, consortium: str, board: StatusBoard) -> None:
        self._client = client
        self._keys = keys
        self._consortium = consortium
        self._board = board

    def submit(self, envelope: bytes) -> bytes:
        """Have an envelope logged; returns its proof."""
        self._board.set(sent_bytes=self._board.sent_bytes + len(envelope))
        return self._client.submit(envelope)

    def put_blob(self, data: bytes) -> Blob:
        """Store bytes in the exchange."""
        before = self._board.sent_bytes
        return self._client.put_blob(
            data, self._keys.present, self._consortium, lambda at: self._board.set(sent_bytes=before + at)
        )

    def get_blob(self, blob: Blob) -> bytes:
        """Fetch bytes from the exchange, checked against their name."""
        before = self._board.received_bytes
        return self._client.get_blob(
            blob.sha256, blob.size_bytes, lambda at: self._board.set(received_bytes=before + at)
        )


class Node:
    """One node. ``run`` blocks until ``stop``."""

    def __init__(self, home: Path, config: NodeConfig, passphrase: bytes | None) -> None:
        self._home = home
        self._config = config
        self._invite = Invite.load(home / "invite.json")
        self._keys = KeyRing(home, passphrase)
        self._witness = NodeWitness(home, config, passphrase) if config.witness_port else None
        self._charter: Charter = load_charter(config.charter)
        self._board = StatusBoard(home, config.institution)
        self._stopping = threading.Event()
        self._ca = home / "run/ca.pem"
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        write_atomic(self._ca, self._invite.ca_pem.encode())

    def run(self) -> None:
        """Follow the log, answer rounds, ratify and decide, until told to stop.

        Raises:
            LocalError: Keys, rows, charter or base model are not as they must be, or the metrics' port is taken.
        """
        port = self._config.metrics_port
        metrics = MetricsServer(port, lambda: self._board.newest) if port else None
        if self._witness is not None:
            self._witness.start()
        try:
            self._follow()
        finally:
            if metrics is not None:
                metrics.stop()
            if self._witness is not None:
                self._witness.stop()

    def _follow(self) -> None:
        invite = self._invite
        transport = self._home / "keys/transport.pem"
        with CoordinatorClient(invite.exchange, invite.ca_pem) as client:
            follower = Follower(HttpSource(invite.records, self._ca), invite.consortium, self._home / "memory.json")
            self._board.set(phase="waiting", doing="for the consortium's founding")
            if not self._wait_for_founding(follower):
                return
            compact = follower.state.compact
            learner = self._load_learner(compact)
            if learner is None:
                return
            institution = Institution(
                self._config.institution,
                self._keys,
                base64.b64encode(transport_public_key(transport)).decode(),
                home=self._home,
                charter=self._charter,
                refuse=self._config.refuse,
                follower=follower,
                consortium=Link(client, self._keys, invite.consortium, self._board),
                learner=learner,
                on_phase=self._board.phase,
            )
            self._serve(institution, client, follower, transport)

    def stop(self) -> None:
        """Ask ``run`` to end; safe from a signal handler."""
        self._stopping.set()

    def _wait_for_founding(self, follower: Follower) -> bool:
        while not self._stopping.is_set():
            try:
                follower.sync()
                if self._has_joined(follower.state):
                    return True
                self._board.set(phase="waiting", doing="for the members to sign the version that takes us in")
            except CommonwealError as e:
                # Before the last founder has signed there is no checkpoint, and before the coordinator runs no answer.
                self._board.set(phase="waiting", doing=f"for the consortium's founding ({e})")
            self._stopping.wait(0.5)
        return False

    def _has_joined(self, state: State) -> bool:
        """Whether the log knows this institution. One whose key has ended is no newcomer: it is told what happened."""
        return state.key(self._config.institution) is not None or public_hex(self._keys.present) in state.retired

    def _load_learner(self, compact: Compact) -> Learner | None:
        """Load base and rows; None once told to stop. Without its base a node stays up, answers nothing and says why.

        Raises:
            ConfigError: The rows are not as they must be.
        """
        while not self._stopping.is_set():
            self._board.phase("starting", 0, "loading the base model")
            try:
                weights, home = self._charter.objectives, self._home
                return Learner(compact, self._config, weights, home, self._board, self._stopping)
            except BaseModelError as e:
                log.error("%s", e)
                self._board.set(trouble=str(e))
                self._stopping.wait(_BASE_RETRY_SECONDS)
        return None

    def _serve(self, institution: Institution, client: CoordinatorClient, follower: Follower, transport: Path) -> None:
        supernode = SuperNode(
            SuperNodeSettings(
                home=self._home / "flower",
                fleet=self._invite.fleet,
                port=self._config.flower_port,
                ca=self._ca,
                transport_key=transport,
                institution=self._config.institution,
            ),
            lambda round_number: self._answer(institution, round_number),
        )
        try:
            supernode.start()
            self._board.set(phase="waiting", doing="for a round", trouble="")
            while not self._stopping.is_set():
                self._tend(institution, supernode, client, follower)
        finally:
            supernode.stop()
            self._board.set(phase="stopped")

    def _answer(self, institution: Institution, round_number: int) -> bytes:
        """Answer an invitation; called from Flower's thread.

        Raises:
            CommonwealError: See :meth:`Institution.answer`; what is wrong here also shows in the status. A late
                invitation to a round that is over is nobody's trouble, and a log that does not hold shows as it is
                followed.
        """
        try:
            envelope = institution.answer(round_number)
        except LocalError as e:
            self._board.set(phase="waiting", trouble=str(e))
            raise
        self._board.phase("waiting", round_number, "for the others")
        return envelope

    def _tend(
        self, institution: Institution, supernode: SuperNode, client: CoordinatorClient, follower: Follower
    ) -> None:
        try:
            supernode.ensure_running()
            adoption = institution.tend()
            if adoption is not None:
                self._board.set(
                    phase="waiting",
                    doing="for the next round",
                    round=adoption.round,
                    decision=adoption.decision,
                    heldout=adoption.heldout,
                )
            self._board.set(trouble="")
            client.wait_for_checkpoint(follower.size, _WAIT_SECONDS)
        except UnavailableError as e:
            self._board.set(trouble=str(e))
            self._stopping.wait(_RETRY_SECONDS)
        except (PeerError, LocalError) as e:
            # The daemon stays up and signs nothing; whoever runs it reads why, here and in `status`.
            if str(e) != self._board.trouble:
                log.error("%s", e)
            self._board.set(phase="waiting", trouble=str(e))
            self._stopping.wait(_RETRY_SECONDS)


def run(home: Path, config: NodeConfig, passphrase: bytes | None) -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        CommonwealError: See :meth:`Node.run`.
    """
    node = Node(home, config, passphrase)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    node.run()
