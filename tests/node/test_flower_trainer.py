"""A Flower ClientApp trains the node: real apps in real processes, and each way in which one can fail."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from commonweal_adapters.files.delta import read_adapter, write_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.commands.doctor import Check, examine
from commonweal_node.config import NodeConfig
from commonweal_node.connection.status import StatusBoard
from commonweal_node.training.flower_trainer import check_trainer
from commonweal_node.training.run_report import RunReport, render_report
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.app_trainer import SPEC, START, app_trainer, train
from tests.kit.learner import SPEC as TINY
from tests.kit.learner import learner
from tests.kit.proc import descendants, is_alive

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def apps_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep + found if found else ''}")


def test_an_app_gets_the_start_the_recipe_and_training_rows_alone_and_its_reply_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSPHRASE", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    result = train(app_trainer(tmp_path, "good", moves="AB"))
    # A quarter is on the grid.
    wanted = {name: q + (1 << SPEC.grid_bits) // 4 for name, q in START.items()}
    assert {name: q.tolist() for name, q in result.adapter.items()} == {n: q.tolist() for n, q in wanted.items()}
    assert result.metrics == {
        "num-examples": 2,
        "heldout-examples": 0,
        "steps": 3,
        "base-files": 1,
        "secrets": 0,
        "keys-here": 0,
    }
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and b"well" in p.read_bytes()] == ["rows.jsonl"]
    assert not (tmp_path / "training/app").exists()


def test_a_factor_that_the_rule_freezes_may_not_change(tmp_path: Path) -> None:
    kept = train(app_trainer(tmp_path / "a", "good", moves="B"), frozen=True).adapter
    assert {n for n, q in kept.items() if not np.array_equal(q, START[n])} == {n for n in START.values if "lora_B" in n}
    with pytest.raises(ConfigError, match=r"lora_A.*wanted it as it was, since the rule freezes factor A"):
        train(app_trainer(tmp_path / "b", "good", moves="AB"), frozen=True)


def test_a_crash_is_told_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exit status 1: .*the wells are dry \(.*runs/round-1.log\)"):
        train(app_trainer(tmp_path, "crash"))
    log = tmp_path / "runs/round-1.log"
    assert "loading the examples" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "training/app").exists()


def test_an_error_reply_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="error 7: not today"):
        train(app_trainer(tmp_path, "error"))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("names", "wanted 2, got 2 .* is in one only"),
        ("shape", r"wanted shape \[2, 3\], got '?\[3, 2\]"),
        ("dtype", "wanted dtype F32, got 'F64'"),
        ("nan", "wanted multiples of .* got nan"),
        ("size", f"wanted the result of at most {2 * len(write_adapter(START, SPEC))} bytes, got more"),
    ],
)
def test_what_is_no_adapter_of_the_spec_is_refused(kind: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"flower_apps:garbage: its result: .*({told})"):
        train(app_trainer(tmp_path, "garbage", kind=kind))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flower:tests.kit.no_such_module:app", "No module named 'tests.kit.no_such_module'"),
        ("flower:tests.kit.flower_apps:no_such_app", "no attribute 'no_such_app'"),
        ("flower:tests.kit.flower_apps:no_app", "wanted a flwr.clientapp.ClientApp, got str"),
    ],
)
def test_an_app_that_cannot_be_imported_is_named_before_anything_is_loaded(
    name: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: wanted a ClientApp of that name, .*{told}"):
        check_trainer(app_trainer(tmp_path, name).config)


def test_an_app_that_has_gone_since_is_named_when_it_is_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wanted a ClientApp of that name, .*no attribute .*runs/round-1.log"):
        train(app_trainer(tmp_path, "gone"))


def test_the_doctor_imports_the_app(tmp_path: Path) -> None:
    def told(app: str) -> Check:
        return next(
            c for c in examine(tmp_path, app_trainer(tmp_path / app, app).config, None, None) if c.name == "trainer"
        )

    assert told("good").ok
    assert "no attribute 'gone'" in told("gone").found


def test_an_app_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    with pytest.raises(ConfigError, match=r"wanted an end within 1 s \(trainer_timeout_seconds in node.toml\)"):
        train(app_trainer(tmp_path, "endless", seconds=1))
    assert descendants(os.getpid()) == before
    assert not (tmp_path / "training/app").exists()


def running(home: Path) -> list[int]:
    """Wait until the endless app runs; its process, and its child's."""
    log, until = home / "runs/round-1.log", time.monotonic() + 100
    while not (log.exists() and log.read_text().endswith(".\n")):
        assert time.monotonic() < until
        time.sleep(0.02)
    return [int(word) for word in log.read_text().split() if word.isdigit()]


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + 100
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_when_the_node_stops_the_app_and_its_children_are_killed(tmp_path: Path) -> None:
    by, pids, modes = app_trainer(tmp_path, "endless"), list[int](), list[int]()

    def stop() -> None:
        pids.extend(running(tmp_path))
        modes.append(by.home.app.stat().st_mode & 0o777)
        by.stopping.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(UnavailableError, match="the node is stopping"):
        train(by)
    thread.join()
    assert len(pids) == 2
    assert gone(pids)
    assert modes == [0o700]


def test_an_app_does_not_outlive_a_node_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.kit.app_trainer import app_trainer, train; "
        "train(app_trainer(Path(sys.argv[1]), 'endless'))"
    )
    node = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    pids = running(tmp_path)
    node.kill()
    node.wait()
    assert gone(pids[:1])
    os.kill(pids[1], 9)
    # What a killed node leaves behind is no start for the next training, and is gone after it.
    assert (tmp_path / "training/app/examples.jsonl").exists()
    train(app_trainer(tmp_path, "good", moves="B"))
    assert not (tmp_path / "training/app").exists()


class Told(StatusBoard):
    """Keeps what was being done."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "clinic")
        self.doings: list[str] = []

    def set(self, **fields: object) -> None:
        super().set(**fields)
        self.doings.append(self.newest.doing)


@pytest.mark.slow
def test_a_peft_app_as_flowers_docs_write_one_trains_the_node(tmp_path: Path) -> None:
    board = Told(tmp_path)
    made = learner(tmp_path, 4, board, trainer="flower:tests.kit.flower_peft_app:app")
    start = read_adapter(recompute_start(TINY), TINY)
    recipe = Recipe(steps=8, batch_size=1, learning_rate_micros=10_000, max_tokens=160)
    trained = made.train(start, recipe, "round 1")
    assert trained.values.keys() == start.values.keys()
    assert "round 1: training (flower app)" in board.doings
    report = RunReport.model_validate_json((tmp_path / "runs/round-1.json").read_text())
    assert report.heldout_after < report.heldout_before
    assert report.metrics["num-examples"] == 4
    assert b"Trained by flower:tests.kit.flower_peft_app:app" in render_report(report)
    with pytest.raises(ConfigError, match="wanted the node's own trainer"):
        made.sweep(start, [ObjectiveWeights()], recipe)


@pytest.mark.parametrize("name", ["flower:os", "os:system", "flower:os.path:", "flower:a b:c", "flower:a:b.c"])
def test_a_trainer_is_named_by_module_and_attribute(name: str) -> None:
    with pytest.raises(ValidationError, match="trainer"):
        NodeConfig(institution="clinic", data=Path("rows.jsonl"), trainer=name)


def test_processes_that_train_together_and_an_app_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted one process"):
        check_trainer(app_trainer(tmp_path, "good").config, 2)
