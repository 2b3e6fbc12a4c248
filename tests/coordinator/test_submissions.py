"""Many submissions over one call, over real gRPC and TLS: order, refusals, back-pressure, and broken connections."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from commonweal_coordinator.log import sequencer
from commonweal_coordinator.serving.service import LogService
from commonweal_coordinator.serving.submissions import CallLimits, Submissions
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_node.connection.batch_submit import MAX_REQUEST_BYTES, batches
from commonweal_node.connection.client import CoordinatorClient
from commonweal_protocols.base.errors import MalformedError, PeerError, RuleError, SignatureError, UnavailableError
from commonweal_protocols.records.signature_pool import Checked, Checker, InProcess, Pool
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.envelope import UnverifiedEnvelope, parse_envelope
from commonweal_protocols.statements.statement import Author
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.note import make_verifier
from commonweal_protocols.tlog.proof import open_proof
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.bench.measure import make_entries
from tests.coordinator.test_exchange import serving
from tests.coordinator.test_log import Fault, full_disk
from tests.coordinator.test_sequencer import Hub, founded, identity
from tests.coordinator.test_service import break_disk
from tests.kit.federation import ORIGIN, Federation, key_of
from tests.kit.hub_server import Admission
from tests.kit.proc import descendants

VERIFIER = make_verifier(ORIGIN, key_of("log").public_key())
ENTRIES = make_entries(Federation(), 1500)
Requests = Iterator[pb.SubmitManyRequest]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return load_or_create_tls(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as p:
        yield p


@dataclass
class Counting:
    """The checker in this process, and how many envelopes it was given."""

    count: int = 0
    ahead: int = 0
    held: threading.Event = field(default_factory=threading.Event)

    def begin(self, envelopes: Sequence[UnverifiedEnvelope]) -> Callable[[], Checked]:
        self.count += len(envelopes)
        return InProcess().begin(envelopes)


@dataclass
class Desk:
    """A founded coordinator whose service is on a port, a stub and a client."""

    hub: Hub
    address: str
    ca_pem: str
    stub: rpc.LogStub
    client: CoordinatorClient

    def call(self, *batches: Sequence[bytes], timeout: float | None = 60) -> grpc.Call:
        return self.stub.SubmitMany((request(b) for b in batches), timeout=timeout)

    def index(self, data: bytes, proof: bytes | PeerError) -> int:
        assert isinstance(proof, bytes), proof
        return open_proof(proof, data, VERIFIER)[0]

    @property
    def size(self) -> int:
        return self.hub.sequencer.state.size


Open = Callable[..., AbstractContextManager[Desk]]


@pytest.fixture
def opened(tls: TlsFiles, tmp_path: Path, pool: Pool) -> Open:
    @contextmanager
    def open_desk(checker: Checker = pool, **limits: float) -> Iterator[Desk]:
        with founded(tmp_path / "hub") as hub, ExitStack() as stack:
            submissions = Submissions(checker, CallLimits(**limits))  # type: ignore[arg-type]

            def register(server: grpc.Server) -> None:
                service = LogService(Admission, lambda: hub.sequencer, submissions)  # type: ignore[arg-type]
                rpc.add_LogServicer_to_server(service, server)  # type: ignore[no-untyped-call]

            address = stack.enter_context(serving(tls, register))
            credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes())
            channel = stack.enter_context(grpc.secure_channel(address, credentials))
            client = stack.enter_context(CoordinatorClient(address, tls.ca.read_text(), pause=lambda _: None))
            yield Desk(hub, address, tls.ca.read_text(), rpc.LogStub(channel), client)  # type: ignore[no-untyped-call]

    return open_desk


@pytest.fixture
def desk(opened: Open) -> Iterator[Desk]:
    with opened() as d:
        yield d


def request(envelopes: Sequence[bytes] = (), tokens: Sequence[bytes] = ()) -> pb.SubmitManyRequest:
    items = [pb.SubmitItem(envelope=data) for data in envelopes] + [pb.SubmitItem(token=leaf) for leaf in tokens]
    return pb.SubmitManyRequest(items=items)


def ended(call: grpc.Call) -> tuple[grpc.StatusCode, str]:
    """How a call ends, once everything it says has been taken."""
    with pytest.raises(grpc.RpcError):
        for _ in call:
            pass
    return call.code(), call.details()


# -- answers


def test_each_entry_gets_its_proof_in_the_order_in_which_they_were_sent(desk: Desk) -> None:
    answers = list(desk.client.submit_many(iter(ENTRIES)))
    assert [desk.index(data, a) for data, a in zip(ENTRIES, answers, strict=True)] == list(range(1, 1501))
    assert desk.size == 1501
    assert list(read_entries(DirectorySource(desk.hub.public), 1, 1501)) == ENTRIES


def test_an_entry_that_comes_again_keeps_its_place_in_one_request_in_one_call_and_in_another(desk: Desk) -> None:
    sent = [*ENTRIES[:4], *ENTRIES[:2], *ENTRIES[4:300], *ENTRIES[:300]]
    for _ in range(2):
        answers = list(desk.client.submit_many(sent))
        indices = [desk.index(data, a) for data, a in zip(sent, answers, strict=True)]
        assert indices == [1, 2, 3, 4, 1, 2, *range(5, 301), *range(1, 301)]
    assert desk.size == 301


def test_a_refused_entry_is_named_in_its_place_and_stands_in_the_way_of_none_but_its_followers(desk: Desk) -> None:
    # The three institutions take turns: with entry 3 spoiled, that author's later ones have a gap before them.
    forged = ENTRIES[3].replace(b'"sig":"', b'"sig":"AA', 1)[:-5] + ENTRIES[3][-3:]
    stranger = Author(key_of("stranger"), desk.hub.f.state.consortium).sign(identity("x"), seq=0, prev=None, seen=())
    other = bytearray(ENTRIES[3])
    other[ENTRIES[3].rindex(b'"sig":"') + 9] ^= 2
    sent = [*ENTRIES[:3], forged, bytes(other), stranger, *ENTRIES[4:9]]
    answers = list(desk.client.submit_many(sent))
    kinds = [type(a) if isinstance(a, PeerError) else None for a in answers]
    assert kinds == [None, None, None, MalformedError, SignatureError, RuleError, None, None, RuleError, None, None]
    assert "wanted a member as the author" in str(answers[5])
    assert desk.size == 8
    assert [desk.index(sent[i], answers[i]) for i in (0, 1, 2, 6, 7, 9, 10)] == list(range(1, 8))


def test_a_token_tells_where_an_entry_is_or_that_it_is_not_known(desk: Desk) -> None:
    list(desk.client.submit_many(ENTRIES[:3]))
    tokens = [leaf_hash(data) for data in (*ENTRIES[:4],)]
    (reply,) = desk.stub.SubmitMany(iter([request(tokens=tokens)]), timeout=60)
    assert [a.WhichOneof("answer") for a in reply.answers] == ["place", "place", "place", "unknown"]
    assert [a.place.index for a in reply.answers[:3]] == [1, 2, 3]
    (nothing,) = desk.stub.SubmitMany(iter([request(tokens=tokens[3:])]), timeout=60)
    assert nothing.checkpoint == b""


def test_nothing_sent_is_nothing_answered(desk: Desk) -> None:
    assert list(desk.client.submit_many([])) == []


def test_calls_side_by_side_are_each_answered_rightly(desk: Desk) -> None:
    # One author a call.
    found: dict[int, list[int]] = {}

    def send(i: int) -> None:
        mine = ENTRIES[i:300:3]
        found[i] = [desk.index(data, a) for data, a in zip(mine, desk.client.submit_many(mine), strict=True)]

    threads = [threading.Thread(target=send, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(indices == sorted(indices) for indices in found.values())
    assert sorted(i for indices in found.values() for i in indices) == list(range(1, 301))


def test_a_batch_fits_into_a_request_whatever_the_envelopes(desk: Desk) -> None:
    sizes = [65_535] * 40 + [10] * 600
    made = list(batches(bytes(size) for size in sizes))
    assert [len(data) for batch in made for data in batch] == sizes
    assert max(map(len, made)) == 256
    assert max(sum(map(len, batch)) for batch in made) <= MAX_REQUEST_BYTES


# -- back-pressure


@contextmanager
def stalled(hub: Hub) -> Iterator[threading.Event]:
    """The log stands still at its witnesses until the event is set."""
    go = threading.Event()
    cosign = hub.log._cosign
    hub.log._cosign = lambda checkpoint, note, path_from: note if go.wait(60) else b""
    try:
        yield go
    finally:
        go.set()
        hub.log._cosign = cosign


def test_while_many_entries_wait_for_their_place_no_further_request_is_read(opened: Open) -> None:
    checker = Counting()
    with opened(checker, entries=256) as desk, stalled(desk.hub) as go:
        call = desk.call(*(ENTRIES[at : at + 64] for at in range(0, 1500, 64)))
        while checker.count < 256:
            assert call.is_active()
        for _ in range(20):
            # Other calls are served meanwhile; and each is time enough to read one more request.
            desk.stub.SubmitMany(iter([request(tokens=[bytes(32)] * 256)]), timeout=60).cancel()
            desk.call([b"x"]).initial_metadata  # noqa: B018
        assert checker.count <= 256, "of 1500"
        go.set()
        assert sum(len(reply.answers) for reply in call) == 1500
    assert checker.count == 1500


def test_a_full_queue_makes_a_sender_wait_and_is_no_error(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as desk:
        monkeypatch.setattr(sequencer, "MAX_WAITING", 8)
        answers = list(desk.client.submit_many(ENTRIES[:200]))
        assert [desk.index(data, a) for data, a in zip(ENTRIES, answers, strict=False)] == list(range(1, 201))


def test_a_sender_that_goes_away_while_it_waits_for_room_is_forgotten(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = Counting()
    with opened(checker, calls=1) as desk, stalled(desk.hub) as go:
        monkeypatch.setattr(sequencer, "MAX_WAITING", 8)
        # The first is being written, the second waits in the queue, the third for room in it.
        call = desk.call(*(ENTRIES[at : at + 64] for at in range(0, 256, 64)))
        while checker.count < 192:
            assert call.is_active()
        call.cancel()
        go.set()
        # Its place among the calls is free again, once its thread has seen it: a client that asks until then.
        with CoordinatorClient(desk.address, desk.ca_pem, attempts=1_000_000, pause=lambda _: None) as patient:
            assert all(isinstance(a, bytes) for a in patient.submit_many(ENTRIES[:20]))


def test_a_reader_that_takes_no_answers_is_cut_off(opened: Open) -> None:
    with opened(calls=1, silence_seconds=0.5) as desk, ExitStack() as stack:
        # A reader with a small window, so that what it leaves lies at the server.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
        credentials = grpc.ssl_channel_credentials(desk.ca_pem.encode())
        channel = stack.enter_context(grpc.secure_channel(desk.address, credentials, options=options))
        stub = rpc.LogStub(channel)  # type: ignore[no-untyped-call]
        tokens = [leaf_hash(desk.hub.f.entries[0])] * 256
        call = stub.SubmitMany((request(tokens=tokens) for _ in range(4000)), timeout=60)
        assert len(next(call).answers) == 256
        with CoordinatorClient(desk.address, desk.ca_pem, attempts=1_000_000, pause=lambda _: None) as patient:
            assert [desk.index(ENTRIES[0], a) for a in patient.submit_many(ENTRIES[:1])] == [1]
        assert ended(call)[0] is grpc.StatusCode.CANCELLED


def test_a_sender_that_says_nothing_is_cut_off_by_name(opened: Open) -> None:
    with opened(calls=1, silence_seconds=0.2) as desk:
        silence: queue.SimpleQueue[None] = queue.SimpleQueue()
        call = desk.stub.SubmitMany(iter(silence.get, None), timeout=60)
        assert ended(call) == (grpc.StatusCode.UNAVAILABLE, "UnavailableError")
        silence.put(None)
        assert [desk.index(ENTRIES[0], a) for a in desk.client.submit_many(ENTRIES[:1])] == [1]


def test_more_calls_than_a_server_bears_are_told_to_come_again(opened: Open) -> None:
    with opened(calls=1) as desk:
        more: queue.SimpleQueue[pb.SubmitManyRequest | None] = queue.SimpleQueue()
        more.put(request(ENTRIES[:1]))
        first = desk.stub.SubmitMany(iter(more.get, None), timeout=60)
        assert len(next(first).answers) == 1
        assert ended(desk.call(ENTRIES[1:2])) == (grpc.StatusCode.UNAVAILABLE, "UnavailableError")
        more.put(None)
        assert list(first) == []
        assert [desk.index(ENTRIES[1], a) for a in desk.client.submit_many(ENTRIES[1:2])] == [2]


# -- bad requests


@pytest.mark.parametrize("timeout", [None, 301])
def test_a_call_without_an_end_in_sight_is_refused(desk: Desk, timeout: float | None) -> None:
    code, details = ended(desk.call(ENTRIES[:1], timeout=timeout))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MalformedError: submit many: wanted a deadline of at most 300 s",
    )


BAD: list[tuple[pb.SubmitManyRequest, str]] = [
    (request(), "wanted 1 to 256 items in a request, got 0"),
    (request([b"x"] * 257), "wanted 1 to 256 items in a request, got 257"),
    (request(tokens=[bytes(31)]), "token: wanted 32 bytes, got 31"),
    (pb.SubmitManyRequest(items=[pb.SubmitItem()]), "wanted an envelope or a token in each item"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_a_request_of_another_form_ends_its_call_after_the_answers_to_those_before(
    desk: Desk, bad: pb.SubmitManyRequest, message: str
) -> None:
    call = desk.stub.SubmitMany(iter([request(ENTRIES[:2]), bad, request(ENTRIES[2:4])]), timeout=60)
    assert [a.place.index for a in next(call).answers] == [1, 2]
    code, details = ended(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    assert desk.size == 3


def test_a_request_of_more_bytes_than_any_message_may_have_is_not_taken(desk: Desk) -> None:
    code, details = ended(desk.call([bytes(3 << 20)]))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details
    assert desk.size == 1


# -- our own trouble, and broken connections


def test_a_full_disk_ends_the_call_by_name_and_the_same_entries_are_taken_when_there_is_room(desk: Desk) -> None:
    break_disk(desk, Fault("stage", "lost", full_disk()))  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="RESOURCE_EXHAUSTED: StorageError"):
        list(desk.client.submit_many(ENTRIES[:300]))
    answers = list(desk.client.submit_many(ENTRIES[:300]))
    assert [desk.index(data, a) for data, a in zip(ENTRIES, answers, strict=False)] == list(range(1, 301))


def test_a_worker_that_is_killed_costs_a_call_and_no_entry(opened: Open) -> None:
    before = set(descendants(os.getpid()))
    with Pool(1) as own, opened(own) as desk:
        got: list[bytes | PeerError] = []
        for answer in desk.client.submit_many(ENTRIES):
            if len(got) in (100, 700):
                for worker in set(descendants(os.getpid())) - before:
                    os.kill(worker, signal.SIGKILL)
            got.append(answer)
        assert [desk.index(data, a) for data, a in zip(ENTRIES, got, strict=True)] == list(range(1, 1501))
        assert desk.size == 1501


class Breaking(rpc.LogServicer):
    """The real service behind a connection that breaks after so many replies of each call; notes what is asked."""

    def __init__(self, service: LogService, after: Sequence[int], first: Callable[[], object] = lambda: None) -> None:
        self._service = service
        self._first = first
        self._after = iter(after)
        self.asked: list[list[str]] = []

    def SubmitMany(self, request_iterator: Requests, context: grpc.ServicerContext) -> Iterator[pb.SubmitManyReply]:
        asked: list[str] = []
        self.asked.append(asked)
        left = next(self._after, 1 << 30)

        def noted() -> Requests:
            for r in request_iterator:
                asked.append(f"{len(r.items)} {r.items[0].WhichOneof('item')}s")
                yield r

        for reply in self._service.SubmitMany(noted(), context):
            if not left:
                self._first()
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
            left -= 1
            yield reply


def test_after_a_broken_connection_an_entry_is_asked_for_by_its_token_and_not_sent_again(
    tls: TlsFiles, tmp_path: Path, pool: Pool
) -> None:
    with founded(tmp_path / "hub") as hub:
        submissions = Submissions(pool, CallLimits(entries=4096))
        service = LogService(Admission, lambda: hub.sequencer, submissions)  # type: ignore[arg-type]
        # By the time that it breaks, all that was sent has its place.
        breaking = Breaking(service, [1, 0, 2], lambda: hub.sequencer.wait(1500, 60))
        with (
            serving(tls, lambda s: rpc.add_LogServicer_to_server(breaking, s)) as address,  # type: ignore[no-untyped-call]
            CoordinatorClient(address, tls.ca.read_text(), pause=lambda _: None) as client,
        ):
            answers = list(client.submit_many(ENTRIES))
        indices = [open_proof(a, data, VERIFIER)[0] for data, a in zip(ENTRIES, answers, strict=True)]  # type: ignore[arg-type]
        assert indices == list(range(1, 1501))
        assert hub.sequencer.state.size == 1501
    first, second, third, fourth = breaking.asked
    assert first == [*["256 envelopes"] * 5, "220 envelopes"]
    assert second[:1] == third[:1] == ["256 tokens"]
    assert fourth == [*["256 tokens"] * 4, "220 tokens"], "what the first call has left open, and no envelope again"


def test_a_connection_that_breaks_again_and_again_without_an_answer_is_given_up(tls: TlsFiles, tmp_path: Path) -> None:
    with founded(tmp_path / "hub") as hub:
        service = LogService(Admission, lambda: hub.sequencer, Submissions(InProcess()))  # type: ignore[arg-type]
        breaking = Breaking(service, [1] + [0] * 99)
        with (
            serving(tls, lambda s: rpc.add_LogServicer_to_server(breaking, s)) as address,  # type: ignore[no-untyped-call]
            CoordinatorClient(address, tls.ca.read_text(), attempts=3, pause=lambda _: None) as client,
        ):
            got: list[bytes | PeerError] = []
            with pytest.raises(UnavailableError, match="the line broke; 256 entries are answered"):
                got.extend(client.submit_many(ENTRIES))
    assert len(got) == 256
    assert len(breaking.asked) == 4


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_a_server_that_is_killed_in_mid_stream_loses_nothing_that_it_answered_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    port = free_port()

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.kit.hub_server", str(tmp_path), str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    process = start()
    try:
        with CoordinatorClient(
            f"127.0.0.1:{port}", load_or_create_tls(tmp_path / "tls", ["127.0.0.1"]).ca.read_text()
        ) as client:
            got: list[bytes | PeerError] = []
            for answer in client.submit_many(ENTRIES):
                got.append(answer)
                if len(got) in (1, 700):
                    process.kill()
                    process.communicate()
                    process = start()
    finally:
        process.kill()
        process.communicate()
    indices = [open_proof(a, data, VERIFIER)[0] for data, a in zip(ENTRIES, got, strict=True)]  # type: ignore[arg-type]
    assert indices == list(range(1, 1501))
    assert list(read_entries(DirectorySource(tmp_path / "public"), 1, 1501)) == ENTRIES


# -- a coordinator that answers nonsense


class Saying(rpc.LogServicer):
    """Answers every request with the same."""

    def __init__(self, reply: pb.SubmitManyReply | None) -> None:
        self._reply = reply

    def SubmitMany(self, request_iterator: Requests, context: grpc.ServicerContext) -> Iterator[pb.SubmitManyReply]:
        for _ in request_iterator:
            if self._reply is None:
                return
            yield self._reply


NONSENSE: list[tuple[pb.SubmitManyReply | None, type[Exception], str]] = [
    (None, UnavailableError, "wanted an answer to each request, got the end"),
    (pb.SubmitManyReply(), MalformedError, "wanted 1 answers, got 0"),
    (pb.SubmitManyReply(answers=[pb.SubmitAnswer()]), MalformedError, "wanted a place, a refusal or 'unknown'"),
    (pb.SubmitManyReply(answers=[pb.SubmitAnswer(unknown=True)]), MalformedError, "got 'unknown'"),
    (
        pb.SubmitManyReply(answers=[pb.SubmitAnswer(place=pb.Place(path=bytes(33)))]),
        MalformedError,
        "wanted a path of up to 63 hashes, got 33 bytes",
    ),
    (
        pb.SubmitManyReply(answers=[pb.SubmitAnswer(place=pb.Place(path=bytes(64 * 32)))]),
        MalformedError,
        "wanted a path of up to 63 hashes, got 2048 bytes",
    ),
    (
        pb.SubmitManyReply(answers=[pb.SubmitAnswer(refusal="OSError: /etc")]),
        MalformedError,
        "wanted a refusal by its name, got 'OSError: /etc'",
    ),
]


@pytest.mark.parametrize(("reply", "kind", "message"), NONSENSE, ids=[message for _, _, message in NONSENSE])
def test_an_answer_of_another_form_is_an_error_by_name(
    tls: TlsFiles, reply: pb.SubmitManyReply | None, kind: type[Exception], message: str
) -> None:
    saying = Saying(reply)
    with (
        serving(tls, lambda s: rpc.add_LogServicer_to_server(saying, s)) as address,  # type: ignore[no-untyped-call]
        CoordinatorClient(address, tls.ca.read_text(), pause=lambda _: None) as client,
        pytest.raises(kind, match=message),
    ):
        list(client.submit_many(ENTRIES[:1]))


def test_the_entries_of_these_tests_are_what_they_claim() -> None:
    assert len({leaf_hash(data) for data in ENTRIES}) == 1500
    assert {len(parse_envelope(data).signatures) for data in ENTRIES} == {1}
