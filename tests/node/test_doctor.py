"""The doctor: each check finds what is ill, names it, and says what fixes it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls
from commonweal_node.commands.doctor import MAX_SKEW_SECONDS, MIN_FREE_BYTES, MIN_MEMORY_BYTES, Check, examine
from commonweal_node.config import NodeConfig, SpeaksFor
from commonweal_node.model.base_model import fetch_base, folder_digest
from commonweal_protocols.base.keys import create_key_file
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.invite import Invite
from tests.kit.federation import Federation, changed
from tests.kit.https_clock import ahead, coordinator
from tests.kit.launch import free_port
from tests.kit.rows import ROW
from tests.kit.tiny_model import TEMPLATE, save_tiny_base, tiny_tokenizer


@dataclass
class Patient:
    """A healthy node that has joined nobody."""

    home: Path
    config: NodeConfig
    tls: TlsFiles
    invite: Invite | None = None
    compact: Compact | None = None

    def joined(self, port: int, **other: str) -> Invite:
        """An invite to a coordinator that serves everything at one port."""
        self.invite = Invite.model_validate(
            {
                "consortium": "ab" * 32,
                "name": "three",
                "exchange": f"127.0.0.1:{port}",
                "records": f"https://127.0.0.1:{port}",
                "ca_pem": self.tls.ca.read_text(),
                **other,
            }
        )
        return self.invite

    def checks(self, passphrase: bytes | None = None) -> dict[str, Check]:
        return {c.name: c for c in examine(self.home, self.config, self.invite, self.compact, passphrase)}


@pytest.fixture
def patient(tmp_path: Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> Patient:
    # Just enough of both, whatever this machine has.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIN_FREE_BYTES))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MIN_MEMORY_BYTES))
    home = tmp_path / "home"
    create_key_file(home / "keys/institution.pem")
    rows = [ROW, ROW, {**ROW, "split": "heldout"}]
    (home / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = NodeConfig(institution="clinic", data=home / "rows.jsonl", cache=tmp_path / "cache")
    return Patient(home, config, tls)


def on_base(reference: str, sha256: str) -> Compact:
    """A compact in force that names this base."""
    return Federation(terms={"base": {"reference": reference, "sha256": sha256}}).compact


def ill(patient: Patient, name: str) -> tuple[str, str]:
    """What was found and what fixes it, of the one check that is ill, but for not having joined."""
    checks = patient.checks()
    complaints = {n for n, c in checks.items() if not c.ok} - {"consortium"}
    assert complaints == {name}
    return checks[name].found, checks[name].fix


def test_a_healthy_node_has_no_complaint(patient: Patient) -> None:
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port)
        checks = patient.checks()
    assert [c for c in checks.values() if not c.ok] == []
    assert list(checks) == [
        "identity key",
        "community rows",
        "disk",
        "memory",
        "coordinator: exchange",
        "clock",
    ]
    assert checks["community rows"].found == "2 training and 1 held-out rows"
    assert checks["disk"].found == "2.0 GiB free"


def test_nothing_is_changed(patient: Patient) -> None:
    def everything() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mode, p.read_bytes()) for p in patient.home.rglob("*") if p.is_file()}

    before = everything()
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port)
        patient.compact = on_base("path:/nowhere", "0" * 64)
        patient.checks()
    assert everything() == before
    assert not patient.config.cache.exists()


# -- this host


def test_a_key_that_others_can_read(patient: Patient) -> None:
    key = patient.home / "keys/institution.pem"
    key.chmod(0o644)
    found, fix = ill(patient, "identity key")
    assert f"{key}: wanted mode 0600, got 0644" in found
    assert f"chmod 600 {key}" in fix


@pytest.mark.parametrize("data", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_gone_or_spoilt(patient: Patient, data: bytes | None) -> None:
    key = patient.home / "keys/institution.pem"
    key.unlink()
    if data is not None:
        key.write_bytes(data)
        key.chmod(0o600)
    found, fix = ill(patient, "identity key")
    assert str(key) in found
    assert "restore it from your backup" in fix


def test_a_key_under_a_passphrase_is_well_if_that_is_given(patient: Patient) -> None:
    key = patient.home / "keys/institution.pem"
    key.unlink()
    create_key_file(key, b"open sesame")
    found, fix = ill(patient, "identity key")
    assert "a passphrase is wanted" in found
    assert "--passphrase-file" in fix
    assert patient.checks(b"open sesame")["identity key"].ok
    assert "a wrong passphrase" in patient.checks(b"open barley")["identity key"].found


def test_a_malformed_row_by_its_line(patient: Patient) -> None:
    with patient.config.data.open("a") as f:
        f.write('{"messages": []}\n')
    found, fix = ill(patient, "community rows")
    assert f"{patient.config.data}, line 4: messages: wanted a list of 1 to 200 messages, got 0" in found
    assert "the named line" in fix


def test_no_rows_to_hold_out(patient: Patient) -> None:
    patient.config.data.write_text(json.dumps(ROW) + "\n")
    found, _ = ill(patient, "community rows")
    assert "wanted at least one row of split 'heldout' that is a conversation, got none" in found


CHARTER = """\
community = "the valley"
version = 3
data_policy = "ours alone"
[[principles]]
id = "asks-first"
text = "It asks before it advises."
probes = ["asks", "listens"]
[[safety]]
id = "no-harm"
text = "It harms nobody."
probes = ["listens", "harm"]
[[bars.probes]]
probe = "asks"
min_accuracy_millis = 600
"""
RIGHT: dict[str, object] = {"prompt": "q?", "options": ["a", "b"], "gold": 1}
SHARED: dict[str, object] = {"prompt": "q?", "options": ["a", "b"], "dist": [0.25, 0.75]}


@pytest.fixture
def chartered(patient: Patient) -> Patient:
    """A healthy node whose charter names three probes, one of them with a bar."""
    charter = patient.home / "charter.toml"
    charter.write_text(CHARTER)
    patient.config = patient.config.model_copy(update={"charter": charter})
    write_probe(patient, "asks", RIGHT, RIGHT)
    write_probe(patient, "listens", SHARED)
    write_probe(patient, "harm", RIGHT)
    return patient


def write_probe(patient: Patient, name: str, *questions: dict[str, object]) -> Path:
    path = patient.home / f"probes/{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    return path


def test_a_charter_and_each_probe_that_it_names_once(chartered: Patient) -> None:
    found = [c for c in chartered.checks().values() if c.name.startswith(("charter", "probe"))]
    assert found == [
        Check("charter", True, "version 3, 2 clauses"),
        Check("probe asks", True, "2 questions, measured by accuracy"),
        Check("probe listens", True, "1 question, measured by distance"),
        Check("probe harm", True, "1 question, measured by accuracy"),
    ]


def test_probe_files_that_are_missing_each_by_its_name_and_what_it_is_for(chartered: Patient) -> None:
    shutil.rmtree(chartered.home / "probes")
    checks = {n: c for n, c in chartered.checks().items() if not c.ok and n != "consortium"}
    assert list(checks) == ["probe asks", "probe listens", "probe harm"]
    for name in ("asks", "listens", "harm"):
        path = chartered.home / f"probes/{name}.jsonl"
        assert checks[f"probe {name}"].found.startswith(f"{path}: wanted the questions of probe {name}, got no file")
    assert checks["probe asks"].fix.endswith("the charter has a bar on it: without it the node does not start")
    assert checks["probe listens"].fix.endswith("without it nobody sees whether asks-first, no-harm is kept")


def test_a_malformed_question_by_its_line(chartered: Patient) -> None:
    path = write_probe(chartered, "harm", RIGHT, RIGHT, {**RIGHT, "gold": 2})
    found, fix = ill(chartered, "probe harm")
    assert found == f"{path}, line 3: gold: wanted the place of an option, 0 to 1, got 2"
    assert "correct the named line" in fix


def test_a_bar_on_the_measure_that_a_probe_has_not(chartered: Patient) -> None:
    write_probe(chartered, "asks", SHARED)
    assert "bars.probes asks: wanted a bar on its distance" in ill(chartered, "probe asks")[0]


@pytest.mark.parametrize("text", [None, "version = 3"])
def test_a_charter_that_is_gone_or_incomplete(chartered: Patient, text: str | None) -> None:
    path = chartered.home / "charter.toml"
    path.unlink() if text is None else path.write_text(text)
    found, fix = ill(chartered, "charter")
    assert str(path) in found
    assert "`charter` in node.toml" in fix


def test_a_full_disk_and_too_little_memory(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIN_FREE_BYTES - 1))
    assert ill(patient, "disk")[1] == "wanted 2 GiB: make room"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIN_FREE_BYTES))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MIN_MEMORY_BYTES - 1))
    assert ill(patient, "memory")[1].startswith("wanted 2 GiB: stop other programs")


# -- the coordinator


def test_a_node_that_has_not_joined_is_told_the_command(patient: Patient) -> None:
    checks = patient.checks()
    assert list(checks)[-1] == "consortium"
    assert checks["consortium"] == Check(
        "consortium", False, "not joined yet", f"commonweal node join --home {patient.home} INVITE.json"
    )


def test_a_coordinator_that_is_down(patient: Patient) -> None:
    port = free_port()
    patient.joined(port)
    checks = patient.checks()
    assert {n for n, c in checks.items() if not c.ok} == {"coordinator: exchange", "clock"}
    check = checks["coordinator: exchange"]
    assert f"127.0.0.1:{port}" in check.found
    assert "refused" in check.found
    assert check.fix == "is the coordinator running, and does the firewall let you out?"


def test_an_address_with_a_port_that_cannot_be(patient: Patient) -> None:
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port, exchange="127.0.0.1:99999")
        found, _ = ill(patient, "coordinator: exchange")
    assert "127.0.0.1:99999" in found


@pytest.mark.parametrize("seconds", [-(MAX_SKEW_SECONDS + 3), MAX_SKEW_SECONDS + 3, 86_400.0])
def test_a_clock_that_is_wrong(patient: Patient, seconds: float) -> None:
    with coordinator(patient.tls, ahead(seconds)) as port:
        patient.joined(port)
        found, fix = ill(patient, "clock")
    # Dates have whole seconds: this clock minus the other one is -seconds, and up to two more.
    said = float(found.removeprefix("this clock is ").split()[0])
    assert -seconds - 0.5 <= said <= -seconds + 2.5
    assert f"wanted at most {MAX_SKEW_SECONDS:.0f}" in found
    assert fix == "set this host's clock (NTP)"


@pytest.mark.parametrize("seconds", [-(MAX_SKEW_SECONDS - 3), MAX_SKEW_SECONDS - 3])
def test_a_clock_that_is_right_enough(patient: Patient, seconds: float) -> None:
    with coordinator(patient.tls, ahead(seconds)) as port:
        patient.joined(port)
        assert patient.checks()["clock"].ok


def test_the_clock_is_read_also_where_no_checkpoint_is_published_yet(patient: Patient) -> None:
    with coordinator(patient.tls, ahead(MAX_SKEW_SECONDS + 3), status=404) as port:
        patient.joined(port)
        assert "this clock is -6" in ill(patient, "clock")[0]


@pytest.mark.parametrize("date", [None, "", "yesterday", "\x00"])
def test_a_server_without_a_date_is_named_and_does_no_harm(patient: Patient, date: str | None) -> None:
    with coordinator(patient.tls, lambda: date) as port:
        patient.joined(port)
        found, _ = ill(patient, "clock")
    assert f"https://127.0.0.1:{port}: wanted an HTTP date, got {date!r}" in found


def test_a_server_under_another_authority_is_not_believed(patient: Patient, tmp_path: Path) -> None:
    other = load_or_create_tls(tmp_path / "other", ["127.0.0.1"])
    with coordinator(other, ahead(0)) as port:
        patient.joined(port)
        found, _ = ill(patient, "clock")
    assert "certificate verify failed" in found


def test_a_port_that_speaks_no_http(patient: Patient) -> None:
    with coordinator(patient.tls, ahead(0), status=999_999_999) as port:
        patient.joined(port)
        found, _ = ill(patient, "clock")
    assert "999999999" in found


# -- whom it speaks for


def test_whom_a_node_speaks_for_is_held_to_the_compact_and_must_have_records(patient: Patient, tmp_path: Path) -> None:
    inner = Federation(origin="log.test/ring", realm="ring ")
    whose, name = inner.state.consortium, "speaks for"
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port)
        patient.compact = on_base("path:/nowhere", "0" * 64)
        assert patient.checks()[name] == Check(name, True, "no consortium")
        records = inner.publish(tmp_path / "ring")
        speaks_for = SpeaksFor(consortium=whose, records=str(records))
        patient.config = patient.config.model_copy(update={"speaks_for": speaks_for})
        assert f"wanted the consortium {whose}, as node.toml has it" in patient.checks()[name].found
        members = [{**m, "consortium": whose} if m["institution"] == "clinic" else m for m in inner.members()]
        patient.compact = changed(patient.compact, {"members": members})
        assert patient.checks()[name].found == f"{whose}, whose records have 1 entries; a round verifies them"
        (records / "checkpoint").unlink()
        found = patient.checks()[name]
        assert (found.ok, found.found) == (False, "checkpoint: wanted a signed note, got no such file")
        assert found.fix == "correct [speaks_for] in node.toml, or ask that consortium's coordinator"


# -- the base model


def test_a_base_that_is_absent_is_ill_until_it_is_fetched_and_again_when_it_is_spoilt(
    patient: Patient, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"weights")
    tiny_tokenizer().save_pretrained(source)
    patient.compact = on_base(f"path:{source}", folder_digest(source))
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port)
        found, fix = ill(patient, "base model")
        assert f"wanted it in {patient.config.cache}, got none yet" in found
        assert fix == f"commonweal node fetch-base --home {patient.home}"
        folder = fetch_base(patient.compact.base, patient.config.cache, lambda _: None)
        assert patient.checks()["base model"].ok
        (folder / "model.safetensors").write_bytes(b"wights")
        assert "the disk has changed it; remove that folder" in ill(patient, "base model")[0]


def test_a_row_that_the_bases_chat_template_refuses_is_named_before_anything_is_trained(
    patient: Patient, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    save_tiny_base(source)
    tiny_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    ).save_pretrained(source)
    patient.compact = on_base(f"path:{source}", folder_digest(source))
    fetch_base(patient.compact.base, patient.config.cache, lambda _: None)
    system = {"messages": [{"role": "system", "content": "be brief"}, *ROW["messages"]]}
    with coordinator(patient.tls, ahead(0)) as port:
        patient.joined(port)
        assert patient.checks()["rows as tokens"].ok
        with patient.config.data.open("a") as rows:
            rows.write(json.dumps(system) + "\n")
        found, fix = ill(patient, "rows as tokens")
    assert f"{patient.config.data}, line 4: " in found
    assert "no system role" in found
    assert fix.startswith("change the named row")
