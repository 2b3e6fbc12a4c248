"""The store in an S3 bucket, for a log whose tiles shall outlive any machine; see :class:`storage.Storage`.

An object is whole or not there, and durable once the server has said so: its word takes the place of a sync. A request
that times out may still be carried out later, so every write here is harmless when it comes late: an immutable file is
put only where there is none, and the checkpoint only in the place of the very one that was there (RFC 9110,
``If-None-Match`` and ``If-Match``). The server must know both; one that ignores them is no place for a log.

The lock database stays a local file. An object store could compare and swap too, but it is the one part that must never
be restored, copied or shared, and a bucket is all of that.
"""

import errno
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import MemoryStore, S3Store

from commonweal_coordinator.log.storage import STAGING, InconsistentError
from commonweal_protocols.base.errors import ConfigError, StorageError

MAX_OBJECT_BYTES = 256 << 20
"""More than a batch of the largest entries takes."""
_AT_ONCE = 16
"""A batch's files are put side by side, or each would cost a round trip."""


def open_s3(url: str, *, endpoint: str | None = None, region: str | None = None) -> "ObjectStorage":
    """Open a bucket; nothing is sent yet. Credentials are taken from the environment (``AWS_ACCESS_KEY_ID`` …).

    Args:
        url: ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.
        endpoint: The server, where it is not Amazon's: ``https://HOST:PORT``; ``http://`` sends all of it in the clear.
        region: Where it is not in the environment.

    Raises:
        ConfigError: Not such an address, or the library does not take these settings.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"log store: wanted s3://BUCKET/PREFIX, got {url}")
    try:
        store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config={
                **({"endpoint": endpoint} if endpoint else {}),
                **({"region": region} if region else {}),
                "conditional_put": "etag",
            },
            client_options={
                "allow_http": bool(endpoint and endpoint.startswith("http://")),
                "connect_timeout": "5s",
                "timeout": "30s",
            },
            # The library would repeat a write whose answer was lost.
            retry_config={"max_retries": 0},
        )
    except BaseError as e:
        raise ConfigError(f"log store: {url}: {_first_line(e)}") from e
    return ObjectStorage(store, url)


class ObjectStorage:
    """A log's store in an object store that knows conditional puts. See :class:`storage.Storage`."""

    def __init__(self, store: S3Store | MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._tags: dict[str, str] = {}
        """What was last put under a path by this object: the only thing that it may replace there."""

    def begin(self) -> None:
        if self.read("checkpoint") is not None or self._list("tile"):
            raise StorageError(f"{self._name}: a log is there already; a log is created once")

    def read(self, path: str) -> bytes | None:
        try:
            found = obstore.get(self._store, path)
            if (size := found.meta["size"]) > MAX_OBJECT_BYTES:
                raise InconsistentError(f"{self._name}/{path}: wanted at most {MAX_OBJECT_BYTES} bytes, got {size}")
            return bytes(found.bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as e:
            raise self._error(path, "read", e) from e

    def stage(self, path: str, data: bytes) -> None:
        """See :class:`storage.Storage`. One that arrives after all is named by its tree, and swept at a start."""
        try:
            obstore.put(self._store, path, data, use_multipart=False)
        except (BaseError, OSError) as e:
            raise OSError(errno.EIO, _first_line(e)) from e

    def staged(self) -> list[str]:
        return self._list(STAGING)

    def create(self, files: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="put") as pool:
            # All of them end before the first error gets out.
            done = [pool.submit(self._create, path, data) for path, data in files.items()]
        for future in done:
            future.result()

    def _create(self, path: str, data: bytes) -> None:
        try:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError as e:
            if self.read(path) != data:
                raise InconsistentError(
                    f"{self._name}/{path}: exists with other bytes; a published file never changes: restore this file"
                ) from e
        except (BaseError, OSError) as e:
            raise self._error(path, "written", e) from e

    def replace(self, path: str, data: bytes) -> None:
        """See :class:`storage.Storage`. A write of ours that is late already cannot undo this one."""
        tag = self._tags.pop(path, None)
        try:
            if tag is None:
                tag = self._tag(path)
            done = obstore.put(
                self._store, path, data, mode="create" if tag is None else {"e_tag": tag}, use_multipart=False
            )
        except (BaseError, OSError) as e:
            raise self._error(path, "written", e) from e
        if done["e_tag"] is not None:
            self._tags[path] = done["e_tag"]

    def _tag(self, path: str) -> str | None:
        try:
            tag = obstore.head(self._store, path)["e_tag"]
        except FileNotFoundError:
            return None
        if tag is None:
            raise StorageError(f"{self._name}/{path}: wanted an entity tag, got none; this server cannot hold a log")
        return tag

    def prune(self, path: str) -> None:
        if superseded := self._list(path):
            self._delete(superseded)

    def discard(self, path: str) -> None:
        self._delete([path])

    def _delete(self, paths: list[str]) -> None:
        try:
            obstore.delete(self._store, paths)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as e:
            raise self._error(paths[0], "removed", e) from e

    def _list(self, path: str) -> list[str]:
        try:
            return sorted(meta["path"] for chunk in obstore.list(self._store, path) for meta in chunk)
        except (BaseError, OSError) as e:
            raise self._error(path, "listed", e) from e

    def _error(self, path: str, action: str, e: Exception) -> StorageError:
        return StorageError(f"{self._name}/{path}: cannot be {action}: {_first_line(e)}")


def _first_line(e: Exception) -> str:
    # The lines after it are the library's own debugging output.
    return str(e).split("\n", 1)[0][:300]
