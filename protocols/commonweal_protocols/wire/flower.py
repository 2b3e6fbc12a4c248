"""What both sides share of Flower (flwr 1.42): the app bundle, two letters, supervised children, and tasks.

Flower is the postman of a round. A SuperLink beside the coordinator and a SuperNode under each node daemon carry an
invitation (a round's number) out and a signed envelope back; ``coordinator.flower`` and ``node.flower`` are what
writes and answers those letters. Both Flower processes run with ``--isolation process``: they queue tasks and start
no app. The daemons take the tasks themselves, in a thread of their own, and run their *installed* code. A bundle that
comes with a task is compared with ``app_bundle`` and never unpacked, so no code that a peer sends is ever run.

Flower's own task runners are not used, because they load the bundle, and because their HTTP retries and heartbeats
raise SIGINT in the process that they are in. This module's calls are single tries with a time-out; callers loop.
"""

import ctypes
import hashlib
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

from commonweal_protocols.base.errors import MalformedError, StorageError, UnavailableError
from commonweal_protocols.base.keys import write_private
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

INVITATION = "query.invitation"
"""The message type of a letter; an answer is Flower's reply to it."""
HEARTBEAT_SECONDS = 10.0
"""Flower gives a task up after 60 s without one."""
_RECORD = "letter"
_STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1

_PYPROJECT = b"""\
[project]
name = "rounds"
version = "1"
description = "Carries a round's invitation to each node, and signed answers back. All code is installed beforehand."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "commonweal"

[tool.flwr.app.components]
serverapp = "commonweal_coordinator.rounds.flower:SuperLink"
clientapp = "commonweal_node.connection.flower:SuperNode"
"""


def app_bundle() -> bytes:
    """Return the one Flower app bundle that our daemons submit and accept. It holds no code.

    Stored, not compressed, with fixed dates, so that every machine makes the same bytes.
    """
    manifest = f"pyproject.toml,{hashlib.sha256(_PYPROJECT).hexdigest()},{len(_PYPROJECT) * 8}".encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in (("pyproject.toml", _PYPROJECT), (".info/CONTENT", manifest)):
            info = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            info.create_system = 3  # else it names the operating system that it was made on
            bundle.writestr(info, content)
    return data.getvalue()


# -- letters


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node sends back: its envelope, which proves itself. ``institution`` is for our own log lines only."""

    institution: str
    envelope: bytes


def write_invitation(round_number: int) -> RecordDict:
    """Return the content of an invitation: which round to look at in the log, and nothing else."""
    return RecordDict({_RECORD: ConfigRecord({"round": round_number})})


def read_invitation(message: Message) -> int:
    """Return the round that a message invites to.

    Raises:
        MalformedError: It is not an invitation.
    """
    match _letter(message):
        # A bool is an int to Python.
        case {"round": int(number), **rest} if not rest and number > 0 and number is not True:
            return number
    raise MalformedError("invitation: wanted exactly a round's number")


def write_answer(answer: Answer) -> RecordDict:
    """Return the content of an answer."""
    return RecordDict({_RECORD: ConfigRecord({"institution": answer.institution, "envelope": answer.envelope})})


def read_answer(message: Message) -> Answer:
    """Return the answer in a reply. Its envelope is unverified.

    Raises:
        MalformedError: It is not an answer, or larger than an entry may be.
    """
    match _letter(message):
        case {"institution": str(name), "envelope": bytes(envelope), **rest} if not rest:
            if len(envelope) <= MAX_ENTRY_BYTES:
                return Answer(name[:64], envelope)
    raise MalformedError(f"answer: wanted an institution and an envelope of at most {MAX_ENTRY_BYTES} bytes")


def _letter(message: Message) -> dict[str, object]:
    if not message.has_content() or set(message.content.config_records) != {_RECORD}:
        return {}
    return dict(message.content.config_records[_RECORD])


# -- child processes


class Child:
    """One Flower process, started again when it dies; its output goes to a file. Owned by the daemon's main thread.

    The kernel stops the child when the thread that started it is gone, even by SIGKILL (Linux), so no orphan keeps a
    port or answers for a daemon that is dead.
    """

    def __init__(self, home: Path, program: str, arguments: Sequence[str]) -> None:
        self._home = home
        self._program = program
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    def ensure_running(self) -> bool:
        """Start the process if it does not run. True if it was started now.

        Raises:
            StorageError: It cannot be started.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        environment = {
            **os.environ,
            # Its own home: nothing of the operator's Flower settings is read, and nothing is written there.
            "HOME": str(self._home),
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
        }
        command = [str(Path(sys.executable).with_name(self._program)), *self._arguments]
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._home / f"{self._program}.log").open("ab") as out:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
        except OSError as e:
            raise StorageError(f"{self._program}: cannot be started: {e.strerror}") from e
        return True

    def stop(self) -> None:
        """Stop the process, and wait until it is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def load_or_create_secret(path: Path) -> bytes:
    """Return the 32 bytes by which a Flower process knows the daemon that takes its tasks.

    Raises:
        StorageError: The file cannot be made or read.
    """
    if not path.exists():
        write_private(path, secrets.token_bytes(32))
    try:
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path}: cannot be read: {e.strerror}") from e


# -- tasks


@dataclass(frozen=True, slots=True)
class RuntimeAddress:
    """A Flower process's runtime interface. ``ca`` is a PEM file; None means plain HTTP, for loopback only."""

    host_and_port: str
    ca: Path | None
    secret: bytes

    def client(self, *interceptors: object) -> RuntimeHttpClient:
        """Return a client without retries; the caller closes it."""
        return RuntimeHttpClient.from_server_address(
            server_address=self.host_and_port,
            insecure=self.ca is None,
            root_certificates=self.ca and str(self.ca),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="commonweal"), *interceptors],
        )


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Turn whatever Flower's HTTP calls raise into UnavailableError."""
    try:
        yield
    except httpx.HTTPError as e:
        raise UnavailableError(f"{what}: does not answer: {type(e).__name__} {e}") from e


class Task:
    """A task that this process has taken, kept alive by heartbeats until ``finish``."""

    def __init__(self, client: RuntimeHttpClient, token: str) -> None:
        self.client = client
        self.token = token
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="flower heartbeat", daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        while not self._over.is_set():
            # The next one may get through; a task that Flower has given up is told so at its end.
            with suppress(httpx.HTTPError):
                self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            self._over.wait(HEARTBEAT_SECONDS)

    def finish(self, *, trouble: str = "") -> None:
        """End the task; ``trouble`` says why it failed."""
        self._over.set()
        self._heart.join()
        # Where this fails, Flower has given the task up or is gone; nothing of ours hangs on its state.
        with suppress(httpx.HTTPError):
            self.client.PushTaskOutput(
                PushTaskOutputRequest(sub_status="failed" if trouble else "completed", details=trouble[:500])
            )
        self.client.close()


class TaskTaker:
    """Takes tasks of one type from a Flower process, one at a time, in a thread of its own."""

    def __init__(self, address: RuntimeAddress, task_type: str, run: Callable[[Task], None]) -> None:
        self._address = address
        self._type = task_type
        self._run = run
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._take, name=task_type, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Check that tasks are still taken.

        Raises:
            RuntimeError: The thread has died of a bug of ours; the daemon must not go on as if it were alive.
        """
        if not self._thread.is_alive():
            raise RuntimeError(f"{self._type}: the thread that takes tasks has died; its traceback is in the log")

    def stop(self) -> None:
        """Take no more; a task in progress is left to its thread."""
        self._stopping.set()

    def _take(self) -> None:
        auth = SuperExecAuthHttpInterceptor(
            master_secret=self._address.secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        request = AcquireTaskRequest(supported_task_types=[self._type])
        client = self._address.client(auth)
        while not self._stopping.wait(0.2):
            try:
                taken = client.AcquireTask(request)
            except httpx.HTTPError:
                continue  # starting, or being restarted
            if taken.token:
                self._run(Task(self._address.client(RuntimeTokenHttpInterceptor(taken.token)), taken.token))
        client.close()
