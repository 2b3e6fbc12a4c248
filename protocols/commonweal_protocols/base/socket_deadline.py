"""Sockets whose reads end by a deadline: a peer that sends one byte at a time gains no time.

A socket's own time-out starts anew with each byte that arrives; here it is one span for everything until the next
:meth:`DeadlineReader.start`. Uses the monotonic clock.
"""

import io
import socket
import time


class DeadlineReader(io.RawIOBase):
    """A socket's incoming bytes. Belongs to one thread; does not own the socket."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self.start(seconds)

    def start(self, seconds: float) -> None:
        """Let everything that is read from here on be here within ``seconds``."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Read some bytes.

        Raises:
            TimeoutError: The deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        return self._socket.recv_into(buffer)
