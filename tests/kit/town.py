"""A coordinator on real ports and three institutions that use the program; the node's conftest gives the fixture."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from commonweal_coordinator.rounds.motions import Clerk
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.exchange import ExchangeService, Limits
from commonweal_coordinator.serving.service import Admission, LogService
from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_coordinator.serving.web import RecordsServer
from commonweal_protocols.fold.state import MotionState, State
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import cosign
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.federation import NAMES, Federation, key_of, save_key
from tests.kit.grpc_server import serving
from tests.kit.hub import Hub, founded, identity
from tests.kit.terminal import Terminal

DAY = 86_400


@dataclass
class Clock:
    """What the witnesses say the time is."""

    now: int = field(default_factory=lambda: int(time.time()))

    def cosign(self, checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        lines = (cosign(checkpoint, w, key_of(w), at=self.now) for w in ("w0", "w1", "w2"))
        return note + "".join(lines).encode()


@dataclass
class Town:
    """A coordinator on real ports, three institutions' homes, and the program that each of them uses."""

    hub: Hub
    folder: Path
    program: Terminal
    clock: Clock
    blobs: BlobStore

    def __post_init__(self) -> None:
        self.drafts = self.folder / "amendment"
        self.restart()

    def restart(self) -> None:
        """The clerk anew, as after a restart of the coordinator."""
        self.clerk = Clerk(self.hub.sequencer, self.blobs, self.drafts)

    def home(self, name: str) -> Path:
        return self.folder / name

    def does(self, name: str, *args: str | Path, code: int = 0) -> str:
        """``name`` runs a command; what it printed."""
        got = self.program(*args, "--home", self.home(name))
        assert got == code, self.program.err
        return self.program.out if code == 0 else self.program.err

    def moves(self, name: str, *args: str | Path) -> str:
        """``name`` makes a motion; its leaf as the program says it."""
        said = self.does(name, "motion", "new", "--title", "a motion", "--reasons", "because", *args)
        return said.split()[1]

    def state(self) -> State:
        self.hub.catch_up()
        return self.hub.f.state

    def motion(self) -> MotionState:
        return list(self.state().motions.values())[-1]

    def later(self, days: int) -> None:
        """Time passes, and the log is cosigned again."""
        self.clock.now += days * DAY
        self.hub.say("coop", identity("coop"))


@pytest.fixture
def town(tmp_path: Path, program: Terminal) -> Iterator[Town]:
    tls, clock = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"]), Clock()
    with founded(tmp_path / "hub", Federation(witnesses=3), clock.cosign) as hub, ExitStack() as stack:
        blobs = BlobStore(hub.public)

        def members() -> frozenset[str]:
            return frozenset(m.key for m in hub.sequencer.state.compact.members)

        limits = Limits(consortium=hub.f.state.consortium, max_blob_bytes=1 << 20, members=members)

        def register(server: grpc.Server) -> None:
            service = LogService(lambda: Admission(hub.sequencer, blobs), lambda: hub.sequencer)
            rpc.add_LogServicer_to_server(service, server)  # type: ignore[no-untyped-call]
            rpc.add_ExchangeServicer_to_server(ExchangeService(blobs, limits), server)  # type: ignore[no-untyped-call]

        address = stack.enter_context(serving(tls, register))
        web = RecordsServer(hub.public, "127.0.0.1", 0, tls.chain, tls.key)
        web.start()
        stack.callback(web.stop)
        invite = Invite(
            consortium=hub.f.state.consortium,
            name="three",
            exchange=address,
            records=f"https://127.0.0.1:{web.port}",
            ca_pem=tls.ca.read_text(),
        )
        for name in NAMES:
            home = tmp_path / name
            save_key(home / "keys/institution.pem", key_of(name))
            (home / "node.toml").write_text(f'institution = "{name}"\ndata = "rows.jsonl"\n')
            invite.save(home / "invite.json")
        yield Town(hub, tmp_path, program, clock, blobs)
