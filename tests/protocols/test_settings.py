"""Files that people write: one closed model each, and a sentence that names file, key and value."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from commonweal_coordinator.config import CoordinatorConfig
from commonweal_coordinator.config import load_config as load_coordinator
from commonweal_node.config import NodeConfig, SpeaksFor
from commonweal_node.config import load_config as load_node
from commonweal_protocols.base.errors import ConfigError

NODE = 'institution = "clinic"\ndata = "rows.jsonl"\n'
COORDINATOR = 'name = "hub"\norigin = "log.test/three"\n'

Load = Callable[[Path], BaseModel]
BOTH: list[tuple[Load, str]] = [(load_node, NODE), (load_coordinator, COORDINATOR)]


def test_a_nodes_settings_are_read_and_paths_are_taken_from_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = home / "node.toml"
    path.write_text(
        'institution = "clinic"\ndata = "rows.jsonl"\ncharter = "../charter.toml"\ncache = "/var/cache/base"\n'
        'threads = 2\nseed = 3\nmax_heldout_rows = 4\nrefuse = "harvest"\n'
    )
    wanted = NodeConfig(
        institution="clinic",
        data=home / "rows.jsonl",
        charter=home / "../charter.toml",
        cache=Path("/var/cache/base"),
        threads=2,
        seed=3,
        max_heldout_rows=4,
        refuse="harvest",
    )
    assert load_node(path) == wanted
    # Neither where the program stands, nor how the file was named, makes a difference.
    monkeypatch.chdir(tmp_path)
    assert load_node(Path("home/node.toml")) == wanted


def test_defaults_are_below_the_files_folder_and_absolute(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE)
    found = load_node(path)
    assert (found.charter, found.cache, found.refuse) == (None, tmp_path / "cache", "")


def test_a_coordinators_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR + "rounds = 4\nexchange_port = 1\n")
    assert load_coordinator(path) == CoordinatorConfig(name="hub", origin="log.test/three", rounds=4, exchange_port=1)


def test_a_setting_of_an_earlier_version_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR + "rounds = 4\nfleet_port = 7402\n")
    assert load_coordinator(path) == CoordinatorConfig(name="hub", origin="log.test/three", rounds=4)
    assert f"{path}: fleet_port is no longer used; remove the line" in caplog.text
    node = tmp_path / "node.toml"
    node.write_text('institution = "clinic"\ndata = "rows.jsonl"\nflower_port = 7410\n')
    assert load_node(node).institution == "clinic"
    assert f"{node}: flower_port is no longer used; remove the line" in caplog.text


BAD: list[tuple[Load, str, str]] = [
    (load_node, "thread = 2", "thread: Extra inputs are not permitted, got '2'"),
    (load_node, "threads = -1", "threads: .* greater than or equal to 0, got '-1'"),
    (load_node, "threads = 1025", "threads: .* less than or equal to 1024, got '1025'"),
    (load_node, 'threads = "3"', "threads: .* valid integer, got '3'"),
    (load_node, "threads = true", "threads: .* valid integer, got 'True'"),
    (load_node, "seed = 2147483648", "seed: .* less than 2147483648, got '2147483648'"),
    (load_node, "max_heldout_rows = 3", "max_heldout_rows: .* greater than or equal to 4, got '3'"),
    (load_node, "metrics_port = -1", "metrics_port: .* or equal to 0, got '-1'"),
    (load_node, "metrics_port = 65536", "metrics_port: .* or equal to 65535, got '65536'"),
    (load_node, f'refuse = "{"x" * 501}"', "refuse: .* at most 500 characters, got"),
    (load_node, "refuse = 2026-01-31", "refuse: .* valid string, got .*2026-01-31"),
    (load_node, "[cache]\nat = 1", "cache: Input should be a valid string, got"),
    (load_coordinator, "port = 7400", "port: Extra inputs are not permitted, got '7400'"),
    (load_coordinator, "rounds = -1", "rounds: .* or equal to 0, got '-1'"),
    (load_coordinator, "exchange_port = 0", "exchange_port: .* or equal to 1, got '0'"),
    (load_coordinator, 'records_port = "7401"', "records_port: .* valid integer, got '7401'"),
    (load_coordinator, "records_port = 65536", "records_port: .* or equal to 65535, got '65536'"),
    (load_coordinator, "min_free_bytes = 1.5", "min_free_bytes: .* valid integer, got '1.5'"),
]


@pytest.mark.parametrize(("load", "line", "message"), BAD, ids=[b[1][:24] for b in BAD])
def test_a_bad_line_is_refused_by_file_key_and_value(tmp_path: Path, load: Load, line: str, message: str) -> None:
    path = tmp_path / "settings.toml"
    good = dict(BOTH)[load]
    path.write_text(good)
    load(path)
    path.write_text(f"{good}{line}\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: {message}"):
        load(path)


def test_everything_that_is_wrong_is_said_at_once_and_unknown_keys_name_the_known(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('threads = -1\nthread = 2\ndata = "rows.jsonl"\n[speaks_for]\nrecord = "x"\nrecords = "y"\n')
    with pytest.raises(ConfigError) as refused:
        load_node(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    said = [line.removeprefix(f"{path}: ") for line in lines]
    assert sorted(line.split(":")[0] for line in said) == [
        "institution", "speaks_for.consortium", "speaks_for.record", "thread", "threads",
    ]  # fmt: skip
    assert "institution: Field required" in said, "and not the whole file as what was got"
    assert "speaks_for.record: Extra inputs are not permitted, got 'x'; wanted one of ca, consortium, records" in said
    (thread,) = (line for line in said if line.startswith("thread:"))
    assert thread.endswith(f"; wanted one of {', '.join(sorted(NodeConfig.model_fields))}")


@pytest.mark.parametrize("name", ["Clinic", "-clinic", "a clinic", "", "c" * 64, "a/b", "..", "klinik\u00e4"])
def test_a_name_that_could_be_no_file_or_no_members_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'institution = "{name}"\ndata = "rows.jsonl"\n')
    with pytest.raises(ConfigError, match=r"node\.toml: institution: "):
        load_node(path)


@pytest.mark.parametrize(("load", "good"), BOTH)
def test_what_is_not_toml_is_refused(tmp_path: Path, load: Load, good: str) -> None:
    path = tmp_path / "settings.toml"
    for data in (good.encode() + b"x =\n", good.encode() + good.encode(), b"\xff\xfe", b"{}"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"settings\.toml: wanted TOML, got: "):
            load(path)


@pytest.mark.parametrize(("load", "good"), BOTH)
def test_a_file_too_large_is_refused_rather_than_read_in_part(tmp_path: Path, load: Load, good: str) -> None:
    path = tmp_path / "settings.toml"
    padding = f"#{'x' * ((1 << 20) - len(good) - 2)}\n"
    path.write_text(good + padding)
    load(path)
    path.write_text(good + padding + "unknown_key = 1\n")
    with pytest.raises(ConfigError, match=r"settings\.toml: wanted a TOML file of at most 1048576 bytes, got more"):
        load(path)


def test_a_missing_file_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"wanted a TOML file, got no such file; run: commonweal node init --home {tmp_path}$"
    ):
        load_node(tmp_path / "node.toml")
    with pytest.raises(ConfigError, match=rf"got no such file; run: commonweal coordinator init --home {tmp_path}$"):
        load_coordinator(tmp_path / "coordinator.toml")


def test_a_folder_in_its_place_cannot_be_read(tmp_path: Path) -> None:
    for load, _ in BOTH:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load(tmp_path)


SPEAKS_FOR = f'[speaks_for]\nconsortium = "{"ab" * 32}"\n'


def test_the_records_of_whom_a_node_speaks_for_are_an_address_or_a_folder_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    for records, wanted in (
        ("https://ring.test:7401", "https://ring.test:7401"),
        ("ring/public", str(tmp_path / "ring/public")),
        ("/srv/ring", "/srv/ring"),
    ):
        path.write_text(NODE + SPEAKS_FOR + f'records = "{records}"\nca = "ring.pem"\n')
        found = load_node(path)
        assert isinstance(found, NodeConfig)
        assert found.speaks_for == SpeaksFor(consortium="ab" * 32, records=wanted, ca=tmp_path / "ring.pem")


def test_who_trains_nothing_has_no_bound_on_what_training_tells(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE + "max_membership_auc_millis = 600\n" + SPEAKS_FOR + 'records = "ring"\n')
    with pytest.raises(ConfigError, match=r"wanted none with \[speaks_for\], since nothing is trained here"):
        load_node(path)
