"""The metrics endpoint: what it says, in which format, and to whom."""

import http.client
import socket

import pytest

from commonweal_node.connection.metrics import MetricsServer, render_metrics
from commonweal_node.connection.status import NodeStatus
from commonweal_protocols.base.errors import UnavailableError

STATUS = NodeStatus(
    institution="clinic",
    pid=1,
    written_at=0.0,
    phase="training",
    round=3,
    doing="words that people wrote",
    step=2,
    steps=12,
    losses={"supervised": 1.5, "base-kl": 0.25},
    tokens_per_second=812.5,
    trouble="more words",
)


def test_every_figure_that_is_known_is_told_and_no_words_are() -> None:
    lines = render_metrics(STATUS).splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['commonweal_node_round{institution="clinic"}'] == "3"
    assert samples['commonweal_node_training_tokens_per_second{institution="clinic"}'] == "812.5"
    assert samples['commonweal_node_training_loss_nats{institution="clinic",objective="base-kl"}'] == "0.25"
    assert not any("eta" in name or "membership" in name for name in samples)
    assert "words" not in render_metrics(STATUS)


def test_each_metric_has_one_type_line_before_its_samples() -> None:
    typed: list[str] = []
    for line in render_metrics(STATUS).splitlines():
        if line.startswith("# TYPE "):
            typed.append(line.split()[2])
        elif not line.startswith("#"):
            assert line.partition("{")[0] == typed[-1]
    assert len(set(typed)) == len(typed)


def test_it_answers_on_loopback_and_only_for_its_path() -> None:
    server = MetricsServer(0, lambda: STATUS)
    try:
        answers = []
        for path in ("/metrics", "/", "/metrics/../status.json"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("GET", path)
            response = connection.getresponse()
            answers.append((response.status, response.read()))
            connection.close()
        assert [status for status, _ in answers] == [200, 404, 404]
        assert answers[0][1].decode() == render_metrics(STATUS)
        # Another of this host's own addresses, which anyone who listens on all of them would answer.
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", server.port), timeout=5):
            pass
        with pytest.raises(UnavailableError, match=f"metrics: wanted to listen on 127.0.0.1:{server.port}"):
            MetricsServer(server.port, lambda: STATUS)
    finally:
        server.stop()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", server.port), timeout=5):
        pass
