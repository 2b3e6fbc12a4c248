"""Asking witnesses: each answer that a witness may give, and each that it must not be believed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import (
    CommonwealError,
    ConfigError,
    LogError,
    MalformedError,
    PeerError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.tlog.cosignature import CosignerKey, cosign, make_cosignature_verifier
from commonweal_protocols.tlog.note import sign_note
from commonweal_protocols.tlog.policy import Group, Policy, parse_policy
from commonweal_protocols.witness.channel import Channel
from commonweal_protocols.witness.client import Collector, NotConfiguredError, OtherSizeError
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import Witness, parse_request
from tests.kit.witnesses import (
    T0,
    Clock,
    TestLog,
    collector_of,
    cosignature_of,
    ed25519,
    make_policy,
    make_witness,
    open_store,
)

LOG = TestLog()
NAME, KEY = "w.example/1", ed25519("w.example/1")
VERIFIER = make_cosignature_verifier(NAME, KEY.public_key())


def http(status: int, body: bytes, kind: str = "text/plain", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def line(size: int = 9, log: TestLog = LOG, name: str = NAME, key: str = NAME) -> bytes:
    return cosign(log.checkpoint(size), name, ed25519(key), at=T0).encode()


class Scripted:
    """A witness that says what the test says, one answer for each request; without more answers it is silent."""

    def __init__(self, *answers: bytes | Callable[[socket.socket], None]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.append(sock)
                self._start(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock.makefile("rb") as f:
            length = 0
            while header := f.readline():
                if header.startswith(b"Content-Length: "):
                    length = int(header.split(b" ")[1])
                if header != b"\r\n":
                    continue
                self.requests.append(f.read(length))
                if self.answers:
                    answer = self.answers.pop(0)
                    if isinstance(answer, bytes):
                        sock.sendall(answer)
                    else:
                        answer(sock)

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)
        for sock in self._open:
            sock.close()


def ask(w: Scripted, timeout_seconds: float = 20) -> str:
    """What the witness says of the log at size 9, having cosigned it at 3 over another connection."""
    w.answers.insert(0, http(200, line(3), more="Connection: close\r\n"))
    with closing(collector_of(LOG.verifier, w.url, VERIFIER)) as collector:
        cosignature_of(collector, LOG, 3)
        collector.timeout_seconds = timeout_seconds
        return cosignature_of(collector, LOG, 9)


# -- one witness


def test_a_cosignature_that_holds_is_returned_as_it_came() -> None:
    with Scripted(http(200, line())) as w:
        assert ask(w).encode() == line()
    request = parse_request(w.requests[1])
    assert (request.old_size, list(request.path), request.note) == (3, LOG.path(3, 9), LOG.note(9))


def test_lines_of_other_keys_are_left_out() -> None:
    with Scripted(http(200, line(name="other", key="other") + line() + line(name="more", key="more"))) as w:
        assert ask(w).encode() == line()


def test_only_the_logs_own_line_is_sent() -> None:
    stranger = sign_note(LOG.checkpoint(9).text(), "stranger.example", ed25519("s")).split(b"\n\n")[1]
    with Scripted(http(200, line())) as w:
        note = LOG.note(9) + stranger + line(name="other", key="other")
        with closing(collector_of(LOG.verifier, w.url, VERIFIER)) as collector:
            cosignature_of(collector, LOG, 9, note)
    assert parse_request(w.requests[0]).note == LOG.note(9)


def test_a_note_without_the_logs_line_is_not_sent() -> None:
    note = sign_note(LOG.checkpoint(9).text(), "stranger.example", ed25519("s"))
    with Scripted() as w, closing(collector_of(LOG.verifier, w.url, VERIFIER)) as collector:
        with pytest.raises(MalformedError, match="wanted a line of the log itself"):
            cosignature_of(collector, LOG, 9, note)
        assert w.requests == []


@pytest.mark.parametrize(
    ("body", "error", "why"),
    [
        (line(name=NAME, key="other"), SignatureError, "a line of another key under its name"),
        (line(name="other", key="other"), SignatureError, "only a line of another witness"),
        (line(8), SignatureError, "a line of another size"),
        (line(log=TestLog(label="forked")), SignatureError, "a line of another root"),
        (line(log=TestLog(origin="log.example/two")), SignatureError, "a line of another log"),
        (b"", MalformedError, "nothing"),
        (b"junk\n", MalformedError, "garbage"),
        (b"\xff\xfe\n", MalformedError, "no UTF-8"),
        (line()[:-1], MalformedError, "no newline at the end"),
        (line() + b"\n", MalformedError, "an empty line behind"),
        (b"x\n\n" + line(), PeerError, "an empty line that makes it part of the text"),
        (LOG.note(9) + line(), PeerError, "the whole note"),
        (line() * 101, MalformedError, "more lines than a note has"),
        (line() * 1000, MalformedError, "above the bound in bytes"),
    ],
)
def test_a_witness_that_lies_is_refused(body: bytes, error: type[PeerError], why: str) -> None:
    with Scripted(http(200, body)) as w, pytest.raises(error):
        ask(w)


def test_a_second_line_of_its_key_is_not_taken() -> None:
    with Scripted(http(200, line() + line(8))) as w:
        assert ask(w).encode() == line()


SIZE = "text/x.tlog.size"


@pytest.mark.parametrize("kind", [SIZE, SIZE + "; charset=utf-8"])
@pytest.mark.parametrize("size", [4, 8, 9])
def test_after_a_conflict_with_a_size_in_between_it_is_asked_from_there(size: int, kind: str) -> None:
    with Scripted(http(409, b"%d\n" % size, kind), http(200, line())) as w:
        assert ask(w).encode() == line()
    request = parse_request(w.requests[-1])
    assert (request.old_size, list(request.path)) == (size, LOG.path(size, 9))


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        (b"", SIZE, "an empty conflict"),
        (b"", "text/plain", "an empty conflict of another type"),
        (b"7\n", "text/plain", "a size of another type"),
        (b"7", SIZE, "no newline"),
        (b"07\n", SIZE, "a zero in front"),
        (b"+7\n", SIZE, "a sign"),
        (b" 7\n", SIZE, "a space"),
        (b"7\n\n", SIZE, "a line behind"),
        (b"x\n", SIZE, "no number"),
        (b"10\n", SIZE, "above our own size"),
        (b"9223372036854775807\n", SIZE, "far above our own size"),
        (b"9223372036854775808\n", SIZE, "2^63"),
        (b"3\n", SIZE, "the very size that was sent"),
        (b"2\n", SIZE, "a size below what it was heard to cosign"),
        (b"0\n", SIZE, "back to the beginning"),
    ],
)
def test_a_conflict_without_a_possible_size_is_a_refusal(body: bytes, kind: str, why: str) -> None:
    with Scripted(http(409, body, kind)) as w, pytest.raises(LogError, match="not asked again") as e:
        ask(w)
    assert not isinstance(e.value, OtherSizeError)
    assert len(w.requests) == 2


@pytest.mark.parametrize("status", [403, 404])
def test_403_and_404_both_mean_that_the_log_is_not_configured(status: int) -> None:
    with Scripted(http(status, b"")) as w, pytest.raises(NotConfiguredError, match="has to add this log's vkey"):
        ask(w)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, LogError),
        (422, LogError),
        (302, LogError),
        (204, LogError),
        (429, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_any_other_status_is_a_refusal_or_a_bad_moment(status: int, error: type[CommonwealError]) -> None:
    with Scripted(http(status, b"")) as w, pytest.raises(error, match=str(status)):
        ask(w)


def trickle(sock: socket.socket) -> None:
    """One byte of a header at a time, for as long as the client stays."""
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    sock.settimeout(0.02)
    while True:
        sock.sendall(b"A: b\r\n")
        with suppress(TimeoutError):
            if not sock.recv(1):
                return


def drip_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    sock.settimeout(0.02)
    while True:
        sock.sendall(b"x")
        with suppress(TimeoutError):
            if not sock.recv(1):
                return


@pytest.mark.parametrize("answer", [trickle, drip_body, None], ids=["headers", "body", "silence"])
def test_a_witness_that_trickles_is_left_in_time(answer: Callable[[socket.socket], None] | None) -> None:
    begin = time.monotonic()
    with Scripted(*([answer] if answer else [])) as w, pytest.raises(UnavailableError):
        ask(w, timeout_seconds=0.3)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", UnavailableError, "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", UnavailableError, "many headers"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", UnavailableError, "a long header"),
        (lambda s: s.shutdown(socket.SHUT_RDWR), UnavailableError, "nothing"),
        (
            lambda s: (s.sendall(http(200, line())[:-9]), s.shutdown(socket.SHUT_RDWR)),
            UnavailableError,
            "cut off in the body",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 70_000, MalformedError, "a huge body"),
    ],
)
def test_an_answer_that_is_no_answer_is_an_error_of_ours_to_handle(
    answer: bytes | Callable[[socket.socket], None], error: type[CommonwealError], why: str
) -> None:
    with Scripted(answer) as w, pytest.raises(error):
        ask(w)


def test_nobody_at_the_address_is_a_witness_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    collector = collector_of(LOG.verifier, url, VERIFIER)
    with closing(collector), pytest.raises(UnavailableError, match="does not answer"):
        cosignature_of(collector, LOG, 9)


@pytest.mark.parametrize(
    "url",
    ["ftp://w.example", "w.example", "http://", "http://w.example:x", "http://w.example:99999", "http://u@w.example",
     "http://w.example/a b", "http://w.example/a\r\nX: y", "http://w.example/?q", "http://w.example/#f", "http://é.example"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="witness"):
        Channel(url, None)


def test_a_ca_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path(__file__)):
        with pytest.raises(ConfigError, match="wanted a PEM file"):
            collector_of(LOG.verifier, "https://127.0.0.1:1", VERIFIER, path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_client_crash(data: bytes) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_RDWR)

    with Scripted(answer) as w, pytest.raises(CommonwealError):
        ask(w)


# -- many witnesses


class Served:
    """Real witnesses of one log on loopback."""

    def __init__(self, home: Path, count: int) -> None:
        self.log = TestLog()
        self.clock = Clock()
        self.stores: list[WitnessStore] = []
        self.each: list[tuple[Witness, WitnessServer | str]] = []
        self.servers: list[WitnessServer] = []
        for i in range(count):
            store = open_store(home / f"w{i}.sqlite")
            witness = make_witness(store, self.log, self.clock, name=f"w.example/{i}")
            server = WitnessServer(witness, "127.0.0.1", 0)
            server.start()
            self.stores.append(store)
            self.servers.append(server)
            self.each.append((witness, server))

    def policy(self, quorum: str) -> Policy:
        return make_policy(self.log, self.each, quorum)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
        for store in self.stores:
            store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path, 3)
    yield made
    made.stop()


def test_all_witnesses_are_asked_and_the_note_then_satisfies_the_policy(served: Served) -> None:
    policy = served.policy("all")
    collector = Collector(policy)
    for size in (1, 4, 4, 300):
        served.clock.now += 1
        collected = collector.collect(served.log.note(size), served.log.path, deadline_seconds=20)
        assert (collected.is_quorum, collected.errors) == (True, {})
        assert [c.witness.name for c in collected.cosignatures] == ["w0", "w1", "w2"]
        cosigned = policy.open(collected.append_to(served.log.note(size)))
        assert cosigned.checkpoint == served.log.checkpoint(size)
        assert cosigned.quorum_at == served.clock.now
    collector.close()


def test_what_each_witness_has_cosigned_is_remembered_so_it_is_asked_once(served: Served) -> None:
    collector = Collector(served.policy("all"))
    asked: list[tuple[int, int]] = []

    def prove(old_size: int, size: int) -> Sequence[bytes]:
        asked.append((old_size, size))
        return served.log.path(old_size, size)

    for size in (4, 9):
        assert collector.collect(served.log.note(size), prove, deadline_seconds=20).is_quorum
    assert asked == [(4, 9)] * 3
    collector.close()


def test_a_witness_that_stands_elsewhere_is_asked_again_from_there(served: Served) -> None:
    for size, (witness, _) in zip((2, 5, 9), served.each, strict=True):
        assert witness.add_checkpoint(served.log.request(0, size)).outcome == 200
    asked: list[tuple[int, int]] = []

    def prove(old_size: int, size: int) -> Sequence[bytes]:
        asked.append((old_size, size))
        return served.log.path(old_size, size)

    collector = Collector(served.policy("all"))
    assert collector.collect(served.log.note(9), prove, deadline_seconds=20).is_quorum
    # From 9 to 9 there is nothing to prove.
    assert sorted(asked) == [(2, 9), (5, 9)]
    collector.close()


def test_another_policy_is_asked_from_the_next_collection_on_and_what_is_known_of_a_witness_stays(
    served: Served,
) -> None:
    everybody = served.policy("all")
    names_of_two = ("w0", "w2")
    witnesses = tuple(w for w in everybody.witnesses if w.name in names_of_two)
    two = Policy(everybody.logs, witnesses, (Group("both", 2, names_of_two),), "both")
    collector = Collector(two)
    asked: list[tuple[int, int]] = []

    def prove(old_size: int, size: int) -> Sequence[bytes]:
        asked.append((old_size, size))
        return served.log.path(old_size, size)

    def names(size: int) -> list[str]:
        collected = collector.collect(served.log.note(size), prove, deadline_seconds=20)
        assert collected.is_quorum
        return [c.witness.name for c in collected.cosignatures]

    assert names(4) == ["w0", "w2"]
    collector.set_policy(everybody)
    assert (names(9), asked) == (["w0", "w1", "w2"], [(4, 9)] * 2), "the third is asked for the first time"
    collector.set_policy(two)
    assert (names(12), asked[2:]) == (["w0", "w2"], [(9, 12)] * 2)
    with pytest.raises(ConfigError, match="ftp"):
        collector.set_policy(parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey} ftp://w.example\nquorum w\n"))
    assert names(13) == ["w0", "w2"]
    collector.close()


def test_a_fork_gets_no_quorum_and_each_witness_says_why(served: Served) -> None:
    collector = Collector(served.policy("any"))
    fork = TestLog(label="forked")
    assert collector.collect(served.log.note(9), served.log.path, deadline_seconds=20, linger_seconds=20).is_quorum
    for size in (9, 12):
        collected = collector.collect(fork.note(size), fork.path, deadline_seconds=20)
        assert (collected.is_quorum, collected.cosignatures) == (False, ())
        assert {n: type(e) for n, e in collected.errors.items()} == dict.fromkeys(("w0", "w1", "w2"), LogError)
        assert all("refused with 422" in str(e) for e in collected.errors.values())
    collected = collector.collect(served.log.note(8), served.log.path, deadline_seconds=20)
    assert all("has cosigned size 9 already, not 8" in str(e) for e in collected.errors.values())
    assert not collected.is_quorum
    collector.close()


def test_the_quorum_is_enough_and_a_silent_witness_is_not_waited_for(served: Served) -> None:
    with Scripted() as silent:
        served.each[1] = (served.each[1][0], silent.url)
        collector = Collector(served.policy("2"))
        begin = time.monotonic()
        collected = collector.collect(served.log.note(9), served.log.path, deadline_seconds=60)
        assert time.monotonic() - begin < 30
        assert collected.is_quorum
        assert [c.witness.name for c in collected.cosignatures] == ["w0", "w2"]
        assert collected.errors == {}
    collector.close()


def test_without_the_quorum_the_deadline_ends_it_with_what_has_come(served: Served) -> None:
    with Scripted() as silent:
        served.each[1] = (served.each[1][0], silent.url)
        collector = Collector(served.policy("all"), timeout_seconds=60)
        collected = collector.collect(served.log.note(9), served.log.path, deadline_seconds=2.0)
        assert not collected.is_quorum
        assert [c.witness.name for c in collected.cosignatures] == ["w0", "w2"]
        # The request before has ended with its deadline, and the same witness is asked anew.
        silent.answers += [http(409, b"4\n", SIZE), http(200, line(9, name="w.example/1", key="w.example/1"))]
        again = collector.collect(served.log.note(9), served.log.path, deadline_seconds=20)
        assert again.is_quorum, again
        assert parse_request(silent.requests[-1]).old_size == 4
    collector.close()


def test_witnesses_beyond_the_quorum_are_waited_for_only_as_long_as_wished(served: Served) -> None:
    collector = Collector(served.policy("any"))
    collected = collector.collect(served.log.note(9), served.log.path, deadline_seconds=20, linger_seconds=20)
    assert [c.witness.name for c in collected.cosignatures] == ["w0", "w1", "w2"]
    collector.close()


def test_one_lying_witness_spoils_nothing(served: Served) -> None:
    lies = [http(200, line(9, name="w.example/1", key="other")), http(409, b"999\n", SIZE), http(200, b"junk\n")]
    with Scripted(*lies) as liar:
        served.each[1] = (served.each[1][0], liar.url)
        policy = served.policy("2")
        collector = Collector(policy)
        for error in (SignatureError, LogError, MalformedError):
            collected = collector.collect(served.log.note(9), served.log.path, deadline_seconds=20, linger_seconds=20)
            assert {n: type(e) for n, e in collected.errors.items()} == {"w1": error}
            assert policy.open(collected.append_to(served.log.note(9))).quorum_at == T0
        collector.close()


def test_a_witness_that_leads_on_with_ever_new_sizes_is_left(served: Served) -> None:
    with Scripted(*(http(409, b"%d\n" % n, SIZE) for n in range(1, 9))) as liar:
        served.each[0] = (served.each[0][0], liar.url)
        collector = Collector(served.policy("all"))
        collected = collector.collect(served.log.note(9), served.log.path, deadline_seconds=20)
        assert isinstance(collected.errors["w0"], OtherSizeError)
        assert [parse_request(r).old_size for r in liar.requests] == [0, 1, 2]
        collector.close()


def test_a_size_that_was_only_claimed_is_not_remembered() -> None:
    with Scripted(http(409, b"8\n", SIZE), http(422, b""), http(200, line())) as w:
        policy = parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey} {w.url}\nquorum w\n")
        collector = Collector(policy)
        assert not collector.collect(LOG.note(9), LOG.path, deadline_seconds=20).is_quorum
        assert collector.collect(LOG.note(9), LOG.path, deadline_seconds=20).is_quorum
        assert [parse_request(r).old_size for r in w.requests] == [0, 8, 0]
        collector.close()


def test_a_witness_that_lost_what_it_cosigned_is_refused() -> None:
    with Scripted(http(200, line(5)), http(409, b"0\n", SIZE), http(409, b"4\n", SIZE)) as w:
        collector = Collector(parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey} {w.url}\nquorum w\n"))
        assert collector.collect(LOG.note(5), LOG.path, deadline_seconds=20).is_quorum
        for _ in range(2):
            collected = collector.collect(LOG.note(9), LOG.path, deadline_seconds=20)
            assert "not asked again" in str(collected.errors["w"])
        assert [parse_request(r).old_size for r in w.requests] == [0, 5, 5]
        collector.close()


def test_one_connection_is_kept_and_a_dropped_one_made_anew() -> None:
    def drop(sock: socket.socket) -> None:
        sock.sendall(http(200, line(3)))
        sock.shutdown(socket.SHUT_RDWR)

    with Scripted(http(200, line(1)), http(200, line(2)), drop, http(200, line(4)), http(200, line(5), more="Connection: close\r\n"), http(200, line(6))) as w:  # fmt: skip  # noqa: E501
        collector = Collector(parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey} {w.url}\nquorum w\n"))
        for size, connections in ((1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)):
            assert collector.collect(LOG.note(size), LOG.path, deadline_seconds=20).is_quorum
            assert w.connections == connections
        collector.close()


def test_a_witness_with_two_keys_is_asked_once_for_both(tmp_path: Path) -> None:
    log = TestLog()
    with TwoKeys(tmp_path, log) as (witness, server):
        lines = [f"witness {n} {v.vkey} {server.url}" for n, v in zip(("ed", "pq"), witness.verifiers, strict=True)]
        policy = parse_policy("\n".join([f"log {log.vkey}", *lines, "group w all ed pq", "quorum w"]) + "\n")
        collector = Collector(policy)
        for size in (4, 9):
            collected = collector.collect(log.note(size), log.path, deadline_seconds=20)
            assert [c.witness.name for c in collected.cosignatures] == ["ed", "pq"]
            assert policy.open(collected.append_to(log.note(size))).checkpoint == log.checkpoint(size)
        collector.close()


class TwoKeys:
    def __init__(self, home: Path, log: TestLog) -> None:
        self.store = open_store(home / "s")
        keys: list[CosignerKey] = [KEY, MLDSA44PrivateKey.from_seed_bytes(b"m" * 32)]
        self.witness = Witness(NAME, keys, [log.verifier], self.store, Clock())
        self.server = WitnessServer(self.witness, "127.0.0.1", 0)

    def __enter__(self) -> tuple[Witness, WitnessServer]:
        self.server.start()
        return self.witness, self.server

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.store.close()


def test_a_line_that_one_of_two_keys_lacks_is_an_error_of_that_key() -> None:
    pq = make_cosignature_verifier(NAME, MLDSA44PrivateKey.from_seed_bytes(b"m" * 32).public_key())
    with Scripted(http(200, line())) as w:
        text = f"log {LOG.vkey}\nwitness ed {VERIFIER.vkey} {w.url}\nwitness pq {pq.vkey} {w.url}\nquorum ed\n"
        collector = Collector(parse_policy(text))
        collected = collector.collect(LOG.note(9), LOG.path, deadline_seconds=20)
        assert collected.is_quorum
        assert "wanted a line of pq, got none" in str(collected.errors["pq"])
        collector.close()


def test_witnesses_without_an_address_are_not_asked() -> None:
    collector = Collector(parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey}\nquorum w\n"))
    collected = collector.collect(LOG.note(9), LOG.path, deadline_seconds=20)
    assert (collected.is_quorum, collected.cosignatures, collected.errors) == (False, (), {})
    collector.close()


def test_a_policy_with_a_bad_address_is_refused_before_anything_is_sent() -> None:
    policy = parse_policy(f"log {LOG.vkey}\nwitness w {VERIFIER.vkey} ftp://w.example\nquorum w\n")
    with pytest.raises(ConfigError, match=r"ftp://w\.example"):
        Collector(policy)
