"""The public records over HTTPS: static files, the same for everybody, read-only; and a page that checks them.

The log's own files may lie elsewhere than the blobs (in an object store); readers cannot tell. Bundles, tiles and blobs
never change and say so; the checkpoint is always asked for anew (C2SP tlog-tiles). Anything else under the folder is
not served. The page (``/`` and ``/verify.html``) is one file without any other request, whose script and style are the
only ones that its policy lets a browser run. Anyone who runs this server could serve another page: a reader who does
not trust it opens a copy from elsewhere, so log and tiles may be read across origins.
"""

import base64
import hashlib
import http
import logging
import re
import socket
import threading
from collections.abc import MutableMapping
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from commonweal_coordinator.log.storage import Storage
from commonweal_coordinator.serving.request_deadline import REQUEST_SECONDS, impatient_http
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import read_bounded

logger = logging.getLogger(__name__)

_LOG = re.compile(r"checkpoint|tile/(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*[0-9]{3}(?:\.p/[0-9]{1,3})?")
_BLOB = re.compile(r"blob/[0-9a-f]{64}")

_GRACE_SECONDS = 5
_MAX_SERVED_BYTES = 16 << 20
"""Of a checkpoint, which is served whole. Far more than one has: each reader holds it to a bound of its own."""


def _read_page() -> tuple[bytes, str]:
    """Return the page, and the content security policy that fits exactly these bytes."""
    page = resources.files("commonweal_coordinator").joinpath("pages/verify.html").read_bytes()

    def hashes(tag: bytes) -> str:
        inline = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inline)

    policy = {
        "default-src": "'none'",
        "script-src": hashes(b"script"),
        "style-src": hashes(b"style"),
        # The reader may type another log's address; what is fetched is only ever shown as text.
        "connect-src": "'self' https:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # Where browsers know it, this makes every way from a string to markup an error.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return page, "; ".join(f"{directive} {value}" for directive, value in policy.items())


def _page_route(path: str, page: bytes, policy: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(
            page,
            media_type="text/html",
            headers={
                "cache-control": "no-cache",
                "content-security-policy": policy,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
            },
        )

    return Route(path, answer, methods=["GET"])


class _Records(StaticFiles):
    def __init__(self, folder: Path, log: Storage | None = None) -> None:
        super().__init__(directory=folder)
        self._folder = folder
        self._log = log

    def show(self, log: Storage | None) -> None:
        self._log = log

    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        log = self._log
        if _LOG.fullmatch(path) and log is not None and scope["method"] in ("GET", "HEAD"):
            response = await run_in_threadpool(_read, log, path)
        elif _LOG.fullmatch(path) or _BLOB.fullmatch(path):
            response = await super().get_response(path, scope)
        else:
            return Response(status_code=http.HTTPStatus.NOT_FOUND)
        if path == "checkpoint":
            if response.status_code == http.HTTPStatus.OK and log is None:
                # All at once: a file response looks at the size first, and the file may be replaced after that.
                response = Response(read_bounded(self._folder / path, _MAX_SERVED_BYTES, "the checkpoint"))
            response.headers["cache-control"] = "no-store"
            response.headers["content-type"] = "text/plain; charset=utf-8"
        else:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
            response.headers["content-type"] = "application/octet-stream"
        # An entry may hold anything; no browser shall take it for markup.
        response.headers["x-content-type-options"] = "nosniff"
        if not path.startswith("blob/"):
            response.headers["access-control-allow-origin"] = "*"
        return response


def _read(log: Storage, path: str) -> Response:
    try:
        data = log.read(path)
    except StorageError as e:
        logger.warning("records: %s", e)
        raise HTTPException(http.HTTPStatus.SERVICE_UNAVAILABLE) from e
    if data is None:
        raise HTTPException(http.HTTPStatus.NOT_FOUND)
    return Response(data)


class RecordsServer:
    """Serves the records in a thread of its own. ``port`` 0 takes a free one, which ``port`` says once started."""

    def __init__(
        self,
        directory: Path,
        host: str,
        port: int,
        certificate: Path,
        key: Path,
        log: Storage | None = None,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        """Set up; nothing is served yet.

        Args:
            directory: The records' folder; it may be replaced while they are served.
            host: The address to listen on.
            port: And the port.
            certificate: A PEM of the certificate's chain.
            key: A PEM of its key.
            log: Where the checkpoint and the tiles lie, if not in the folder.
            request_seconds: How long one request may take to arrive.
        """
        page = _read_page()
        routes = [_page_route("/", *page), _page_route("/verify.html", *page)]
        self._records = _Records(directory, log)
        app = Starlette(routes=[*routes, Mount("/", app=self._records)])
        self._host = host
        self.port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                ssl_certfile=str(certificate),
                ssl_keyfile=str(key),
                log_level="warning",
                lifespan="off",
                ws="none",
                http=impatient_http(request_seconds),
                limit_concurrency=256,
                # A browser keeps idle connections open for minutes, and an end of TLS wants both sides.
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._thread: threading.Thread | None = None

    def show(self, log: Storage | None) -> None:
        """Serve the checkpoint and the tiles from there, from the next request on; None: from the folder."""
        self._records.show(log)

    def start(self) -> None:
        """Start serving; returns once requests are answered.

        Raises:
            StorageError: The port is taken.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            # Here and not in uvicorn, which would end the thread and say why only on the screen.
            listener = socket.create_server((self._host, self.port), family=family)
        except OSError as e:
            raise StorageError(
                f"records: {self._host}:{self.port} cannot be served: {e.strerror}; is the port taken?"
            ) from e
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="records", daemon=True)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.02)
            if not self._thread.is_alive():
                raise StorageError(f"records: {self._host}:{self.port} cannot be served; the log says why")

    def stop(self) -> None:
        """Finish the requests in progress, and end."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10)
