"""The log's write side and the founding over real gRPC and TLS: what a peer is told, and what it leaves behind."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.service import MAX_WAIT_SECONDS, Admission, LogService
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_coordinator.succession.founding_service import FoundingService
from commonweal_node.connection.client import CoordinatorClient
from commonweal_protocols.base.errors import (
    BlobError,
    ChainConflictError,
    MalformedError,
    RuleError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements.envelope import format_envelope, sign
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.tlog.note import make_verifier
from commonweal_protocols.tlog.proof import open_proof
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.bench.measure import make_entries
from tests.kit.author import Author
from tests.kit.federation import NAMES, ORIGIN, Federation, blob_of, key_of
from tests.kit.grpc_server import serving
from tests.kit.hub import Hub, founded
from tests.kit.launch import free_port
from tests.kit.log_faults import Fault, faulty, full_disk
from tests.kit.log_place import Place, files_below
from tests.kit.refused_entries import REFUSED


@dataclass
class Desk:
    """A founded coordinator with an open round, its real services on a port, and a stub."""

    hub: Hub
    blobs: BlobStore
    address: str
    stub: rpc.LogStub
    client: CoordinatorClient
    service: LogService

    def submit(self, envelope: bytes) -> bytes:
        reply: pb.SubmitReply = self.stub.Submit(pb.SubmitRequest(envelope=envelope), timeout=10)
        return reply.proof

    def refused(self, envelope: bytes) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.submit(envelope)
        return caught.value

    def upload(self, name: str, delta: bytes | None = None) -> Update:
        update = self.hub.f.update(name, delta)
        self.blobs.put_bytes(self.hub.f.blobs[update.delta.sha256])
        return update


@pytest.fixture
def desk(tls: TlsFiles, tmp_path: Path) -> Iterator[Desk]:
    with founded(tmp_path / "hub") as hub, ExitStack() as stack:
        hub.announce()
        hub.sequencer.say(hub.f.next_round())
        hub.catch_up()
        blobs = BlobStore(hub.public)

        service = LogService(lambda: Admission(hub.sequencer, blobs), lambda: hub.sequencer)

        def register(server: grpc.Server) -> None:
            rpc.add_LogServicer_to_server(service, server)  # type: ignore[no-untyped-call]

        address = stack.enter_context(serving(tls, register))
        credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(address, credentials))
        client = stack.enter_context(CoordinatorClient(address, tls.ca.read_text(), pause=lambda _: None))
        yield Desk(hub, blobs, address, rpc.LogStub(channel), client, service)  # type: ignore[no-untyped-call]


# -- submitting


def test_a_submitted_entry_is_answered_with_its_proof_and_again_with_the_same_place(desk: Desk) -> None:
    data = desk.hub.f.signed("school", desk.upload("school"))
    verifier = make_verifier(ORIGIN, desk.hub.f.log_key.public_key())
    for _ in range(2):
        assert open_proof(desk.submit(data), data, verifier)[0] == 5
    assert desk.hub.sequencer.state.size == 6
    assert open_proof(desk.client.submit(data), data, verifier)[0] == 5


def without_its_delta(desk: Desk) -> bytes:
    return desk.hub.f.signed("school", desk.hub.f.update("school"))


def with_another_size_than_the_deltas(desk: Desk) -> bytes:
    update = desk.upload("school")
    wrong = update.delta.model_copy(update={"size_bytes": update.delta.size_bytes + 1})
    return desk.hub.f.signed("school", update.model_copy(update={"delta": wrong}))


def with_a_delta_that_is_not_complete(desk: Desk) -> bytes:
    data = b"half of it is here"
    desk.blobs.begin(public_hex(key_of("school")), blob_of(data))
    desk.blobs.append(public_hex(key_of("school")), blob_of(data), 0, data[:9])
    return desk.hub.f.signed("school", desk.hub.f.update("school", data))


def for_another_round(desk: Desk) -> bytes:
    chain = desk.hub.f.state.chain(public_hex(key_of("school")))
    update = desk.upload("school").model_copy(update={"round": 7})
    author = Author(key_of("school"), desk.hub.f.state.consortium)
    return author.sign(update, seq=chain.seq + 1, prev=chain.leaf, seen=())


def of_a_stranger(desk: Desk) -> bytes:
    return Author(key_of("stranger"), desk.hub.f.state.consortium).sign(
        desk.upload("school"), seq=0, prev=None, seen=()
    )


def larger_than_an_entry(desk: Desk) -> bytes:
    return b"{" * 65536


UPDATES: list[tuple[Callable[[Desk], bytes], grpc.StatusCode, str]] = [
    (
        without_its_delta,
        grpc.StatusCode.DATA_LOSS,
        "BlobError: update: wanted delta .{64} in the exchange first, got none",
    ),
    (with_a_delta_that_is_not_complete, grpc.StatusCode.DATA_LOSS, "BlobError: update: wanted delta .{64} in the exch"),
    (
        with_another_size_than_the_deltas,
        grpc.StatusCode.DATA_LOSS,
        r"BlobError: update: wanted a delta of \d+ bytes, got",
    ),
    (for_another_round, grpc.StatusCode.FAILED_PRECONDITION, "wanted an open round 7, but round 1 is open"),
    (of_a_stranger, grpc.StatusCode.FAILED_PRECONDITION, "RuleError: update: wanted a member as the author, got key"),
    (larger_than_an_entry, grpc.StatusCode.INVALID_ARGUMENT, "MalformedError: .*wanted at most 65535 bytes, got 65536"),
]
STATUS_OF = {
    "MalformedError": grpc.StatusCode.INVALID_ARGUMENT,
    "SignatureError": grpc.StatusCode.PERMISSION_DENIED,
    "RuleError": grpc.StatusCode.FAILED_PRECONDITION,
    "ChainConflictError": grpc.StatusCode.FAILED_PRECONDITION,
    "LogError": grpc.StatusCode.FAILED_PRECONDITION,
}


def check_refused(desk: Desk, envelope: bytes, status: grpc.StatusCode, message: str) -> None:
    before, state = files_below(desk.hub.home), desk.hub.sequencer.state
    for _ in range(2):
        error = desk.refused(envelope)
        assert error.code() is status
        assert re.search(message, error.details())
        assert str(desk.hub.home) not in error.details()
    assert files_below(desk.hub.home) == before
    assert desk.hub.sequencer.state is state


@pytest.mark.parametrize(("make", "status", "message"), UPDATES, ids=[row[0].__name__ for row in UPDATES])
def test_an_update_that_may_not_enter_is_refused_by_what_was_wanted_and_leaves_no_trace(
    desk: Desk, make: Callable[[Desk], bytes], status: grpc.StatusCode, message: str
) -> None:
    check_refused(desk, make(desk), status, message)
    data = desk.hub.f.signed("school", desk.upload("school"))
    assert desk.submit(data), "and its author may do better"


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_the_sequencers_refusals_reach_their_sender_in_full_under_their_status(
    desk: Desk, make: Callable[[Federation], bytes], kind: type[Exception], message: str
) -> None:
    desk.submit(desk.hub.f.signed("clinic", desk.upload("clinic")))
    desk.hub.catch_up()
    check_refused(desk, make(desk.hub.f), STATUS_OF[kind.__name__], f"^{kind.__name__}: .*{message}")


def test_a_conflict_in_an_authors_chain_arrives_as_its_own_error(desk: Desk) -> None:
    chain = desk.hub.f.state.chain(public_hex(key_of("school")))
    author = Author(key_of("school"), desk.hub.f.state.consortium)
    for seq, prev, message in ((chain.seq + 2, chain.leaf, "wanted number"), (chain.seq + 1, "0" * 64, "before it")):
        with pytest.raises(ChainConflictError, match=message):
            desk.client.submit(author.sign(desk.upload("school"), seq=seq, prev=prev, seen=()))


def test_an_update_is_admitted_once_its_delta_is_there(desk: Desk) -> None:
    data = without_its_delta(desk)
    with pytest.raises(BlobError, match="in the exchange first, got none"):
        desk.client.submit(data)
    desk.upload("school")
    assert desk.client.submit(data)


def test_a_replayed_update_of_an_earlier_round_gets_its_old_place_and_changes_nothing(desk: Desk) -> None:
    f = desk.hub.f
    sent = {n: f.signed(n, desk.upload(n)) for n in NAMES[:1]}
    for data in sent.values():
        desk.submit(data)
    desk.hub.catch_up()
    for name in NAMES[1:]:
        data = sent[name] = f.signed(name, desk.upload(name))
        desk.submit(data)
        desk.hub.catch_up()
    desk.hub.say("hub", f.release())
    for name in NAMES[:2]:
        desk.hub.say(name, f.ratification())
    desk.hub.sequencer.say(f.next_round())
    desk.hub.catch_up()
    state = desk.hub.sequencer.state
    for data in sent.values():
        desk.submit(data)
    assert desk.hub.sequencer.state is state
    assert state.rounds[1].updates == {}


def test_many_peers_at_once_are_all_answered_rightly(desk: Desk) -> None:
    verifier = make_verifier(ORIGIN, desk.hub.f.log_key.public_key())
    good = [desk.hub.f.signed(name, desk.upload(name)) for name in NAMES]
    bad = [of_a_stranger(desk), b"{}"]
    with ThreadPoolExecutor(12) as pool:
        proofs = [(data, pool.submit(desk.submit, data)) for data in good * 4]
        errors = [pool.submit(desk.refused, data) for data in bad * 4]
        places = {(data, open_proof(proof.result(timeout=30), data, verifier)[0]) for data, proof in proofs}
        assert {e.result(timeout=30).code() for e in errors} == {
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.INVALID_ARGUMENT,
        }
    assert sorted(index for _, index in places) == [5, 6, 7]
    assert desk.hub.sequencer.state.size == 8


# -- our own trouble


def break_disk(desk: Desk, fault: Fault) -> None:
    hub = desk.hub
    hub.sequencer.close()
    place = Place(hub.home)
    place.lock.parent.mkdir()
    (hub.home / "lock.db").rename(place.lock)
    hub.log = faulty(place, fault, ORIGIN, hub.f.log_key)
    hub.sequencer = Sequencer(hub.log, hub.f.replica, hub.f.coordinator)


def test_a_full_disk_is_told_by_its_name_only_and_the_same_entry_is_taken_when_there_is_room(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    data = desk.hub.f.signed("school", desk.upload("school"))
    break_disk(desk, Fault("stage", "lost", full_disk()))
    error = desk.refused(data)
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "StorageError")
    assert "No space left on device" in caplog.text
    assert desk.submit(data)


def test_a_disk_that_went_away_is_told_by_its_name_only_and_the_server_stays_up(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    data = desk.hub.f.signed("school", desk.upload("school"))
    break_disk(desk, Fault("swap", "lost", StorageError(f"{desk.hub.home}: the disk went away")))
    for _ in range(3):
        error = desk.refused(data)
        assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "StorageError")
    assert "stopped after" in caplog.text
    with pytest.raises(UnavailableError, match=f"{desk.address}: RESOURCE_EXHAUSTED: StorageError$"):
        desk.client.submit(data)


def test_a_server_that_is_killed_loses_nothing_that_it_answered_and_doubles_nothing(tmp_path: Path) -> None:
    entries, port = make_entries(Federation(), 60), free_port()

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.kit.hub_server", str(tmp_path), str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    process = start()
    proofs = []
    try:
        ca = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"]).ca.read_text()
        with CoordinatorClient(f"127.0.0.1:{port}", ca) as client:
            for n, data in enumerate(entries):
                proofs.append(client.submit(data))
                if n in (0, 40):
                    process.kill()
                    process.communicate()
                    process = start()
                    assert client.submit(data) == proofs[-1], "what it answered keeps its place and its proof"
    finally:
        process.kill()
        process.communicate()
    verifier = make_verifier(ORIGIN, key_of("log").public_key())
    assert [open_proof(p, data, verifier)[0] for data, p in zip(entries, proofs, strict=True)] == list(range(1, 61))
    assert list(read_entries(DirectorySource(tmp_path / "public"), 1, 61)) == entries


# -- waiting


def test_whoever_waits_gets_the_new_checkpoint_as_soon_as_it_is_published(desk: Desk) -> None:
    request = pb.WaitRequest(larger_than=5, timeout_seconds=MAX_WAIT_SECONDS)
    call = desk.stub.WaitForCheckpoint.future(request, timeout=30)
    while not desk.hub.sequencer._changed._waiters:  # type: ignore[attr-defined]
        assert not call.done()
    desk.submit(desk.hub.f.signed("school", desk.upload("school")))
    assert call.result(timeout=10).checkpoint == (desk.hub.public / "checkpoint").read_bytes()


def test_a_wait_is_cut_to_what_a_server_can_bear(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def wait(larger_than: int, timeout_seconds: float) -> int:
        asked.append(timeout_seconds)
        return larger_than

    monkeypatch.setattr(desk.hub.sequencer, "wait", wait)
    for seconds in (0, 7, 4_000_000_000):
        desk.stub.WaitForCheckpoint(pb.WaitRequest(larger_than=99, timeout_seconds=seconds), timeout=10)
    assert asked == [0, 7, MAX_WAIT_SECONDS]


def test_calls_that_wait_leave_room_for_those_that_submit(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    held, released = threading.Event(), threading.Event()

    def wait(larger_than: int, timeout_seconds: float) -> int:
        held.set()
        released.wait(10)
        return larger_than

    monkeypatch.setattr(desk.hub.sequencer, "wait", wait)
    monkeypatch.setattr(desk.service, "_waits", threading.BoundedSemaphore(1))
    request = pb.WaitRequest(larger_than=99, timeout_seconds=5)
    first = desk.stub.WaitForCheckpoint.future(request, timeout=10)
    assert held.wait(10)
    with pytest.raises(grpc.RpcError) as refused:
        desk.stub.WaitForCheckpoint(request, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    desk.submit(desk.hub.f.signed("school", desk.upload("school")))
    released.set()
    first.result(timeout=10)
    desk.stub.WaitForCheckpoint(request, timeout=10)


# -- founding


@dataclass
class Founder:
    """The founding service on a port; ``trouble`` is what happens once a signature has been taken."""

    founding: Draft
    client: CoordinatorClient
    taken: list[int]
    trouble: list[Exception]


@pytest.fixture
def founder(tls: TlsFiles, tmp_path: Path) -> Iterator[Founder]:
    Draft.store(tmp_path, Federation().compact)
    founding, taken, trouble = Draft(tmp_path), list[int](), list[Exception]()

    def on_signed() -> None:
        taken.append(3 - len(founding.missing()))
        if trouble:
            raise trouble.pop()

    def no_log() -> Admission:
        raise UnavailableError(f"log: not founded yet; missing: {', '.join(founding.missing())}")

    def register(server: grpc.Server) -> None:
        rpc.add_FoundingServicer_to_server(FoundingService(lambda: founding, on_signed), server)  # type: ignore[no-untyped-call]
        rpc.add_LogServicer_to_server(LogService(no_log, no_log), server)  # type: ignore[no-untyped-call, arg-type]

    with (
        serving(tls, register) as address,
        CoordinatorClient(address, tls.ca.read_text(), pause=lambda _: None) as client,
    ):
        yield Founder(founding, client, taken, trouble)


def test_members_sign_the_draft_that_they_are_given(founder: Founder) -> None:
    payload = founder.client.get_draft()
    assert payload == founder.founding.payload
    for n, name in enumerate(NAMES, 1):
        envelope = format_envelope(payload, [sign(payload, key_of(name))])
        assert founder.client.sign(envelope) == (n, 3)
        assert founder.client.sign(envelope) == (n, 3)
    assert founder.taken == [1, 1, 2, 2, 3, 3]


def test_a_signature_that_is_refused_founds_nothing(founder: Founder) -> None:
    payload = founder.client.get_draft()
    with pytest.raises(RuleError, match="draft: wanted one member's signature, got"):
        founder.client.sign(format_envelope(payload, [sign(payload, key_of("stranger"))]))
    with pytest.raises(MalformedError, match="canonical JSON"):
        founder.client.sign(b"x")
    assert founder.taken == []


def test_trouble_at_the_moment_of_founding_shows_no_path(founder: Founder, caplog: pytest.LogCaptureFixture) -> None:
    founder.trouble.append(StorageError("/secret/place: disk full"))
    payload = founder.client.get_draft()
    envelope = format_envelope(payload, [sign(payload, key_of("coop"))])
    with pytest.raises(UnavailableError, match=r"RESOURCE_EXHAUSTED: StorageError$"):
        founder.client.sign(envelope)
    assert "/secret/place: disk full" in caplog.text
    assert founder.client.sign(envelope) == (1, 3), "the signature was taken, and may be sent again"


def test_before_the_founding_the_log_says_that_it_is_not_there_yet(founder: Founder) -> None:
    with pytest.raises(UnavailableError, match=r"UNAVAILABLE: UnavailableError$"):
        founder.client.submit(b"x")
    with pytest.raises(UnavailableError, match=r"UNAVAILABLE: UnavailableError$"):
        founder.client.wait_for_checkpoint(0, timeout_seconds=1)
