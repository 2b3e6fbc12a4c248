"""The program: what its commands make, what they refuse, and with which exit code."""

import importlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import typer
from typer.core import TyperGroup

from commonweal_coordinator.config import load_config as load_coordinator_config
from commonweal_coordinator.serving.tls import TlsFiles
from commonweal_node.config import SpeaksFor, load_config
from commonweal_node.connection.status import NodeStatus
from commonweal_node.home import NodeHome
from commonweal_node.institution import join as founding
from commonweal_node.model.base_model import folder_digest
from commonweal_protocols.base import errors
from commonweal_protocols.base.files import locked
from commonweal_protocols.base.keys import load_key_file, public_hex
from commonweal_protocols.base.status_file import save_status
from commonweal_protocols.cli import GROUPS, root
from commonweal_protocols.statements.invite import Card, Invite
from tests.kit.federation import NAMES, Federation, changed, key_of
from tests.kit.https_clock import ahead, coordinator
from tests.kit.launch import free_port
from tests.kit.rows import ROW
from tests.kit.terminal import Terminal

REPOSITORY = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("commonweal")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (ROW, {**ROW, "split": "heldout"})))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_name_that_is_no_text_is_refused_in_one_sentence_before_anything_is_made(tmp_path: Path, rows: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/h\xf4me"
    init = [str(PROGRAM), "node", "init", "--institution", "a", "--data", str(rows), "--home"]
    os.mkdir(odd + b"-too")
    tried: list[tuple[str | bytes, Path | bytes]] = [(odd, tmp_path), ("home", odd + b"-too")]
    for home, folder in tried:
        done = subprocess.run([*init, home], cwd=folder, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.endswith(b": wanted a name in UTF-8, got other bytes; rename it\n")
        assert done.stderr.count(b"\n") == 1
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"h\xf4me-too", b"rows.jsonl"]
    assert os.listdir(odd + b"-too") == []


# -- help


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, TyperGroup):
        context = typer.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


def entry_points() -> dict[str, str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    points: dict[str, str] = project["entry-points"]["commonweal.commands"]
    return points


def installed(group: str) -> bool:
    return root.get_command(typer.Context(root), group) is not None


def test_every_group_is_an_entry_point_that_loads() -> None:
    assert entry_points().keys() == GROUPS.keys()
    for point in entry_points().values():
        module, _, name = point.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), typer.Typer)


def test_every_command_says_what_it_is_for(program: Terminal) -> None:
    seen = set()
    for group in filter(installed, GROUPS):
        command = root.get_command(typer.Context(root), group)
        assert command is not None
        for path in commands(command, (group,)):
            assert program(*path, "--help") == 0
            assert "Usage: commonweal " + " ".join(path) in program.out
            assert program.err == ""
            seen.add(path)
    wanted = {"init", "join", "run", "status", "doctor", "fetch-base"}
    assert {path[1] for path in seen if path[0] == "node" and len(path) == 2} >= wanted
    assert ("coordinator", "init") in seen


def test_the_programs_own_help_names_every_role(program: Terminal) -> None:
    assert program("--help") == 0
    for name, what in GROUPS.items():
        assert name in program.out
        assert what in " ".join(program.out.split())


# -- exit codes

CODES: list[tuple[type[BaseException], int]] = [
    (errors.MalformedError, 1),
    (errors.SignatureError, 1),
    (errors.LogError, 1),
    (errors.RuleError, 1),
    (errors.ChainConflictError, 1),
    (errors.BlobError, 1),
    (errors.ConfigError, 2),
    (errors.StorageError, 4),
    (errors.UnavailableError, 4),
    (errors.BaseModelError, 4),
    (KeyboardInterrupt, 130),
]


@dataclass
class Joining:
    """A node that has been set up, and an invite."""

    home: Path
    invite: Path

    def __post_init__(self) -> None:
        self.args = ("node", "join", self.invite, "--home", self.home)


@pytest.fixture
def joining(program: Terminal, rows: Path, tmp_path: Path) -> Joining:
    home, invite = tmp_path / "home", tmp_path / "invite.json"
    assert program("node", "init", "--institution", "clinic", "--data", rows, "--home", home) == 0
    port = free_port()  # nobody answers there
    Invite.model_validate(
        {
            "consortium": "ab" * 32,
            "name": "three",
            "exchange": f"127.0.0.1:{port}",
            "records": f"https://127.0.0.1:{port}",
            "ca_pem": "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        }
    ).save(invite)
    return Joining(home, invite)


@pytest.mark.parametrize(("error", "code"), CODES, ids=[c[0].__name__ for c in CODES])
def test_every_error_has_its_exit_code_and_is_one_sentence(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("thing: wanted [red]X[/], got Y")

    monkeypatch.setattr(founding, "check_draft", fail)
    assert program(*joining.args) == code
    said = "interrupted" if code == 130 else "thing: wanted [red]X[/], got Y"
    assert program.err.lstrip("\n") == f"commonweal: {said}\n"
    assert program.out == ""


def test_a_bug_crashes_loudly(program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(founding, "check_draft", fail)
    with pytest.raises(ZeroDivisionError):
        program(*joining.args)


@pytest.mark.parametrize(("package", "code"), [("torch", 3), ("flwr.app", 3), ("commonweal_node.nothing", None)])
def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch, package: str, code: int | None
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(founding, "check_draft", fail)
    if code is None:  # one of our own modules: that is a bug, and no extra fixes it
        with pytest.raises(ModuleNotFoundError):
            program(*joining.args)
        return
    assert program(*joining.args) == code
    assert program.err == (
        f"commonweal: the package {package!r} is not installed; run: pip install 'commonweal[node]'\n"
    )


USAGE: list[tuple[str, str]] = [
    ("nonsense", "No such command"),
    ("node nonsense", "No such command"),
    ("node init", "Missing option"),
    ("node init --institution clinic --data x --threads many", "--threads"),
    ("node status --hoem x", "hoem"),
    ("coordinator init", "Missing option"),
]


@pytest.mark.parametrize(("line", "message"), USAGE, ids=[u[0] for u in USAGE])
def test_wrong_usage_is_code_2(program: Terminal, line: str, message: str) -> None:
    assert program(*line.split()) == 2
    assert message in program.err


def test_the_real_program_exits_as_it_says(tmp_path: Path) -> None:
    def code(*command: str | Path) -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert code(PROGRAM, "--version") == (0, "")
    assert code(PROGRAM, "nonsense")[0] == 2
    assert code(PROGRAM, "node", "status", "--home", "nowhere") == (
        4,
        "commonweal: nowhere/status.json: wanted the status of a node that has run here, got no such file\n",
    )
    bug = "import sys; from commonweal_protocols import cli; cli.run = lambda _: 1 // 0; cli.main()"
    done = subprocess.run([sys.executable, "-c", bug], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (70, True)
    without_torch = "import sys; sys.modules['torch'] = None; from commonweal_protocols.cli import main; main()"
    assert code(sys.executable, "-c", without_torch, "node", "run") == (
        3,
        "commonweal: the package 'torch' is not installed; run: pip install 'commonweal[node]'\n",
    )


def test_a_second_daemon_of_a_home_ends_and_says_whose_it_is(program: Terminal, joining: Joining) -> None:
    with locked(NodeHome(joining.home).daemon_lock, "this test's"):
        assert program("node", "run", "--home", joining.home) == 4
    assert "wanted the node of clinic for this process alone, got another at work" in program.err


# -- node init


def test_init_makes_keys_card_and_settings_with_the_right_modes(program: Terminal, rows: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    charter = REPOSITORY / "deploy/demo/communities/tool-coop.charter.toml"
    options = ("--threads", "2", "--max-heldout-rows", "8", "--cache", tmp_path / "base")
    args = ("node", "init", "--institution", "tool-coop", "--data", rows, "--charter", charter, "--home", home)
    assert program(*args, *options) == 0
    assert stat.S_IMODE((home / "keys/institution.pem").stat().st_mode) == 0o600
    key = public_hex(load_key_file(home / "keys/institution.pem"))
    card = Card.load(home / "card.json")
    assert (card.institution, card.key) == ("tool-coop", key)
    config = load_config(home / "node.toml")
    assert (config.institution, config.data, config.charter) == ("tool-coop", rows, charter)
    assert (config.threads, config.max_heldout_rows) == (2, 8)
    assert config.cache == tmp_path / "base"
    assert config.refuse == ""
    assert key in program.out
    # Nothing private lies outside of keys/, or is printed.
    private = {name for name, data in files(home).items() if b"PRIVATE" in data}
    assert private == {"keys/institution.pem"}
    assert "PRIVATE" not in program.out


@pytest.mark.parametrize("place", ["https://ring.test:7401", "folder"])
def test_a_node_that_speaks_for_a_consortium_has_it_in_its_card_and_its_settings(
    program: Terminal, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    home, whose = tmp_path / "home", "ab" * 32
    args = ("node", "init", "--institution", "delta", "--data", rows, "--home", home)
    assert program(*args, "--speaks-for", whose, "--speaks-for-records", place) == 0
    assert Card.load(home / "card.json").member().consortium == whose
    wanted = str(tmp_path / "folder") if place == "folder" else place
    assert load_config(home / "node.toml").speaks_for == SpeaksFor(consortium=whose, records=wanted)


def test_a_node_is_set_up_once(program: Terminal, joining: Joining, rows: Path) -> None:
    before = files(joining.home)
    assert program("node", "init", "--institution", "school", "--data", rows, "--home", joining.home) == 2
    assert "node.toml: exists already, with institution clinic; wanted the same, got school" in program.err
    assert program("node", "init", "--institution", "clinic", "--data", rows, "--home", joining.home) == 2
    assert "node.toml: exists already; a node is set up once, and only a witness can be added" in program.err
    assert files(joining.home) == before


def test_a_witness_is_added_to_a_home_and_nothing_there_is_replaced(
    program: Terminal, joining: Joining, rows: Path
) -> None:
    settings = joining.home / "node.toml"
    settings.write_text(settings.read_text() + 'refuse = "harvest"  # until June\n')
    before, home = files(joining.home), joining.home
    args = ("node", "init", "--institution", "clinic", "--data", rows, "--home", home, "--witness-port", "7500")
    assert program(*args) == 0
    after = files(home)
    assert {name for name in after if after[name] != before.get(name)} - before.keys() == {
        "keys/witness.pem", "witness/cosigned.sqlite",
    }  # fmt: skip
    assert {name for name in before if after[name] != before[name]} == {"node.toml", "card.json"}
    config = load_config(settings)
    assert (config.witness_port, config.witness_host, config.refuse) == (7500, "127.0.0.1", "harvest")
    assert "# until June" in settings.read_text()
    card = Card.load(home / "card.json")
    assert card.key == public_hex(load_key_file(home / "keys/institution.pem"))
    assert card.witness is not None
    assert card.witness.url == "http://127.0.0.1:7500"
    assert program(*args[:-1], "7501") == 2, "there is one now, and it stays"
    assert files(home) == after


def test_a_lost_key_is_not_replaced_by_another(program: Terminal, joining: Joining, rows: Path) -> None:
    (joining.home / "keys/institution.pem").unlink()
    before = files(joining.home)
    args = ("node", "init", "--institution", "clinic", "--data", rows, "--home", joining.home)
    assert program(*args, "--witness-port", "7500") == 4
    assert files(joining.home) == before


def test_a_set_up_that_was_cut_off_goes_on_with_the_same_keys(program: Terminal, joining: Joining, rows: Path) -> None:
    before = files(joining.home)
    (joining.home / "node.toml").unlink()
    (joining.home / "card.json").unlink()
    assert program("node", "init", "--institution", "clinic", "--data", rows, "--home", joining.home) == 0
    assert files(joining.home) == before


BAD_INIT: list[tuple[str, str]] = [
    ("--institution Clinic!", "institution: String should match pattern"),
    ("--institution ../clinic", "institution: String should match pattern"),
    ("--data nowhere.jsonl", "nowhere.jsonl: wanted a file, got none"),
    ("--charter nowhere.toml", "nowhere.toml: wanted a file, got none"),
    ("--threads -1", "threads: Input should be greater than or equal to 0, got '-1'"),
    ("--max-heldout-rows 3", "max_heldout_rows: Input should be greater than or equal to 4, got '3'"),
    ("--witness-port -1", "witness_port: Input should be greater than or equal to 0, got '-1'"),
    ("--witness-port 65536", "witness_port: Input should be less than or equal to 65535, got '65536'"),
    ("--speaks-for " + "ab" * 32, "wanted --speaks-for and --speaks-for-records, got only some of them"),
    ("--speaks-for-records https://ring.test", "wanted --speaks-for and --speaks-for-records, got only some of them"),
    ("--speaks-for-ca ring.pem", "wanted --speaks-for and --speaks-for-records, got only some of them"),
    ("--speaks-for ring --speaks-for-records https://ring.test", "node init: consortium: String should match pattern"),
    ("--speaks-for ring --speaks-for-records nowhere", "nowhere: wanted a folder of public records, got none"),
    ("--passphrase-file nowhere", "nowhere: wanted a passphrase file, got no such file"),
    ("--passphrase-file empty", "empty: wanted a passphrase, got an empty file"),
]


@pytest.mark.parametrize(("option", "message"), BAD_INIT, ids=[b[0] for b in BAD_INIT])
def test_a_bad_option_is_refused_before_a_key_is_made(
    program: Terminal, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    named = option.split()
    options: dict[str, str | Path] = {"--institution": "clinic", "--data": rows}
    options |= dict(zip(named[::2], named[1::2], strict=True))
    assert program("node", "init", *(x for pair in options.items() for x in pair), "--home", "home") == 2
    assert message in program.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "Gemeinde-Süd ☀", "it's", "#1"])
def test_a_path_of_any_encoding_comes_back_from_the_settings(
    program: Terminal, rows: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    data = Path(shutil.copy(rows, folder / "rows.jsonl"))
    assert program("node", "init", "--institution", "clinic", "--data", data, "--home", folder / "home") == 0
    config = load_config(folder / "home/node.toml")
    assert (config.data, config.cache) == (data, folder / "home/cache")


def test_the_key_opens_with_its_passphrase_alone(program: Terminal, rows: Path, tmp_path: Path) -> None:
    right, wrong, home = tmp_path / "right", tmp_path / "wrong", tmp_path / "home"
    right.write_text("open sesame\n")
    wrong.write_text("open barley\n")
    args = ("node", "init", "--institution", "clinic", "--data", rows, "--home", home, "--passphrase-file", right)
    assert program(*args) == 0
    assert public_hex(load_key_file(home / "keys/institution.pem", b"open sesame")) in program.out
    assert b"ENCRYPTED" in (home / "keys/institution.pem").read_bytes()
    key_check = {}
    for name, options in {
        "none": (),
        "right": ("--passphrase-file", right),
        "wrong": ("--passphrase-file", wrong),
    }.items():
        assert program("node", "doctor", "--home", home, "--json", *options) == 4
        key_check[name] = json.loads(program.out)[0]
    assert [key_check[n]["ok"] for n in ("none", "right", "wrong")] == [False, True, False]
    assert "wrong passphrase" in key_check["wrong"]["found"]


# -- node join


@pytest.mark.parametrize(
    ("passphrase", "code", "message"),
    [
        ("nowhere", 2, "nowhere: wanted a passphrase file, got no such file"),
        ("wrong", 4, "institution.pem: a passphrase is given"),
    ],
)
def test_a_wrong_passphrase_file_ends_a_command_before_the_coordinator_is_asked(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch, passphrase: str, code: int, message: str
) -> None:
    monkeypatch.chdir(joining.home.parent)
    Path("wrong").write_text("x")
    monkeypatch.setattr(founding, "check_draft", lambda *_: pytest.fail("asked"))
    assert program(*joining.args, "--passphrase-file", passphrase) == code
    assert message in program.err


def test_an_invite_that_is_none_is_refused(program: Terminal, joining: Joining, tmp_path: Path) -> None:
    assert program("node", "join", joining.home / "card.json", "--home", joining.home) == 2
    assert "card.json: wanted a coordinator's invite, got another file: " in program.err
    assert program("node", "join", tmp_path / "nothing.json", "--home", joining.home) == 2
    assert "nothing.json" in program.err


@pytest.mark.parametrize(("said", "code"), [("n\n", 0), ("", 130)], ids=["a no", "no answer"])
def test_nothing_is_signed_without_a_yes_to_what_is_shown(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch, said: str, code: int
) -> None:
    f = Federation()
    monkeypatch.setattr(founding, "check_draft", lambda *_: (b"payload", f.compact))
    monkeypatch.setattr(founding, "sign_draft", lambda *_: pytest.fail("signed"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    assert program(*joining.args) == code
    assert ("nothing was signed" in program.out) == (code == 0)
    for shown in (f.compact.base.reference, f.compact.rule.name, "2 updates, 2 ratifications", *NAMES):
        assert shown in program.out
    assert not (joining.home / "invite.json").exists()


def test_masks_noise_and_encoding_are_shown_before_signing(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"clip_steps": 2 << 20, "sigma_steps": 4 << 20, "budget_micro_rho": 2_400_000}
    quorum = {"updates": 3, "ratifications": 2, "amendments": 2, "witnesses": 0}
    cases: list[tuple[dict[str, object], str]] = [
        ({"encoding": {"bits": 8, "keep_millis": 100}}, "  deltas       the largest 100 of each 1000 elements"),
        ({"privacy": privacy}, "budget: 2.4 of zCDP's rho, of which an update costs 0.5: 4 updates"),
        ({"secure": {}, "quorum": quorum}, "audits cannot see whether one was in range, within a norm, or trained"),
    ]
    for terms, wanted in cases:
        compact = changed(Federation().compact, terms)
        monkeypatch.setattr(founding, "check_draft", lambda *_, compact=compact: (b"payload", compact))
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        assert program(*joining.args) == 0
        assert wanted in program.out


def test_a_compact_in_which_we_are_a_consortium_is_not_signed_by_a_node_that_speaks_for_none(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = Federation()
    members = [{**m, "consortium": "cd" * 32} if m["institution"] == "clinic" else m for m in f.members()]
    compact = changed(f.compact, {"members": members})
    monkeypatch.setattr(founding, "check_draft", lambda *_: (b"payload", compact))
    monkeypatch.setattr(founding, "sign_draft", lambda *_: pytest.fail("signed"))
    assert program(*joining.args, "--yes") == 2
    assert f"wanted an institution of its own, as node.toml has it, got the consortium {'cd' * 32}" in program.err


def test_what_is_shown_before_signing_is_shown_as_it_is(
    program: Terminal, joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = Federation()
    for reference, shown in (
        ("path:/models/[black]tiny[/]", "path:/models/[black]tiny[/], sha256"),
        ("path:/evil\x1b[2K\x1b[1Apath:/good", "path:/evil?[2K?[1Apath:/good, sha256"),
    ):
        base = f.compact.base.model_copy(update={"reference": reference})
        compact = f.compact.model_copy(update={"base": base})
        monkeypatch.setattr(founding, "check_draft", lambda *_, compact=compact: (b"payload", compact))
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        assert program(*joining.args) == 0
        assert shown in program.out


# -- node status, doctor, fetch-base


def test_status_without_a_node_says_so(program: Terminal, tmp_path: Path) -> None:
    for group, what in (("node", "node"), ("coordinator", "coordinator")):
        assert program(group, "status", "--home", tmp_path) == 4
        assert f"status.json: wanted the status of a {what} that has run here, got no such file" in program.err


def test_status_tells_a_dead_node_from_a_live_one_and_prints_its_trouble_as_it_is(
    program: Terminal, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    status = NodeStatus(
        institution="clinic",
        pid=os.getpid(),
        written_at=0.0,
        phase="training",
        doing="[/] round 1",
        steps=5,
        step=2,
        trouble="[bold]x[/]",
    )
    save_status(tmp_path, status)
    assert program("node", "status", "--home", tmp_path, "--json") == 0
    assert NodeStatus.model_validate_json(program.out) == status
    assert program("node", "status", "--home", tmp_path) == 0
    assert "phase        training [/] round 1" in program.out
    assert "step 2 of 5" in program.out
    assert "[bold]x[/]" in program.out
    save_status(tmp_path, status.model_copy(update={"pid": ended.pid}))
    assert program("node", "status", "--home", tmp_path) == 0
    assert "phase        not running" in program.out


def test_doctor_is_code_4_while_something_is_ill_and_0_when_all_is_well(
    program: Terminal,
    joining: Joining,
    tls: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert program("node", "doctor", "--home", joining.home, "--json") == 4
    checks = json.loads(program.out)
    assert [c["name"] for c in checks if not c["ok"]] == ["consortium"]
    assert all(set(c) == {"name", "ok", "found", "fix"} for c in checks)
    assert program("node", "doctor", "--home", joining.home) == 4
    assert f"commonweal node join --home {joining.home} INVITE.json" in program.out
    with coordinator(tls, ahead(0)) as port:
        at = f"127.0.0.1:{port}"
        invite = Invite.load(joining.invite).model_copy(
            update={"exchange": at, "records": f"https://{at}", "ca_pem": tls.ca.read_text()}
        )
        invite.save(joining.home / "invite.json")
        assert program("node", "doctor", "--home", joining.home, "--json") == 0
        assert all(c["ok"] for c in json.loads(program.out))
    assert program("node", "doctor", "--home", joining.home / "elsewhere") == 2
    assert "run: commonweal node init --home" in program.err


def test_doctor_prints_what_it_finds_as_it_is(program: Terminal, joining: Joining, rows: Path) -> None:
    strange = rows.rename(rows.with_name("[red]rows[bold].jsonl"))
    settings = joining.home / "node.toml"
    settings.write_text(settings.read_text().replace(rows.name, strange.name))
    strange.write_text("{}\n")
    assert program("node", "doctor", "--home", joining.home) == 4
    assert "[red]rows[bold].jsonl, line 1: wanted one of messages, text and prompt" in program.out


def test_fetch_base_takes_the_base_that_the_terms_name(program: Terminal, tmp_path: Path) -> None:
    source, cache, terms = tmp_path / "model", tmp_path / "cache", tmp_path / "compact.toml"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"weights")
    args = ("node", "fetch-base", "--compact", terms, "--cache", cache)
    assert program(*args) == 2
    assert "compact.toml: wanted a compact's terms, got no such file" in program.err
    for bad in ("consortium = 'three'", "[base]\nreference = 'https://x'\nsha256 = ''", "[base"):
        terms.write_text(bad)
        assert program(*args) == 2
        assert "compact.toml: wanted a [base] table with reference and sha256" in program.err
    digest = folder_digest(source)
    terms.write_text(f"[base]\nreference = 'path:{source}'\nsha256 = '{'0' * 64}'\n")
    assert program(*args) == 4
    assert f"wanted the folder's digest {'0' * 64}, got {digest}" in program.err
    terms.write_text(f"[base]\nreference = 'path:{source}'\nsha256 = '{digest}'\n")
    for _ in range(2):
        assert program(*args) == 0
        assert program.out == f"base model path:{source}: {cache / digest}\n"


def test_fetch_base_without_terms_wants_a_log_that_answers(program: Terminal, joining: Joining, tls: TlsFiles) -> None:
    Invite.load(joining.invite).model_copy(update={"ca_pem": tls.ca.read_text()}).save(joining.home / "invite.json")
    assert program("node", "fetch-base", "--home", joining.home) == 4
    assert "the consortium's log does not answer; give --compact TERMS.toml" in program.err


# -- coordinator init


@pytest.fixture
def cards(tmp_path: Path) -> list[str | Path]:
    options: list[str | Path] = []
    for name in NAMES:
        Card(institution=name, key=public_hex(key_of(name))).save(tmp_path / f"{name}.json")
        options += ["--card", tmp_path / f"{name}.json"]
    return options


TERMS = """\
consortium = "three"
round_deadline_seconds = 60
max_update_bytes = 4096
[base]
reference = "path:/models/tiny"
sha256 = "abababababababababababababababababababababababababababababababab"
[adapter]
rank = 8
alpha = 16
prefix = "base_model.model.model.layers"
layers = 1
grid_bits = 20
modules = [{ name = "q_proj", in_features = 6, out_features = 4 }]
[recipe]
steps = 12
batch_size = 8
learning_rate_micros = 2000
max_tokens = 160
[rule]
name = "factor-mean"
weights = "equal"
[quorum]
amendments = 2
updates = 2
ratifications = 2
"""
BAD_TERMS: list[tuple[str, str, str]] = [
    ("consortium =", "mood = 1\nconsortium =", "compact.toml: mood: Extra inputs are not permitted, got '1'"),
    ("rank = 8", "rank = 0", "compact.toml: adapter.rank: Input should be greater than or equal to 1, got '0'"),
    ("grid_bits = 20", "grid_bits = 24", "compact.toml: adapter.grid_bits: Input should be less than or equal to 23"),
    (
        'name = "factor-mean"',
        'name = "vibes"',
        "compact.toml: rule: Input tag 'vibes' found using 'name' does not match any of the expected tags",
    ),
    ("\nupdates = 2", "\nupdates = 4", "compact: quorum.updates: wanted at most 3 (the members), got 4"),
    ("ratifications = 2", "ratifications = 1", "quorum.ratifications: wanted more than half of 3 members, got 1"),
    ("[recipe]", "[recipe", "compact.toml: wanted TOML, got: "),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_TERMS, ids=[b[1][:24].strip() for b in BAD_TERMS])
def test_bad_terms_are_refused_and_once_they_are_mended_the_same_command_succeeds(
    program: Terminal, cards: list[str | Path], tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert TERMS.count(old) == 1
    home, terms = tmp_path / "hub", tmp_path / "compact.toml"
    terms.write_text(TERMS.replace(old, new))
    args = ("coordinator", "init", "--compact", terms, *cards, "--home", home)
    assert program(*args) == 2
    assert message in program.err
    assert not (home / "coordinator.toml").exists()
    assert not (home / "invite.json").exists()
    terms.write_text(TERMS)
    assert program(*args) == 0, program.err
    assert Invite.load(home / "invite.json").name == "three"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--name", "Bad Name", "name: String should match"),
        ("--base-port", "65535", "records_port: Input should be less"),
    ],
)
def test_a_coordinators_bad_name_or_port_is_told_before_a_key_is_made(
    program: Terminal, cards: list[str | Path], tmp_path: Path, option: str, value: str, message: str
) -> None:
    terms = tmp_path / "compact.toml"
    terms.write_text(TERMS)
    args = ("coordinator", "init", "--compact", terms, *cards, "--home", tmp_path / "hub")
    assert program(*args, option, value) == 2
    assert f"coordinator: {message}" in program.err
    assert not (tmp_path / "hub").exists()


def test_coordinator_init_makes_an_invite_without_secrets_and_is_done_once(
    program: Terminal, cards: list[str | Path], tmp_path: Path
) -> None:
    home, terms = tmp_path / "hub", tmp_path / "compact.toml"
    terms.write_text(TERMS)
    args = ("coordinator", "init", "--compact", terms, *cards, "--home", home, "--base-port", "7500")
    assert program(*args) == 0
    private = {name for name, data in files(home).items() if b"PRIVATE" in data}
    assert private == {"keys/coordinator.pem", "keys/log.pem", "tls/ca.key.pem", "tls/server.key.pem"}
    for name in private:
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    invite, config = Invite.load(home / "invite.json"), load_coordinator_config(home / "coordinator.toml")
    assert invite.ca_pem == (home / "tls/ca.pem").read_text()
    assert (config.exchange_port, config.records_port) == (7500, 7501)
    assert invite.records == "https://127.0.0.1:7501"
    before = files(home)
    assert program(*args) == 2
    assert "coordinator.toml: exists already; a coordinator is set up once" in program.err
    assert files(home) == before


def test_a_card_that_is_none_or_comes_twice_is_refused(
    program: Terminal, cards: list[str | Path], tmp_path: Path
) -> None:
    terms = tmp_path / "compact.toml"
    terms.write_text(TERMS)
    for extra, message in (
        (terms, "compact.toml: wanted an institution's card, got another file: "),
        (cards[1], "members: a public key is repeated"),
    ):
        args = ("coordinator", "init", "--compact", terms, *cards, "--card", extra, "--home", tmp_path / "hub")
        assert program(*args) == 2
        assert message in program.err
