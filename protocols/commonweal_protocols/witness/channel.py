"""One witness's address over HTTP: a request and its answer within one span of time, over a connection that is kept.

The connection, the handshake, each byte in and out share one deadline, so a peer that trickles holds nobody up; what it
sends is bounded. Nothing is verified here.
"""

import http.client
import io
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from commonweal_protocols.base.errors import ConfigError, MalformedError, UnavailableError
from commonweal_protocols.base.socket_deadline import DeadlineReader

MAX_ANSWER_BYTES = 64 << 10
"""Sixteen ML-DSA lines and as much again."""
_PATH = re.compile(r"(/[!$&-;=@-Z_a-z~%]*)*")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: HTTP status, media type without parameters, and at most 64 KiB."""

    status: int
    kind: str
    body: bytes


def make_client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what https:// witnesses are checked by: a PEM of authorities, or the system's.

    Raises:
        ConfigError: The file is not such a PEM.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{ca_file}: wanted a PEM file of authorities: {e}") from e


class _TimedSocket:
    """As much of a socket as HTTPResponse needs, whose reads end by one deadline."""

    def __init__(self, reader: DeadlineReader) -> None:
        self._reader = reader

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader)


class Channel:
    """One witness's address and a connection that is kept alive. Belongs to one thread at a time."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        """Nothing is connected yet. ``context`` is wanted for https:// addresses.

        Raises:
            ConfigError: Not an address that a witness may have.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as e:
            raise ConfigError(f"witness {url}: {e}") from e
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"witness {url}: wanted http:// or https://, a host, a prefix and nothing else")
        if "@" in parts.netloc or not parts.netloc.isascii() or not _PATH.fullmatch(parts.path):
            raise ConfigError(f"witness {url}: wanted plain ASCII without user names and spaces")
        self.url = url
        self._context = context if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._head = f"POST {parts.path.rstrip('/')}/add-checkpoint HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        self._socket: socket.socket | None = None

    def post(self, body: bytes, seconds: float) -> Reply:
        """Send one request and read its answer within ``seconds``, all in all.

        Raises:
            UnavailableError: No answer in time, or none that is HTTP.
            MalformedError: An answer above the bound.
        """
        deadline = time.monotonic() + seconds
        try:
            if self._socket is not None:
                try:
                    return self._exchange(self._socket, body, deadline)
                except (OSError, http.client.HTTPException):
                    # It had been closed while it rested; asking twice for one checkpoint changes nothing.
                    self.close()
            self._socket = self._connect(deadline)
            return self._exchange(self._socket, body, deadline)
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise UnavailableError(f"witness {self.url}: does not answer: {str(e) or type(e).__name__}") from e

    def close(self) -> None:
        """Close the connection; the next request makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, deadline: float) -> socket.socket:
        sock = socket.create_connection((self._host, self._port), timeout=seconds_left(deadline))
        try:
            # A request is one write, but Nagle's algorithm would hold back the end of a long one.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                return sock
            sock.settimeout(seconds_left(deadline))
            return self._context.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise

    def _exchange(self, sock: socket.socket, body: bytes, deadline: float) -> Reply:
        head = f"{self._head}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.settimeout(seconds_left(deadline))
        sock.sendall(head.encode("ascii") + body)
        timed = _TimedSocket(DeadlineReader(sock, seconds_left(deadline)))
        with http.client.HTTPResponse(cast(socket.socket, timed), method="POST") as response:
            response.begin()
            data = response.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                self.close()
                raise MalformedError(f"witness {self.url}: wanted at most {MAX_ANSWER_BYTES} bytes, got more")
            # Reading an amount does not complain of a connection that ends early.
            if response.length not in (0, None):
                raise http.client.IncompleteRead(data)
            if response.will_close or response.length is None:
                self.close()
            return Reply(response.status, response.headers.get_content_type(), data)


def seconds_left(deadline: float) -> float:
    """Return what is left until a time of the monotonic clock.

    Raises:
        TimeoutError: Nothing.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return left
