"""The way to the coordinator changes with the invite: what nobody answers is sent again, to the one who answers now."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.exchange import ExchangeService, Limits
from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_node.connection.client import CoordinatorClient, Progress
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.connection.link import Link
from commonweal_node.connection.status import StatusBoard
from commonweal_node.home import NodeHome
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.values import Blob, Digest
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.federation import blob_of, key_of, save_key
from tests.kit.grpc_server import serving
from tests.kit.processes import free_ports
from tests.kit.relay import relay

CONSORTIUM = "ab" * 32


def put_invite(home: Path, ca_pem: str, exchange: str, consortium: str = CONSORTIUM) -> None:
    elsewhere = f"127.0.0.1:{free_ports(1)}"
    Invite(
        consortium=consortium,
        name="three",
        exchange=exchange,
        records=f"https://{elsewhere}",
        ca_pem=ca_pem,
    ).save(NodeHome(home).invite)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home whose coordinator does not answer."""
    tls = load_or_create_tls(tmp_path / "old tls", ["127.0.0.1"])
    (tmp_path / "node/keys").mkdir(parents=True)
    save_key(tmp_path / "node/keys/institution.pem", key_of("clinic"))
    put_invite(tmp_path / "node", tls.ca.read_text(), f"127.0.0.1:{free_ports(1)}")
    return tmp_path / "node"


def link_of(home: Path) -> Link:
    return Link(home, KeyRing(home, None), StatusBoard(home, "clinic"))


def test_what_was_on_its_way_to_a_coordinator_that_is_gone_reaches_its_successor(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, put = threading.Event(), CoordinatorClient.put_blob

    def put_blob(
        client: CoordinatorClient, data: bytes, key: Ed25519PrivateKey, consortium: Digest, progress: Progress
    ) -> Blob:
        began.set()
        return put(client, data, key, consortium, progress)

    monkeypatch.setattr(CoordinatorClient, "put_blob", put_blob)
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    store = BlobStore(tmp_path / "public")
    limits = Limits(CONSORTIUM, 1 << 20, lambda: frozenset({public_hex(key_of("clinic"))}))

    def register(server: grpc.Server) -> None:
        rpc.add_ExchangeServicer_to_server(ExchangeService(store, limits), server)  # type: ignore[no-untyped-call]

    with serving(tls, register) as address, link_of(home) as link:
        sender = threading.Thread(target=link.put_blob, args=(b"a delta",))
        sender.start()
        assert began.wait(60)
        put_invite(home, tls.ca.read_text(), address)
        assert link.refresh()
        assert not link.refresh(), "it is the same by now"
        sender.join(60)
        assert store.read(blob_of(b"a delta").sha256) == b"a delta"
        assert link.get_blob(blob_of(b"a delta")) == b"a delta"
        assert link.ca.read_text() == tls.ca.read_text(), "whom the records are read from"


def test_without_another_invite_a_coordinator_that_does_not_answer_is_said(home: Path) -> None:
    with link_of(home) as link, pytest.raises(UnavailableError, match="does not answer"):
        link.read("checkpoint", max_bytes=100)


def test_an_invite_to_another_consortium_does_not_change_the_way(home: Path) -> None:
    with link_of(home) as link:
        before = link.invite
        put_invite(home, before.ca_pem, "127.0.0.1:1", consortium="cd" * 32)
        with pytest.raises(ConfigError, match="a node's home is for one consortium"):
            link.refresh()
        assert link.invite is before


class _Silent(rpc.LogServicer):
    """A log that does not grow before the test's end."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def WaitForCheckpoint(self, request: pb.WaitRequest, context: grpc.ServicerContext) -> pb.CheckpointReply:
        self.asked.set()
        self.over.wait(120)
        return pb.CheckpointReply()


class _Growing(rpc.LogServicer):
    """A log that has grown, and takes what is submitted."""

    def WaitForCheckpoint(self, request: pb.WaitRequest, context: grpc.ServicerContext) -> pb.CheckpointReply:
        return pb.CheckpointReply(checkpoint=b"larger")

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:
        return pb.SubmitReply(proof=b"proof of " + request.envelope)


@contextmanager
def waiting(link: Link, log: _Silent) -> Iterator[threading.Thread]:
    """A thread that waits for the log to grow, for a minute if need be."""
    waiter = threading.Thread(target=link.wait_for_checkpoint, args=(0, 60))
    waiter.start()
    assert log.asked.wait(30)
    try:
        yield waiter
    finally:
        log.over.set()
        waiter.join(60)


def test_whoever_waits_for_the_old_log_waits_for_the_successors_at_once(home: Path, tmp_path: Path) -> None:
    silent, tls = _Silent(), load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    with (
        serving(tls, lambda s: rpc.add_LogServicer_to_server(silent, s)) as old,  # type: ignore[no-untyped-call]
        serving(tls, lambda s: rpc.add_LogServicer_to_server(_Growing(), s)) as new,  # type: ignore[no-untyped-call]
    ):
        put_invite(home, tls.ca.read_text(), old)
        with link_of(home) as link, waiting(link, silent) as waiter:
            put_invite(home, tls.ca.read_text(), new)
            assert link.refresh()
            waiter.join(30)
            assert not waiter.is_alive(), "though the old one has not answered"


def test_a_node_that_stops_waits_for_no_checkpoint_and_can_still_submit(home: Path, tmp_path: Path) -> None:
    silent, tls = _Silent(), load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    silent.Submit = _Growing().Submit  # type: ignore[method-assign]
    with serving(tls, lambda s: rpc.add_LogServicer_to_server(silent, s)) as address:  # type: ignore[no-untyped-call]
        put_invite(home, tls.ca.read_text(), address)
        with link_of(home) as link, waiting(link, silent) as waiter:
            link.hurry()
            waiter.join(30)
            assert not waiter.is_alive()
            link.wait_for_checkpoint(0, 60)
            assert link.submit(b"x") == b"proof of x"


@contextmanager
def reached_over(tmp_path: Path, *, delay_seconds: float) -> Iterator[tuple[CoordinatorClient, Callable[[], None]]]:
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    with (
        serving(tls, lambda s: rpc.add_LogServicer_to_server(_Growing(), s)) as server,  # type: ignore[no-untyped-call]
        relay(server, delay_seconds=delay_seconds) as (address, lose),
        CoordinatorClient(address, tls.ca.read_text()) as client,
    ):
        yield client, lose


def test_a_coordinator_on_the_far_side_of_a_satellite_can_be_reached(tmp_path: Path) -> None:
    """A TLS handshake takes several ways, of 0.4 s each: longer than any pause between two attempts."""
    with reached_over(tmp_path, delay_seconds=0.4) as (client, _):
        assert client.submit(b"x") == b"proof of x"


@pytest.mark.slow
def test_a_connection_that_is_lost_without_a_word_costs_one_call_at_most(tmp_path: Path) -> None:
    with reached_over(tmp_path, delay_seconds=0) as (client, lose):
        assert client.submit(b"x") == b"proof of x"
        lose()
        with suppress(UnavailableError):
            assert client.submit(b"y") == b"proof of y"
        assert client.submit(b"z") == b"proof of z"
