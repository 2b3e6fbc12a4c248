"""The coordinator's daemon: wiring, start-up, and shutdown. Policy is in ``rounds``, durability in ``log``.

Home folder::

    coordinator.toml   settings            public/    checkpoint, tile/, blob/: what anyone may read
    keys/              0600, this host      founding/  the founding compact and the members' signatures
                                            amendment/ the same of the next version, while it is a draft
    mirror/            see ``standby``      succession/ see ``succession``
    tls/               certificate          lock.db    the log's lock database: never restore it from a backup
    status.json
"""

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from commonweal_coordinator.config import CoordinatorConfig, LogSettings
from commonweal_coordinator.home import CoordinatorHome
from commonweal_coordinator.log.cosigner import Cosigner
from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.log.storage import DiskStorage, Storage, StorageSource
from commonweal_coordinator.log.upkeep import Freshness, reopen
from commonweal_coordinator.rounds.motions import Clerk
from commonweal_coordinator.rounds.rounds import RoundDriver, Step, Wait
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.exchange import ExchangeService, Limits
from commonweal_coordinator.serving.request_deadline import REQUEST_SECONDS, RequestDeadline
from commonweal_coordinator.serving.service import Admission, LogService
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_coordinator.serving.web import RecordsServer
from commonweal_coordinator.status import CoordinatorStatus
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_coordinator.succession.founding_service import FoundingService
from commonweal_coordinator.succession.succession import Succession, begin_log
from commonweal_protocols.base.errors import (
    CommonwealError,
    ConfigError,
    LocalError,
    PeerError,
    RuleError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.base.keys import load_key_file, load_ml_dsa_key_file
from commonweal_protocols.base.status_file import now, save_status
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2 << 20
MAX_CALLS = 256
"""Calls at once; those that wait for a checkpoint are among them."""
_STEP_SECONDS = 1.0
_GRACE_SECONDS = 5
_WITNESS_RETRY_SECONDS = 1.0


def open_storage(public: Path, settings: LogSettings) -> Storage:
    """Open the place where the log's tiles lie: ``public``, or the bucket that the settings name.

    Raises:
        ConfigError: The settings name no bucket, or the package for it is not installed.
    """
    if not settings.store:
        return DiskStorage(public)
    try:
        # As late as this: whose log is a folder needs no package for buckets.
        from commonweal_coordinator.log.object_storage import open_s3
    except ModuleNotFoundError as e:
        if e.name != "obstore":
            raise
        raise ConfigError("log store: wanted the package obstore; run: pip install 'commonweal[object-store]'") from e
    return open_s3(settings.store, endpoint=settings.endpoint, region=settings.region)


class Coordinator:
    """One coordinator. ``run`` blocks until ``stop``."""

    def __init__(self, home: Path, config: CoordinatorConfig, passphrase: bytes | None) -> None:
        files = CoordinatorHome(home)
        self._home = home
        self._config = config
        self._key = load_key_file(files.key, passphrase)
        self._log_key = load_key_file(files.log_key, passphrase)
        self._founding = Draft(files.founding)
        self._succession: Succession | None = None  # until the log has begun
        second = load_ml_dsa_key_file(files.ml_dsa_key, passphrase) if config.log.post_quantum else None
        self._cosigner = Cosigner(None, second)
        self._freshness = Freshness(config.log.republish_seconds)
        self._public = files.public
        self._public.mkdir(exist_ok=True)
        self._blobs = BlobStore(self._public, min_free_bytes=config.min_free_bytes)
        self._tls: TlsFiles = load_or_create_tls(files.tls, [config.public_host, config.host])
        self._stopping = threading.Event()
        self._signed = threading.Event()  # a founder has signed, or we are to stop
        self._log: Log | None = None
        self._sequencer: Sequencer | None = None
        self._trouble = ""
        self._amendment = ""
        self._status = CoordinatorStatus(
            phase="founding", consortium=self._founding.digest, pid=os.getpid(), written_at=now()
        )

    def run(self) -> None:
        """Serve until told to stop: found the consortium or succeed another coordinator if need be, then run rounds.

        Raises:
            LocalError: A port is taken, the disk is full, the log is not what was signed last, or the disk has failed
                to sync: then the next start finds out what it holds.
            PeerError: The log breaks its own compact.
        """
        server, records = self._grpc_server(), None
        try:
            self._open_log()
            if self._sequencer is None:
                self._succession = Succession.open(self._home, self._founding.digest)
            server.start()
            host, port = self._config.host, self._config.records_port
            records = RecordsServer(self._public, host, port, self._tls.chain, self._tls.key, self._shown())
            records.start()
            self._wait_for_beginning()
            records.show(self._shown())
            if not self._stopping.is_set():
                self._drive()
        finally:
            if self._sequencer is not None:
                self._sequencer.close()
            server.stop(_GRACE_SECONDS).wait()
            if records is not None:
                records.stop()
            self._cosigner.close()
            self._report("stopped", awaited=(), waiting_since=None, gives_up_at=None)

    def stop(self) -> None:
        """Ask ``run`` to end; safe from a signal handler."""
        self._stopping.set()
        self._signed.set()

    # -- servers

    def _grpc_server(self) -> grpc.Server:
        server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="rpc"),
            interceptors=[RequestDeadline()],
            options=[
                ("grpc.server_handshake_timeout_ms", int(REQUEST_SECONDS * 1000)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # A node in a long call asks for a sign of life every 10 s; by default gRPC takes that for an attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),
            ],
        )
        # Generated code has no annotations.
        log_service = LogService(self._admission, self._require_sequencer)
        rpc.add_LogServicer_to_server(log_service, server)  # type: ignore[no-untyped-call]
        rpc.add_FoundingServicer_to_server(FoundingService(self._draft, self._signed.set), server)  # type: ignore[no-untyped-call]
        compact = self._founding.compact
        limits = Limits(
            consortium=self._founding.digest,
            max_blob_bytes=compact.max_update_bytes,
            members=self._member_keys,
        )
        rpc.add_ExchangeServicer_to_server(ExchangeService(self._blobs, limits), server)  # type: ignore[no-untyped-call]
        credentials = grpc.ssl_server_credentials([self._tls.key_and_chain()])
        address = f"{self._config.host}:{self._config.exchange_port}"
        try:
            bound = server.add_secure_port(address, credentials)
        except RuntimeError as e:
            raise StorageError(f"exchange: {address} cannot be served; is the port taken?") from e
        if bound == 0:
            raise StorageError(f"exchange: {address} cannot be served; is the port taken?")
        return server

    def _shown(self) -> Storage | None:
        """Where the records are that are served now, if not in the folder; of its own, for its threads read beside us.

        Before a succession these are the old log's, in which members are to find all that they have seen.
        """
        if self._succession is not None:
            return DiskStorage(CoordinatorHome(self._home).mirror)
        return open_storage(self._public, self._config.log) if self._config.log.store else None

    def _member_keys(self) -> frozenset[str]:
        """Who may put blobs: the members in force, with the keys that they have now."""
        compact = self._sequencer.state.compact if self._sequencer else self._first_draft().compact
        return frozenset(m.key for m in compact.members)

    def _first_draft(self) -> Draft:
        """What the log waits for to begin."""
        return self._succession.draft if self._succession else self._founding

    def _draft(self) -> Draft:
        """The draft that may be signed now: the first one, and later that of the next version, if there is one."""
        if self._sequencer is None:
            return self._first_draft()
        draft = Draft.open_amendment(CoordinatorHome(self._home).amendment, self._sequencer.state)
        if draft is None:
            raise RuleError("draft: wanted a draft of the next version, got none; see `commonweal coordinator amend`")
        return draft

    def _require_sequencer(self) -> Sequencer:
        if self._sequencer is None:
            raise UnavailableError(f"log: has not begun yet; not signed by: {', '.join(self._first_draft().missing())}")
        return self._sequencer

    def _admission(self) -> Admission:
        return Admission(self._require_sequencer(), self._blobs)

    # -- the beginning

    def _open_log(self) -> None:
        """Open the log if there is one. Where it has no published entry yet, the beginning continues."""
        lock, storage = CoordinatorHome(self._home).lock, open_storage(self._public, self._config.log)
        if not lock.exists():
            return
        opened = Log.open(storage, lock, self._config.origin, self._log_key, self._cosigner)
        if opened.size:
            self._load(opened, storage)
        else:
            opened.close()

    def _on_compact(self, compact: Compact) -> None:
        """From now on, those cosign whom this compact names."""
        self._cosigner.set_policy(policy_of(compact))

    def _load(self, opened: Log, storage: Storage) -> None:
        try:
            self._sequencer = Sequencer.load(opened, StorageSource(storage), self._key, self._on_compact)
        except CommonwealError:
            opened.close()
            raise
        self._log = opened

    def _wait_for_beginning(self) -> None:
        """Begin the log once enough members have signed; a signature itself waits for nothing."""
        phase = "succeeding" if self._succession else "founding"
        while self._sequencer is None and not self._stopping.is_set():
            try:
                self._begin(self._succession.entries() if self._succession else [self._founding.envelope()])
                self._trouble = ""
            except RuleError as e:
                self._report(phase, why=str(e))  # not everybody has signed
                self._signed.wait(_STEP_SECONDS)
                self._signed.clear()
            except UnavailableError as e:
                # The first entry wants its witnesses as every other does, and nodes may start later.
                self._trouble = str(e)
                self._report(phase, why="waiting for the witnesses' quorum")
                self._stopping.wait(_WITNESS_RETRY_SECONDS)

    def _begin(self, entries: list[bytes]) -> None:
        storage = open_storage(self._public, self._config.log)
        self._on_compact(self._first_draft().compact)
        lock = CoordinatorHome(self._home).lock
        self._load(begin_log(storage, lock, self._config.origin, self._log_key, self._cosigner, entries), storage)
        self._succession = None

    # -- rounds

    def _drive(self) -> None:
        while self._log is not None and not self._stopping.is_set():
            self._run_rounds(self._log, self._require_sequencer())
            if (failure := self._log.failure) is not None:
                self._reopen(failure)

    def _run_rounds(self, opened: Log, sequencer: Sequencer) -> None:
        """Go on until the daemon or the log stops."""
        clerk = Clerk(sequencer, self._blobs, CoordinatorHome(self._home).amendment)
        driver = RoundDriver(sequencer, self._blobs, self._config.rounds, self._on_step)
        while opened.failure is None and not self._stopping.is_set():
            before = sequencer.state.size
            try:
                clerk.step()
                self._amend(sequencer)
                if sequencer.state.compact.witnesses:
                    self._freshness.step(opened)
                driver.step()
                self._trouble = ""
            except (LocalError, PeerError) as e:
                # The daemon stays up: records are still served, and an operator can fix the cause.
                self._complain(str(e))
            # Where a step has logged something, the next one may follow from it at once.
            sequencer.wait(before, _STEP_SECONDS)

    def _reopen(self, failure: StorageError) -> None:
        """Open the log anew. Meanwhile the old sequencer answers that it is closed, and the records are served."""
        self._require_sequencer().close()
        reopen(self._open_log, failure, wait=self._stopping.wait, tell=self._complain)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error("%s", trouble)
        self._trouble = trouble
        self._report("running")

    def _amend(self, sequencer: Sequencer) -> None:
        """Log the next version of the compact once enough have signed it."""
        try:
            draft = Draft.open_amendment(CoordinatorHome(self._home).amendment, sequencer.state)
            if draft is None:
                self._amendment = ""
                return
            envelope = draft.envelope(self._key)
        except RuleError as e:
            # Signatures are missing, or the log has gone on without this draft: no reason for rounds to wait.
            self._amendment = str(e)
            return
        sequencer.submit(envelope)
        Draft.discard(CoordinatorHome(self._home).amendment)
        log.info("compact: version %d is in force", draft.compact.version)

    def _on_step(self, state: State, step: Step, wait: Wait | None) -> None:
        since = now() - wait.elapsed_seconds if wait else None
        self._report(
            "running",
            step=step.act,
            why=step.why,
            round=len(state.rounds),
            awaited=wait.names if wait else (),
            waiting_since=since,
            gives_up_at=since + wait.most_seconds if wait and since else None,
            size=state.size,
            ratified=sum(x.release is not None and x.release.is_ratified for x in state.rounds),
        )

    def _report(self, phase: str, **fields: object) -> None:
        """Write the status; what is not given is as it was, so that trouble never hides where the log stands."""
        self._status = CoordinatorStatus.model_validate(
            {
                **self._status.model_dump(),
                "phase": phase,
                "written_at": now(),
                "trouble": self._trouble,
                "amendment": self._amendment,
                **fields,
            }
        )
        try:
            save_status(self._home, self._status)
        except StorageError as e:
            log.error("%s", e)


def run(home: Path, config: CoordinatorConfig, passphrase: bytes | None) -> None:
    """Run a coordinator until SIGTERM or SIGINT.

    Raises:
        CommonwealError: See :meth:`Coordinator.run`.
    """
    coordinator = Coordinator(home, config, passphrase)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: coordinator.stop())
    coordinator.run()
