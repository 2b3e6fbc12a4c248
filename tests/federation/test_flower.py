"""Flower: the bundle and the letters byte by byte, and then real SuperLink and SuperNode processes on loopback."""

import binascii
import hashlib
import io
import os
import signal
import stat
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from commonweal_coordinator.rounds.flower import SuperLink, SuperLinkSettings
from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_node.connection.flower import SuperNode, SuperNodeSettings, create_transport_key, transport_public_key
from commonweal_protocols.base.errors import MalformedError, RuleError, StorageError, UnavailableError
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from commonweal_protocols.wire.flower import (
    INVITATION,
    Answer,
    Child,
    app_bundle,
    load_or_create_secret,
    read_answer,
    read_invitation,
    write_answer,
    write_invitation,
)
from tests.kit.launch import free_port

# flwr 1.42 names its authorities to httpx in a way that httpx wants changed.
pytestmark = pytest.mark.filterwarnings("ignore:`verify=<str>` is deprecated:DeprecationWarning")


def letter(content: RecordDict) -> Message:
    """A message as it comes out of Flower."""
    metadata = Metadata(
        run_id=1,
        message_id="m" * 64,
        src_node_id=1,
        dst_node_id=7,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=60.0,
        message_type=INVITATION,
    )
    return Message(content=content, metadata=metadata)


# -- the bundle


def test_every_machine_makes_the_same_bundle() -> None:
    assert app_bundle() == app_bundle()
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as bundle:
        infos = bundle.infolist()
        content = bundle.read("pyproject.toml")
    assert [i.filename for i in infos] == ["pyproject.toml", ".info/CONTENT"]
    for info in infos:
        # All that could differ between machines: dates, the system's name, modes, the compressor.
        assert info.date_time == (2024, 10, 1, 0, 0, 0)
        assert (info.create_system, info.compress_type, info.extra, info.comment) == (3, zipfile.ZIP_STORED, b"", b"")
    # The second implementation: local headers, then the central directory, from the format's description.
    manifest = f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{8 * len(content)}".encode()
    assert app_bundle() == stored_zip([(b"pyproject.toml", content), (b".info/CONTENT", manifest)])


def stored_zip(files: list[tuple[bytes, bytes]]) -> bytes:
    """A ZIP archive (PKWARE APPNOTE 4.3) of stored files, each of the date 2024-10-01 and the mode 0600."""
    date, out, directory = (44 << 9 | 10 << 5 | 1).to_bytes(4, "little"), b"", b""
    date = b"\0\0" + date[:2]
    for name, data in files:
        sizes = len(data).to_bytes(4, "little") * 2
        common = b"\x14\0\0\0\0\0" + date + binascii.crc32(data).to_bytes(4, "little") + sizes
        common += len(name).to_bytes(2, "little") + b"\0\0"
        mode = (0o600 << 16).to_bytes(4, "little")
        directory += b"PK\x01\x02\x14\x03" + common + b"\0" * 6 + mode + len(out).to_bytes(4, "little") + name
        out += b"PK\x03\x04" + common + name + data
    count = len(files).to_bytes(2, "little")
    end = b"PK\x05\x06\0\0\0\0" + count * 2 + len(directory).to_bytes(4, "little") + len(out).to_bytes(4, "little")
    return out + directory + end + b"\0\0"


def test_the_bundle_holds_no_code_and_names_what_is_installed() -> None:
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as bundle:
        project = tomllib.loads(bundle.read("pyproject.toml").decode())
    assert project["project"]["dependencies"] == []
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "commonweal_coordinator.rounds.flower:SuperLink",
        "clientapp": "commonweal_node.connection.flower:SuperNode",
    }


# -- letters


def test_letters_are_read_as_they_were_written() -> None:
    assert read_invitation(letter(write_invitation(12))) == 12
    answer = Answer("clinic", bytes(range(256)))
    assert read_answer(letter(write_answer(answer))) == answer
    largest = Answer("clinic", b"x" * MAX_ENTRY_BYTES)
    assert read_answer(letter(write_answer(largest))) == largest


def record(**values: object) -> RecordDict:
    return RecordDict({"letter": ConfigRecord(values)})


NO_INVITATION: list[tuple[str, RecordDict]] = [
    ("nothing", RecordDict()),
    ("an empty letter", record()),
    ("another record", RecordDict({"other": ConfigRecord({"round": 1})})),
    ("two records", RecordDict({"letter": ConfigRecord({"round": 1}), "other": ConfigRecord({})})),
    ("numbers instead", RecordDict({"letter": MetricRecord({"round": 1})})),
    ("round zero", record(round=0)),
    ("a negative round", record(round=-1)),
    ("a float", record(round=1.0)),
    ("text", record(round="1")),
    ("yes", record(round=True)),
    ("a list", record(round=[1])),
    ("more than a round", record(round=1, code="import os")),
    ("an answer", write_answer(Answer("clinic", b"x"))),
]


@pytest.mark.parametrize(("why", "content"), NO_INVITATION, ids=[n[0] for n in NO_INVITATION])
def test_what_is_no_invitation_is_refused(why: str, content: RecordDict) -> None:
    with pytest.raises(MalformedError, match="invitation: wanted exactly a round's number"):
        read_invitation(letter(content))


NO_ANSWER: list[tuple[str, RecordDict]] = [
    ("nothing", RecordDict()),
    ("no envelope", record(institution="clinic")),
    ("no institution", record(envelope=b"x")),
    ("text for bytes", record(institution="clinic", envelope="x")),
    ("bytes for text", record(institution=b"clinic", envelope=b"x")),
    ("more than an answer", record(institution="clinic", envelope=b"x", more=1)),
    ("too large", record(institution="clinic", envelope=b"x" * (MAX_ENTRY_BYTES + 1))),
    ("an invitation", write_invitation(1)),
]


@pytest.mark.parametrize(("why", "content"), NO_ANSWER, ids=[n[0] for n in NO_ANSWER])
def test_what_is_no_answer_is_refused(why: str, content: RecordDict) -> None:
    with pytest.raises(MalformedError, match="answer: wanted an institution and an envelope of at most 65535 bytes"):
        read_answer(letter(content))


def test_an_error_is_no_letter() -> None:
    failed = Message(Error(1, "died"), reply_to=letter(write_invitation(1)))
    with pytest.raises(MalformedError):
        read_invitation(failed)
    with pytest.raises(MalformedError):
        read_answer(failed)


def test_a_long_name_is_cut_before_it_reaches_a_log_line() -> None:
    assert read_answer(letter(write_answer(Answer("x" * 1000, b"e")))).institution == "x" * 64


# -- keys and secrets


def test_a_transport_key_is_for_its_owner_only_and_its_public_half_is_an_ec_key(tmp_path: Path) -> None:
    path = tmp_path / "keys/transport.pem"
    create_transport_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = serialization.load_der_public_key(transport_public_key(path))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp384r1"
    private = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert private.public_key() == public
    with pytest.raises(StorageError, match="exists already"):
        create_transport_key(path)


def test_a_transport_key_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "transport.pem"
    with pytest.raises(StorageError, match=r"transport\.pem: wanted the transport key, got no readable key"):
        transport_public_key(path)
    path.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(StorageError, match="wanted the transport key"):
        transport_public_key(path)


def test_a_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "task.secret"
    made = load_or_create_secret(path)
    assert len(made) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret(path) == made
    assert load_or_create_secret(tmp_path / "other.secret") != made


# -- the node's replies


@dataclass
class Asked:
    """An answer callback that remembers what it was asked, and never says the same about two rounds."""

    trouble: Exception | None = None
    rounds: list[int] = field(default_factory=list)
    kept: dict[int, bytes] = field(default_factory=dict)
    before: Callable[[int], object] = lambda _: None

    def __call__(self, number: int) -> bytes:
        self.rounds.append(number)
        self.before(number)
        if self.trouble is not None:
            raise self.trouble
        return self.kept.setdefault(number, os.urandom(100))


def node_of(home: Path, answer: Callable[[int], bytes]) -> SuperNode:
    """A node whose process is not started."""
    settings = SuperNodeSettings(home, "127.0.0.1:1", 1, home / "ca.pem", home / "transport.pem", "clinic")
    return SuperNode(settings, answer)


def test_an_invitation_is_answered_with_the_daemons_own_bytes(tmp_path: Path) -> None:
    asked = Asked()
    node = node_of(tmp_path, asked)
    first, again = (node.reply(letter(write_invitation(3)), app_bundle()) for _ in range(2))
    assert read_answer(first) == read_answer(again) == Answer("clinic", asked.kept[3])
    assert asked.rounds == [3, 3]


def foreign_bundle() -> bytes:
    """A bundle in the right form with code in it, as a coordinator might want it run."""
    data = io.BytesIO(app_bundle())
    with zipfile.ZipFile(data, "a") as bundle:
        bundle.writestr("rounds/__init__.py", "raise SystemExit('this was run')")
    return data.getvalue()


@pytest.mark.parametrize("bundle", [foreign_bundle(), b"", app_bundle()[:-1], app_bundle() + b"\0"])
def test_another_bundle_is_refused_unopened_and_the_daemon_is_not_even_asked(tmp_path: Path, bundle: bytes) -> None:
    asked = Asked()
    reply = node_of(tmp_path, asked).reply(letter(write_invitation(1)), bundle)
    assert asked.rounds == []
    assert not reply.has_content()
    assert reply.error.reason == (
        "RuleError: app bundle: wanted the one that this package makes, got another; nothing of it was run"
    )


def test_a_letter_that_is_no_invitation_is_sent_back_with_the_reason(tmp_path: Path) -> None:
    asked = Asked()
    reply = node_of(tmp_path, asked).reply(letter(record(round=0)), app_bundle())
    assert reply.error.reason == "MalformedError: invitation: wanted exactly a round's number"
    assert asked.rounds == []


TROUBLE: list[tuple[Exception, str]] = [
    (RuleError("round 1: " + "x" * 1000), ("RuleError: round 1: " + "x" * 1000)[:500]),
    # It may hold paths and names of this host, which are nobody's business.
    (StorageError("/srv/secret/place: the disk is full"), "StorageError"),
    (UnavailableError("10.0.0.7 does not answer"), "UnavailableError"),
]


@pytest.mark.parametrize(("trouble", "said"), TROUBLE, ids=["a peer's fault", "our disk", "our line"])
def test_what_is_wrong_there_goes_back_in_full_and_what_is_wrong_here_by_its_kind(
    tmp_path: Path, trouble: Exception, said: str
) -> None:
    reply = node_of(tmp_path, Asked(trouble)).reply(letter(write_invitation(1)), app_bundle())
    assert not reply.has_content()
    assert reply.error.reason == said


def test_a_bug_of_ours_is_not_sent_as_an_answer(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        node_of(tmp_path, Asked(ZeroDivisionError())).reply(letter(write_invitation(1)), app_bundle())


# -- real processes


def wait(what: str, condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.02)


class Fleet:
    """A SuperLink, and nodes that know it; everything below one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.tls: TlsFiles = load_or_create_tls(home / "tls", ["127.0.0.1"])
        self.port = free_port()
        self.handed_in: list[tuple[int, str, bytes]] = []
        settings = SuperLinkSettings(
            home / "superlink", "127.0.0.1", "127.0.0.1", self.port, self.tls.ca, self.tls.chain, self.tls.key
        )
        self.superlink = SuperLink(settings, self.hand_in)
        self.nodes: dict[str, SuperNode] = {}
        self.asked: dict[str, Asked] = {}

    def hand_in(self, number: int, answer: Answer) -> bool:
        self.handed_in.append((number, answer.institution, answer.envelope))
        return True

    def key(self, name: str) -> Path:
        return self.home / f"{name}.pem"

    def add(self, name: str) -> None:
        """Make a node and start its process; it is not registered yet."""
        create_transport_key(self.key(name))
        self.asked[name] = Asked()
        settings = SuperNodeSettings(
            self.home / name, f"127.0.0.1:{self.port}", free_port(), self.tls.ca, self.key(name), name
        )
        self.nodes[name] = SuperNode(settings, self.asked[name])
        self.nodes[name].start()

    def register(self, name: str) -> None:
        def done() -> bool:
            try:
                self.superlink.register(transport_public_key(self.key(name)))
            except UnavailableError:
                return False
            return True

        wait("the SuperLink", done)

    def start_run(self, number: int, cohort_size: int) -> int:
        """Start a run once the SuperLink is up."""
        started: list[int] = []

        def done() -> bool:
            self.tend()
            try:
                started.append(self.superlink.start_run(number, cohort_size, 120))
            except UnavailableError:
                return False
            return True

        wait("a run", done)
        return started[0]

    def tend(self) -> None:
        """What each daemon's main loop does: start anew what has ended."""
        self.superlink.ensure_running()
        for node in self.nodes.values():
            node.ensure_running()

    def over(self, run_id: int) -> bool:
        self.tend()
        return not self.superlink.is_running(run_id)

    def processes(self, program: str = "flower-") -> list[psutil.Process]:
        """Our own children, and theirs, that run a Flower program and know this folder."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue  # gone, or a zombie
            if program in command and str(self.home) in command:
                found.append(process)
        return found

    def log(self, name: str) -> str:
        path = self.home / name / ("flower-superlink.log" if name == "superlink" else "flower-supernode.log")
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        for node in self.nodes.values():
            node.stop()
        self.superlink.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One registered node and one that is not, and a SuperLink."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        made.superlink.start()
        for name in ("clinic", "stranger"):
            made.add(name)
        made.register("clinic")
        made.register("clinic")  # again is harmless
        yield made
    finally:
        made.stop()
        left = made.processes()
        for process in left:
            process.kill()
        psutil.wait_procs(left)
    assert left == [], "stop leaves no process behind"


@pytest.mark.slow
def test_a_round_goes_out_and_its_answer_comes_back_once(fleet: Fleet) -> None:
    run = fleet.start_run(1, cohort_size=1)
    wait("the round", lambda: fleet.over(run))
    asked = fleet.asked["clinic"]
    assert asked.rounds == [1]
    assert fleet.handed_in == [(1, "clinic", asked.kept[1])]


@pytest.mark.slow
def test_a_node_whose_key_is_not_registered_gets_nothing(fleet: Fleet) -> None:
    wait("the stranger to be turned away", lambda: "Failed to activate SuperNode" in fleet.log("stranger"))
    assert fleet.asked["stranger"].rounds == []
    # The same node, with nothing changed but that its key is registered now.
    fleet.register("stranger")
    run = fleet.start_run(2, cohort_size=2)
    wait("both", lambda: fleet.over(run))
    assert fleet.asked["stranger"].rounds == [2]
    wanted = [(2, name, fleet.asked[name].kept[2]) for name in ("clinic", "stranger")]
    assert sorted(fleet.handed_in[1:]) == wanted


@pytest.mark.slow
def test_a_node_without_a_key_gets_nothing(fleet: Fleet) -> None:
    arguments = ["--superlink", f"127.0.0.1:{fleet.port}", "--root-certificates", str(fleet.tls.ca)]
    arguments += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(free_port())]
    child = Child(fleet.home / "keyless", "flower-supernode", arguments)
    child.ensure_running()
    try:
        wait("it to be turned away", lambda: "SuperNode authentication is enabled" in fleet.log("keyless"))
    finally:
        child.stop()


@pytest.mark.slow
def test_a_run_that_a_stranger_started_is_not_carried_out(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    rounds = {name: list(asked.rounds) for name, asked in fleet.asked.items()}
    control = ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{fleet.port}",
        insecure=False,
        root_certificates=str(fleet.tls.ca),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="stranger")],
    )
    try:
        bundle = app_bundle()
        digest = hashlib.sha256(bundle).hexdigest()
        run = control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, bundle, {})))).run_id
    finally:
        control.close()
    wait("the coordinator to decline it", lambda: f"run {run}: this daemon did not start that run" in caplog.text)
    assert {name: asked.rounds for name, asked in fleet.asked.items()} == rounds


@pytest.mark.slow
def test_a_superlink_that_is_killed_in_mid_run_costs_nothing_but_time(fleet: Fleet) -> None:
    (process,) = fleet.processes("flower-superlink")
    asked = fleet.asked["clinic"]
    # Killed while the node holds the invitation: its answer of this run has nowhere to go.
    asked.before = lambda _: process.send_signal(signal.SIGKILL)
    already = len(fleet.handed_in)
    run = fleet.start_run(3, cohort_size=2)
    wait("the kill", lambda: asked.rounds[-1] == 3)
    asked.before = lambda _: None
    # The run is over although nobody has looked after the process yet.
    wait("the run to be lost", lambda: not fleet.superlink.is_running(run))
    said = dict(asked.kept)
    again = fleet.start_run(3, cohort_size=2)
    assert again != run
    wait("the second run", lambda: fleet.over(again))
    (started_anew,) = fleet.processes("flower-superlink")
    assert started_anew.pid != process.pid
    assert asked.rounds.count(3) == 2
    assert asked.kept == said
    answers = {(number, name): data for number, name, data in fleet.handed_in[already:]}
    assert answers == {(3, name): fleet.asked[name].kept[3] for name in ("clinic", "stranger")}
