"""The demo as a newcomer runs it, at the size of the tiny model: to the end, once more, and interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.proc import descendants, is_alive
from tests.kit.processes import NAMES, tiny_terms, write_rows

pytestmark = pytest.mark.slow
RUN = Path(__file__).parents[2] / "deploy/demo/run.py"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("demo")
    (home / "data").mkdir()
    for name in NAMES:
        write_rows(home / f"data/{name}.jsonl", name)
    (home / "compact.toml").write_text(tiny_terms(home, steps=20))
    options = {"data": home / "data", "compact": home / "compact.toml", "cache": home / "cache", "home": home / "run"}
    return [sys.executable, str(RUN), *(x for k, v in options.items() for x in (f"--{k}", str(v))), "--rounds", "1"]


def test_ctrl_c_stops_everything_and_the_next_run_goes_on_to_the_end(arguments: list[str]) -> None:
    home = Path(arguments[arguments.index("--home") + 1])
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 90
    while len(list(home.glob("nodes/*/status.json"))) < len(NAMES) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    started = descendants(process.pid)
    assert len(started) >= 4, "a coordinator and three nodes"
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "everything it started is stopped" in words
    assert [pid for pid in started if is_alive(pid)] == []

    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict    pass" in done.stdout
    for name in NAMES:
        assert f"│ {name}" in done.stdout, "the table has every community"
    rows = json.loads((home / "result.json").read_text())
    assert [r["community"] for r in rows] == list(NAMES)
    assert all(0 < r["local_micronats"] < r["base_micronats"] for r in rows)
    assert json.loads((home / "audit.json").read_text())["verdict"] == "pass"
    assert (home / "audit.html").read_text().startswith("<!doctype html>")


def test_a_second_run_skips_what_is_there(arguments: list[str]) -> None:
    home = Path(arguments[arguments.index("--home") + 1])
    before = (home / "audit.json").read_bytes()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the rounds are done" in done.stdout
    assert "node run" not in done.stdout
    assert (home / "audit.json").read_bytes() == before


def test_other_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    for data, options, message in (
        (tmp_path, [], "wanted two or more *.jsonl files, found 0"),
        (RUN.parent / "communities", ["--communities", "atlantis"], "wanted atlantis, found harbour-school"),
    ):
        done = subprocess.run(
            [sys.executable, str(RUN), "--data", str(data), *options],
            capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 1
        assert message in done.stderr
