"""A training's event file: its records read back by the format's own rules, not by the library that wrote them."""

import json
import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from commonweal_adapters.files.delta import read_adapter
from commonweal_adapters.recompute import recompute_start
from commonweal_node.connection.status import StatusBoard
from commonweal_node.training.tensorboard import EventFile
from commonweal_node.training.train import Progress
from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.statements.compact import Recipe
from tests.kit.learner import SPEC, learner

RECIPE = Recipe(steps=4, batch_size=2, learning_rate_micros=50_000, max_tokens=160)


def crc32c(data: bytes) -> int:
    """RFC 3720's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """TFRecord's mask: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path: Path) -> list[Event]:
    """Every record: length, its CRC, data, its CRC, little-endian."""
    assert crc32c(b"123456789") == 0xE3069283
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        body = data[12 : 12 + size]
        assert struct.unpack_from("<I", data, 8)[0] == masked(data[:8])
        assert struct.unpack_from("<I", data, 12 + size)[0] == masked(body)
        found.append(Event.FromString(body))
        data = data[16 + size :]
    return found


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    told: dict[str, list[tuple[int, float]]] = {}
    for e in events(path):
        for v in e.summary.value:
            told.setdefault(v.tag, []).append((e.step, v.simple_value))
    return told


def test_an_event_file_tells_what_the_report_does_and_the_rate_of_each_step(tmp_path: Path) -> None:
    made = learner(tmp_path, 4, StatusBoard(tmp_path, "clinic"), tensorboard=True, early_stop_every_steps=2)
    made.train(read_adapter(recompute_start(SPEC), SPEC), RECIPE, "round 1")
    report = json.loads((tmp_path / "runs/round-1.json").read_text())
    (path,) = (tmp_path / "runs/round-1").glob("events.out.tfevents.*")
    told = scalars(path)
    losses, rates = report["course"]["losses"]["supervised"], told["learning_rate"]
    assert dict(told["loss/supervised"]) == pytest.approx({k + 1: x for k, x in enumerate(losses)})
    # Up over a tenth of the steps, at least one; then down in equal steps, to 0 after the last.
    assert dict(rates) == pytest.approx({1: 0.05, 2: 0.0375, 3: 0.025, 4: 0.0125})
    assert [step for step, _ in told["tokens_per_second"]] == [1, 2, 3, 4]
    assert dict(told["loss/heldout-tune"]) == pytest.approx(dict(report["course"]["heldout"]))
    ends = {0: report["heldout_before"], 4: report["heldout_after"]}
    assert dict(told["loss/heldout-report"]) == pytest.approx(ends)
    assert b"what of" not in path.read_bytes()


def test_a_setting_whose_package_is_missing_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What find_spec says of a package that is not there.
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"wanted the package tensorboardX, got none: pip install .commonweal.tensor"):
        learner(tmp_path, 4, StatusBoard(tmp_path, "clinic"), tensorboard=True)


def test_without_the_setting_nothing_is_written_for_tensorboard(tmp_path: Path) -> None:
    made = learner(tmp_path, 4, StatusBoard(tmp_path, "clinic"))
    made.train(read_adapter(recompute_start(SPEC), SPEC), RECIPE, "round 1")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["round-1.html", "round-1.json"]


def progress(step: int) -> Progress:
    return Progress(step, 4, 1, {"supervised": 1.0 / step}, 10 * step, 5.0, 1.0, 0.0)


def test_a_training_that_goes_on_begins_a_file_that_hides_what_the_killed_one_wrote_after(tmp_path: Path) -> None:
    for begin, end in ((1, 3), (3, 5)):
        file = EventFile(tmp_path / "run", RECIPE)
        for step in range(begin, end):
            file.add(progress(step))
        # A process that is killed never closes: all must be there before.
        before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
        file.close()
        assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    first, second = sorted((tmp_path / "run").iterdir(), key=lambda p: int(p.suffix[1:]))
    for path, step in ((first, 1), (second, 3)):
        version, start, *_ = events(path)
        assert version.file_version == "brain.Event:2"
        assert (start.step, start.session_log.status) == (step, SessionLog.START)
    assert [s for s, _ in scalars(second)["loss/supervised"]] == [3, 4]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"runs/round-1: event files cannot be written: Not a directory"):
        EventFile(tmp_path / "runs/round-1", RECIPE).add(progress(1))
