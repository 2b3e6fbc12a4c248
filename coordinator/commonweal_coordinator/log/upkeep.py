"""What keeps a log answering and its checkpoint fresh, without a person. The daemon calls; nothing here has a thread.

A log that has stopped after a failed write is opened anew by the functions of a start: they read everything again and
hold it to what was signed. Two failures are not fixed so. What is not what was signed last stays refused, since going
on could fork the log. And after a failed sync Linux may show pages that the disk does not have, so nothing that this
process reads is a proof; it must end, and say so with its exit code. Nothing with a failed sync ever got its public
name, and opening writes the lock database anew, so the next start believes nothing that was not synced.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.storage import InconsistentError, UnsyncedError
from commonweal_protocols.base.errors import StorageError, UnavailableError

T = TypeVar("T")
logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
_RETRY_SECONDS = 10.0
_WAITING_SECONDS = 1.0


def reopen(
    open_log: Callable[[], T], failure: StorageError, *, wait: Callable[[float], bool], tell: Callable[[str], None]
) -> T | None:
    """Open a log that has stopped, again and again, at longer and longer intervals up to a minute.

    Args:
        open_log: What a start does.
        failure: What has stopped the log.
        wait: Waits for so many seconds; True once there is nothing to wait for any more.
        tell: Is told what is in the way and when it is tried again.

    Returns:
        What ``open_log`` gives; None if the wait was ended.

    Raises:
        InconsistentError, UnsyncedError: No opening may fix this.
        PeerError: The log breaks its own compact.
    """
    pause = FIRST_PAUSE_SECONDS
    while not isinstance(failure, InconsistentError | UnsyncedError):
        tell(f"{failure}; the log is opened anew in {pause:g} s")
        if wait(pause):
            return None
        try:
            return open_log()
        except StorageError as e:
            failure = e
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
    raise failure


class Freshness:
    """Has a checkpoint cosigned again once it is so old, so that nobody can pass an old one off as the newest.

    A failed try is repeated sooner. What is sequenced and waits for its witnesses is tried every second, whether or not
    its author comes back. Not thread-safe: one caller.
    """

    def __init__(self, republish_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up.

        Args:
            republish_seconds: The age; 0 for never. What was published before this was made may be of any age, and
                is taken for old.
            clock: Seconds from anywhere, never backwards.
        """
        self._seconds = republish_seconds
        self._clock = clock
        self._note: bytes | None = None
        self._due_at = clock()
        self._retry_at = clock()

    def step(self, log: Log) -> None:
        """Do what is due.

        Raises:
            StorageError: The log has stopped.
        """
        note, now = log.checkpoint, self._clock()
        if log.sequenced_size > log.size:
            self._publish(log, now)
            return
        if self._note is not None and note != self._note:
            self._due_at = now + self._seconds
        self._note = note
        if not self._seconds or now < self._due_at:
            return
        try:
            log.refresh()
        except UnavailableError as e:
            logger.warning("the checkpoint grows old: %s", e)
            self._due_at = self._clock() + min(_RETRY_SECONDS, self._seconds)
            return
        self._note, self._due_at = log.checkpoint, self._clock() + self._seconds

    def _publish(self, log: Log, now: float) -> None:
        if now < self._retry_at:
            return
        self._retry_at = now + _WAITING_SECONDS
        # Anyone who sent it was told, and the cosigner has said which witness is missing.
        with suppress(UnavailableError):
            log.refresh()
