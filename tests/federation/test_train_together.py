"""``commonweal node train`` as several processes: the program itself, launched, killed, and started again."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from commonweal_node.training.checkpoints import Course
from tests.kit.launch import launch, start
from tests.kit.processes import PROGRAM, Processes
from tests.kit.tiny_home import make_home

STEPS = "60"
ADAPTER = "local/adapter/adapter_model.safetensors"
CHECKPOINT = "local/training/checkpoint.safetensors"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home, where each step has several parts and is kept."""
    home = tmp_path / "node"
    home.mkdir()
    make_home(home)
    settings = home / "node.toml"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith("threads")]
    settings.write_text("\n".join([*kept, "threads = 1", "checkpoint_seconds = 0", "batch_tokens = 64", ""]))
    return home


@pytest.fixture
def worker_home(home: Path) -> Path:
    """What an operator copies to another host: settings and data; no key, no charter, no terms."""
    other = home.parent / "worker"
    other.mkdir()
    for name in ("node.toml", "rows.jsonl"):
        shutil.copy(home / name, other)
    return other


def training(home: Path, terms: Path) -> list[str]:
    return ["commonweal_protocols", "node", "train", "--home", str(home), "--compact", str(terms), "--steps", STEPS]


def kept_step(home: Path) -> int:
    """The step at which the newest checkpoint was made; 0: there is none."""
    try:
        header = (home / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return 0
    size = int.from_bytes(header[:8], "little")
    kept = json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["commonweal.training"])
    return Course.model_validate(kept["course"]).step


def wait_for_step(home: Path, above: int, processes: list[subprocess.Popen[str]]) -> int:
    until = time.monotonic() + 100
    while (step := kept_step(home)) <= above:
        assert [p.poll() for p in processes] == [None] * len(processes)
        assert time.monotonic() < until
        time.sleep(0.005)
    return step


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what was said on stderr, on one line."""
    _, said = process.communicate(timeout=100)
    return process.returncode, " ".join(said.split())


@pytest.mark.slow
def test_killed_processes_end_the_others_and_all_of_them_started_again_end_with_the_same_bytes(
    home: Path, worker_home: Path
) -> None:
    done = launch(home, 2, *training(home, home / "terms.toml"))
    assert done.returncode == 0, done.stderr
    # Only process 0 prints.
    assert done.stdout.split() == [f"{home}/local/adapter,", "report", f"{home}/local/runs/train.html"]
    assert ", 2 processes" in json.loads((home / "local/runs/train.json").read_text())["machine"]
    unbroken = (home / ADAPTER).read_bytes()
    shutil.rmtree(home / "local")
    together = (training(home, home / "terms.toml"), training(worker_home, worker_home / "none.toml"))

    node, worker = start(home, *together)
    step = wait_for_step(home, 0, [node, worker])
    worker.kill()
    code, said = ends(node)
    assert code == 4
    assert "processes: wanted an answer of all 2, got none: one of them has ended" in said
    assert "start all of them again" in said
    ends(worker)

    node, worker = start(home, *together)
    step = wait_for_step(home, step, [node, worker])
    node.kill()
    code, said = ends(worker)
    assert code == 4
    assert "one of them has ended" in said
    ends(node)
    assert step < int(STEPS)

    processes = start(home, *together)
    assert [ends(p)[0] for p in processes] == [0, 0]
    assert (home / ADAPTER).read_bytes() == unbroken
    course = json.loads((home / "local/runs/train.json").read_text())["course"]
    assert course["step"] == int(STEPS)
    # A worker has written nothing but the base model's cache, and had no key to read.
    assert {p.name for p in worker_home.iterdir()} == {"node.toml", "rows.jsonl", "cache"}


@pytest.mark.slow
def test_one_process_under_the_launcher_trains_the_bytes_of_one_without(home: Path) -> None:
    arguments = training(home, home / "terms.toml")
    subprocess.run([PROGRAM, *arguments[1:]], check=True, capture_output=True)
    alone = (home / ADAPTER).read_bytes()
    shutil.rmtree(home / "local")
    done = launch(home, 1, *arguments)
    assert done.returncode == 0, done.stderr
    assert (home / ADAPTER).read_bytes() == alone


@pytest.mark.slow
def test_a_worker_with_other_rows_ends_the_start_and_idle_processes_are_told_of(home: Path, worker_home: Path) -> None:
    rows = worker_home / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text(whole.replace("what of 3?", "what of 4?"))
    together = (training(home, home / "terms.toml"), training(worker_home, worker_home / "none.toml"))
    for code, said in map(ends, start(home, *together)):
        assert code == 2
        assert "rows: wanted the same in every process as in process 0, got another in process 1 on" in said
        assert "copy node.toml and the data of process 0 to that host again" in said
    rows.write_text(whole)
    with (home / "node.toml").open("a") as settings:
        settings.write("max_heldout_rows = 8\n")
    (home / "charter.toml").write_text((home / "charter.toml").read_text().replace("base_kl_millis = 100\n", ""))
    shutil.copy(home / "node.toml", worker_home)
    (code, said), (worker_code, worker_said) = map(ends, start(home, *together))
    assert (code, worker_code) == (0, 0)
    # Two short conversations are one part: one of the two processes has nothing to do.
    assert said.count("got 1: the others are idle") == 1
    assert "lower batch_tokens in node.toml" in said
    assert "idle" not in worker_said


@pytest.mark.slow
def test_a_daemon_of_two_processes_answers_a_round_and_its_worker_has_no_key(tmp_path: Path) -> None:
    worker_home = tmp_path / "worker"
    with Processes(tmp_path, rounds=1, steps=12) as p:
        p.start("coordinator")
        p.wait("the coordinator to answer", lambda: p.status("coordinator").get("phase"))
        for name in p.names:
            p.command("node", "join", p.coordinator / "invite.json", "--home", p.node(name), "--yes")
        for name in ("coop", "school"):
            p.start(name)
        worker_home.mkdir()
        # The data and the cache are named in it by their whole paths.
        shutil.copy(p.node("clinic") / "node.toml", worker_home)
        homes = (p.node("clinic"), worker_home)
        pair = start(tmp_path, *(["commonweal_protocols", "node", "run", "--home", str(home)] for home in homes))
        try:
            state = p.wait("a release", lambda: p.finished(1), seconds=200)
            report = json.loads((p.node("clinic") / "runs/round-1.json").read_text())
            assert ", 2 processes" in report["machine"]
            assert report["course"]["step"] == 12
            assert "clinic" in state.rounds[0].updates
            # As a launcher stops them: all at once. It is process 0 that has the worker end.
            for process in reversed(pair):
                process.terminate()
            assert [ends(process)[0] for process in pair] == [0, 0]
        finally:
            for process in pair:
                process.kill()
                process.communicate()
    assert {f.name for f in worker_home.iterdir()} == {"node.toml"}
