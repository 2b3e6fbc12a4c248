"""Reading a consortium's public records: static files, from a folder or over HTTPS, the same for everybody.

::

    checkpoint           the signed note
    tile/entries/...     the entries, in C2SP tlog-tiles bundles of 256
    tile/...             the tree's hashes
    blob/<sha256>        adapters and deltas

Everything read is bounded and is unverified until ``replica`` or a digest says otherwise. This module does I/O and no
checking but that of a blob's digest.
"""

import http.client
import ssl
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from commonweal_protocols.base.canonical import digest_of, parse_decimal
from commonweal_protocols.base.errors import BlobError, ConfigError, LogError, StorageError, UnavailableError
from commonweal_protocols.base.opener import opener_for
from commonweal_protocols.statements.values import Blob
from commonweal_protocols.tlog.note import MAX_NOTE_BYTES
from commonweal_protocols.tlog.tiles import BUNDLE_ENTRIES, MAX_ENTRY_BYTES, bundle_path, parse_bundle

MAX_BUNDLE_BYTES = BUNDLE_ENTRIES * (2 + MAX_ENTRY_BYTES)
_TIMEOUT_SECONDS = 30


class Source(Protocol):
    """Where public records are read from. Reads are idempotent; the caller may retry :class:`UnavailableError`."""

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return a file's bytes, or None where there is no such file.

        Raises:
            LogError: The file is larger than ``max_bytes``.
            UnavailableError: The source does not answer.
            StorageError: The folder cannot be read.
        """


def _bounded(path: str, data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise LogError(f"{path}: wanted at most {max_bytes} bytes, got more")
    return data


class DirectorySource:
    """Records in a folder: a mirror, a mounted disk, or the coordinator's own public directory."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ConfigError(f"{directory}: wanted a folder of public records, got none")
        self._directory = directory

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        try:
            with (self._directory / path).open("rb") as f:
                return _bounded(path, f.read(max_bytes + 1), max_bytes)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"{self._directory / path}: cannot be read: {e.strerror}") from e


class HttpSource:
    """Records over HTTPS. ``ca_file`` is a PEM of the authorities to trust; None means the system's."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"{url}: wanted an http:// or https:// address")
        try:
            context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"{ca_file}: wanted a PEM file of authorities: {e}") from e
        self._url = url.rstrip("/")
        self._opener = opener_for(url, context)

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        try:
            with self._opener.open(f"{self._url}/{path}", timeout=_TIMEOUT_SECONDS) as response:
                data = _bounded(path, response.read(max_bytes + 1), max_bytes)
                # Reading an amount does not complain of a connection that ends early; a cut file is nobody's lie.
                # Without a length, whole and cut look alike.
                if response.length != 0 and not response.chunked:
                    raise UnavailableError(f"{self._url}/{path}: cut off after {len(data)} bytes, or without a length")
                return data
        except urllib.error.HTTPError as e:
            # The error holds the open response.
            with e:
                if e.code == http.HTTPStatus.NOT_FOUND:
                    return None
                raise UnavailableError(f"{self._url}/{path}: answered {e.code}") from e
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(f"{self._url}/{path}: does not answer: {e}") from e


def is_address(place: str) -> bool:
    """Whether records are at an address, and not in a folder."""
    return "://" in place


def open_source(place: str, ca_file: Path | None = None) -> Source:
    """Return the records at an ``http://`` or ``https://`` address, or in a folder.

    Raises:
        ConfigError: No such folder, or not a PEM file of authorities.
    """
    if is_address(place):
        return HttpSource(place, ca_file)
    return DirectorySource(Path(place))


def read_checkpoint(source: Source) -> bytes:
    """Return the published checkpoint, a note that nobody has verified yet.

    Raises:
        LogError: There is none.
    """
    note = source.read("checkpoint", max_bytes=MAX_NOTE_BYTES)
    if note is None:
        raise LogError("checkpoint: wanted a signed note, got no such file")
    return note


def unverified_size(note: bytes) -> int:
    """Return the tree size that an unverified checkpoint claims: good for how much to read, for nothing else.

    Raises:
        MalformedError: It has no such line.
    """
    return parse_decimal(note.split(b"\n", 2)[1].decode("ascii", "replace") if note.count(b"\n") > 1 else "")


def read_bundles(source: Source, start: int, end: int) -> Iterator[list[bytes]]:
    """Yield entries ``start`` to ``end`` (exclusive), unverified, as they lie together: up to 256 at a time.

    ``end`` should come from a verified checkpoint. A partial bundle may be gone once the full one exists, and the full
    one then holds it.

    Raises:
        LogError: A bundle is missing, too large, or not of the form.
    """
    for n in range(start // BUNDLE_ENTRIES, -(-end // BUNDLE_ENTRIES)):
        first = n * BUNDLE_ENTRIES
        width = min(BUNDLE_ENTRIES, end - first)
        path = bundle_path(n, width)
        data = source.read(path, max_bytes=MAX_BUNDLE_BYTES)
        if data is None and width < BUNDLE_ENTRIES:
            data = source.read(bundle_path(n, BUNDLE_ENTRIES), max_bytes=MAX_BUNDLE_BYTES)
            entries = parse_bundle(data, BUNDLE_ENTRIES)[:width] if data is not None else None
        else:
            entries = parse_bundle(data, width) if data is not None else None
        if entries is None:
            raise LogError(f"entries {first} to {end - 1}: wanted {path}, got no such file")
        yield entries[max(0, start - first) :]


def read_entries(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Yield entries ``start`` to ``end`` (exclusive) one by one. See :func:`read_bundles`."""
    for bundle in read_bundles(source, start, end):
        yield from bundle


def blob_path(sha256: str) -> str:
    """Where a blob lies below the public directory."""
    return f"blob/{sha256}"


def read_blob(source: Source, blob: Blob) -> bytes:
    """Return a blob's bytes once their size and digest are what its name says.

    Raises:
        BlobError: Missing, or other bytes.
    """
    data = source.read(blob_path(blob.sha256), max_bytes=blob.size_bytes)
    if data is None:
        raise BlobError(f"blob {blob.sha256}: wanted {blob.size_bytes} bytes, got no such file")
    if (got := digest_of(data)) != blob.sha256:
        raise BlobError(f"blob: wanted sha256 {blob.sha256}, got {got} ({len(data)} bytes)")
    return data
