"""All that the coordinator knows of Flower: a SuperLink as a child process, and the letters of one round at a time.

A *run* is Flower's word for one piece of carrying: here one round's invitation, out to every SuperNode that is
connected, and the signed answers back. Runs are expendable. Nothing is kept in them that is not in the log, a lost run
is started anew for the same round, and an answer that comes twice is logged once.

The SuperLink serves nodes, and its control interface, at one address over TLS. Anyone who reaches that can start or
stop runs; a run that this daemon did not start is never carried out, and one that is stopped is started anew.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.app import Message
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import MalformedError, UnavailableError
from commonweal_protocols.wire.flower import (
    INVITATION,
    Answer,
    Child,
    RuntimeAddress,
    Task,
    TaskTaker,
    app_bundle,
    load_or_create_secret,
    read_answer,
    unavailable,
    write_invitation,
)

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
"""Before a node whose answer was an error is invited again."""
_REMIND_SECONDS = 30.0
"""Before a node that is silent is: it may have been killed with the invitation in hand. While it trains, a second one
waits in its queue and is then answered with the same bytes."""


@dataclass(frozen=True, slots=True)
class SuperLinkSettings:
    """Where things are. ``home`` is Flower's own; ``host`` is what we listen on, ``reach`` how we reach ourselves."""

    home: Path
    host: str
    reach: str
    port: int
    ca: Path
    certificate: Path
    key: Path


class _Grid(HttpGrid):  # type: ignore[misc]  # flwr is not typed for us
    """Flower's mailbox of one run, without its retries (see ``wire.flower``)."""

    def __init__(self, address: RuntimeAddress, token: str) -> None:
        certificates = address.ca.read_bytes() if address.ca else None
        super().__init__(address.host_and_port, root_certificates=certificates, token=token)
        self._retry_invoker = None


@dataclass(slots=True)
class _Run:
    """One run; ``over`` is set by anyone who ends it."""

    round_number: int
    cohort_size: int
    until: float
    over: threading.Event = field(default_factory=threading.Event)


class SuperLink:
    """Flower's server side; satisfies ``rounds.Engine``. Thread-safe, but ``ensure_running`` is for one thread.

    Args:
        settings: Where things are.
        hand_in: Takes an answer of a round; True once it is in the log. Called from a thread of this object.
    """

    def __init__(self, settings: SuperLinkSettings, hand_in: Callable[[int, Answer], bool]) -> None:
        self._hand_in = hand_in
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = settings.home / "task.secret"
        self._address = RuntimeAddress(f"{settings.reach}:{settings.port}", settings.ca, load_or_create_secret(secret))
        self._child = Child(
            settings.home,
            "flower-superlink",
            [
                *("--ssl-ca-certfile", str(settings.ca), "--ssl-certfile", str(settings.certificate)),
                *("--ssl-keyfile", str(settings.key), "--enable-supernode-auth"),
                *("--host", settings.host, "--port", str(settings.port)),
                *("--database", str(settings.home / "state.db"), "--disable-runtime-dependency-installation"),
                *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            ],
        )
        self._tasks = TaskTaker(self._address, "flwr-serverapp", self._carry)
        self._lock = threading.Lock()
        self._runs: dict[int, _Run] = {}  # guarded by _lock; at most one is not over

    # -- the process

    def start(self) -> None:
        """Start the process, and take its tasks.

        Raises:
            StorageError: The process cannot be started.
        """
        self._child.ensure_running()
        self._tasks.start()

    def ensure_running(self) -> None:
        """Start the process anew if it has died; its runs are lost with it.

        Raises:
            StorageError: It cannot be started.
        """
        self._tasks.check()
        if self._child.ensure_running():
            log.warning("the SuperLink had ended; started anew")
            self._end_runs()

    def stop(self) -> None:
        """End every run, and stop the process."""
        self._tasks.stop()
        self._end_runs()
        self._child.stop()

    def _end_runs(self) -> None:
        with self._lock:
            for run in self._runs.values():
                run.over.set()

    # -- control

    def _control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            server_address=self._address.host_and_port,
            insecure=False,
            root_certificates=str(self._address.ca),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="commonweal")],
        )

    def register(self, public_key: bytes) -> None:
        """Let the SuperNode with this transport key (SubjectPublicKeyInfo, DER) in; again is harmless.

        Raises:
            MalformedError: It is not an elliptic curve key.
            UnavailableError: The SuperLink does not answer.
        """
        try:
            key = serialization.load_der_public_key(public_key)
        except (ValueError, UnsupportedAlgorithm) as e:
            raise MalformedError(f"transport key: wanted a SubjectPublicKeyInfo, got {e}") from e
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        client = self._control()
        try:
            with unavailable("SuperLink"):
                try:
                    client.RegisterNode(RegisterNodeRequest(public_key=pem))
                except httpx.HTTPStatusError as e:
                    error = FlowerError.from_json(e.response.text)
                    if error is None or error.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                        raise
        finally:
            client.close()

    def start_run(self, round_number: int, cohort_size: int, deadline_seconds: int) -> int:
        """See ``rounds.Engine``."""
        bundle = app_bundle()
        request = StartRunRequest(fab=fab_to_proto(Fab(digest_of(bundle), bundle, {})))
        client = self._control()
        # Under the lock, so that its task is not taken before the run is known.
        with self._lock:
            try:
                with unavailable("SuperLink"):
                    reply = client.StartRun(request)
            finally:
                client.close()
            if not reply.run_id:
                raise UnavailableError(f"SuperLink: wanted a run for round {round_number}, got none")
            self._runs = {reply.run_id: _Run(round_number, cohort_size, time.monotonic() + deadline_seconds)}
        return int(reply.run_id)

    def is_running(self, run_id: int) -> bool:
        """See ``rounds.Engine``."""
        with self._lock:
            run = self._runs.get(run_id)
        return run is not None and not run.over.is_set() and time.monotonic() < run.until

    def stop_run(self, run_id: int) -> None:
        """See ``rounds.Engine``."""
        with self._lock:
            if run := self._runs.get(run_id):
                run.over.set()
        client = self._control()
        try:
            with unavailable("SuperLink"):
                client.StopRun(StopRunRequest(run_id=run_id))
        except UnavailableError as e:
            # It has ended by itself, or the SuperLink is gone and the run with it.
            log.debug("run %d: %s", run_id, e)
        finally:
            client.close()

    # -- carrying

    def _carry(self, task: Task) -> None:
        """Carry one run out: our part of what Flower calls a ServerApp."""
        trouble, run = "", None
        grid = _Grid(self._address, task.token)
        try:
            with unavailable("SuperLink"):
                pulled = task.client.PullTaskInput(PullTaskInputRequest())
                taken = run_from_proto(pulled.run)
                # Flower's Message takes its sender from here; there is one task at a time.
                TaskIdentity.task_id, TaskIdentity.run_id = pulled.task_id, taken.run_id
                TaskIdentity.node_id = pulled.context.node_id
                with self._lock:
                    run = self._runs.get(taken.run_id)
                if run is None:
                    trouble = "this daemon did not start that run"
                    log.warning("run %d: %s", taken.run_id, trouble)
                else:
                    grid.set_run(taken)
                    self._deliver(run, grid)
        except UnavailableError as e:
            trouble = str(e)
            log.warning("a run is lost: %s", e)
        finally:
            if run is not None:
                run.over.set()
            grid.close()
            task.finish(trouble=trouble)

    def _deliver(self, run: _Run, grid: HttpGrid) -> None:
        """Invite every SuperNode that is or comes online, until each has answered or the run is over."""
        asked: dict[str, int] = {}  # message ID to node ID
        due: dict[int, float] = {}  # node ID to when it is invited again
        answered: set[int] = set()
        while not run.over.is_set() and (left := run.until - time.monotonic()) > 0 and len(answered) < run.cohort_size:
            now = time.monotonic()
            fresh = [n for n in grid.get_node_ids() if n not in answered and due.get(n, 0) <= now]
            letter, group = write_invitation(run.round_number), str(run.round_number)
            letters = [Message(letter, n, INVITATION, ttl=left + 60, group_id=group) for n in fresh]
            asked.update(zip(grid.push_messages(letters) if letters else (), fresh, strict=True))
            due.update(dict.fromkeys(fresh, now + _REMIND_SECONDS))
            for reply in grid.pull_messages(list(asked)) if asked else ():
                node = asked.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                if self._take(run.round_number, reply):
                    answered.add(node)
                else:
                    due[node] = time.monotonic() + _AGAIN_SECONDS
            run.over.wait(_POLL_SECONDS)

    def _take(self, round_number: int, reply: Message) -> bool:
        if reply.has_error():
            log.warning("round %d: a node answers with an error: %s", round_number, reply.error.reason)
            return False
        try:
            return self._hand_in(round_number, read_answer(reply))
        except MalformedError as e:
            log.warning("round %d: %s", round_number, e)
            return False
