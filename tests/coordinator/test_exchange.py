"""The exchange and a node's client, over loopback with real TLS."""

import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from commonweal_coordinator.serving.blobs import MAX_PARTIALS, BlobStore
from commonweal_coordinator.serving.exchange import MAX_CHUNK_BYTES, ExchangeService, Limits
from commonweal_coordinator.serving.rpc_errors import STATUS, abort
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_node.connection.client import CHUNK_BYTES, CoordinatorClient
from commonweal_protocols.base import errors
from commonweal_protocols.base.errors import (
    BlobError,
    CommonwealError,
    LocalError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.upload_permit import sign_permit, verify_permit
from commonweal_protocols.statements.values import Blob
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.grpc_server import serving

MEMBER, OTHER_MEMBER, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
CONSORTIUM = "c" * 64
MAX_BLOB_BYTES = 6_000_000
FIVE_MB = os.urandom(5_000_000)


def blob_of(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


@dataclass
class Recorder(ExchangeService):
    """The real service; counts what arrives."""

    def __init__(self, store: BlobStore, limits: Limits) -> None:
        super().__init__(store, limits)
        self.puts: list[int] = []

    def Put(self, request_iterator: Iterator[pb.PutRequest], context: grpc.ServicerContext) -> pb.StatReply:
        self.puts.append(0)
        mine = len(self.puts) - 1

        def counted() -> Iterator[pb.PutRequest]:
            for message in request_iterator:
                self.puts[mine] += len(message.chunk)
                yield message

        return super().Put(counted(), context)


@dataclass
class World:
    """One server, and clients of it."""

    tls: TlsFiles
    store: BlobStore
    service: Recorder
    address: str
    stack: ExitStack
    pauses: list[float] = field(default_factory=list)

    def client(self, address: str | None = None, **options: float) -> CoordinatorClient:
        made = CoordinatorClient(address or self.address, self.tls.ca.read_text(), pause=self.pauses.append, **options)  # type: ignore[arg-type]
        return self.stack.enter_context(made)

    def stub(self) -> rpc.ExchangeStub:
        credentials = grpc.ssl_channel_credentials(self.tls.ca.read_bytes())
        channel = self.stack.enter_context(
            grpc.secure_channel(self.address, credentials, [("grpc.max_send_message_length", 8 << 20)])
        )
        return rpc.ExchangeStub(channel)  # type: ignore[no-untyped-call]


Open = Callable[..., AbstractContextManager[World]]


@pytest.fixture
def opened(tls: TlsFiles, tmp_path: Path) -> Open:
    @contextmanager
    def open_world(**limits: float) -> Iterator[World]:
        store = BlobStore(tmp_path / "public")
        members = frozenset({public_hex(MEMBER), public_hex(OTHER_MEMBER)})
        made = Limits(CONSORTIUM, MAX_BLOB_BYTES, lambda: members, **limits)  # type: ignore[arg-type]
        service = Recorder(store, made)
        with (
            serving(tls, lambda s: rpc.add_ExchangeServicer_to_server(service, s)) as address,  # type: ignore[no-untyped-call]
            ExitStack() as stack,
        ):
            yield World(tls, store, service, address, stack)

    return open_world


@pytest.fixture
def world(opened: Open) -> Iterator[World]:
    with opened() as w:
        yield w


def header(
    blob: Blob, *, offset: int = 0, key: Ed25519PrivateKey = MEMBER, consortium: str = CONSORTIUM
) -> pb.PutHeader:
    return pb.PutHeader(
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        offset_bytes=offset,
        key=public_hex(key),
        signature=sign_permit(key, consortium, blob),
    )


def put(world: World, head: pb.PutHeader, *chunks: bytes) -> pb.StatReply:
    messages = [pb.PutRequest(header=head), *(pb.PutRequest(chunk=c) for c in chunks)]
    reply: pb.StatReply = world.stub().Put(iter(messages), timeout=5)
    return reply


@contextmanager
def cutting_proxy(address: str, *, after_bytes: int, downstream: bool = False) -> Iterator[tuple[str, list[int]]]:
    """A TCP relay that kills its first connection in mid-stream; yields its address and the bytes of each connection.

    Counts and cuts what the client sends, or what it is sent where ``downstream``.
    """
    host, port = address.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    counts: list[int] = []
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = [listener]

    def pump(source: socket.socket, sink: socket.socket, nth: int | None) -> None:
        try:
            while data := source.recv(65536):
                if nth is not None:
                    counts[nth] += len(data)
                    if nth == 0 and counts[nth] > after_bytes:
                        break
                sink.sendall(data)
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                s.close()

    def accept() -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            sockets.extend((near, far))
            counts.append(0)
            nth = len(counts) - 1
            for source, sink, counted in ((near, far, not downstream), (far, near, downstream)):
                threads.append(threading.Thread(target=pump, args=(source, sink, nth if counted else None)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", counts
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        # Only a shutdown wakes a thread that waits in recv; a mere close would leave it there for ever.
        for s in sockets:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        for t in threads:
            t.join()
        for s in sockets:
            s.close()


# -- permits


def test_a_permit_is_the_documented_message_under_ed25519() -> None:
    blob = Blob(sha256="a" * 64, size_bytes=1234)
    message = b"commonweal-upload-permit/v1\n" + b"c" * 64 + b"\n" + b"a" * 64 + b"\n1234\n"
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex(MEMBER))).verify(
        sign_permit(MEMBER, CONSORTIUM, blob), message
    )


@pytest.mark.parametrize(
    ("key", "consortium", "sha256", "size_bytes"),
    [
        (OTHER_MEMBER, "c" * 64, "a" * 64, 10),
        (MEMBER, "d" * 64, "a" * 64, 10),
        (MEMBER, "c" * 64, "b" * 64, 10),
        (MEMBER, "c" * 64, "a" * 64, 11),
    ],
)
def test_a_permit_holds_for_its_key_consortium_digest_and_size_only(
    key: Ed25519PrivateKey, consortium: str, sha256: str, size_bytes: int
) -> None:
    blob = Blob(sha256="a" * 64, size_bytes=10)
    signature = sign_permit(MEMBER, "c" * 64, blob)
    verify_permit(public_hex(MEMBER), signature, "c" * 64, blob)
    with pytest.raises(SignatureError):
        verify_permit(public_hex(key), signature, consortium, Blob(sha256=sha256, size_bytes=size_bytes))


# -- statuses


Kind = TypeVar("Kind", bound=CommonwealError)


def leaves(kind: type[Kind]) -> set[type[Kind]]:
    # A module may refine one of them for its own callers; on the wire that is still the same kind.
    below = [k for k in kind.__subclasses__() if k.__module__ == errors.__name__]
    # A rule's refusal is raised as such too, beside the kind of it that asks for another try.
    own = {kind} if not below or kind is RuleError else set()
    return own | {leaf for k in below for leaf in leaves(k)}


def test_every_error_has_a_status_and_only_unavailable_asks_for_a_retry() -> None:
    assert set(STATUS) == leaves(errors.CommonwealError)
    assert [e for e, s in STATUS.items() if s is grpc.StatusCode.UNAVAILABLE] == [UnavailableError]


class _Answers(rpc.LogServicer):
    """Plays a coordinator's answers back."""

    def __init__(self, *answers: bytes | CommonwealError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, CommonwealError):
            abort(context, answer)
        return pb.SubmitReply(proof=answer + request.envelope)

    def WaitForCheckpoint(self, request: pb.WaitRequest, context: grpc.ServicerContext) -> pb.CheckpointReply:
        return pb.CheckpointReply(checkpoint=f"{request.larger_than} {request.timeout_seconds}".encode())


@contextmanager
def answering(
    tls: TlsFiles, *answers: bytes | CommonwealError
) -> Iterator[tuple[CoordinatorClient, _Answers, list[float]]]:
    service, pauses = _Answers(*answers), list[float]()
    with (
        serving(tls, lambda s: rpc.add_LogServicer_to_server(service, s)) as address,  # type: ignore[no-untyped-call]
        CoordinatorClient(address, tls.ca.read_text(), pause=pauses.append) as client,
    ):
        yield client, service, pauses


@pytest.mark.parametrize("kind", sorted(leaves(PeerError), key=str))
def test_a_refusal_comes_back_as_the_same_error_with_its_words(tls: TlsFiles, kind: type[PeerError]) -> None:
    with answering(tls, kind("seq: wanted 4, got 3: α")) as (client, service, _):
        with pytest.raises(kind, match=r"^127\.0\.0\.1:\d+: seq: wanted 4, got 3: α$"):
            client.submit(b"x")
        assert service.asked == 1, "a refusal is not tried again"


def test_a_refusal_of_any_length_gets_through(tls: TlsFiles) -> None:
    with (
        answering(tls, RuleError("\U0001f33b" * 10_000)) as (client, _, _),
        pytest.raises(RuleError, match="\U0001f33b"),
    ):
        client.submit(b"x")


@pytest.mark.parametrize("kind", sorted(leaves(LocalError) - {UnavailableError}, key=str))
def test_the_coordinators_own_trouble_shows_its_name_but_no_path(
    tls: TlsFiles, kind: type[LocalError], caplog: pytest.LogCaptureFixture
) -> None:
    with answering(tls, kind("/secret/place: disk full")) as (client, service, _):
        with pytest.raises(UnavailableError) as caught:
            client.submit(b"x")
        assert kind.__name__ in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "/secret/place: disk full" in caplog.text
        assert service.asked == 1


def test_unavailable_is_tried_again_after_growing_pauses_and_then_given_up(tls: TlsFiles) -> None:
    no = UnavailableError("not founded yet")
    with answering(tls, no, no, b"proof of ") as (client, service, pauses):
        assert client.submit(b"x") == b"proof of x"
        assert service.asked == 3
    with answering(tls, no) as (client, service, pauses):
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+: UNAVAILABLE: UnavailableError"):
            client.submit(b"x")
        assert service.asked == 5
    # Each pause is between half and all of 0.2 · 2^n seconds.
    assert all(0.1 * 2**n <= p <= 0.2 * 2**n for n, p in enumerate(pauses))
    assert len(pauses) == 4


def test_a_coordinator_on_this_host_is_reached_directly_whatever_proxy_is_set(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with answering(tls, b"proof of ") as (client, _, _):
        assert client.submit(b"x") == b"proof of x"


def test_checkpoints_are_asked_for_as_told(tls: TlsFiles) -> None:
    with answering(tls, b"") as (client, _, _):
        assert client.wait_for_checkpoint(7, timeout_seconds=3) == b"7 3"


class _Draft(rpc.FoundingServicer):
    def GetDraft(self, request: pb.DraftRequest, context: grpc.ServicerContext) -> pb.DraftReply:
        return pb.DraftReply(payload=b"draft")

    def Sign(self, request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignReply:
        return pb.SignReply(signatures=len(request.envelope), wanted=3)


def test_a_draft_is_fetched_and_signed(tls: TlsFiles) -> None:
    with (
        serving(tls, lambda s: rpc.add_FoundingServicer_to_server(_Draft(), s)) as address,  # type: ignore[no-untyped-call]
        CoordinatorClient(address, tls.ca.read_text()) as client,
    ):
        assert client.get_draft() == b"draft"
        assert client.sign(b"ab") == (2, 3)


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(tls: TlsFiles) -> None:
    over = threading.Event()

    class Silent(rpc.LogServicer, rpc.ExchangeServicer):
        def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:
            over.wait()
            return pb.SubmitReply()

        def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetReply]:
            over.wait()
            yield pb.GetReply()

    def register(server: grpc.Server) -> None:
        rpc.add_LogServicer_to_server(Silent(), server)  # type: ignore[no-untyped-call]
        rpc.add_ExchangeServicer_to_server(Silent(), server)  # type: ignore[no-untyped-call]

    with (
        serving(tls, register) as address,
        CoordinatorClient(address, tls.ca.read_text(), call_seconds=0.2, transfer_seconds=0.2) as client,
    ):
        calls: list[Callable[[], bytes]] = [lambda: client.submit(b"x"), lambda: client.get_blob("a" * 64, 10)]
        for call in calls:
            with pytest.raises(UnavailableError, match=f"{address}: DEADLINE_EXCEEDED"):
                call()
        over.set()


def test_another_authoritys_coordinator_is_refused(world: World, tmp_path: Path) -> None:
    ca = load_or_create_tls(tmp_path / "other", ["127.0.0.1"]).ca
    with (
        CoordinatorClient(world.address, ca.read_text(), pause=world.pauses.append) as client,
        pytest.raises(UnavailableError, match=f"{world.address}: UNAVAILABLE: .*(?i:certificate|handshake)"),
    ):
        client.put_blob(b"x", MEMBER, CONSORTIUM)
    assert world.service.puts == []


# -- round trips


def test_five_megabytes_go_up_once_and_come_down_the_same(world: World) -> None:
    client, blob = world.client(), blob_of(FIVE_MB)
    sent: list[int] = []
    received: list[int] = []
    assert client.put_blob(FIVE_MB, MEMBER, CONSORTIUM, sent.append) == blob
    assert world.store.read(blob.sha256) == FIVE_MB
    assert client.get_blob(blob.sha256, blob.size_bytes, received.append) == FIVE_MB
    for seen in (sent, received):
        assert seen == sorted(seen)
        assert seen[-1] == len(FIVE_MB)
    # The same again, by anybody who may, sends nothing.
    assert client.put_blob(FIVE_MB, OTHER_MEMBER, CONSORTIUM) == blob
    assert world.service.puts == [len(FIVE_MB)]
    with pytest.raises(MalformedError, match=r"wanted 1 to .* bytes, got 0"):
        client.put_blob(b"", MEMBER, CONSORTIUM)


def test_an_upload_that_stopped_goes_on_after_the_last_chunk_that_arrived(world: World) -> None:
    blob = blob_of(FIVE_MB)
    first = put(world, header(blob), *(FIVE_MB[n : n + MAX_CHUNK_BYTES] for n in (0, MAX_CHUNK_BYTES)))
    assert (first.complete, first.received_bytes) == (False, 2 * MAX_CHUNK_BYTES)
    reported: list[int] = []
    world.client().put_blob(FIVE_MB, MEMBER, CONSORTIUM, reported.append)
    assert world.service.puts == [2 * MAX_CHUNK_BYTES, len(FIVE_MB) - 2 * MAX_CHUNK_BYTES]
    assert reported[0] == 2 * MAX_CHUNK_BYTES + CHUNK_BYTES
    assert world.store.read(blob.sha256) == FIVE_MB


def test_a_connection_that_breaks_in_mid_upload_is_made_anew_and_the_rest_is_sent(world: World) -> None:
    with cutting_proxy(world.address, after_bytes=2_500_000) as (address, counts), ExitStack() as stack:
        client = stack.enter_context(CoordinatorClient(address, world.tls.ca.read_text()))
        client.put_blob(FIVE_MB, MEMBER, CONSORTIUM)
    assert world.store.read(blob_of(FIVE_MB).sha256) == FIVE_MB
    assert len(world.service.puts) == 2
    # What was in flight is lost, however much of it the server had taken by then; only the rest is sent again.
    assert counts[0] > 2_500_000
    assert 2_500_000 < counts[1] < world.service.puts[1] + 200_000, "the rest, and TLS and framing around it"
    assert sum(world.service.puts) < len(FIVE_MB) + CHUNK_BYTES


def test_a_connection_that_breaks_in_mid_download_costs_no_byte_twice(world: World) -> None:
    blob = world.store.put_bytes(FIVE_MB)
    seen: list[int] = []
    with (
        cutting_proxy(world.address, after_bytes=2_500_000, downstream=True) as (address, counts),
        CoordinatorClient(address, world.tls.ca.read_text()) as client,
    ):
        assert client.get_blob(blob.sha256, blob.size_bytes, seen.append) == FIVE_MB
    assert len(counts) == 2
    assert seen == sorted(set(seen)), "each report is further than the one before"


def test_a_leftover_of_something_else_over_there_is_dropped_and_the_upload_begins_anew(world: World) -> None:
    blob = blob_of(FIVE_MB)
    put(world, header(blob), b"x" * 1000)
    world.client().put_blob(FIVE_MB, MEMBER, CONSORTIUM)
    assert world.store.read(blob.sha256) == FIVE_MB


def test_two_uploads_of_one_blob_at_once_both_succeed(world: World) -> None:
    with ThreadPoolExecutor(3) as pool:
        uploads = [
            pool.submit(world.client().put_blob, FIVE_MB, key, CONSORTIUM) for key in (MEMBER, MEMBER, OTHER_MEMBER)
        ]
        assert {u.result() for u in uploads} == {blob_of(FIVE_MB)}
    assert world.store.read(blob_of(FIVE_MB).sha256) == FIVE_MB


def test_a_transfer_slower_than_its_deadline_goes_on_as_long_as_bytes_move(opened: Open) -> None:
    """The service cuts every call off after a moment in which it takes one chunk; each chunk is sent once."""
    data = FIVE_MB[: 4 * CHUNK_BYTES]
    with opened() as world:

        class OneChunk(ExchangeService):
            def Put(self, request_iterator: Iterator[pb.PutRequest], context: grpc.ServicerContext) -> pb.StatReply:
                def stalling() -> Iterator[pb.PutRequest]:
                    yield next(request_iterator)
                    yield from [m for m in [next(request_iterator, None)] if m]
                    context.cancel()
                    # Nothing comes any more; gRPC wakes anyone who waits here.
                    yield from request_iterator

                return super().Put(stalling(), context)

        service = OneChunk(world.store, Limits(CONSORTIUM, MAX_BLOB_BYTES, lambda: frozenset({public_hex(MEMBER)})))
        with (
            serving(world.tls, lambda s: rpc.add_ExchangeServicer_to_server(service, s)) as address,  # type: ignore[no-untyped-call]
            CoordinatorClient(address, world.tls.ca.read_text(), attempts=2, pause=world.pauses.append) as client,
            # The last call is cut off as well, after all bytes have come; then only the finish is missing.
            pytest.raises(UnavailableError, match=f"{len(data)} of {len(data)} bytes sent"),
        ):
            client.put_blob(data, MEMBER, CONSORTIUM)
        assert world.store.received_bytes(blob_of(data).sha256) == len(data)
        world.client().put_blob(data, MEMBER, CONSORTIUM)
        assert world.service.puts == [0]
        assert world.store.read(blob_of(data).sha256) == data


# -- refusals


def test_an_oversize_blob_is_refused_before_anything_is_stored(world: World) -> None:
    data = b"x" * (MAX_BLOB_BYTES + 1)
    with pytest.raises(RuleError, match=f"wanted at most {MAX_BLOB_BYTES} bytes, got {MAX_BLOB_BYTES + 1}"):
        world.client().put_blob(data, MEMBER, CONSORTIUM)
    assert world.store.received_bytes(blob_of(data).sha256) == 0
    assert not list(world.store.path("a" * 64).parent.parent.glob(".partial/*/*"))


@pytest.mark.parametrize(
    ("key", "consortium", "message"),
    [(STRANGER, CONSORTIUM, "wanted a member's key"), (MEMBER, "d" * 64, "signature: does not hold")],
    ids=["not a member", "another consortium"],
)
def test_an_upload_without_a_members_permit_is_refused(
    world: World, key: Ed25519PrivateKey, consortium: str, message: str
) -> None:
    with pytest.raises(SignatureError, match=message):
        world.client().put_blob(b"data", key, consortium)
    assert not list(world.store.path("a" * 64).parent.parent.glob(".partial/*/*"))


BLOB = blob_of(b"0123456789")
GOOD = header(BLOB)


def edited(**fields: object) -> pb.PutHeader:
    made = pb.PutHeader()
    made.CopyFrom(GOOD)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("messages", "status", "details", "why"),
    [
        ([], "INVALID_ARGUMENT", "MalformedError: put: wanted the header first", "nothing at all"),
        ([b"x"], "INVALID_ARGUMENT", "MalformedError: put: wanted the header first, got chunk", "no header"),
        ([GOOD, GOOD], "INVALID_ARGUMENT", "MalformedError: put: wanted chunks", "two headers"),
        ([GOOD, b""], "INVALID_ARGUMENT", "MalformedError: put: wanted a chunk of 1 to", "an empty chunk"),
        ([GOOD, b"x" * (MAX_CHUNK_BYTES + 1)], "INVALID_ARGUMENT", "MalformedError: .*got 1048577", "a large chunk"),
        ([GOOD, b"x" * 11], "DATA_LOSS", "BlobError: .*wanted 10 bytes, got 11", "more than declared"),
        ([GOOD, b"x" * 10], "DATA_LOSS", f"BlobError: .*wanted .*{BLOB.sha256}, got", "a wrong digest"),
        ([edited(size_bytes=11)], "PERMISSION_DENIED", "SignatureError: ", "another size than permitted"),
        ([edited(size_bytes=0)], "INVALID_ARGUMENT", "MalformedError: .*got 0", "no size"),
        ([edited(size_bytes=2**63)], "INVALID_ARGUMENT", "MalformedError: ", "a size beyond any bound"),
        ([edited(signature=b"")], "PERMISSION_DENIED", "SignatureError: ", "no signature"),
        ([edited(key="x")], "PERMISSION_DENIED", "SignatureError: .*wanted a member's key", "no key"),
        ([edited(sha256="../" + "a" * 61)], "INVALID_ARGUMENT", "MalformedError: sha256: wanted 64", "a path"),
        ([edited(sha256="A" * 64)], "INVALID_ARGUMENT", "MalformedError: sha256: wanted 64", "another encoding"),
    ],
)
def test_a_put_that_breaks_a_rule_stores_nothing(
    world: World, messages: list[pb.PutHeader | bytes], status: str, details: str, why: str
) -> None:
    stream = [pb.PutRequest(chunk=m) if isinstance(m, bytes) else pb.PutRequest(header=m) for m in messages]
    with pytest.raises(grpc.RpcError) as caught:
        world.stub().Put(iter(stream), timeout=5)
    assert caught.value.code().name == status
    assert re.match(details, caught.value.details())
    assert world.store.received_bytes(BLOB.sha256) == 0
    # The refusal left nothing behind that would be in the way of the real bytes.
    assert put(world, GOOD, b"01234", b"56789").complete


def test_a_path_in_a_name_is_refused_by_every_method(world: World) -> None:
    secret = world.store.path("a" * 64).parent.parent / "secret"
    secret.write_bytes(b"s")
    stub = world.stub()
    for name in ("../secret", "../../public/secret", str(secret), "", "a" * 64 + "\0"):
        for call in (
            lambda name=name: stub.Stat(pb.StatRequest(sha256=name), timeout=5),
            lambda name=name: list(stub.Get(pb.GetRequest(sha256=name), timeout=5)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_offset_that_is_not_where_the_upload_stands_is_answered_with_where_it_stands(world: World) -> None:
    for offset in (3, 10, 2**63):
        reply = put(world, header(BLOB, offset=offset), b"3456789")
        assert (reply.complete, reply.received_bytes) == (False, 0)
    put(world, GOOD, b"01234")
    assert put(world, GOOD, b"01234").received_bytes == 5
    assert put(world, header(BLOB, offset=5), b"56789").complete
    assert put(world, GOOD).complete, "what is here already is complete at once"


def test_an_unknown_blob_is_not_found(world: World) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(world.stub().Get(pb.GetRequest(sha256="a" * 64), timeout=5))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(BlobError, match=f"{world.address}: blob {'a' * 64}: not here"):
        world.client().get_blob("a" * 64, 10)


def test_get_gives_the_bytes_from_the_offset_on_and_refuses_one_beyond_the_end(world: World) -> None:
    blob = world.store.put_bytes(FIVE_MB)

    def get(offset: int) -> list[bytes]:
        request = pb.GetRequest(sha256=blob.sha256, offset_bytes=offset)
        return [r.chunk for r in world.stub().Get(request, timeout=5)]

    assert b"".join(get(4_000_001)) == FIVE_MB[4_000_001:]
    assert max(len(c) for c in get(0)) <= MAX_CHUNK_BYTES
    assert get(len(FIVE_MB)) == []
    with pytest.raises(grpc.RpcError, match="wanted an offset of at most 5000000, got 5000001"):
        get(len(FIVE_MB) + 1)


def test_a_member_cannot_fill_the_disk_with_unfinished_uploads(world: World) -> None:
    for n in range(MAX_PARTIALS):
        put(world, header(blob_of(bytes([n] * 9))), b"x")
    with pytest.raises(RuleError, match=f"wanted at most {MAX_PARTIALS} unfinished uploads"):
        world.client().put_blob(b"one more", MEMBER, CONSORTIUM)
    world.client().put_blob(b"one more", OTHER_MEMBER, CONSORTIUM)


class _Liar(rpc.ExchangeServicer):
    """Serves other bytes than asked for."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetReply]:
        yield from (pb.GetReply(chunk=c) for c in self.chunks)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((b"0123456780",), f"wanted digest {BLOB.sha256}, got [0-9a-f]{{64}}"),
        ((b"0123456789", b"x"), "wanted 10 bytes, got more"),
        ((b"x" * 1_000_000,) * 50, "wanted 10 bytes, got more"),
        ((b"012345678",), "wanted 10 bytes, got 9"),
        ((), "wanted 10 bytes, got 0"),
    ],
    ids=["other bytes", "one byte more", "a flood", "one byte less", "nothing"],
)
def test_a_download_that_is_not_the_blob_is_refused(tls: TlsFiles, chunks: tuple[bytes, ...], message: str) -> None:
    with (
        serving(tls, lambda s: rpc.add_ExchangeServicer_to_server(_Liar(*chunks), s)) as address,  # type: ignore[no-untyped-call]
        CoordinatorClient(address, tls.ca.read_text()) as client,
    ):
        seen: list[int] = []
        with pytest.raises(BlobError, match=f"{address}: blob.*{message}"):
            client.get_blob(BLOB.sha256, BLOB.size_bytes, seen.append)
        assert all(n <= BLOB.size_bytes for n in seen)


# -- time and numbers


def test_a_client_that_falls_silent_is_cut_off_and_its_place_is_free_again(opened: Open) -> None:
    over = threading.Event()

    def silent() -> Iterator[pb.PutRequest]:
        yield pb.PutRequest(header=GOOD)
        over.wait()

    with opened(call_seconds=0.3, max_transfers=1) as world:
        stub = world.stub()
        call = stub.Put.future(silent(), timeout=20)
        assert call.exception(timeout=10).code() is grpc.StatusCode.CANCELLED
        over.set()
        # A download that is broken off frees its place as well.
        blob = world.store.put_bytes(FIVE_MB)
        for _ in range(3):
            with closing(_OneMessage(stub.Get(pb.GetRequest(sha256=blob.sha256), timeout=5))):
                pass
        assert world.client().get_blob(blob.sha256, blob.size_bytes) == FIVE_MB


class _OneMessage:
    """A download of which one message is taken."""

    def __init__(self, call: grpc.Call) -> None:
        self._call = call
        next(call)

    def close(self) -> None:
        self._call.cancel()


def test_too_many_transfers_at_once_are_put_off(opened: Open) -> None:
    over = threading.Event()

    def slow() -> Iterator[pb.PutRequest]:
        yield pb.PutRequest(header=GOOD)
        over.wait()

    with opened(max_transfers=1) as world:
        call = world.stub().Put.future(slow(), timeout=20)
        while not world.service.puts or not list(world.store.path("a" * 64).parent.parent.glob(".partial/*/*")):
            assert not call.done()
        with pytest.raises(UnavailableError, match="UnavailableError"):
            world.client().put_blob(b"x", MEMBER, CONSORTIUM)
        over.set()
        call.result(timeout=10)
        world.client().put_blob(b"x", MEMBER, CONSORTIUM)


def test_a_full_disk_over_there_is_told_as_such_and_nothing_is_lost(opened: Open) -> None:
    with opened() as world:
        room = 3 * CHUNK_BYTES

        def write(fd: int, data: memoryview) -> int:
            nonlocal room
            if room == 0:
                raise OSError(28, "No space left on device")
            done = os.write(fd, data[:room])
            room -= done
            return done

        full = BlobStore(world.store.path("a" * 64).parent.parent, write=write)
        world.service._blobs = full
        with pytest.raises(UnavailableError, match=f"{world.address}: RESOURCE_EXHAUSTED: StorageError$"):
            world.client().put_blob(FIVE_MB, MEMBER, CONSORTIUM)
        assert full.received_bytes(blob_of(FIVE_MB).sha256) == 3 * CHUNK_BYTES
        room = len(FIVE_MB)
        world.client().put_blob(FIVE_MB, MEMBER, CONSORTIUM)
        assert world.service.puts[-1] == len(FIVE_MB) - 3 * CHUNK_BYTES
