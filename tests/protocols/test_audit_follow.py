"""The monitor: it says what changes, outlives what fails, and raises the alarm once. No test waits for a clock."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commonweal_protocols.audit.audit import Outcome, examine
from commonweal_protocols.audit.job import Auditor, Job, Outputs
from commonweal_protocols.audit.memory import load_memory
from commonweal_protocols.audit.monitor import MAX_PAUSE_SECONDS, MAX_TOLD_FINDINGS, Stopped, alarm, change_line, follow
from commonweal_protocols.audit.report import Finding
from commonweal_protocols.base.canonical import Json, encode
from commonweal_protocols.base.errors import ConfigError, LogError, StorageError, UnavailableError
from commonweal_protocols.base.webhook import MAX_BODY_BYTES, check_webhook, post_webhook
from commonweal_protocols.cli import run
from tests.kit.federation import two_rounds
from tests.kit.shelf import Shelf, beginning, shelf

F = two_rounds()
NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)


class Stage:
    """A monitor in a play: each pause is a step, which may change the world; after the last one it is stopped."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.steps = list(steps)
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.told: list[Json] = []

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False

    def follow(self, auditor: object, *, keep_going: bool = False, tell: Callable[[Json], None] | None = None) -> int:
        return follow(
            auditor,  # type: ignore[arg-type]
            interval_seconds=60,
            wait=self.wait,
            say=self.said.append,
            tell=tell or self.told.append,
            keep_going=keep_going,
        )


def auditor(source: Shelf, **job: object) -> Auditor:
    return Auditor(Job(source=source, **job), now=lambda: NOW)  # type: ignore[arg-type]


def publish(source: Shelf, size: int) -> Callable[[], None]:
    return lambda: source.files.update(shelf(F, F.entries[:size]).files)


def nothing() -> None:
    pass


def test_one_line_is_said_for_each_change_and_none_for_none() -> None:
    source = shelf(F, F.entries[:4])
    stage = Stage(nothing, publish(source, 9), nothing, publish(source, 26))
    assert stage.follow(auditor(source)) == 0
    root = [examine(shelf(F, F.entries[:n])).report.root for n in (4, 9, 26)]
    assert (
        stage.said
        == [
            f"three: 4 entries (+1 compact, +3 identity), root {root[0][:16]}: pass",  # type: ignore[index]
            f"three: 9 entries (+1 release, +1 round, +3 update), root {root[1][:16]}: pass",  # type: ignore[index]
            f"three: 26 entries (+6 adoption, +6 ratification, +1 release, +1 round, +3 update), root "
            f"{root[2][:16]}: pass",  # type: ignore[index]
        ]
    )
    assert stage.pauses == [60] * 5
    assert stage.told == []


def test_what_does_not_change_is_not_audited_again() -> None:
    source = shelf(F)
    stage = Stage(source.reads.clear, nothing, nothing)
    stage.follow(auditor(source))
    assert source.reads == ["checkpoint"] * 3


def test_a_monitor_without_a_disk_remembers_too() -> None:
    source = shelf(F, F.entries[:20])
    g = beginning(F, 14)
    g.run_round()
    stage = Stage(lambda: source.files.update(shelf(g).files))
    assert stage.follow(auditor(source)) == 1
    assert "forked: at size 20" in stage.said[-1]


def test_a_source_that_is_down_is_asked_at_longer_and_longer_intervals() -> None:
    source = shelf(F)

    def down(path: str) -> None:
        raise UnavailableError("records: does not answer")

    def up() -> None:
        source.before_read = lambda _: None

    source.before_read = down
    stage = Stage(*[nothing] * 7, up, nothing)
    assert stage.follow(auditor(source)) == 0
    assert stage.pauses == [120, 240, 480, 960, 1920, 3600, 3600, 3600, 60, 60]
    assert MAX_PAUSE_SECONDS == 3600
    assert stage.said[0] == "no answer: records: does not answer; trying again in 120 s"
    assert stage.said[-1].endswith(": pass")
    assert stage.told == []


def test_a_checkpoint_that_is_gone_for_a_moment_is_no_finding() -> None:
    source = shelf(F)
    note = source.files["checkpoint"]
    stage = Stage(lambda: source.files.__delitem__("checkpoint"), lambda: source.files.update(checkpoint=note))
    assert stage.follow(auditor(source)) == 0
    assert ["no answer" in line for line in stage.said] == [False, True]


def broken() -> Shelf:
    source = shelf(F)
    del source.files[f"blob/{F.compact.start.sha256}"]
    return source


def test_a_finding_is_said_told_and_ends_the_monitor_with_1() -> None:
    stage = Stage(nothing)
    assert stage.follow(auditor(broken())) == 1
    assert stage.pauses == []
    assert stage.said[0].endswith(": fail")
    assert stage.said[1].startswith("finding: entry 0: the first round's start: blob")
    (message,) = stage.told
    assert isinstance(message, dict)
    assert message["consortium"] == F.state.consortium
    assert message["size"] == 26
    assert message["findings_total"] == len(stage.said) - 1


def test_a_monitor_that_keeps_going_tells_a_finding_once_and_again_when_it_comes_back() -> None:
    source = broken()
    path = f"blob/{F.compact.start.sha256}"
    stage = Stage(
        nothing,
        lambda: source.files.update({path: F.blobs[F.compact.start.sha256]}),
        nothing,
        lambda: source.files.update(shelf(F, [*F.entries, b"junk"]).files),
        nothing,
    )
    assert stage.follow(auditor(source), keep_going=True) == 0
    assert [line.rsplit(": ", 1)[1] for line in stage.said if line.startswith("three")] == ["fail", "pass", "fail"]
    assert len(stage.told) == 2


def test_a_webhook_that_fails_is_said_and_survived() -> None:
    def tell(message: Json) -> None:
        raise UnavailableError("webhook https://x/: answered 500")

    stage = Stage(nothing)
    assert stage.follow(auditor(broken()), tell=tell, keep_going=True) == 0
    assert stage.said[-1] == "not told: webhook https://x/: answered 500"


def test_a_monitor_that_is_stopped_at_work_ends_with_0() -> None:
    source = shelf(F)

    def stop(path: str) -> None:
        raise Stopped

    source.before_read = stop
    assert Stage().follow(auditor(source)) == 0


def test_a_full_disk_ends_the_monitor() -> None:
    class Full:
        def look_if_new(self) -> Outcome | None:
            raise StorageError("disk: full")

    with pytest.raises(StorageError):
        Stage().follow(Full())


def test_no_checkpoint_at_all_is_a_finding_at_the_first_look() -> None:
    source = shelf(F)
    del source.files["checkpoint"]
    stage = Stage()
    assert stage.follow(auditor(source)) == 1
    assert "wanted a signed note, got no such file" in stage.said[-1]


def test_an_alarm_is_bounded_whatever_the_records_say() -> None:
    report = examine(broken()).report
    many = tuple(Finding(index=1, culprit="x", key="0" * 64, sentence="\x01" * 100_000) for _ in range(1000))
    message = alarm(report.model_copy(update={"findings": many}))
    assert isinstance(message, dict)
    assert isinstance(message["findings"], list)
    assert len(message["findings"]) == MAX_TOLD_FINDINGS
    assert message["findings_total"] == 1000
    assert len(encode(message)) <= MAX_BODY_BYTES


def test_records_without_a_name_have_a_line_too() -> None:
    line = change_line(None, examine(shelf(F, [b"junk"])).report)
    assert line == "unknown: 0 entries (no new entry), root not reached: fail"


# -- the job


def test_the_memory_is_on_disk_before_anything_is_written(tmp_path: Path) -> None:
    memory, report = tmp_path / "memory", tmp_path / "not/a/folder"
    (tmp_path / "not").write_text("in the way")
    with pytest.raises(StorageError):
        auditor(shelf(F), memory=memory, outputs=Outputs(report=report)).look()
    assert load_memory(memory) is not None


def test_full_is_for_the_first_look_alone(tmp_path: Path) -> None:
    memory, source = tmp_path / "memory", shelf(F)
    auditor(source, memory=memory).look()
    source.reads.clear()
    one = auditor(source, memory=memory, full=True)
    one.look()
    assert "tile/entries/000.p/26" in source.reads
    source.reads.clear()
    one.look()
    assert source.reads == ["checkpoint"]


def test_a_lost_checkpoint_file_does_not_hide_what_the_log_says_now() -> None:
    source = shelf(F)
    one = auditor(source)
    one.look()
    del source.files["checkpoint"]
    with pytest.raises(LogError):
        one.look_if_new()


# -- the webhook

ADDRESSES: list[tuple[str, bool]] = [
    ("https://hooks.example.org/x", True),
    ("http://127.0.0.1:8000/x", True),
    ("http://127.9.9.9/", True),
    ("http://[::1]:8000/", True),
    ("http://localhost/", True),
    ("http://hooks.example.org/x", False),
    ("http://10.0.0.1/", False),
    ("http://localhost.example.org/", False),
    ("http://127.0.0.1.example.org/", False),
    ("http://127.0.0.1@example.org/", False),
    ("ftp://127.0.0.1/", False),
    ("file:///etc/passwd", False),
    ("https://", False),
    ("", False),
]


@pytest.mark.parametrize(("url", "allowed"), ADDRESSES)
def test_only_https_or_this_machine_is_told(url: str, allowed: bool) -> None:
    if allowed:
        check_webhook(url)
    else:
        with pytest.raises(ConfigError, match="wanted https://, or http:// to this machine"):
            check_webhook(url)


class Hook:
    """A real server on loopback that answers every POST with one status."""

    def __init__(self, status: int) -> None:
        hook = self
        self.bodies: list[Json] = []
        self.types: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                hook.types.append(self.headers["Content-Type"])
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://192.0.2.1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hook(request: pytest.FixtureRequest) -> Iterator[Hook]:
    server = Hook(getattr(request, "param", 204))
    yield server
    server.close()


def test_a_message_arrives_as_json(hook: Hook) -> None:
    message = alarm(examine(broken()).report)
    post_webhook(hook.url, message)
    assert hook.bodies == [message]
    assert hook.types == ["application/json"]


@pytest.mark.parametrize("hook", [302, 404, 500], indirect=True)
def test_any_answer_but_a_success_is_a_failure_and_a_redirect_is_not_followed(hook: Hook) -> None:
    with pytest.raises(UnavailableError, match=r"answered (302|404|500)"):
        post_webhook(hook.url, {})
    assert len(hook.bodies) == 1


def test_a_message_that_is_too_long_is_not_sent(hook: Hook) -> None:
    with pytest.raises(UnavailableError, match="wanted at most 65536 bytes"):
        post_webhook(hook.url, "x" * MAX_BODY_BYTES)
    assert hook.bodies == []


def test_nobody_there_is_a_failure() -> None:
    hook = Hook(204)
    hook.close()
    with pytest.raises(UnavailableError, match="does not answer"):
        post_webhook(hook.url, {})


# -- the command


def test_the_command_tells_the_webhook_and_exits_1(
    hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    f = two_rounds()
    public = f.publish(tmp_path)
    (public / "blob" / f.compact.start.sha256).unlink()
    follow = ["audit", "run", str(public), "--no-memory", "--follow", "--webhook", hook.url]
    assert run(follow) == 1
    assert "finding: entry 0" in capsys.readouterr().out
    (body,) = hook.bodies
    assert isinstance(body, dict)
    assert body["consortium"] == f.state.consortium


def test_sigterm_ends_the_command_with_0(tmp_path: Path) -> None:
    public = two_rounds().publish(tmp_path)
    args = ["audit", "run", str(public), "--no-memory", "--follow", "--interval-seconds", "3600"]
    code = f"import sys; from commonweal_protocols.cli import run; sys.exit(run({args!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # The first line is said by a monitor whose handler stands.
        assert re.fullmatch(r"three: 26 entries .*: pass\n", process.stdout.readline())
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
