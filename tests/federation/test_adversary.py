"""The log's adversaries, each with the place where it is detected or refused by name. Here is what no other test has.

==================================  ==========================================================================
equivocating coordinator            ``test_evidence`` (a file convicts its key), ``test_audit`` ("two histories"),
                                    ``test_institution`` (no more signatures), ``test_witness_server`` (one side is
                                    cosigned), ``test_cosigning`` (no quorum), ``test_foreign`` (Go says so too)
rollback from a restored backup     ``test_log`` (REFUSALS), ``test_storage`` (in a bucket), ``test_upkeep`` (refused
                                    for good), ``test_follow``, ``test_audit`` ("rolled back")
withheld update                     ``test_audit`` (a dropped update, a gap); here: a stale view
replayed entry                      ``test_fold``, ``test_service``, ``test_sequencer``
expired or revoked key              ``test_fold``, ``test_amending``
the same key under two names        ``test_policy`` (refused as it is read); here: in a compact
a lying witness                     ``test_evidence``, ``test_foreign``; here: in an audit, its report and its page
a slow-loris client                 ``test_witness_server``, ``test_exchange`` (a transfer); here: both coordinator's
                                    servers
a body of 1 GB                      ``test_witness_server``, ``test_exchange`` (a blob), ``test_records`` (a server that
                                    never stops); here: both coordinator's servers
==================================  ==========================================================================
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from commonweal_coordinator.daemon import MAX_MESSAGE_BYTES
from commonweal_coordinator.serving.request_deadline import RequestDeadline
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_coordinator.serving.web import RecordsServer
from commonweal_protocols.audit.audit import Outcome, examine
from commonweal_protocols.audit.evidence import format_evidence
from commonweal_protocols.audit.job import Auditor, Job
from commonweal_protocols.audit.page import render_html
from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.cli import run
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.compact import Compact, Quorum, Witness
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.checkpoint import open_checkpoint
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.federation import NAMES, Federation, key_of
from tests.kit.shelf import note_of, shelf

NOW = 1_800_000_000
WITNESSES = ("one", "two", "three")
SUBMIT = "/commonweal.v1.Log/Submit"
GIGABYTE = 1 << 30


def founded(quorum: int) -> Federation:
    """A federation whose compact wants so many of three witnesses."""
    f = Federation()
    f.compact = f.compact.model_copy(
        update={
            "witnesses": tuple(
                Witness(name=n, vkey=make_cosignature_verifier(f"{n}.test", key_of(n).public_key()).vkey,
                        url="https://127.0.0.1:1/")
                for n in WITNESSES
            ),
            "quorum": Quorum(updates=2, ratifications=2, amendments=2, witnesses=quorum),
        }
    )  # fmt: skip
    f.entries, f.replica = [], Replica()
    f.add(f.founding())
    return f


def witnessed(quorum: int = 2) -> Federation:
    f = founded(quorum)
    f.announce()
    f.run_round()
    return f


def cosigned(f: Federation, *, size: int | None = None, **times: int) -> bytes:
    """The signed checkpoint of its first ``size`` entries with each witness's line, by the time that it states."""
    note = note_of(f, f.entries, len(f.entries) if size is None else size)
    checkpoint = open_checkpoint(note, f.replica.log)
    return note + "".join(cosign(checkpoint, f"{n}.test", key_of(n), at=at) for n, at in times.items()).encode()


# -- a lying witness


def forked(liars: tuple[str, ...]) -> tuple[Federation, Outcome]:
    """Two histories, each with its quorum, of which ``liars`` have cosigned both; and what an auditor finds."""
    f = witnessed(quorum=1)
    g = founded(quorum=1)
    for data in f.entries[1:9]:
        g.add(data)
    # The other history is that the members ratified in another order.
    for name in reversed(NAMES):
        g.say(name, g.ratification())
    g.blobs.update(f.blobs)
    side = dict.fromkeys((*liars, "one"), NOW)
    other = dict.fromkeys((*liars, "two"), NOW)
    memory = examine(shelf(f, f.entries, cosigned(f, **side))).memory
    assert memory is not None
    return f, examine(shelf(g, g.entries, cosigned(g, **other)), memory=memory)


@pytest.mark.parametrize("liars", [(), ("three",), ("three", "one", "two")])
def test_an_audit_of_a_fork_names_exactly_the_witnesses_that_cosigned_both_sides(liars: tuple[str, ...]) -> None:
    _, outcome = forked(liars)
    found = {x.culprit: x for x in outcome.report.findings if x.culprit.startswith("witness ")}
    assert found.keys() == {f"witness {n}.test" for n in liars}
    for name in liars:
        finding = found[f"witness {name}.test"]
        assert finding.key == public_hex(key_of(name))
        assert finding.sentence.startswith(f"lying witness {name}.test (key {finding.key}) cosigned both sides")


def test_the_page_and_the_command_name_a_lying_witness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f, outcome = forked(("three",))
    page = render_html(outcome).decode()
    assert "lying witness three.test" in page
    assert public_hex(key_of("three")) in page
    (evidence,) = outcome.evidence
    file = tmp_path / "evidence"
    file.write_bytes(format_evidence(evidence))
    witnesses = [x for w in f.compact.witnesses for x in ("--witness", w.vkey)]
    assert run(["audit", "evidence", str(file), "--log", f.compact.coordinator.log, *witnesses]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "lying witness" in line]
    assert len(said) == 1
    assert "three.test" in said[0]


# -- a withheld update: readers are kept on an old checkpoint

AGES = [
    ({"one": NOW - 5, "two": NOW - 10, "three": NOW - 9000}, 10, True, "the second newest of three is what counts"),
    ({"one": NOW - 5, "two": NOW - 11}, 10, False, "one second too old"),
    ({"one": NOW, "two": NOW - 9000, "three": NOW - 9000}, 60, False, "one fresh witness is no quorum"),
    ({"one": NOW, "two": NOW}, 0, True, "of this very second"),
]


@pytest.mark.parametrize(("times", "max_age", "fresh", "why"), AGES, ids=[row[3] for row in AGES])
def test_a_checkpoint_that_no_quorum_vouches_for_any_more_is_stale(
    times: dict[str, int], max_age: int, fresh: bool, why: str
) -> None:
    f = witnessed()
    source = shelf(f, f.entries, cosigned(f, **times))
    job = Job(source, max_age_seconds=max_age, jobs=1)
    report = Auditor(job, now=lambda: datetime.fromtimestamp(NOW, UTC)).look().report
    assert report.verdict == ("pass" if fresh else "fail")
    assert [x.culprit for x in report.findings] == ([] if fresh else ["coordinator hub"])
    if not fresh:
        assert "stale: wanted witnesses that say" in report.findings[0].sentence
    assert examine(source).report.verdict == "pass", "who asks for no age gets the old answer"


def test_a_log_without_witnesses_is_never_fresh_enough() -> None:
    f = Federation()
    f.announce()
    outcome = examine(shelf(f), not_before=1)
    assert "got no witness's word at all" in outcome.report.findings[0].sentence


def test_a_monitor_sees_a_log_grow_stale_though_nothing_changes() -> None:
    f = witnessed()
    source = shelf(f, f.entries, cosigned(f, one=NOW, two=NOW))
    clock = [NOW]
    auditor = Auditor(Job(source, max_age_seconds=600, jobs=1), now=lambda: datetime.fromtimestamp(clock[0], UTC))
    verdicts = []
    for clock[0] in (NOW, NOW + 600, NOW + 601):
        outcome = auditor.look_if_new()
        assert outcome is not None
        verdicts.append(outcome.report.verdict)
    assert verdicts == ["pass", "pass", "fail"]


# -- the same key under two names


def test_a_compact_in_which_one_key_would_count_twice_is_refused_by_both_names() -> None:
    f = witnessed()
    twin = f.compact.witnesses[0]
    again = make_cosignature_verifier("twin.test", key_of("one").public_key()).vkey
    witnesses = (*f.compact.witnesses, twin.model_copy(update={"name": "twin", "vkey": again}))
    with pytest.raises((MalformedError, ValidationError), match=r"witness twin has the public key of witness one"):
        policy_of(Compact.model_validate({**dict(f.compact), "witnesses": witnesses}))


# -- the coordinator's servers


@dataclass
class Web:
    """The records over HTTPS, with little patience."""

    tls: TlsFiles
    port: int

    @contextmanager
    def connect(self) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
        ):
            yield sock

    def ask(self) -> bytes:
        with self.connect() as sock:
            sock.sendall(b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """What the peer sends until it closes or breaks the connection."""
    parts: list[bytes] = []
    try:
        while more := sock.recv(1 << 16):
            parts.append(more)
    except (ConnectionError, ssl.SSLError):
        return b"".join(parts)
    return b"".join(parts)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    public = tmp_path / "public"
    (public / "blob").mkdir(parents=True)
    (public / "checkpoint").write_bytes(b"a checkpoint")
    (public / f"blob/{'a' * 64}").write_bytes(bytes(64 << 20))
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    server = RecordsServer(public, "127.0.0.1", 0, tls.chain, tls.key, request_seconds=0.4)
    server.start()
    yield Web(tls, server.port)
    server.stop()


LORISES = [
    (b"GET /checkpoint HTTP/1.1\r\n", b"X-Slow: yes\r\n", "headers without an end"),
    (b"GET /", b"x", "a path without an end"),
    (b"", b"", "nothing at all"),
]


@pytest.mark.parametrize(("head", "more", "why"), LORISES, ids=[row[2] for row in LORISES])
def test_a_slow_loris_on_the_records_is_cut_off_while_others_are_served(
    web: Web, head: bytes, more: bytes, why: str
) -> None:
    with web.connect() as loris:
        loris.sendall(head)
        assert web.ask().endswith(b"a checkpoint")
        loris.settimeout(0.05)
        for _ in range(400):
            try:
                loris.sendall(more)
                assert loris.recv(1000) == b"", "it gets no answer"
                break
            except TimeoutError:
                continue
            except (ConnectionError, ssl.SSLError):
                break
        else:
            pytest.fail("it may stay as long as it likes")
    assert web.ask().endswith(b"a checkpoint")


def test_a_reader_that_takes_nothing_of_its_answer_is_cut_off(web: Web) -> None:
    with web.connect() as reader:
        reader.sendall(b"GET /blob/%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 64))
        first = reader.recv(1000)
        assert first.startswith(b"HTTP/1.1 200 ")
        # The server's side ends by itself; only then does this side read what was on its way.
        assert gone(web.port), "the connection is closed over there"
        assert len(read_all(reader)) < 64 << 20


def gone(port: int) -> bool:
    """Whether this process comes to hold no established server side of a connection to ``port``."""
    local = f":{port:04X}"
    for _ in range(400):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if not any(row[1].endswith(local) and row[3] == "01" for row in rows):
            return True
        threading.Event().wait(0.05)
    return False


def test_a_reader_that_takes_its_time_gets_all_of_it(web: Web) -> None:
    with web.connect() as reader:
        reader.sendall(b"GET /blob/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (b"a" * 64))
        data, until = b"", time.monotonic() + 1.2
        while time.monotonic() < until:
            data += reader.recv(1 << 16)
            threading.Event().wait(0.02)
        data += read_all(reader)
    assert len(data.partition(b"\r\n\r\n")[2]) == 64 << 20


def send_until_cut_off(sock: socket.socket, size: int) -> int:
    """Send so many bytes, slower than the server's patience; returns how many the connection has taken."""
    sent, chunk = 0, bytes(1 << 16)
    try:
        while sent < size:
            sent += sock.send(chunk)
            threading.Event().wait(0.001)
    except (ConnectionError, ssl.SSLError):
        return sent
    return sent


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_body_of_a_gigabyte_on_the_records_is_neither_taken_nor_kept(web: Web, method: str) -> None:
    with web.connect() as sock:
        sock.sendall(f"{method} /checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: {GIGABYTE}\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 " if method == "GET" else b"HTTP/1.1 405 ")
        assert send_until_cut_off(sock, GIGABYTE) < GIGABYTE
    assert web.ask().endswith(b"a checkpoint")


class Echo(rpc.LogServicer):
    """The log's service, of which only what stands in front of it matters here."""

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:
        return pb.SubmitReply(proof=request.envelope)


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """To a server with two threads, as the daemon makes one otherwise."""
    server = grpc.server(
        ThreadPoolExecutor(2),
        interceptors=[RequestDeadline(0.3)],
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)],
    )
    rpc.add_LogServicer_to_server(Echo(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as made:
        yield made
    server.stop(None).wait()


def submit(channel: grpc.Channel, envelope: bytes) -> bytes:
    reply: pb.SubmitReply = rpc.LogStub(channel).Submit(pb.SubmitRequest(envelope=envelope), timeout=20)  # type: ignore[no-untyped-call]
    return reply.proof


def test_a_slow_loris_on_grpc_gives_its_thread_back(channel: grpc.Channel) -> None:
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait()
        yield from ()

    # Each has said which method it calls, and no more: on the wire, a stream of one is a call with one message.
    lorises = [channel.stream_unary(SUBMIT).future(silent(), timeout=30) for _ in range(4)]
    assert submit(channel, b"in between") == b"in between"
    assert {c.exception(timeout=20).code() for c in lorises} == {grpc.StatusCode.CANCELLED}
    over.set()


def test_a_call_that_ends_without_its_message_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as e:
        channel.stream_unary(SUBMIT)(iter(()), timeout=20)
    assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 64 << 20])
def test_a_message_above_the_bound_is_refused_by_its_size_on_grpc(channel: grpc.Channel, size: int) -> None:
    with pytest.raises(grpc.RpcError, match="larger than max") as e:
        submit(channel, bytes(size))
    assert e.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert submit(channel, b"x" * 1000) == b"x" * 1000
