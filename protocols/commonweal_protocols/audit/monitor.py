"""A monitor: audits a log whenever it has changed, says so in one line, and raises the alarm at a finding.

It keeps no clock: the caller waits for it. A source that does not answer is asked again, at longer and longer
intervals; only what it publishes can be a finding.
"""

from collections.abc import Callable
from typing import Protocol

from commonweal_protocols.audit.audit import Outcome
from commonweal_protocols.audit.report import Finding, Report
from commonweal_protocols.base.canonical import Json
from commonweal_protocols.base.errors import LogError, UnavailableError

MAX_PAUSE_SECONDS = 3600.0
MAX_TOLD_FINDINGS = 20
_MAX_SENTENCE = 400
"""A character is at most six bytes of JSON, so that twenty sentences fit a webhook's message."""


class Stopped(Exception):
    """The monitor was asked to end while it was at work."""


class Monitored(Protocol):
    """What is followed (``audit_job.Auditor``)."""

    def look_if_new(self) -> Outcome | None:
        """Audit if something has changed.

        Raises:
            UnavailableError: The source does not answer now.
        """


def change_line(before: Report | None, after: Report) -> str:
    """Say in one line what has changed."""
    told = before.entries if before else {}
    new = {kind: n - told.get(kind, 0) for kind, n in after.entries.items() if n != told.get(kind, 0)}
    what = ", ".join(f"{n:+} {kind}" for kind, n in sorted(new.items())) or "no new entry"
    name = after.name or "unknown"
    return f"{name}: {after.size} entries ({what}), root {(after.root or 'not reached')[:16]}: {after.verdict}"


def alarm(report: Report) -> Json:
    """Return what a webhook is told about a report with findings: bounded, whatever the records say."""
    return {
        "format": "urn:commonweal:audit-alarm:v1",
        "consortium": report.consortium,
        "origin": report.origin,
        "size": report.size,
        "root": report.root,
        "findings": [
            {"index": f.index, "key": f.key, "sentence": f.sentence[:_MAX_SENTENCE]}
            for f in report.findings[:MAX_TOLD_FINDINGS]
        ],
        "findings_total": len(report.findings),
    }


def follow(
    auditor: Monitored,
    *,
    interval_seconds: float,
    wait: Callable[[float], bool],
    say: Callable[[str], None],
    tell: Callable[[Json], None] | None = None,
    keep_going: bool = False,
) -> int:
    """Follow a log until somebody stops it or it is found wrong.

    Args:
        auditor: Looks at the log.
        interval_seconds: Between two looks; after each failure twice as long, up to an hour.
        wait: Waits for so many seconds; True once the monitor shall end.
        say: Prints one line.
        tell: Tells somebody else of an alarm; it may raise :class:`UnavailableError`, which is said and survived.
        keep_going: Stay up after a finding.

    Returns:
        0 when stopped, 1 at a finding.

    Raises:
        StorageError, ConfigError: See ``audit_job.Auditor.look``.
    """
    before: Report | None = None
    told: tuple[Finding, ...] = ()
    pause = interval_seconds
    while True:
        try:
            outcome = auditor.look_if_new()
        except Stopped:
            return 0
        except (UnavailableError, LogError) as e:
            # LogError: there is no checkpoint where there was one, which a file server in trouble can say of any file.
            pause = min(2 * pause, max(MAX_PAUSE_SECONDS, interval_seconds))
            say(f"no answer: {e}; trying again in {pause:g} s")
        else:
            pause = interval_seconds
            if outcome is not None:
                report = outcome.report
                if before is None or report != before:
                    say(change_line(before, report))
                before = report
                if report.findings and report.findings != told:
                    _raise_alarm(report, say, tell)
                told = report.findings
                if report.findings and not keep_going:
                    return 1
        if wait(pause):
            return 0


def _raise_alarm(report: Report, say: Callable[[str], None], tell: Callable[[Json], None] | None) -> None:
    for finding in report.findings:
        say(f"finding: {finding.sentence}")
    if tell is None:
        return
    try:
        tell(alarm(report))
    except UnavailableError as e:
        say(f"not told: {e}")
