"""``commonweal node train``: one community, one machine, no coordinator – the adapter, its report, and a sweep."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from commonweal_node.commands.train import train
from commonweal_node.training.checkpoints import CheckpointFile, decode
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.keys import create_key_file
from commonweal_protocols.cli import run as program
from tests.kit.processes import PROGRAM
from tests.kit.tiny_home import make_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def run(home: Path, steps: int | None = None, pareto: str | None = None) -> None:
    """The command in this process, where torch is loaded already."""
    train(home / "terms.toml", home, steps, pareto, points=2)


def test_an_adapter_and_its_report_come_out_and_the_seed_fixes_both(home: Path) -> None:
    adapters = []
    for _ in range(2):
        run(home, steps=4)
        adapters.append((home / "local/adapter/adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    report = json.loads((home / "local/runs/train.json").read_text())
    assert report["course"]["step"] == 4
    assert report["weights"] == {"supervised": 0.9, "base-kl": 0.1}
    assert len(report["course"]["losses"]["base-kl"]) == 4
    assert 0 <= report["membership"]["auc"] <= 1
    assert not (home / "local/training/checkpoint.safetensors").exists()
    assert "what of" not in (home / "local/runs/train.html").read_text()


def test_curated_rows_are_trained_on(home: Path) -> None:
    create_key_file(home / "keys/institution.pem")
    with (home / "charter.toml").open("a") as charter:
        charter.write('[[data.stages]]\nstage = "split"\nheldout_millis = 500\n')
    assert program(["node", "data", "add", str(home / "rows.jsonl"), "--home", str(home)]) == 0
    assert program(["node", "data", "curate", "--home", str(home)]) == 0
    settings = home / "node.toml"
    settings.write_text(settings.read_text().replace('"rows.jsonl"', '"data/curated/rows.jsonl"'))
    run(home, steps=1)
    assert (home / "local/adapter/adapter_model.safetensors").exists()


def test_after_kill_9_the_program_goes_on_where_it_was_and_ends_with_the_same_bytes(home: Path) -> None:
    with (home / "node.toml").open("a") as settings:
        settings.write("checkpoint_seconds = 0\n")
    adapter, path = home / "local/adapter/adapter_model.safetensors", home / "local/training/checkpoint.safetensors"
    run(home, steps=40)
    wanted = adapter.read_bytes()
    adapter.unlink()
    command = [PROGRAM, "node", "train", "--home", str(home), "--compact", str(home / "terms.toml"), "--steps", "40"]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not path.exists():
        assert victim.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    # A mark in what is kept: it can come into the report only by way of the checkpoint.
    with safe_open(path, framework="np") as file:
        identity = json.loads(file.metadata()["commonweal.training"])["identity"]
    kept = CheckpointFile(path, every_seconds=0)
    state = decode(kept.load(identity))
    assert 1 <= state.course.step < 40
    state.course.losses["supervised"][0] = 123.0
    kept.save(identity, state)
    run(home, steps=40)
    assert adapter.read_bytes() == wanted
    course = json.loads((home / "local/runs/train.json").read_text())["course"]
    assert (course["step"], course["losses"]["supervised"][0]) == (40, 123.0)


def test_a_sweep_shows_every_objective_at_every_share(home: Path) -> None:
    # All of the weight on the anchor would train nothing.
    with pytest.raises(ConfigError, match="base-kl at 1000: objectives: wanted a weight above 0 for supervised"):
        run(home, pareto="supervised,base-kl")
    with (home / "charter.toml").open("a") as charter:
        charter.write("simpo_millis = 500\n")
    with (home / "rows.jsonl").open("a") as rows:
        for split in ("train", "heldout"):
            rows.write(json.dumps({"prompt": "may I?", "chosen": "yes", "rejected": "no", "split": split}) + "\n")
    run(home, pareto="supervised, simpo")
    page = (home / "local/pareto.html").read_text()
    cells = re.findall(r"<td>(\d+\.\d{4})</td>", page)
    assert len(cells) == 2 * 3
    assert all(name in page for name in ("supervised", "simpo", "base-kl"))
    assert not (home / "local/adapter").exists()


@pytest.mark.parametrize("names", ["supervised", "supervised,nothing", "a,b,c"])
def test_a_sweep_over_anything_but_two_objectives_is_refused(home: Path, names: str) -> None:
    with pytest.raises(ConfigError, match="--pareto: wanted two of supervised, text, dpo, simpo, base-kl, as A,B, got"):
        run(home, pareto=names)
