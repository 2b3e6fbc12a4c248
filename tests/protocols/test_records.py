"""Public records: served over real TLS as they lie on the disk, and read the same from a folder and from a server."""

import asyncio
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_coordinator.serving.web import RecordsServer, _Records
from commonweal_protocols.base.errors import (
    BlobError,
    CommonwealError,
    ConfigError,
    LogError,
    MalformedError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.records.source import (
    DirectorySource,
    HttpSource,
    Source,
    read_blob,
    read_checkpoint,
    read_entries,
    unverified_size,
)
from commonweal_protocols.statements.values import Blob
from tests.kit.log_place import Place, entries, expected_tiles, files_below

SECRET = b"nobody's business"


@dataclass
class Served:
    """A log of 300 entries and one blob, in a folder and on a server; private files lie around both."""

    place: Place
    blob: Blob
    tls: TlsFiles
    port: int

    @property
    def http(self) -> HttpSource:
        return HttpSource(f"https://127.0.0.1:{self.port}/", self.tls.ca)

    @property
    def folder(self) -> DirectorySource:
        return DirectorySource(self.place.public)

    def ask(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Send ``path`` as it is; return the status, the headers and the body."""
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=False, skip_accept_encoding=True)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("hub")
    tls = load_or_create_tls(home / "tls", ["127.0.0.1"])
    place = Place(home).create(entries(0, 250), entries(250, 300))
    public = place.public
    blob = BlobStore(public).put_bytes(b"an adapter" * 1000)
    for path in ("lock.db", "public/staging/301-ab", f"public/.partial/{'a' * 64}/{'b' * 64}", "public/notes.txt"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(SECRET)
    (public / "blob/not-a-digest").write_bytes(SECRET)
    os.symlink(home / "lock.db", public / "tile/0/999")
    server = RecordsServer(public, "127.0.0.1", 0, tls.chain, tls.key)
    server.start()
    yield Served(place, blob, tls, server.port)
    server.stop()


# -- the server


def test_exactly_the_checkpoint_the_tiles_and_the_blobs_are_served_as_they_lie_there(served: Served) -> None:
    files = files_below(served.place.public)
    public = {"checkpoint", f"blob/{served.blob.sha256}", *expected_tiles(entries(0, 300))}
    assert public < files.keys()
    for path, data in files.items():
        status, headers, body = served.ask(f"/{path}")
        if path in public:
            assert (status, body) == (200, data)
            assert headers["content-length"] == str(len(data))
        else:
            assert status == 404
            assert SECRET not in body


@pytest.mark.parametrize(
    ("path", "kind", "caching"),
    [
        ("checkpoint", "text/plain; charset=utf-8", "no-store"),
        ("tile/0/000", "application/octet-stream", "public, max-age=31536000, immutable"),
        ("tile/0/001.p/44", "application/octet-stream", "public, max-age=31536000, immutable"),
        ("tile/entries/000", "application/octet-stream", "public, max-age=31536000, immutable"),
        ("blob", "application/octet-stream", "public, max-age=31536000, immutable"),
    ],
)
def test_what_may_change_is_never_kept_and_what_may_not_is_kept_for_ever(
    served: Served, path: str, kind: str, caching: str
) -> None:
    path = f"blob/{served.blob.sha256}" if path == "blob" else path
    for method in ("GET", "HEAD"):
        status, headers, body = served.ask(f"/{path}", method)
        assert status == 200
        assert headers["content-type"] == kind
        assert headers["cache-control"] == caching
        assert (body == b"") == (method == "HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/lock.db",
        "/../lock.db",
        "/tile/../../lock.db",
        "/tile/../../private/lock.db",
        "/%2e%2e/lock.db",
        "/tile/%2e%2e/%2e%2e/lock.db",
        "/tile/..%2f..%2flock.db",
        "/tile/0/999",
        "/tile",
        "/tile/",
        "/tile/0",
        "/tile/0/../../staging/301-ab",
        "/staging/301-ab",
        "/blob",
        "/blob/",
        "/blob/not-a-digest",
        "/blob/../notes.txt",
        f"/blob/{'0' * 64}",
        f"/.partial/{'a' * 64}/{'b' * 64}",
        "/notes.txt",
        "/tile/0/000.p/44",
        "/tile/9/000",
        "//checkpoint%00",
        "/CHECKPOINT",
    ],
)
def test_nothing_else_is_served_however_it_is_spelled(served: Served, path: str) -> None:
    status, headers, body = served.ask(path)
    assert status == 404
    assert SECRET not in body
    assert "cache-control" not in headers, "what is not there yet may come"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    assert served.ask("/checkpoint", method)[0] == 405


def test_a_checkpoint_that_is_replaced_while_it_is_being_served_arrives_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"9")
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/checkpoint", "headers": []}
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nothing to receive")

    async def ask() -> None:
        response = await _Records(tmp_path).get_response("checkpoint", scope)
        (tmp_path / "new").write_bytes(b"10")
        (tmp_path / "new").rename(tmp_path / "checkpoint")
        await response(scope, receive, send)

    asyncio.run(ask())
    start, *parts = sent
    body = b"".join(m.get("body", b"") for m in parts)
    assert dict(start["headers"])[b"content-length"] == str(len(body)).encode()


def test_a_port_that_is_taken_is_said_so_and_stopping_frees_it(served: Served) -> None:
    def server(port: int) -> RecordsServer:
        return RecordsServer(served.place.public, "127.0.0.1", port, served.tls.chain, served.tls.key)

    first = server(0)
    first.start()
    taken = server(first.port)
    with pytest.raises(StorageError, match=f"records: 127.0.0.1:{first.port} cannot be served: Address already in use"):
        taken.start()
    taken.stop()
    source = HttpSource(f"https://127.0.0.1:{first.port}", served.tls.ca)
    assert read_checkpoint(source).startswith(b"log.test/")
    first.stop()
    again = server(first.port)
    again.start()
    assert read_checkpoint(source).startswith(b"log.test/")
    again.stop()
    with pytest.raises(UnavailableError, match=r"checkpoint: does not answer: .*refused"):
        source.read("checkpoint", max_bytes=1000)


# -- reading


def test_a_server_reads_as_its_folder_does(served: Served) -> None:
    paths = [*expected_tiles(entries(0, 300)), "checkpoint", f"blob/{served.blob.sha256}", "tile/0/002", "blob/none"]
    for path in paths:
        assert served.http.read(path, max_bytes=1 << 20) == served.folder.read(path, max_bytes=1 << 20)
    for source in (served.http, served.folder):
        assert unverified_size(read_checkpoint(source)) == 300
        assert list(read_entries(source, 0, 300)) == entries(0, 300)
        assert read_blob(source, served.blob) == b"an adapter" * 1000


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (0, 1), (3, 9), (0, 255), (0, 256), (1, 256), (0, 300), (255, 300), (256, 300), (299, 300)],
)
def test_any_stretch_of_entries_up_to_a_size_that_was_published_can_be_read(
    served: Served, start: int, end: int
) -> None:
    assert list(read_entries(served.folder, start, end)) == entries(start, end)


def test_an_older_size_is_read_from_the_full_bundle_once_its_partial_one_is_gone(served: Served) -> None:
    assert not (served.place.public / "tile/entries/000.p/250").exists()
    for source in (served.http, served.folder):
        assert list(read_entries(source, 0, 250)) == entries(0, 250)
        assert list(read_entries(source, 100, 250)) == entries(100, 250)


def test_a_file_that_is_larger_than_asked_for_is_refused_and_one_of_just_that_size_is_not(served: Served) -> None:
    size = len((served.place.public / "checkpoint").read_bytes())
    for source in (served.http, served.folder):
        assert len(source.read("checkpoint", max_bytes=size) or b"") == size
        with pytest.raises(LogError, match=f"checkpoint: wanted at most {size - 1} bytes, got more"):
            source.read("checkpoint", max_bytes=size - 1)


@dataclass
class Folder:
    """A folder in memory."""

    files: dict[str, bytes]

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        return self.files.get(path)


BLOB = Blob(sha256="ab" * 32, size_bytes=3)

LIES: list[tuple[Callable[[Source], object], dict[str, bytes], type[CommonwealError], str]] = [
    (read_checkpoint, {}, LogError, "checkpoint: wanted a signed note, got no such file"),
    (
        lambda s: list(read_entries(s, 0, 3)),
        {},
        LogError,
        "entries 0 to 2: wanted tile/entries/000.p/3, got no such file",
    ),
    (lambda s: list(read_entries(s, 0, 256)), {}, LogError, "entries 0 to 255: wanted tile/entries/000, got no such"),
    (lambda s: list(read_entries(s, 0, 1)), {"tile/entries/000.p/1": b"\0\2a"}, MalformedError, "entry 0 is cut off"),
    (
        lambda s: list(read_entries(s, 0, 1)),
        {"tile/entries/000.p/1": b"\0\1a\0\1b"},
        MalformedError,
        "1 entries, got mo",
    ),
    (
        lambda s: list(read_entries(s, 0, 1)),
        {"tile/entries/000": b"\0\1a"},
        MalformedError,
        "wanted 256 entries, got 1",
    ),
    (lambda s: read_blob(s, BLOB), {}, BlobError, f"blob {'ab' * 32}: wanted 3 bytes, got no such file"),
    (
        lambda s: read_blob(s, BLOB),
        {f"blob/{'ab' * 32}": b"xyz"},
        BlobError,
        f"blob: wanted sha256 {'ab' * 32}, got 3608",
    ),
]


@pytest.mark.parametrize(("read", "files", "kind", "message"), LIES)
def test_records_that_are_missing_or_not_of_the_form_are_refused_by_their_path(
    read: Callable[[Source], object], files: dict[str, bytes], kind: type[CommonwealError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read(Folder(files))


def test_a_blob_is_never_read_beyond_its_stated_size(tmp_path: Path) -> None:
    (tmp_path / "blob").mkdir()
    (tmp_path / "blob" / BLOB.sha256).write_bytes(b"four")
    with pytest.raises(LogError, match=f"blob/{BLOB.sha256}: wanted at most 3 bytes, got more"):
        read_blob(DirectorySource(tmp_path), BLOB)


@pytest.mark.parametrize(
    "note", [b"", b"origin", b"origin\n5", b"origin\n05\n", b"origin\n+5\n", b"origin\n\xff\n", b"o\n\n"]
)
def test_a_note_without_a_plain_size_has_none(note: bytes) -> None:
    with pytest.raises(MalformedError, match="decimal: wanted"):
        unverified_size(note)


def test_the_stated_size_is_read_without_believing_it() -> None:
    assert unverified_size(b"anything\n12\nrest") == 12


def test_a_source_that_cannot_be_is_refused_by_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: wanted a folder of public records, got none"):
        DirectorySource(tmp_path / "none")
    for url in ("ftp://host/", "file:///etc/passwd", "host:7401", ""):
        with pytest.raises(ConfigError, match="wanted an http:// or https:// address"):
            HttpSource(url)
    (tmp_path / "ca.pem").write_bytes(b"not a certificate")
    for ca in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match="wanted a PEM file of authorities"):
            HttpSource("https://host", ca)


def test_a_folder_that_cannot_be_read_is_our_own_trouble(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(StorageError, match="checkpoint: cannot be read: Is a directory"):
        DirectorySource(tmp_path).read("checkpoint", max_bytes=10)


# -- servers that lie, or break off


@contextmanager
def answering(answer: bytes, *, endless: bytes = b"") -> Iterator[HttpSource]:
    """A server that gives every connection this answer, then ``endless`` for as long as it is taken, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answer)
                    while endless:
                        connection.sendall(endless)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield HttpSource(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


BROKEN: list[tuple[bytes, str, str]] = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut off", "cut off after 7 bytes", "hangs up in the body"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\ncut off", "does not answer", "the same, in chunks"),
    (b"HTTP/1.1 200 OK\r\nConte", "cut off after 0 bytes, or without a length", "hangs up in the headers"),
    (b"", "does not answer", "hangs up at once"),
    (b"SSH-2.0-OpenSSH_9\r\n", "does not answer", "another protocol"),
    (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "answered 500", "has trouble of its own"),
    (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "answered 403", "does not want to"),
    (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", "answered 429", "is asked too often"),
]
BROKEN += [
    (
        b"HTTP/1.1 %d Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n" % n,
        f"answered {n}",
        f"sends us on: {n}",
    )
    for n in (301, 302, 303, 307, 308)
]


@pytest.mark.parametrize(("answer", "message", "why"), BROKEN, ids=[why for _, _, why in BROKEN])
def test_a_connection_that_fails_is_worth_another_try_and_is_never_taken_for_evidence(
    answer: bytes, message: str, why: str
) -> None:
    with answering(answer) as source, pytest.raises(UnavailableError, match=f"checkpoint: ({message})"):
        source.read("checkpoint", max_bytes=1000)


def test_what_is_on_this_host_is_asked_directly_whatever_proxy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnote") as source:
        assert source.read("checkpoint", max_bytes=1000) == b"note"


def test_a_server_that_never_stops_sending_is_cut_off_at_the_bound() -> None:
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", endless=b"x" * 65536) as source,
        pytest.raises(LogError, match="checkpoint: wanted at most 1000 bytes, got more"),
    ):
        source.read("checkpoint", max_bytes=1000)


def test_a_server_that_is_not_the_one_that_is_trusted_does_not_answer(served: Served, tmp_path: Path) -> None:
    other = load_or_create_tls(tmp_path, ["127.0.0.1"])
    with pytest.raises(UnavailableError, match=r"checkpoint: does not answer: .*CERTIFICATE_VERIFY_FAILED"):
        HttpSource(f"https://127.0.0.1:{served.port}", other.ca).read("checkpoint", max_bytes=1000)
