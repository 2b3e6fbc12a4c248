"""All that a node knows of Flower: a SuperNode as a child process, and answers to the invitations that it brings.

The SuperNode keeps the line to the coordinator under a transport key that signs nothing else. An invitation is handed
to the daemon's own ``answer``; the bundle that came with it is compared with the one that this package makes and is
never unpacked. Flower may deliver an invitation twice, or lose an answer: ``answer`` gives the same bytes again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from commonweal_protocols.base.errors import CommonwealError, PeerError, RuleError, StorageError, UnavailableError
from commonweal_protocols.base.keys import write_private
from commonweal_protocols.wire.flower import (
    Answer,
    Child,
    RuntimeAddress,
    Task,
    TaskTaker,
    app_bundle,
    load_or_create_secret,
    read_invitation,
    unavailable,
    write_answer,
)

log = logging.getLogger(__name__)


def create_transport_key(path: Path) -> None:
    """Make the key that opens the line to Flower (EC P-384, as Flower wants it), mode 0600.

    Raises:
        StorageError: The file exists already, or cannot be written.
    """
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(path, pem)


def transport_public_key(path: Path) -> bytes:
    """Return the public half of a transport key: SubjectPublicKeyInfo, DER.

    Raises:
        StorageError: No such file, or not such a key.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as e:
        raise StorageError(f"{path}: wanted the transport key, got no readable key: {e}") from e
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class SuperNodeSettings:
    """Where things are. ``home`` is Flower's own; ``port`` is taken on loopback only."""

    home: Path
    fleet: str
    port: int
    ca: Path
    transport_key: Path
    institution: str


class SuperNode:
    """The line to the coordinator's rounds.

    Args:
        settings: Where things are.
        answer: Gives the signed answer to a round, the same one each time; called from a thread of this object.
    """

    def __init__(self, settings: SuperNodeSettings, answer: Callable[[int], bytes]) -> None:
        self._institution = settings.institution
        self._answer = answer
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = settings.home / "task.secret"
        address = RuntimeAddress(f"127.0.0.1:{settings.port}", None, load_or_create_secret(secret))
        self._child = Child(
            settings.home,
            "flower-supernode",
            [
                *("--superlink", settings.fleet, "--root-certificates", str(settings.ca)),
                *("--auth-supernode-private-key", str(settings.transport_key)),
                *("--host", "127.0.0.1", "--port", str(settings.port)),
                *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            ],
        )
        self._tasks = TaskTaker(address, "flwr-clientapp", self._run)

    def start(self) -> None:
        """Start the process, and take its tasks.

        Raises:
            StorageError: The process cannot be started.
        """
        self._child.ensure_running()
        self._tasks.start()

    def ensure_running(self) -> None:
        """Start the process anew if it has died.

        Raises:
            StorageError: It cannot be started.
        """
        self._tasks.check()
        if self._child.ensure_running():
            log.warning("the SuperNode had ended; started anew")

    def stop(self) -> None:
        """Take no more invitations, and stop the process."""
        self._tasks.stop()
        self._child.stop()

    def _run(self, task: Task) -> None:
        trouble = ""
        try:
            with unavailable("SuperNode"):
                message, context, _, bundle = pull_task_input(task.client)
                reply = self.reply(message, bundle.content)
                push_message(task.client, reply, context)
        except (UnavailableError, RuntimeError) as e:
            # RuntimeError is what Flower raises for a message that is gone. The coordinator invites again.
            trouble = str(e)
            log.warning("an invitation could not be answered: %s", e)
        task.finish(trouble=trouble)

    def reply(self, message: Message, bundle: bytes) -> Message:
        """Return the reply to a message that came with an app bundle: an answer, or an error that says why."""
        try:
            if bundle != app_bundle():
                raise RuleError(
                    "app bundle: wanted the one that this package makes, got another; nothing of it was run"
                )
            envelope = self._answer(read_invitation(message))
        except CommonwealError as e:
            log.warning("invitation: %s", e)
            # What is wrong with the invitation goes back in full, what is wrong here by its kind: it may hold paths.
            said = f"{type(e).__name__}: {e}"[:500] if isinstance(e, PeerError) else type(e).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, said), reply_to=message)
        return Message(write_answer(Answer(self._institution, envelope)), reply_to=message)
