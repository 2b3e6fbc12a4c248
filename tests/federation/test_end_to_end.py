"""Whole federations of real processes: TLS, training, kill -9, and an audit from the public records alone."""

import json
import os
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from commonweal_coordinator.log.object_storage import open_s3
from commonweal_coordinator.log.storage import StorageSource
from commonweal_protocols.base.keys import load_ml_dsa_key_file
from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.rounds import Round, Update
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.note import open_note
from tests.kit.proc import descendants
from tests.kit.processes import CANARY, NAMES, PROGRAM, Processes
from tests.kit.s3 import CREDENTIALS, serve_s3

pytestmark = pytest.mark.slow
MAX_AT_REST_BYTES = 250 << 20
DEMO = Path(__file__).parents[2] / "deploy/demo"


@pytest.fixture(scope="module")
def survivors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two rounds, in which a node and then the coordinator are killed in mid-round and started again."""
    with Processes(tmp_path_factory.mktemp("federation"), steps=150) as p:
        p.start_all()
        p.wait("the clinic to train", lambda: p.status("clinic").get("phase") == "training")
        p.kill("clinic")
        p.start("clinic")

        def answered() -> bool:
            state = p.state()
            return bool(state and state.rounds and state.rounds[0].updates and state.open_round)

        p.wait("an update of a round that is still open", answered)
        p.kill("coordinator")
        p.start("coordinator")
        p.wait("two ratified releases and everybody's decision", lambda: p.finished(2))
        yield p


def audit(p: Processes, *options: str | Path, cwd: Path | None = None) -> bytes:
    """The report of an auditor of its own, who must find that the records hold."""
    done = subprocess.run(
        [PROGRAM, "audit", "run", *map(str, options), "--no-memory", "--json"],
        capture_output=True,
        cwd=cwd,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rounds_end_although_a_node_and_the_coordinator_were_killed(survivors: Processes) -> None:
    state = survivors.finished(2)
    assert state is not None
    for r in state.rounds:
        assert sorted(r.updates) == sorted(NAMES), "nobody's update is lost"
        assert r.incident is None
        assert r.release is not None
        assert r.release.is_ratified
    # No institution has contributed twice, and none has broken its chain: the replay above would have raised.
    source = DirectorySource(survivors.public)
    entries = list(read_entries(source, 0, unverified_size(read_checkpoint(source))))
    kinds = [type(open_entry(e).statement.predicate) for e in entries]
    assert (kinds.count(Identity), kinds.count(Round), kinds.count(Update)) == (3, 2, 6)


def test_two_auditors_in_two_places_hold_equal_bytes(survivors: Processes, tmp_path: Path) -> None:
    invite = json.loads((survivors.coordinator / "invite.json").read_text())
    over_https = audit(survivors, invite["records"], "--ca", survivors.coordinator / "tls/ca.pem")
    elsewhere = tmp_path / "usb stick"
    # Exactly what is served, so the copy proves that nothing else is needed.
    for part in ("checkpoint", "tile", "blob"):
        source = survivors.public / part
        if source.is_dir():
            shutil.copytree(source, elsewhere / part)
        else:
            elsewhere.mkdir(exist_ok=True)
            shutil.copy(source, elsewhere / part)
    assert audit(survivors, elsewhere, cwd=tmp_path) == over_https
    report = json.loads(over_https)
    assert report["verdict"] == "pass"
    assert [r["release"]["check"] for r in report["rounds"]] == ["recomputed", "recomputed"]


def test_an_auditor_who_expects_another_consortium_is_told(survivors: Processes) -> None:
    out = survivors.command("audit", "run", survivors.public, "--consortium", "0" * 64, "--no-memory", code=1)
    assert "verdict    fail" in out


def test_no_community_row_leaves_its_node(survivors: Processes) -> None:
    leaks = []
    for path in survivors.home.rglob("*"):
        if path.is_file() and path.suffix != ".jsonl" and CANARY.encode() in path.read_bytes():
            leaks.append(path)
    assert leaks == [], "not in the records, not in a log or status file"


def test_training_has_changed_the_adapter_and_lowered_the_loss(survivors: Processes) -> None:
    state = survivors.finished(2)
    assert state is not None
    newest = state.ratified()
    assert newest is not None
    assert newest.release.adapter != state.compact.start
    for adoption in newest.adoptions.values():
        heldout = adoption.heldout
        assert heldout.local_micronats < heldout.base_micronats
        assert heldout.shared_micronats < heldout.base_micronats


def test_what_serves_is_a_peft_folder_on_disk_whatever_was_decided_on_the_newest_release(survivors: Processes) -> None:
    state = survivors.finished(2)
    assert state is not None
    newest = state.ratified()
    assert newest is not None
    for name, adoption in newest.adoptions.items():
        assert adoption.serves is not None
        config = json.loads((survivors.node(name) / "adopted/adapter_config.json").read_text())
        assert config["r"] == state.compact.adapter.rank * (2 if adoption.serves.kind == "blend" else 1)
        assert Path(config["base_model_name_or_path"]).is_dir(), "any program that loads PEFT folders finds the base"


def test_status_and_doctor_speak_for_a_running_federation(survivors: Processes) -> None:
    found = json.loads(survivors.command("coordinator", "status", "--home", survivors.coordinator, "--json"))
    assert (found["phase"], found["ratified"], found["trouble"]) == ("running", 2, "")
    for name in NAMES:
        home = survivors.node(name)
        assert json.loads(survivors.command("node", "status", "--home", home, "--json"))["institution"] == name
        checks = json.loads(survivors.command("node", "doctor", "--home", home, "--json"))
        assert [c["name"] for c in checks if not c["ok"]] == []


def test_a_dead_coordinator_is_named_and_nodes_stay_up_and_go_on(survivors: Processes) -> None:
    """The last test of this federation: it ends it."""
    survivors.kill("coordinator")
    for name in NAMES:
        assert "127.0.0.1" in survivors.wait(f"{name} to notice", partial(survivors.trouble, name))
    survivors.start("coordinator")
    survivors.wait("all of them to go on", lambda: not any(map(survivors.trouble, NAMES)))
    assert [survivors.stop(name) for name in (*NAMES, "coordinator")] == [0, 0, 0, 0]


# -- what goes wrong, one federation


def test_a_wrong_base_is_named_and_mended_and_a_refusal_is_logged_with_its_reason(tmp_path: Path) -> None:
    with Processes(tmp_path, steps=5, rounds=1) as p:
        with (p.node("clinic") / "node.toml").open("a") as f:
            f.write('refuse = "our board meets next week"\n')
        config = tmp_path / "base/config.json"
        honest = config.read_bytes()
        config.write_bytes(honest + b" ")
        p.start("coordinator")
        for name in NAMES:
            p.command("node", "join", p.coordinator / "invite.json", "--home", p.node(name), "--yes")
        # Two of them, since the first entry wants two witnesses.
        for name in ("coop", "school"):
            p.start(name)
        trouble = p.wait("the school's complaint", partial(p.trouble, "school"))
        assert "wanted the folder's digest" in trouble
        config.write_bytes(honest)
        assert (p.stop("school"), p.stop("coop")) == (0, 0), "they had stayed up"
        for name in NAMES:
            p.start(name)
        state = p.wait("a release of the two that took part", lambda: p.released(1))
        assert dict(state.rounds[0].refusals) == {"clinic": "our board meets next week"}
        assert sorted(state.rounds[0].updates) == ["coop", "school"]


def test_a_round_without_a_quorum_is_closed_with_the_reason(tmp_path: Path) -> None:
    with Processes(tmp_path, steps=5, rounds=1) as p:
        for name in ("clinic", "coop"):
            with (p.node(name) / "node.toml").open("a") as f:
                f.write(f'refuse = "{name} is busy"\n')
        p.start_all()

        def closed() -> str | None:
            state = p.state()
            return state.rounds[0].incident if state and state.rounds else None

        reason = p.wait("the round to be closed", closed)
        assert reason == "wanted 2 updates, got 1; clinic refused: clinic is busy; coop refused: coop is busy"


def test_a_stopped_log_is_mended_while_its_daemon_runs_and_ctrl_c_ends_that(
    tmp_path: Path,
) -> None:
    with Processes(tmp_path, rounds=0) as p:
        p.start("coordinator")
        for name in NAMES:
            with (p.node(name) / "node.toml").open("a") as f:
                f.write("unload_after_seconds = 1\n")
            p.command("node", "join", p.coordinator / "invite.json", "--home", p.node(name), "--yes")
        for name in ("clinic", "coop"):
            p.start(name)
        p.wait("the founding compact and two identities", lambda: p.status("coordinator").get("size") == 3)
        # Where the next entry's tile has to lie, something is in the way: that write fails after the commit.
        in_the_way = p.public / "tile/0/000.p/4"
        (in_the_way / "something").mkdir(parents=True)
        p.start("school")
        p.wait("its trouble", lambda: "the log is opened anew in" in p.trouble("coordinator"))
        shutil.rmtree(in_the_way)
        p.wait("the entry, under the same daemon", lambda: p.status("coordinator").get("size") == 4)
        p.wait("no trouble", lambda: not p.trouble("coordinator"))
        assert p.status("coordinator")["pid"] == p.running["coordinator"].pid
        assert json.loads(audit(p, p.public))["entries"] == {"compact": 1, "identity": 3}
        p.wait("everybody to wait", lambda: all(p.status(n).get("doing") == "for a round" for n in NAMES))
        p.wait("the coordinator to rest", lambda: p.status("coordinator").get("step") == "rest")
        running = [process.pid for process in p.running.values()]
        p.wait("one process a daemon, since the models are unloaded", lambda: not any(map(descendants, running)))
        assert [pid for pid in running if psutil.Process(pid).memory_info().rss > MAX_AT_REST_BYTES] == []
        for process in p.running.values():
            process.send_signal(signal.SIGINT)
        assert [process.wait(30) for process in p.running.values()] == [0, 0, 0, 0]
        p.running.clear()


# -- a log in a bucket


def test_a_log_in_a_bucket_is_founded_killed_recovered_and_audited_over_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with serve_s3() as s3:
        bucket = s3.bucket()
        options = ["--log-store", bucket, "--log-endpoint", s3.endpoint, "--post-quantum"]
        with Processes(tmp_path, rounds=0, coordinator_options=options) as p:
            p.start("coordinator")
            for name in NAMES:
                p.command("node", "join", p.coordinator / "invite.json", "--home", p.node(name), "--yes")
            # Two of them are the witnesses' quorum.
            p.start("clinic")
            p.start("coop")

            def size() -> object:
                return p.status("coordinator").get("size")

            p.wait("the founding compact and two identities", lambda: size() == 3)
            p.kill("coordinator")
            (p.coordinator / "status.json").unlink()
            p.start("coordinator")
            p.wait("the same log", lambda: size() == 3)
            p.start("school")
            p.wait("the third identity", lambda: size() == 4)
            invite = json.loads((p.coordinator / "invite.json").read_text())
            report = json.loads(audit(p, invite["records"], "--ca", p.coordinator / "tls/ca.pem"))
            assert (report["verdict"], report["entries"]) == ("pass", {"compact": 1, "identity": 3})
            assert {path.name for path in p.public.iterdir()} <= {"blob", ".partial"}, "no tile lies on this disk"
            storage = open_s3(bucket, endpoint=s3.endpoint)
            vkey = make_cosignature_verifier(
                report["origin"], load_ml_dsa_key_file(p.coordinator / "keys/log-ml-dsa.pem").public_key()
            )
            assert open_note(read_checkpoint(StorageSource(storage)), [vkey]).lines
            assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in (p.coordinator / "daemon.log").read_text()


# -- the real model


@pytest.mark.model
@pytest.mark.timeout(900)
def test_one_round_on_the_real_model_and_the_demos_own_rows(tmp_path: Path) -> None:
    cache = os.environ.get("COMMONWEAL_BASE_CACHE")
    terms = (DEMO / "compact.toml").read_text()
    if cache is None or not (Path(cache) / tomllib.loads(terms)["base"]["sha256"]).is_dir():
        pytest.skip("COMMONWEAL_BASE_CACHE does not name a folder with the demo's base model")
    terms = terms.replace("steps = 12", "steps = 3")
    rows = {name: DEMO / f"communities/{name}.jsonl" for name in ("harbour-school", "tool-coop")}
    with Processes(tmp_path, terms=terms, rows=rows, cache=Path(cache), rounds=1) as p:
        p.start_all()
        # Two trainings and two choices over two dozen rows, on cores that other tests are using.
        state = p.wait("a ratified release and both decisions", lambda: p.finished(1), seconds=800)
        assert json.loads(audit(p, p.public))["rounds"][0]["release"]["check"] == "recomputed"
        newest = state.ratified()
        assert newest is not None
        assert sorted(newest.ratified_by) == sorted(rows)
        for adoption in newest.adoptions.values():
            # Three steps on it already fit the community better than the base does.
            assert adoption.heldout.shared_micronats < adoption.heldout.base_micronats - 100_000
