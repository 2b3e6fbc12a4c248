"""The witness's server and its commands: a real server on loopback, and peers that behave badly."""

import hashlib
import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_protocols.base.errors import ConfigError, LogError, StorageError
from commonweal_protocols.cli import run
from commonweal_protocols.tlog.cosignature import parse_cosigner_vkey
from commonweal_protocols.tlog.note import open_note
from commonweal_protocols.tlog.policy import parse_policy
from commonweal_protocols.witness import server as witness_server
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.witness import MAX_REQUEST_BYTES
from tests.kit.witnesses import (
    ORIGIN,
    T0,
    Clock,
    TestLog,
    collector_of,
    cosignature_of,
    ed25519,
    make_witness,
    open_store,
)

PROGRAM = str(Path(sys.executable).with_name("commonweal"))
MONITOR = f"/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint"


class Place:
    """One served witness of one log."""

    def __init__(self, home: Path, **options: object) -> None:
        self.log = TestLog()
        self.store = open_store(home / "cosigned.sqlite")
        self.witness = make_witness(self.store, self.log, Clock())
        self.server = WitnessServer(self.witness, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
        self.server.start()

    def stop(self) -> None:
        self.server.stop()
        self.store.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read()
        finally:
            connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.stop()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer closes."""
    data = b""
    try:
        while part := sock.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def connection_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("witness")]


# -- the protocol


def test_every_outcome_is_a_status_with_its_body(place: Place) -> None:
    log, fork = place.log, TestLog(label="forked")
    text = "text/plain; charset=utf-8"
    good = place.ask("POST", "/add-checkpoint", log.request(0, 7))
    assert good[:2] == (200, text)
    assert open_note(log.note(7) + good[2], place.witness.verifiers).signers == place.witness.verifiers
    for body, wanted in (
        (b"junk", (400, text, b"malformed\n")),
        (TestLog(key=place.log.key, origin="log.example/two").request(0, 1), (404, text, b"unknown log\n")),
        (log.request(7, 9).replace(b"\n9\n", b"\n8\n"), (403, text, b"not signed\n")),
        (log.request(5, 9), (409, "text/x.tlog.size", b"7\n")),
        (fork.request(7, 9), (422, text, b"inconsistent\n")),
        (fork.request(7, 7), (422, text, b"inconsistent\n")),
    ):
        assert place.ask("POST", "/add-checkpoint", body) == wanted


def test_an_equivocating_log_gets_one_of_its_two_checkpoints_cosigned(place: Place) -> None:
    fork = TestLog(label="forked")
    assert place.ask("POST", "/add-checkpoint", place.log.request(0, 7))[0] == 200
    assert place.ask("POST", "/add-checkpoint", fork.request(0, 7))[::2] == (409, b"7\n")
    assert place.ask("POST", "/add-checkpoint", fork.request(7, 7))[0] == 422
    assert place.log.checkpoint(7).text().encode() in place.ask("GET", MONITOR)[2]


def test_monitors_find_the_newest_cosigned_checkpoint_by_the_origins_hash(place: Place) -> None:
    assert place.ask("GET", MONITOR)[0] == 404
    line = place.ask("POST", "/add-checkpoint", place.log.request(0, 7))[2]
    assert place.ask("GET", MONITOR) == (200, "text/plain; charset=utf-8", place.log.note(7) + line)
    assert place.ask("GET", "/" + "0" * 64 + "/checkpoint")[0] == 404


def test_health_says_who_it_is_and_what_is_stored(place: Place) -> None:
    wanted = {"name": "w.example/1", "vkeys": [place.witness.verifiers[0].vkey]}
    nothing = [{"origin": ORIGIN, "size": None, "cosigned_at": None}]
    assert json.loads(place.ask("GET", "/health")[2]) == {**wanted, "logs": nothing}
    place.ask("POST", "/add-checkpoint", place.log.request(0, 7))
    logs = [{"origin": ORIGIN, "size": 7, "cosigned_at": T0}]
    assert json.loads(place.ask("GET", "/health")[2]) == {**wanted, "logs": logs}


def test_a_prefix_stands_in_front_of_every_path(tmp_path: Path) -> None:
    place = Place(tmp_path, prefix="/w/one")
    assert place.server.url.endswith("/w/one")
    assert place.ask("POST", "/w/one/add-checkpoint", place.log.request(0, 7))[0] == 200
    assert place.ask("GET", "/w/one" + MONITOR)[0] == 200
    for path in ("/add-checkpoint", "/w/one/add-checkpoint/", "/w/oneadd-checkpoint"):
        assert place.ask("POST", path, place.log.request(7, 7))[0] == 404
    for path in (MONITOR, "/health", "/w/ONE/health", "/w/one/health?x"):
        assert place.ask("GET", path)[0] == 404
    place.stop()


@pytest.mark.parametrize("prefix", ["/", "w", "/w/", "/w//x", "/w x", "/../é"])
def test_a_prefix_that_is_none_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="wanted a prefix"):
        Place(tmp_path, prefix=prefix)


def test_one_connection_carries_many_requests(place: Place) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", place.server.port, timeout=20)
    connection.connect()
    sock = connection.sock
    for size in range(1, 30):
        connection.request("POST", "/add-checkpoint", place.log.request(size - 1, size))
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        assert connection.sock is sock
    # A refusal in the protocol's own terms is no reason to part either.
    connection.request("POST", "/add-checkpoint", place.log.request(3, 9))
    assert connection.getresponse().read() == b"29\n"
    assert connection.sock is sock
    connection.close()


# -- peers that behave badly

POST = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n"


@pytest.mark.parametrize(
    ("data", "status", "why"),
    [
        (POST + b"Content-Length: %d\r\n\r\n" % (MAX_REQUEST_BYTES + 1), 413, "a body above the bound, not yet sent"),
        (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400, "a length that is no length"),
        (POST + b"Content-Length: +5\r\n\r\nhello", 400, "a sign"),
        (POST + b"Content-Length: 0x5\r\n\r\nhello", 400, "hex"),
        (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400, "two lengths in one"),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 411, "two lengths"),
        (POST + b"\r\n", 411, "no length"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, "chunks"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", 411, "both: smuggling"),
        (b"PUT /add-checkpoint HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 501, "another method"),
        (b"GET /add-checkpoint HTTP/1.1\r\n\r\n", 405, "the wrong method"),
        (b"POST /health HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404, "nothing to post to"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404, "a path that climbs"),
        (b"GET / HTTP/1.1\r\n\r\n", 404, "no path"),
        (b"GET / HTTP/9.9\r\n\r\n", 505, "another version"),
        (b"\x16\x03\x01 TLS to a plain port\r\n\r\n", 400, "no HTTP"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "a long address"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "many headers"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431, "a long header"),
    ],
)
def test_a_bad_request_is_refused_in_a_word_and_the_connection_closed(
    place: Place, data: bytes, status: int, why: str
) -> None:
    with place.connect() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()
    assert b"passwd" not in answer
    assert len(answer) < 400


def test_an_oversized_body_is_answered_before_it_is_all_here(place: Place) -> None:
    status, _, body = place.ask("POST", "/add-checkpoint", b"x" * (MAX_REQUEST_BYTES + 1))
    assert (status, body) == (413, b"request entity too large\n")
    assert place.ask("POST", "/add-checkpoint", b"x" * MAX_REQUEST_BYTES)[0] == 400


def test_a_peer_that_waits_for_100_continue_gets_it(place: Place) -> None:
    body = place.log.request(0, 3)
    with place.connect() as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


def trickle(sock: socket.socket, data: bytes) -> bytes:
    """Send a byte at a time, for as long as the peer stays; returns what it answered."""
    sock.settimeout(0.02)
    for i in range(len(data)):
        try:
            sock.sendall(data[i : i + 1])
            return sock.recv(1000)
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return b""
    raise AssertionError("the peer took all of it")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"POST /add-checkpoint HTTP/1.1\r\n" + b"X-Slow: yes\r\n" * 90, "headers"),
        (b"GET /" + b"x" * 1000, "the first line"),
    ],
)
def test_a_peer_that_trickles_is_cut_off_though_each_byte_comes_in_time(tmp_path: Path, data: bytes, why: str) -> None:
    place = Place(tmp_path, request_seconds=0.3)
    with place.connect() as sock:
        assert trickle(sock, data) == b""
    place.stop()


def test_a_peer_that_trickles_its_body_is_cut_off_and_nothing_is_cosigned(tmp_path: Path) -> None:
    place = Place(tmp_path, request_seconds=0.3)
    body = place.log.request(0, 3)
    with place.connect() as sock:
        sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % (len(body) * 10))
        assert trickle(sock, body * 10) == b""
    assert place.ask("GET", MONITOR)[0] == 404
    place.stop()


def test_a_body_that_ends_early_is_no_request(place: Place) -> None:
    body = place.log.request(0, 3)
    with place.connect() as sock:
        sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    assert place.ask("GET", MONITOR)[0] == 404


def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    place = Place(tmp_path, idle_seconds=0.1)
    with place.connect() as sock:
        assert read_all(sock) == b""
    place.stop()


def test_a_slow_peer_holds_up_nobody_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.connect() as slow:
        slow.sendall(b"POST /add")
        assert place.ask("POST", "/add-checkpoint", place.log.request(0, 3))[0] == 200
    place.stop()


def test_above_the_bound_connections_are_closed_at_once_and_later_ones_served(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness_server, "MAX_CONNECTIONS", 2)
    with place.connect() as one, place.connect() as two:
        for sock in (one, two):
            sock.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        with place.connect() as three:
            assert read_all(three) == b""
        one.shutdown(socket.SHUT_WR)
        assert read_all(one) == b""
    # The slots come free when the server's threads have noticed; until then it closes.
    for _ in range(1000):
        with place.connect() as again:
            again.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            if read_some(again).startswith(b"HTTP/1.1 200"):
                return
    raise AssertionError("no slot came free")


def read_some(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1000)
    except ConnectionResetError:
        return b""


def test_a_store_that_fails_is_answered_503_without_the_reason(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.store.close()
    assert place.ask("POST", "/add-checkpoint", place.log.request(0, 3))[::2] == (503, b"service unavailable\n")
    assert place.ask("GET", MONITOR)[::2] == (503, b"service unavailable\n")
    assert "nothing was cosigned" in caplog.text


# -- start, stop, TLS


def test_stop_ends_every_thread_also_those_of_idle_connections(tmp_path: Path) -> None:
    place = Place(tmp_path)
    socks = [place.connect() for _ in range(5)]
    for sock in socks:
        sock.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    place.stop()
    assert connection_threads() == []
    for sock in socks:
        assert read_all(sock) == b""
        sock.close()
    with pytest.raises(ConnectionRefusedError):
        place.connect()
    place.server.stop()


def test_stop_waits_for_the_answer_to_a_request_under_way(tmp_path: Path) -> None:
    place = Place(tmp_path)
    entered, go_on = threading.Event(), threading.Event()
    add_checkpoint = place.witness.add_checkpoint

    def slow(body: bytes) -> object:
        entered.set()
        go_on.wait(20)
        return add_checkpoint(body)

    place.witness.add_checkpoint = slow  # type: ignore[method-assign, assignment]
    answers: list[tuple[int, str, bytes]] = []
    asking = threading.Thread(
        target=lambda: answers.append(place.ask("POST", "/add-checkpoint", place.log.request(0, 3)))
    )
    asking.start()
    assert entered.wait(20)
    stopping = threading.Thread(target=place.server.stop)
    stopping.start()
    assert place.server._server.stopping.wait(20)
    go_on.set()
    stopping.join(20)
    asking.join(20)
    assert [a[0] for a in answers] == [200]
    place.store.close()


def test_a_server_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    server = WitnessServer(make_witness(store, TestLog(), Clock()), "127.0.0.1", 0)
    server.stop()
    store.close()


def test_a_taken_port_says_so(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{place.server.port}"):
        WitnessServer(place.witness, "127.0.0.1", place.server.port)


def test_over_tls_the_same_is_served_to_those_who_trust_the_authority(tmp_path: Path) -> None:
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    place = Place(tmp_path, tls_cert=tls.chain, tls_key=tls.key, request_seconds=2.0)
    (verifier,) = place.witness.verifiers
    assert place.server.url == f"https://127.0.0.1:{place.server.port}"
    with closing(collector_of(place.log.verifier, place.server.url, verifier, tls.ca)) as collector:
        line = cosignature_of(collector, place.log, 4)
    assert open_note(place.log.note(4) + line.encode(), [verifier]).signers == (verifier,)
    # Plain bytes to a TLS port end in nothing, and nobody waits for a handshake that does not come.
    with place.connect() as plain, place.connect() as silent:
        plain.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in read_all(plain)
        context = ssl.create_default_context(cafile=str(tls.ca))
        with context.wrap_socket(place.connect(), server_hostname="127.0.0.1") as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            place.stop()
        assert b"HTTP" not in read_all(silent)
    assert connection_threads() == []


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("no certificate")
    store = open_store(tmp_path / "s")
    witness = make_witness(store, TestLog(), Clock())
    for path in (tmp_path / "c.pem", tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match="wanted a PEM certificate"):
            WitnessServer(witness, "127.0.0.1", 0, tls_cert=path)
    store.close()


# -- the commands


def command(*args: str | Path) -> int:
    return run(["witness", *map(str, args)])


def test_init_prints_the_vkey_and_the_very_line_for_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, log = tmp_path / "home", TestLog()
    assert (
        command("init", "--home", home, "--name", "w.example/1", "--log", log.vkey, "--url", "https://w.example") == 0
    )
    out = capsys.readouterr().out
    (vkey,) = re.findall(r"^vkey: (.*)$", out, re.MULTILINE)
    (line,) = re.findall(r"^witness \S+ \S+ https.*$", out, re.MULTILINE)
    policy = parse_policy(f"log {log.vkey}\n{line}\nquorum w.example/1\n")
    assert policy.witnesses[0].verifier == parse_cosigner_vkey(vkey)
    assert policy.witnesses[0].url == "https://w.example"
    assert (home / "keys/witness.pem").stat().st_mode & 0o777 == 0o600
    assert command("init", "--home", home, "--name", "w.example/1") == 2
    assert "exists already" in capsys.readouterr().err


def test_init_that_was_cut_off_can_be_done_again_and_keeps_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("init", "--home", tmp_path, "--name", "w.example/1", "--ml-dsa") == 0
    first = capsys.readouterr().out
    (tmp_path / "witness.toml").unlink()
    assert command("init", "--home", tmp_path, "--name", "w.example/1", "--ml-dsa") == 0
    assert capsys.readouterr().out == first


def test_with_a_second_key_the_policy_lines_make_one_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", "--home", tmp_path, "--name", "w.example/1", "--ml-dsa") == 0
    out = capsys.readouterr().out
    lines = [x for x in out.splitlines() if re.match(r"witness \S+ w\.example/1\+|group", x)]
    policy = parse_policy("\n".join([*lines, "quorum w.example/1/both"]) + "\n")
    assert len(policy.witnesses) == 2
    assert not policy.is_met(["w.example/1"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--name", "w 1"], "--name: key name: wanted text without spaces"),
        (["--name", "w#1"], "wanted no '#'"),
        (["--name", "w", "--log", "junk"], "ask the log's operator for its vkey"),
    ],
)
def test_init_with_a_wrong_argument_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert command("init", "--home", tmp_path / "home", *args) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "home").exists()


def test_logs_are_added_once_and_a_second_key_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, new = TestLog(), TestLog(key=ed25519("new"))
    assert command("init", "--home", tmp_path, "--name", "w.example/é") == 0
    capsys.readouterr()
    for vkey, words in ((log.vkey, "is watched."), (log.vkey, "watched already"), (new.vkey, "with one key more")):
        assert command("add-log", vkey, "--home", tmp_path) == 0
        assert words in capsys.readouterr().out
    assert command("add-log", "junk", "--home", tmp_path) == 2
    assert command("status", "--home", tmp_path, "--json") == 0
    report = json.loads(capsys.readouterr().out.split("\n", 0)[0])
    assert report["name"] == "w.example/é"
    assert report["logs"] == [{"origin": ORIGIN, "size": None, "root": None, "cosigned_at": None}]


def test_a_command_without_a_witness_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["run"], ["status"], ["add-log", TestLog().vkey]):
        assert command(*args, "--home", tmp_path) == 2
        assert f"run: commonweal witness init --home {tmp_path}" in capsys.readouterr().err.replace("\n", " ")


def test_a_witness_whose_store_is_gone_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", "--home", tmp_path, "--name", "w.example/1") == 0
    (tmp_path / "store/cosigned.sqlite").unlink()
    assert command("run", "--home", tmp_path, "--port", "0") == 4
    assert "needs a new key and name" in capsys.readouterr().err.replace("\n", " ")


class Running:
    """``commonweal witness run`` as a process."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, "witness", "run", "--home", str(home), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={"PYTHONUNBUFFERED": "1", "PATH": ""},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        self.url = self.first.split("serves ")[1].split(" ")[0]

    def end(self, number: int) -> int:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process.stdout.close()
        return code


def test_a_killed_process_comes_back_and_still_refuses_the_fork(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, fork = TestLog(), TestLog(label="forked")
    assert command("init", "--home", tmp_path, "--name", "w.example/1", "--log", log.vkey) == 0
    verifier = parse_cosigner_vkey(re.findall(r"^vkey: (.*)$", capsys.readouterr().out, re.MULTILINE)[0])

    def ask(running: Running, which: TestLog, size: int) -> str:
        with closing(collector_of(log.verifier, running.url, verifier)) as collector:
            return cosignature_of(collector, which, size)

    running = Running(tmp_path)
    assert "watches 1 logs" in running.first
    line = ask(running, log, 7)
    assert open_note(log.note(7) + line.encode(), [verifier]).signers == (verifier,)
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    again = Running(tmp_path)
    for size in (7, 9):
        with pytest.raises(LogError, match=f"from 7 to {size}: refused with 422"):
            ask(again, fork, size)
    assert ask(again, log, 9)
    assert command("status", "--home", tmp_path) == 0
    assert f"log {ORIGIN}: cosigned 9 entries at 20" in capsys.readouterr().out
    assert again.end(signal.SIGTERM) == 0
    with pytest.raises(StorageError):
        open_store(tmp_path / "store").close()
