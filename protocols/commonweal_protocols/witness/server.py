"""A witness's HTTP server: ``add-checkpoint`` for logs, the newest cosigned checkpoints for monitors.

::

    POST <prefix>/add-checkpoint                    C2SP tlog-witness
    GET  <prefix>/<hex(SHA-256(origin))>/checkpoint its monitors' copy
    GET  <prefix>/health                            JSON: name, vkeys, and what is stored for each log

HTTP/1.1 with keep-alive, a thread for each connection, TLS if a certificate is given. A request must be here whole
within ``REQUEST_SECONDS`` from its first byte, however it trickles; an idle connection is closed after
``IDLE_SECONDS``; bodies are bounded before they are read. Peers get a status and an outcome's name; details go to our
own log. Nothing limits one address: put a proxy in front where strangers can reach it.
"""

import http.server
import io
import json
import logging
import re
import socket
import socketserver
import ssl
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from commonweal_protocols.base.canonical import parse_decimal
from commonweal_protocols.base.errors import ConfigError, MalformedError, StorageError
from commonweal_protocols.base.socket_deadline import DeadlineReader
from commonweal_protocols.witness.witness import MAX_REQUEST_BYTES, SIZE_TYPE, Outcome, Witness

REQUEST_SECONDS = 10.0
"""From a request's first byte to its last, and for a TLS handshake."""
IDLE_SECONDS = 30.0
MAX_CONNECTIONS = 128
"""More are closed at once: a log asks again."""
_DISCARD_BYTES, _DISCARD_SECONDS = 1 << 20, 2.0
_POLL_SECONDS = 0.25
_TEXT = "text/plain; charset=utf-8"
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_MONITOR = re.compile(r"/([0-9a-f]{64})/checkpoint")

log = logging.getLogger(__name__)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "commonweal-witness"
    sys_version = ""
    # One segment for the whole answer: with small writes, Nagle's algorithm and delayed ACKs cost 40 ms a request.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = DeadlineReader(self.request, self.server.idle_seconds)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.start(self.server.idle_seconds)
        try:
            # Between requests a connection may rest; from the first byte on it may not.
            if not self.rfile.peek(1):  # type: ignore[attr-defined]
                self.close_connection = True
                return
        except (OSError, ValueError):
            self.close_connection = True
            return
        self._reader.start(self.server.request_seconds)
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        """The peer waits for this line before it sends its body, so it must not stay in our buffer."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def do_POST(self) -> None:
        if self.path != f"{self.server.prefix}/add-checkpoint":
            return self._refuse(HTTPStatus.NOT_FOUND)
        lengths = self.headers.get_all("Content-Length", [])
        try:
            if self.headers.get("Transfer-Encoding") or len(lengths) != 1:
                return self._refuse(HTTPStatus.LENGTH_REQUIRED)
            length = parse_decimal(lengths[0])
        except MalformedError:
            return self._refuse(HTTPStatus.BAD_REQUEST)
        if length > MAX_REQUEST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return self._discard(length)
        body = self.rfile.read(length)
        if len(body) != length:
            self.close_connection = True
            return None
        try:
            answer = self.server.witness.add_checkpoint(body)
        except StorageError:
            log.exception("add-checkpoint: nothing was cosigned")
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        log.info("add-checkpoint from %s: %d: %s", self.client_address[0], answer.outcome, answer.why)
        kind = SIZE_TYPE if answer.outcome is Outcome.OTHER_SIZE else _TEXT
        return self._answer(HTTPStatus(answer.outcome), answer.body.encode(), kind)

    def do_GET(self) -> None:
        if not self.path.startswith(self.server.prefix):
            return self._refuse(HTTPStatus.NOT_FOUND)
        rest = self.path.removeprefix(self.server.prefix)
        try:
            if rest == "/health":
                return self._answer(HTTPStatus.OK, self._health(), "application/json")
            match = _MONITOR.fullmatch(rest)
            note = self.server.witness.latest(match[1]) if match else None
        except StorageError:
            log.exception("%s: not answered", self.path)
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        if note is None:
            return self._refuse(HTTPStatus.METHOD_NOT_ALLOWED if rest == "/add-checkpoint" else HTTPStatus.NOT_FOUND)
        return self._answer(HTTPStatus.OK, note, _TEXT)

    def _health(self) -> bytes:
        witness = self.server.witness
        logs = [
            {"origin": origin, "size": stored.size if stored else None, "cosigned_at": stored.at if stored else None}
            for origin, stored in witness.latest_by_origin().items()
        ]
        report = {"name": witness.name, "vkeys": [v.vkey for v in witness.verifiers], "logs": logs}
        return json.dumps(report, indent=2).encode() + b"\n"

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if self.close_connection or self.server.stopping.is_set():
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        # Reading has left some small rest of its own deadline on the socket.
        self.request.settimeout(self.server.request_seconds)
        self.wfile.write(body)
        self.wfile.flush()

    def _discard(self, length: int) -> None:
        """Take what the peer still sends, within bounds: closing on unread bytes would reset away our answer."""
        self._reader.start(_DISCARD_SECONDS)
        left = min(length, _DISCARD_BYTES)
        with suppress(TimeoutError):
            while left > 0 and (data := self.rfile.read1(min(left, 1 << 16))):
                left -= len(data)

    def _refuse(self, status: HTTPStatus) -> None:
        # What is left of a request that was not read would be taken for the next one.
        self.close_connection = True
        self._answer(status, f"{status.phrase.lower()}\n".encode(), _TEXT)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request line or a header that cannot be read; never quotes it."""
        log.info("%s: %d %s", self.client_address[0], code, message)
        self.close_connection = True
        # Until a version was read the base class takes the peer for one of before 1996, who gets no status line.
        self.request_version = self.protocol_version
        self._answer(HTTPStatus(code), f"{HTTPStatus(code).phrase.lower()}\n".encode(), _TEXT)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - the base class's signature
        log.debug("%s: %s", self.client_address[0], format % args)


class _Server(http.server.HTTPServer):
    """Accepts; a thread for each connection, at most MAX_CONNECTIONS at once."""

    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], witness: Witness, prefix: str, tls: ssl.SSLContext | None,
        request_seconds: float, idle_seconds: float,
    ) -> None:  # fmt: skip
        self.witness = witness
        self.prefix = prefix
        self.request_seconds = request_seconds
        self.idle_seconds = idle_seconds
        self.stopping = threading.Event()
        self._tls = tls
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}  # under _lock
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the DNS for the host's name, which may take long and is used for nothing here.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's signature
        thread = threading.Thread(target=self._serve, args=(request, client_address), name="witness", daemon=True)
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS
            if not full:
                self._open[thread] = request
        if full:
            log.warning("%s: closed, %d connections are open already", client_address[0], MAX_CONNECTIONS)
            self.shutdown_request(request)
        else:
            thread.start()

    def _serve(self, connection: socket.socket, client_address: tuple[str, int]) -> None:
        me = threading.current_thread()
        try:
            if self._tls is not None:
                # Here and not where connections are accepted: a slow handshake holds up nobody else.
                connection.settimeout(self.request_seconds)
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open[me] = connection
                connection.do_handshake()
            self.finish_request(connection, client_address)
        except OSError as e:
            log.info("%s: connection lost: %s", client_address[0], e)
        finally:
            with self._lock:
                del self._open[me]
            self.shutdown_request(connection)

    def drain(self, seconds: float) -> None:
        """End idle connections at once, and those in the middle of a request when it is answered, or after a while."""
        for how, span in ((socket.SHUT_RD, seconds), (socket.SHUT_RDWR, 1.0)):
            with self._lock:
                still = list(self._open.items())
                for _, connection in still:
                    # Not SSLSocket's own, which would forget the keys that an answer still needs.
                    with suppress(OSError):
                        socket.socket.shutdown(connection, how)
            end = time.monotonic() + span
            for thread, _ in still:
                thread.join(max(0.0, end - time.monotonic()))


class WitnessServer:
    """A witness behind an address. Bound when it is made, serving from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        witness: Witness,
        host: str,
        port: int,
        *,
        prefix: str = "",
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        request_seconds: float = REQUEST_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Bind the address.

        Args:
            witness: Answers; the caller closes its store after :meth:`stop`.
            host: The address to listen on.
            port: 0 takes a free one: see :attr:`port`.
            prefix: In front of every path: empty, or ``/like/this``.
            tls_cert: A PEM file with the certificate chain; None serves plain HTTP.
            tls_key: Its key, if that is in a file of its own.
            request_seconds: The most time for one request, from its first byte to its last.
            idle_seconds: How long a connection may rest between requests.

        Raises:
            ConfigError: The prefix, the certificate or the address cannot be used.
        """
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"witness: wanted a prefix like /witness, or none, got {prefix!r}")
        tls: ssl.SSLContext | None = None
        if tls_cert is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                tls.load_cert_chain(tls_cert, tls_key)
            except (OSError, ssl.SSLError) as e:
                raise ConfigError(f"{tls_cert}: wanted a PEM certificate and its key: {e}") from e
        try:
            self._server = _Server((host, port), witness, prefix, tls, request_seconds, idle_seconds)
        except (OSError, OverflowError) as e:
            raise ConfigError(f"witness: cannot listen on {host}:{port}: {e}") from e
        self._scheme = "https" if tls else "http"
        self._host = host
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The submission and monitoring prefix, with the host that it listens on."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self.port}{self._server.prefix}"

    def start(self) -> None:
        """Serve, in threads of its own, until :meth:`stop`. Returns at once."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="witness-accept", daemon=True
        )
        self._thread.start()
        log.info("witness %s serves %s", self._server.witness.name, self.url)

    def stop(self) -> None:
        """Take no more connections, answer the requests that are here, and end every thread. May be called twice."""
        self._server.stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.drain(self._server.request_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
