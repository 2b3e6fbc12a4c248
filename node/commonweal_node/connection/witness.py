"""This node as a witness of its consortium's log: it cosigns a checkpoint once it has seen that nothing was taken back.

A witness has a key and a store of its own, and starts before the consortium is founded: the very first entry wants its
cosignature already. Which log it watches follows from the compact that this institution has signed. With a succession
that is the new coordinator's log, and no longer the old one's: as soon as a quorum of witnesses has gone over, the old
log is sealed, since nothing in it can be published any more. What was cosigned of it stays in the store.
"""

import time
from pathlib import Path

from commonweal_node.config import NodeConfig
from commonweal_node.home import NodeHome
from commonweal_protocols.base.errors import CommonwealError, StorageError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.base.keys import load_key_file, load_or_create_key_file
from commonweal_protocols.statements.compact import Compact, Witness
from commonweal_protocols.statements.statement import parse_statement
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.note import parse_vkey
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import Witness as WitnessCore


def create_witness(home: Path, institution: str, url: str, passphrase: bytes | None) -> Witness:
    """Make this node's witness key and its empty store; returns what others need to know of it.

    Raises:
        StorageError: A file cannot be written.
    """
    files = NodeHome(home)
    key = load_or_create_key_file(files.witness_key, passphrase)
    if not files.witness_store.exists():
        WitnessStore.create(files.witness_store)
    return Witness(name=institution, vkey=make_cosignature_verifier(institution, key.public_key()).vkey, url=url)


def signed_compact(home: Path) -> Compact:
    """Return the compact that this institution has signed, as ``join`` kept it.

    Raises:
        StorageError: It is not there, or is none.
    """
    path = NodeHome(home).compact
    data = read_bounded(path, MAX_ENTRY_BYTES, "the compact that was signed", if_missing="join again")
    compact = parse_statement(data).predicate
    if not isinstance(compact, Compact):
        raise StorageError(f"{path}: wanted a compact, got {type(compact).__name__}")
    return compact


class NodeWitness:
    """The witness's server and its store, from :meth:`start` to :meth:`stop`."""

    def __init__(self, home: Path, config: NodeConfig, passphrase: bytes | None) -> None:
        """Open the store and bind the address.

        Raises:
            StorageError: A file is missing or damaged.
            ConfigError: The address cannot be used.
        """
        key = load_key_file(NodeHome(home).witness_key, passphrase)
        self._home = home
        self._log = parse_vkey(signed_compact(home).coordinator.log)
        self._store = WitnessStore(NodeHome(home).witness_store)
        try:
            self._core = WitnessCore(config.institution, (key,), (self._log,), self._store, time.time)
            self._server = WitnessServer(self._core, config.witness_host, config.witness_port)
        except CommonwealError:
            self._store.close()
            raise

    @property
    def origin(self) -> str:
        """The log that it watches."""
        return self._log.name

    def refresh(self) -> bool:
        """Look again at the compact that this institution has signed; whether the log is another one now.

        Raises:
            StorageError: It is not there, or is none.
            ConfigError: The log's key is this witness's own.
        """
        log = parse_vkey(signed_compact(self._home).coordinator.log)
        if log == self._log:
            return False
        self._core.set_logs((log,))
        self._log = log
        return True

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._server.start()

    def stop(self) -> None:
        """End, and close the store."""
        self._server.stop()
        self._store.close()
