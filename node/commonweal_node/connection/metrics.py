"""A running node's figures for Prometheus, over loopback only (text exposition format 0.0.4).

They are the status's own: counts, losses by objective, rates. Nothing is labelled with text that somebody wrote but the
institution's name and the names of objectives. Off unless ``metrics_port`` is set.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from commonweal_node.connection.status import NodeStatus
from commonweal_protocols.base.errors import UnavailableError

_GAUGES = (
    ("round", "round", "The newest round that was worked on."),
    ("training_step", "step", "Steps done of the training that is going on."),
    ("training_steps", "steps", "Steps that it will take."),
    ("training_tokens_per_second", "tokens_per_second", "Tokens computed, supervised or not."),
    ("training_steps_per_second", "steps_per_second", "Optimiser steps."),
    ("training_eta_seconds", "eta_seconds", "Until its last step."),
    ("membership_auc", "membership_auc", "Of the newest adapter trained here; 0.5 is chance."),
    ("sent_bytes", "sent_bytes", "To the coordinator since the start."),
    ("received_bytes", "received_bytes", "From the coordinator since the start."),
)


def render_metrics(status: NodeStatus) -> str:
    """Return the exposition; a figure that is not known is left out."""
    lines = []
    for name, field, help_text in _GAUGES:
        value = getattr(status, field)
        if value is not None:
            lines += _gauge(name, help_text, [(f'institution="{status.institution}"', value)])
    losses = [(f'institution="{status.institution}",objective="{name}"', x) for name, x in status.losses.items()]
    if losses:
        lines += _gauge("training_loss_nats", "The newest step's loss, by objective.", losses)
    return "\n".join(lines) + "\n"


def _gauge(name: str, help_text: str, samples: list[tuple[str, float]]) -> list[str]:
    whole = f"commonweal_node_{name}"
    return [
        f"# HELP {whole} {help_text}",
        f"# TYPE {whole} gauge",
        *(f"{whole}{{{labels}}} {value!r}" for labels, value in samples),
    ]


class MetricsServer:
    """Answers ``GET /metrics`` on 127.0.0.1 from a thread of its own, until it is stopped."""

    def __init__(self, port: int, look: Callable[[], NodeStatus]) -> None:
        """Listen.

        Args:
            port: 0 takes a free one; see :attr:`port`.
            look: Gives the newest status; called from any thread.

        Raises:
            UnavailableError: The port is taken.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                body = render_metrics(look()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A scrape is nothing to tell of."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as e:
            raise UnavailableError(f"metrics: wanted to listen on 127.0.0.1:{port}, got: {e.strerror}") from e
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
