"""No community row leaves a training: not by messages, files, metrics, logs or the traceback of a crash.

Rows hold canaries. A real process trains on them with everything switched on; then all that it wrote anywhere but in
its own rows' file is searched. Tokens are searched for as well: the checkpoint and the adapter could hold them too.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kit.tiny_model import base_and_adapter, tiny_tokenizer

CANARIES = ("the-heron-keeps-its-own-counsel", "nine-wells-and-one-rope", "a-red-gourd-for-the-bride")
ROOT = Path(__file__).parents[2]

TRAIN = """
import faulthandler, json, logging, sys, threading
from pathlib import Path
faulthandler.enable()
logging.basicConfig(level=logging.DEBUG)
import torch
torch.set_num_threads(1)
from commonweal_adapters.files.delta import make_delta, read_adapter, write_delta
from commonweal_adapters.recompute import recompute_start
from commonweal_node.config import load_config
from commonweal_node.institution.choice import SHARED
from commonweal_node.training.learner import Learner
from commonweal_node.connection.metrics import render_metrics
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.probes.probe import load_probe
from commonweal_node.connection.status import StatusBoard
from commonweal_node.commands.train import Terms
from commonweal_protocols.base.settings import load_toml

home, how = Path(sys.argv[1]), sys.argv[2]
terms = load_toml(home / "terms.toml", Terms)
weights = ObjectiveWeights(text_millis=500, dpo_millis=500, simpo_millis=200, base_kl_millis=100)
board = StatusBoard(home, "clinic")
learner = Learner(terms, load_config(home / "node.toml"), weights, home, board, threading.Event())
start = read_adapter(recompute_start(terms.adapter), terms.adapter)
if how == "crash":
    # A bug in the middle of a training: its traceback shows every line, and the rows are in the frames.
    board.set = lambda **fields: {}[fields["step"]] if fields.get("step") == 3 else None
trained = learner.train(start, terms.recipe, "round 1")
learner.choosing(trained, start, SHARED, 'the release of round 1')
learner.reported(trained, start, SHARED, "own")
learner.probe(load_probe(home / "probes", "rows"), trained, start, SHARED, "probe rows, shared")
learner.export(trained, start, SHARED, home / "adopted")
(home / "delta").write_bytes(write_delta(make_delta(start, trained, terms.adapter), terms.adapter))
(home / "metrics").write_text(render_metrics(board.newest))
# An error of our own, with all that it was raised from.
learner.train(start, terms.recipe.model_copy(update={"learning_rate_micros": 10**9}), "round 2")
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home with a tiny base, and canaries in rows of every kind and split."""
    (tmp_path / "terms.toml").write_text(
        base_and_adapter(tmp_path)
        + "[recipe]\nsteps = 4\nbatch_size = 2\nlearning_rate_micros = 5000\nmax_tokens = 160\n"
    )
    rows: list[dict[str, object]] = []
    for i in range(12):
        split, canary = "train" if i < 4 else "heldout", CANARIES[i % 3]
        turns = [{"role": "user", "content": f"{i}? {canary}"}, {"role": "assistant", "content": canary}]
        rows += [
            {"messages": turns, "split": split},
            {"text": f"{i} {canary}", "split": split},
            {"prompt": f"{i} {canary}", "chosen": canary, "rejected": f"not {canary}", "split": split},
        ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "probes").mkdir()
    question = {"prompt": f"{CANARIES[0]}?", "options": list(CANARIES[1:]), "gold": 0}
    (tmp_path / "probes/rows.jsonl").write_text(json.dumps(question))
    (tmp_path / "node.toml").write_text(
        'institution = "clinic"\ndata = "rows.jsonl"\nthreads = 1\ncheckpoint_seconds = 0\nearly_stop_every_steps = 2\n'
        "tensorboard = true\n"
    )
    return tmp_path


def needles() -> list[bytes]:
    """Each canary as text, and as its tokens in the widths that arrays have."""
    found = []
    for canary in CANARIES:
        ids = tiny_tokenizer()(canary, add_special_tokens=False)["input_ids"]
        found += [canary.encode(), canary[:16].encode(), str(ids)[1:-1].encode()]
        found += [np.array(ids, kind).tobytes() for kind in (np.int64, np.int32, np.uint16)]
    return found


def leaks(home: Path, output: str) -> list[str]:
    """Where a canary stands, but for the rows and the probe themselves."""
    places = [
        (str(p.relative_to(home)), p.read_bytes()) for p in home.rglob("*") if p.is_file() and p.name != "rows.jsonl"
    ]
    return [name for name, data in [*places, ("output", output.encode())] if any(n in data for n in needles())]


@pytest.mark.parametrize(
    ("how", "said", "writes"),
    [
        (
            "whole",
            "wanted multiples of 2^-20",
            {"delta", "metrics", "status.json", "runs/round-1.html", "adopted/adapter_model.safetensors"},
        ),
        ("crash", "KeyError: 3", {"training/checkpoint.safetensors"}),
    ],
)
def test_no_row_stands_in_anything_that_a_training_writes_or_says(
    home: Path, how: str, said: str, writes: set[str]
) -> None:
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", TRAIN, str(home), how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=250)
    assert done.returncode == 1
    assert said in done.stderr
    assert all((home / name).stat().st_size for name in writes)
    assert list((home / "runs/round-1").glob("events.*"))
    assert leaks(home, done.stdout + done.stderr) == []


def test_the_search_finds_a_canary_that_does_leak(home: Path) -> None:
    (home / "leak").write_bytes(b"x" + np.array(tiny_tokenizer()(CANARIES[1])["input_ids"], np.int64).tobytes())
    assert leaks(home, f"said {CANARIES[0]}") == ["leak", "output"]
