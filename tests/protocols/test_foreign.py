"""A second opinion on the log in another language: the Go project's own log code, in ``foreign/main.go``.

It reads what we write, we read what it writes, and both refuse the same accidents.
"""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.cosigner import Cosigner
from commonweal_coordinator.log.log import Cosign, Log, no_witness
from commonweal_protocols.audit.evidence import format_evidence, prove_fork
from commonweal_protocols.base.canonical import parse_base64
from commonweal_protocols.base.errors import LogError, PeerError
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import HASH_BYTES, Frontier, Tree, leaf_hash, verify_consistency
from commonweal_protocols.tlog.note import Verifier, format_vkey, make_verifier, parse_vkey, sign_note
from commonweal_protocols.tlog.policy import Policy
from commonweal_protocols.tlog.proof import open_proof
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES, TILE_HEIGHT, TILE_WIDTH, new_tiles
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.witness import Witness
from tests.kit.federation import key_of, two_rounds
from tests.kit.witnesses import T0, Clock, TestLog, make_policy, make_witness, open_store

GO_PATH = Path("/usr/share/gocode")  # where Debian's packages of Go sources lie
ORIGIN = "log.test/foreign"
SEED = b"\xfb" * 32  # its base64 has plus signs, which also divide a key's fields
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
LOG = make_verifier(ORIGIN, KEY.public_key())
VKEY = format_vkey(ORIGIN, KEY.public_key().public_bytes_raw())
SKEY = f"PRIVATE+KEY+{ORIGIN}+{LOG.key_id.hex()}+" + base64.b64encode(b"\x01" + SEED).decode()
SIZES = [*range(21), 255, 256, 257, 300]
LARGE = 70_000

pytestmark = pytest.mark.skipif(
    not (shutil.which("go") and (GO_PATH / "src/golang.org/x/mod/sumdb/tlog").is_dir()),
    reason="wanted Go and golang.org/x/mod; on Debian: apt-get install golang-go golang-golang-x-mod-dev",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("go")
    source = Path(__file__).parents[1] / "foreign/main.go"
    settings = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    environment = os.environ | settings | {"GOCACHE": str(build / "cache")}
    subprocess.run(["go", "build", "-o", build / "foreign", source], env=environment, cwd=build, check=True)
    return build / "foreign"


@dataclass(frozen=True)
class Foreign:
    """The Go program on one folder."""

    program: Path
    dir: Path

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, command, self.dir, *arguments], capture_output=True, text=True, check=False
        )

    def accepts(self, vkey: str = VKEY, *witnesses: str) -> str:
        done = self.run("check", vkey, *witnesses)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    def refuses(self, vkey: str = VKEY, *witnesses: str) -> str:
        done = self.run("check", vkey, *witnesses)
        assert (done.returncode, done.stdout) == (1, "")
        # A panic in Go exits with 2 and is no refusal.
        assert done.stderr.startswith("refused: ")
        return done.stderr

    def convicts(self, *witnesses: str) -> list[str]:
        """What it says of an evidence file."""
        done = self.run("evidence", VKEY, *witnesses)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def writes(self, *sizes: int) -> str:
        done = self.run("write", SKEY, *map(str, sizes))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()


@pytest.fixture
def foreign(program: Path, tmp_path: Path) -> Foreign:
    return Foreign(program, tmp_path / "log")


# -- our side of the same layout


def our_entry(i: int) -> bytes:
    return b"entry %d " % i * (i % 4) + b"%d" % i


class Ours:
    """Our log, and beside it every checkpoint, consistency proof and (above 1000 entries, some) receipts it gave."""

    def __init__(self, home: Path, cosign: Cosign = no_witness) -> None:
        self._home = home
        for name in ("older", "receipts"):
            (home / name).mkdir(parents=True)
        self.log = Log.create(home / "public", home / "private/lock.db", ORIGIN, KEY, cosign)
        self._tree = Tree()

    def grow(self, size: int) -> None:
        old = self._tree.size
        batch = [our_entry(i) for i in range(old, size)]
        answers = self.log.append(batch)
        for data in batch:
            self._tree.append(leaf_hash(data))
        for i in range(0, size, 1 if size < 1000 else 499):
            answer = answers[i - old] if i >= old else self.log.find(our_entry(i))
            assert answer is not None
            (self._home / f"receipts/{i}.{size}").write_bytes(answer.proof)
        (self._home / f"older/{size}").write_bytes(self.log.checkpoint)
        for older in (self._home / "older").glob("*[0-9]"):
            hashes = self._tree.consistency_path(int(older.name), size)
            (self._home / f"older/{older.name}.path").write_text(
                "".join(base64.b64encode(h).decode() + "\n" for h in hashes)
            )


def check_with_ours(home: Path, log: Verifier) -> tuple[list[bytes], int, int]:
    """Do with our code what the Go program's ``check`` does; return the entries, and how many proofs held."""
    source = DirectorySource(home / "public")
    newest = open_checkpoint(read_checkpoint(source), log)
    entries = list(read_entries(source, 0, newest.size))
    tree, frontier = Tree(), Frontier()
    for data in entries:
        tree.append(leaf_hash(data))
        frontier.append(leaf_hash(data))
    if not tree.root(newest.size) == frontier.root() == newest.root:
        raise LogError("bundles: do not hash to the signed root")
    for tile in new_tiles(0, newest.size):
        start = tile.n * TILE_WIDTH
        expected = tree.nodes(TILE_HEIGHT * tile.level, start, start + tile.width)
        if source.read(tile.path, max_bytes=TILE_WIDTH * HASH_BYTES) != expected:
            raise LogError(f"{tile.path}: is not the tree's")
    consistency = list((home / "older").glob("*[0-9]"))
    for file in consistency:
        older = open_checkpoint(file.read_bytes(), log)
        *lines, end = file.with_name(file.name + ".path").read_text().split("\n")
        if end:
            raise LogError(f"{file.name}.path: does not end in a newline")
        path = [parse_base64(line, size=HASH_BYTES) for line in lines]
        verify_consistency(older.size, older.root, newest.size, newest.root, path)
    receipts = list((home / "receipts").glob("*"))
    for file in receipts:
        index, size = map(int, file.name.split("."))
        checkpoint = Checkpoint(log.name, size, tree.root(size))
        if open_proof(file.read_bytes(), entries[index], log) != (index, checkpoint):
            raise LogError(f"{file.name}: of another entry or tree")
    return entries, len(consistency), len(receipts)


def their_entry(i: int) -> bytes:
    """As in ``main.go``: some are empty, one is as large as can be."""
    return b"x" * MAX_ENTRY_BYTES if i == 5 else b"foreign entry %d " % i * (i % 4)


# -- both ways


def test_go_agrees_with_our_log_at_every_size(foreign: Foreign) -> None:
    ours, receipts = Ours(foreign.dir), 0
    with closing(ours.log):
        for older, size in enumerate(SIZES):
            ours.grow(size)
            receipts += size
            assert foreign.accepts() == f"size {size}, inclusion {size}, consistency {older + 1}, receipts {receipts}"


def test_go_agrees_with_a_log_of_three_levels_of_tiles(foreign: Foreign) -> None:
    ours = Ours(foreign.dir)
    with closing(ours.log):
        for size in (300, 65_535, LARGE):
            ours.grow(size)
    assert (foreign.dir / "public/tile/2/000.p/1").is_file()
    receipts = 300 + -(-65_535 // 499) + -(-LARGE // 499)
    assert foreign.accepts() == f"size {LARGE}, inclusion {-(-LARGE // 997)}, consistency 3, receipts {receipts}"


def test_go_agrees_with_the_records_of_a_federation(foreign: Foreign) -> None:
    federation = two_rounds()
    federation.publish(foreign.dir)
    size = len(federation.entries)
    assert foreign.accepts(federation.compact.coordinator.log) == (
        f"size {size}, inclusion {size}, consistency 0, receipts 0"
    )


def test_we_agree_with_a_log_that_go_wrote_at_every_size(program: Path, tmp_path: Path) -> None:
    for n, size in enumerate(SIZES, 1):
        foreign = Foreign(program, tmp_path / str(size))
        log = parse_vkey(foreign.writes(*SIZES[:n]))
        assert log == LOG
        assert check_with_ours(foreign.dir, log) == ([their_entry(i) for i in range(size)], n, sum(SIZES[:n]))


def test_we_agree_with_a_log_of_three_levels_of_tiles_that_go_wrote(foreign: Foreign) -> None:
    foreign.writes(0, 300, 65_535, LARGE)
    entries, consistency, receipts = check_with_ours(foreign.dir, LOG)
    assert entries == [their_entry(i) for i in range(LARGE)]
    assert (consistency, receipts) == (4, 300 + -(-65_535 // 997) + -(-LARGE // 997))


# -- witnesses


@pytest.fixture
def witnessed(tmp_path: Path) -> Iterator[Policy]:
    """Three witnesses that serve, all of which are wanted."""
    log = TestLog(origin=ORIGIN, key=KEY)
    with ExitStack() as stack:
        each: list[tuple[Witness, WitnessServer | str]] = []
        for i in range(3):
            store = stack.enter_context(closing(open_store(tmp_path / f"{i}.sqlite")))
            witness = make_witness(store, log, Clock(), f"w.example/{i}")
            each.append((witness, stack.enter_context(WitnessServer(witness, "127.0.0.1", 0))))
        yield make_policy(log, each, "all")


def test_go_finds_each_witnesss_line_in_checkpoints_and_receipts(foreign: Foreign, witnessed: Policy) -> None:
    vkeys = [w.verifier.vkey for w in witnessed.witnesses]
    with closing(Cosigner(witnessed)) as cosigner:
        ours = Ours(foreign.dir, cosigner)
        with closing(ours.log):
            for size in (1, 5, 257):
                ours.grow(size)
    wanted = "size 257, inclusion 257, consistency 3, receipts 263"
    assert foreign.accepts(VKEY, *vkeys) == wanted
    assert foreign.accepts() == wanted, "the log's own line is the first of several"
    other = make_cosignature_verifier("w.example/0", key_of("another").public_key()).vkey
    assert "not cosigned by w.example/0" in foreign.refuses(VKEY, *vkeys, other)
    signed = (foreign.dir / "public/checkpoint").read_text()
    receipt = foreign.dir / "receipts/0.5"
    for file, whole in ((foreign.dir / "public/checkpoint", signed), (receipt, receipt.read_text())):
        *lines, last, _ = whole.split("\n")
        name, encoded = last.split(" ")[1:]
        blob = bytearray(base64.b64decode(encoded))
        blob[4 + 7] ^= 1  # the time
        line = f"\u2014 {name} {base64.b64encode(blob).decode()}"
        file.write_text("\n".join([*lines, line, ""]))
        assert f"invalid signature for key {name}" in foreign.refuses(VKEY, *vkeys)
        file.write_text("\n".join([*lines, ""]))
        assert f"not cosigned by {name}" in foreign.refuses(VKEY, *vkeys)
        file.write_text(whole)
    assert foreign.accepts(VKEY, *vkeys) == wanted


@pytest.mark.parametrize(("old", "new"), [(5, 9), (4, 4), (1, 300)])
def test_go_convicts_a_forked_log_and_its_lying_witnesses_by_the_same_file(
    program: Path, tmp_path: Path, old: int, new: int
) -> None:
    one, two = (TestLog(origin=ORIGIN, key=KEY, label=label) for label in ("one", "two"))
    notes = {}
    for side, size, log in (("old", old, one), ("new", new, two)):
        names = ("x", "honest on " + side, "y")
        lines = [cosign(log.checkpoint(size), f"w/{n.replace(' ', '-')}", key_of(n), at=T0) for n in names]
        notes[side] = log.note(size) + "".join(lines).encode()
    made = prove_fork(notes["old"], notes["new"], two.tree, LOG)
    assert made is not None
    file = tmp_path / "evidence"
    file.write_bytes(format_evidence(made))
    vkeys = [
        make_cosignature_verifier(f"w/{n.replace(' ', '-')}", key_of(n).public_key()).vkey
        for n in ("honest on old", "x", "honest on new", "y")
    ]
    roots = {base64.b64encode(log.tree.root(old)).decode() for log in (one, two)}
    said, *liars = Foreign(program, file).convicts(*vkeys)
    assert said.startswith(f"at {old}: ")
    assert set(said.removeprefix(f"at {old}: ").split(", ")) == roots
    assert liars == ["lying witness w/x", "lying witness w/y"]
    honest = format_evidence(made)
    for at in range(0, len(honest), 23):
        file.write_bytes(changed(honest, at))
        done = Foreign(program, file).run("evidence", VKEY, *vkeys)
        # With another name on it, a line is nobody's: then a liar less is named. Nothing else may come of it.
        assert done.returncode == 1 or done.stdout.startswith(f"{said}\n")
        assert set(done.stdout.splitlines()) <= {said, *liars}


# -- what both refuse


def changed(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def accidents(data: bytes) -> dict[str, bytes]:
    return {
        "its first byte differs": changed(data, 0),
        "a byte in the middle differs": changed(data, len(data) // 2),
        "its last byte differs": changed(data, -1),
        "its last byte is missing": data[:-1],
        "a byte follows": data + b"\0",
    }


def refused_by_ours(home: Path, log: Verifier = LOG) -> bool:
    try:
        check_with_ours(home, log)
    except PeerError:
        return True
    return False


@pytest.fixture(scope="module", params=["ours", "theirs"])
def written(request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 300 entries, older checkpoints and receipts, written by either side."""
    home = tmp_path_factory.mktemp("written") / "log"
    if request.param == "theirs":
        Foreign(program, home).writes(7, 257, 300)
    else:
        ours = Ours(home)
        with closing(ours.log):
            for size in (7, 257, 300):
                ours.grow(size)
    return home


@pytest.mark.parametrize(
    "name",
    [
        "public/checkpoint",
        "public/tile/0/000",
        "public/tile/0/001.p/44",
        "public/tile/1/000.p/1",
        "public/tile/entries/000",
        "public/tile/entries/001.p/44",
        "older/257",
        "older/257.path",
        "receipts/6.7",
        "receipts/299.300",
    ],
)
def test_both_refuse_every_accident_to_every_file(program: Path, written: Path, name: str) -> None:
    foreign, file = Foreign(program, written), written / name
    good = file.read_bytes()
    file.chmod(0o644)
    try:
        for why, data in accidents(good).items():
            file.write_bytes(data)
            assert refused_by_ours(written), why
            foreign.refuses()
        if name.startswith("public/"):
            file.unlink()
            assert refused_by_ours(written)
            assert "no such file" in foreign.refuses()
    finally:
        file.write_bytes(good)
    check_with_ours(written, LOG)
    foreign.accepts()


def test_both_refuse_a_fork_that_the_logs_own_key_has_signed(program: Path, written: Path) -> None:
    file = written / "older/257"
    good = file.read_bytes()
    file.write_bytes(sign_note(Checkpoint(ORIGIN, 257, leaf_hash(b"another history")).text(), ORIGIN, KEY))
    try:
        assert refused_by_ours(written)
        assert "older/257: forked" in Foreign(program, written).refuses()
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("name", "seed", "why"),
    [(ORIGIN, b"\xfc" * 32, "the name under another key"), ("log.test/other", SEED, "the key under another name")],
)
def test_both_refuse_another_log(program: Path, written: Path, name: str, seed: bytes, why: str) -> None:
    other = format_vkey(name, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
    assert refused_by_ours(written, parse_vkey(other))
    assert "checkpoint: note has no verifiable signatures" in Foreign(program, written).refuses(other)


def test_go_refuses_a_file_among_the_tiles_that_is_not_the_trees(program: Path, written: Path) -> None:
    stray = written / "public/tile/0/002"
    stray.write_bytes(b"x" * TILE_WIDTH * HASH_BYTES)
    try:
        assert "tile/0/002: no such tile in the tree" in Foreign(program, written).refuses()
    finally:
        stray.unlink()
    Foreign(program, written).accepts()
