"""The public records over HTTPS: static files, the same for everybody, read-only.

Bundles, tiles and blobs never change and say so; the checkpoint is always asked for anew (C2SP tlog-tiles). Anything
else under the folder is not served.
"""

import http
import re
import socket
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from commonweal_protocols.errors import StorageError

_SERVED = re.compile(r"checkpoint|tile/[0-9a-z/.]+|blob/[0-9a-f]{64}")


class _Records(StaticFiles):
    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._folder = folder

    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        if not _SERVED.fullmatch(path):
            return Response(status_code=http.HTTPStatus.NOT_FOUND)
        response = await super().get_response(path, scope)
        if path == "checkpoint":
            if response.status_code == http.HTTPStatus.OK:
                # All at once: a file response looks at the size first, and the file may be replaced after that.
                response = Response((self._folder / path).read_bytes())
            response.headers["cache-control"] = "no-store"
            response.headers["content-type"] = "text/plain; charset=utf-8"
        else:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
            response.headers["content-type"] = "application/octet-stream"
        return response


class RecordsServer:
    """Serves one folder in a thread of its own. ``port`` 0 takes a free one, which ``port`` says once started."""

    def __init__(self, directory: Path, host: str, port: int, certificate: Path, key: Path) -> None:
        app = Starlette(routes=[Mount("/", app=_Records(directory))])
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
                limit_concurrency=256,
            )
        )
        self._thread: threading.Thread | None = None

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
