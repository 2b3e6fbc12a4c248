"""A node whose rows or base are not as they must be stays up, says why, and continues once they are right."""

from pathlib import Path

import pytest

from commonweal_coordinator.serving.tls import TlsFiles
from commonweal_node import daemon
from commonweal_node.config import NodeConfig
from commonweal_node.connection.status import NodeStatus
from commonweal_node.home import NodeHome
from commonweal_protocols.base.errors import BaseModelError, ConfigError, LocalError
from commonweal_protocols.base.status_file import load_status
from commonweal_protocols.statements.invite import Invite
from tests.kit.federation import Federation, key_of, save_key

TROUBLE = "rows.jsonl, line 4: wanted a conversation that the base model's chat template can write, got another"


def started(home: Path, tls: TlsFiles) -> daemon.Node:
    (home / "keys").mkdir(parents=True)
    save_key(NodeHome(home).key, key_of("clinic"))
    ca = tls.ca.read_text()
    invite = Invite(consortium="ab" * 32, name="x", exchange="127.0.0.1:1", records="https://127.0.0.1:1", ca_pem=ca)
    invite.save(NodeHome(home).invite)
    return daemon.Node(home, NodeConfig(institution="clinic", data=home / "rows.jsonl", witness_port=0), None)


@pytest.mark.parametrize("error", [ConfigError(TROUBLE), BaseModelError(TROUBLE)])
def test_rows_that_cannot_be_trained_on_are_trouble_until_they_are_right(
    tmp_path: Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch, error: LocalError
) -> None:
    found: list[object] = [error, "model"]
    told = []

    def model(*_: object) -> object:
        told.append(load_status(tmp_path / "home", NodeStatus, "node").trouble)
        if isinstance(now := found.pop(0), LocalError):
            raise now
        return now

    monkeypatch.setattr(daemon, "ModelProcess", model)
    monkeypatch.setattr(daemon, "_BASE_RETRY_SECONDS", 0.0)
    assert started(tmp_path / "home", tls)._load_model(Federation().compact) == "model"  # type: ignore[comparison-overlap]
    assert told == ["", TROUBLE]


def test_where_processes_train_together_all_start_anew(
    tmp_path: Path, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(*_: object) -> object:
        raise ConfigError(TROUBLE)

    monkeypatch.setattr(daemon, "ModelProcess", model)
    node = started(tmp_path / "home", tls)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 4"):
        node._load_model(Federation().compact)
