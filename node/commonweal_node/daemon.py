"""The node's daemon: wiring, start-up, and shutdown. What it says is decided in ``institution``.

Home folder::

    node.toml     settings                 keys/      0600, this host; see ``keyring``
    card.json     for anyone who drafts       invite.json  the consortium that was joined
    memory.json   newest verified checkpoint (keep it: it is what catches a rollback)
    records/      a copy of the log, for a successor should the coordinator be gone
    compact.json  what was signed              witness/     what was cosigned: never restore it from a backup
    answers/ sent/ own/ adopted/ receipts/ what was said, with which delta, the own adapters, what serves now, proofs
    masking/      the secret of a masked round that is open: never restore it from a backup
    probes/       the questions by which the charter's clauses are held, one file each
    consortia/    what was verified and adopted of other consortia; of the one that this node speaks for, too
    training/ runs/                        the training that is going on, and a report of each that was
    status.json, run/
"""

import logging
import signal
import threading
import time
from pathlib import Path

from commonweal_node.charter.charter import Charter, load_charter
from commonweal_node.config import NodeConfig
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.connection.link import Link
from commonweal_node.connection.metrics import MetricsServer
from commonweal_node.connection.status import StatusBoard
from commonweal_node.connection.witness import NodeWitness
from commonweal_node.home import NodeHome
from commonweal_node.institution.adoption import name_of
from commonweal_node.institution.delegate import Delegate, check_speaks_for
from commonweal_node.institution.institution import Institution
from commonweal_node.probes.probe import load_probes
from commonweal_node.training.launch import launched_size
from commonweal_node.training.model_process import ModelProcess
from commonweal_protocols.audit.audit import Progress
from commonweal_protocols.base.errors import (
    BaseModelError,
    CommonwealError,
    ConfigError,
    LocalError,
    PeerError,
    UnavailableError,
)
from commonweal_protocols.base.files import locked
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.source import open_source
from commonweal_protocols.statements.compact import Compact

log = logging.getLogger(__name__)

_QUIET_SECONDS = 2
_REST_SECONDS = 20
"""Each wait costs a connection and a look; the log's growth ends it at once."""
_LOOK_SECONDS = 0.5
_LULL_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_BASE_RETRY_SECONDS = 30.0


class Node:
    """One node. ``run`` blocks until ``stop``."""

    def __init__(self, home: Path, config: NodeConfig, passphrase: bytes | None) -> None:
        self._home = home
        self._config = config
        self._keys = KeyRing(home, passphrase)
        self._witness = NodeWitness(home, config, passphrase) if config.witness_port else None
        self._charter: Charter = load_charter(config.charter)
        # Before anything else: a bar that cannot be checked against would be found out at the first release only.
        self._probes = load_probes(home, self._charter, [b.probe for b in self._charter.bars.probes])
        self._board = StatusBoard(home, config.institution)
        self._stopping = threading.Event()
        self._grown = time.monotonic()  # when the log last did
        NodeHome(home).run.mkdir(mode=0o700, exist_ok=True)
        self._link = Link(home, self._keys, self._board)

    def run(self) -> None:
        """Follow the log, answer rounds, ratify and decide, until told to stop.

        Raises:
            LocalError: Keys, rows, charter, base model or [speaks_for] are not as they must be, the metrics' port is
                taken, or a process that trains with this one has ended.
        """
        port = self._config.metrics_port
        metrics = MetricsServer(port, lambda: self._board.newest) if port else None
        if self._witness is not None:
            self._witness.start()
        try:
            with self._link:
                watcher = threading.Thread(target=self._watch, name="invite", daemon=True)
                watcher.start()
                try:
                    self._follow()
                finally:
                    self._stopping.set()
                    watcher.join()
        finally:
            if metrics is not None:
                metrics.stop()
            if self._witness is not None:
                self._witness.stop()

    def _watch(self) -> None:
        """Have a succession that was signed here take effect, and idleness noticed, whatever else is done meanwhile."""
        trouble = ""
        while not self._stopping.wait(_LOOK_SECONDS):
            self._board.look()
            try:
                # First: the successor's very first checkpoint wants its witnesses.
                if self._witness is not None and self._witness.refresh():
                    log.info("witness: watches log %s from now on", self._witness.origin)
                if self._link.refresh():
                    log.info("coordinator: %s from now on", self._link.invite.exchange)
                trouble = ""
            except LocalError as e:
                if str(e) != trouble:
                    log.error("%s", e)
                    self._board.set(trouble=str(e))
                trouble = str(e)
        self._link.hurry()

    def _follow(self) -> None:
        follower = Follower(
            self._link, self._link.invite.consortium, NodeHome(self._home).memory, NodeHome(self._home).records
        )
        self._board.set(phase="waiting", doing="for the consortium's founding")
        if not self._wait_for_founding(follower):
            return
        self._tell_who_waits(follower.state)
        compact = follower.state.compact
        check_speaks_for(self._config, compact)
        model = self._load_model(compact)
        if model is None:
            return
        institution = Institution(
            self._config.institution,
            self._keys,
            home=self._home,
            charter=self._charter,
            probes=self._probes,
            refuse=self._config.refuse,
            max_membership_auc_millis=self._config.max_membership_auc_millis,
            follower=follower,
            consortium=self._link,
            learner=self._delegate(model, compact) or model,
            on_phase=self._board.phase,
        )
        try:
            invite = None
            while not self._stopping.is_set():
                # Without its workers a node can never train again; started anew, all of them can.
                model.check()
                if self._link.invite is not invite:
                    invite = self._link.invite
                    institution.offer_again()
                    self._board.set(phase="waiting", doing="for a round", trouble="")
                    self._show_serving(institution)
                self._tend(institution, follower, model)
        finally:
            model.end()
            self._board.set(phase="stopped")

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

    def _load_model(self, compact: Compact) -> ModelProcess | None:
        """Have base and rows loaded; None once told to stop. Without them a node stays up and says why.

        Raises:
            LocalError: They cannot be loaded, and others train with this process.
        """
        while not self._stopping.is_set():
            self._board.phase("starting", 0, "loading the base model")
            try:
                weights, home = self._charter.objectives, self._home
                return ModelProcess(compact, self._config, weights, home, self._board, self._stopping)
            except (BaseModelError, ConfigError, UnavailableError) as e:
                # Workers hear of it once; they and this process start anew together.
                if launched_size() > 1:
                    raise
                log.error("%s", e)
                self._board.set(trouble=str(e))
                self._stopping.wait(_BASE_RETRY_SECONDS)
        return None

    def _delegate(self, model: ModelProcess, compact: Compact) -> Delegate | None:
        """Return who answers in the place of rows, where this node speaks for a consortium."""
        whose, name, home = self._config.speaks_for, self._config.institution, self._home
        if whose is None:
            return None

        def tell(p: Progress) -> None:
            if self._stopping.is_set():
                raise UnavailableError("audit: the node is stopping; a later look does it again")
            self._board.set(doing=f"verifying {p.stage} of {whose.consortium}: {p.done} of {p.total}")

        source = open_source(whose.records, whose.ca)
        return Delegate(model, name, whose.consortium, source, ours=compact, home=home, on_progress=tell)

    def _show_serving(self, institution: Institution) -> None:
        if (kept := institution.serving()) is not None:
            mean, low, high = (x / 1e6 for x in kept.over_alone_micros)
            self._board.set(serves=name_of(kept.key), over_alone=(mean, low, high))

    def _tend(self, institution: Institution, follower: Follower, model: ModelProcess) -> None:
        """Do what is due; where nothing was, wait for the log to grow.

        A decision waits until the log has been quiet for a while: the next round may open as soon as a release is
        ratified, and the others wait for the answer to it. In an open round it waits longer, since rounds that follow
        each other need the machine.
        """
        before, quiet = follower.size, time.monotonic() - self._grown
        try:
            adoption = institution.tend(may_decide=quiet > (_LULL_SECONDS if institution.is_in_a_round() else 0.5))
            if adoption is not None:
                self._board.set(
                    phase="waiting",
                    doing="for the next round",
                    round=adoption.round,
                    decision=adoption.decision,
                    heldout=adoption.heldout,
                )
                self._show_serving(institution)
            self._board.set(trouble="")
            if follower.size != before:
                self._grown = time.monotonic()
            else:
                model.rest()
                self._link.wait_for_checkpoint(
                    follower.size, _REST_SECONDS if quiet > _QUIET_SECONDS else _QUIET_SECONDS
                )
        except UnavailableError as e:
            self._board.set(trouble=str(e))
            self._stopping.wait(_RETRY_SECONDS)
        except (PeerError, LocalError) as e:
            # The daemon stays up and signs nothing; anyone who runs it reads why, here and in `status`.
            if str(e) != self._board.trouble:
                log.error("%s", e)
            self._board.set(phase="waiting", trouble=str(e))
            self._stopping.wait(_RETRY_SECONDS)
        self._tell_who_waits(follower.state)

    def _tell_who_waits(self, state: State) -> None:
        r = state.open_round
        is_awaited = r is not None and self._config.institution in state.awaited(r)
        self._board.await_answer(r.round.round if r is not None and is_awaited else 0)


def run(home: Path, config: NodeConfig, passphrase: bytes | None) -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        StorageError: Another daemon has this home.
        CommonwealError: See :meth:`Node.run`.
    """
    # Before anything is read: two daemons of one home would sign two chains under one key.
    with locked(NodeHome(home).daemon_lock, f"the node of {config.institution}"):
        node = Node(home, config, passphrase)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.stop())
        node.run()
