"""An HTTPS server on loopback whose clock is set by the test."""

import email.utils
import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from commonweal_coordinator.serving.tls import TlsFiles


@contextmanager
def coordinator(tls: TlsFiles, date: Callable[[], str | None], status: int = 200) -> Iterator[int]:
    """A real HTTPS server whose Date header says what the test wants; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers every HEAD alike."""

        def do_HEAD(self) -> None:
            self.send_response_only(status)
            if (said := date()) is not None:
                self.send_header("Date", said)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.chain, tls.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ahead(seconds: float) -> Callable[[], str]:
    """A server clock that is so far ahead of ours."""
    return lambda: email.utils.formatdate(time.time() + seconds, usegmt=True)
