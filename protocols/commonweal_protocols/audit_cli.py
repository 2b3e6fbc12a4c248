"""``commonweal audit``: the auditor's commands. No logic here; ``audit`` does the work."""

import contextlib
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, cast

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commonweal_protocols import audit as core
from commonweal_protocols.errors import ConfigError, StorageError
from commonweal_protocols.files import write_atomic
from commonweal_protocols.predicates import Closed, Digest
from commonweal_protocols.records import DirectorySource, HttpSource, Source
from commonweal_protocols.statement import Seen

app = typer.Typer(no_args_is_help=True, help="Re-check a consortium from its public records alone.")


_CHECKS = {
    "recomputed": "re-computed to the same bytes",
    "digests only": "not re-computed",
    "failed": "does NOT hold",
}


class Memory(Closed):
    """What an auditor remembers of a log between runs, so that a rollback or a fork shows."""

    consortium: Digest
    seen: Seen


def _memory_path(source: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return state / "commonweal" / "audit" / f"{''.join(c if c.isalnum() else '-' for c in source)[-120:]}.json"


def load_memory(path: Path) -> Memory | None:
    """Return what was remembered, or None at the first audit.

    Raises:
        StorageError: The file is there but is not ours.
    """
    try:
        return Memory.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as e:
        raise StorageError(f"{path}: wanted an auditor's memory, got another file; move it away to start anew") from e


def _load_recompute() -> core.Recompute:
    (point,) = entry_points(group="commonweal.recompute")
    return cast(core.Recompute, point.load())


def print_report(report: core.Report, console: Console) -> None:
    """Print a report for people: what was checked, and each finding as a sentence."""

    def line(name: str, text: str) -> None:
        console.print(f"[bold]{name:<11}[/]{escape(text)}", highlight=False, soft_wrap=True)

    line("consortium", f"{report.name or 'unknown'} {report.consortium or ''}")
    line("log", f"{report.origin or 'unknown'}: {report.size} entries, root {report.root or 'not reached'}")
    line("entries", ", ".join(f"{n} {kind}" for kind, n in report.entries.items()) or "none")
    for r in report.rounds:
        line(f"round {r.round}", f"updates of {', '.join(r.updates) or 'nobody'}")
        for name, why in {**r.refusals, **r.rejections}.items():
            line("", f"without {name}: {why}")
        if r.release is None:
            line("", f"no release: {r.incident or 'still open'}")
            continue
        out = r.release
        line("", f"release {out.adapter_sha256[:16]}…, {_CHECKS[out.check]}; ratified by {', '.join(out.ratified_by)}")
        if out.adoptions:
            line("", "decisions: " + ", ".join(f"{name} {decision}" for name, decision in out.adoptions.items()))
    for finding in report.findings:
        console.print(f"[bold red]finding    [/]{escape(finding.sentence)}", highlight=False, soft_wrap=True)
    if report.verdict == "pass":
        verdict = "[bold green]pass[/]: the records hold. They do not prove honest training or good values."
    else:
        verdict = f"[bold red]fail[/]: {len(report.findings)} finding(s)"
    console.print(f"[bold]verdict    [/]{verdict}", highlight=False, soft_wrap=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def run(
    url: Annotated[str | None, typer.Option(help="Where the public records are served, https://HOST:PORT.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="A folder of public records: a mirror, a disk.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM of the authority behind --url; the system's if not given.")
    ] = None,
    consortium: Annotated[
        str | None, typer.Option(help="The consortium you expect: 64 hex digits. Without it the log names itself.")
    ] = None,
    report_file: Annotated[Path | None, typer.Option("--report", help="Write the report here, as JSON.")] = None,
    memory_file: Annotated[
        Path | None, typer.Option("--memory", help="Where to remember the newest checkpoint between runs.")
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Neither read nor write a memory.")] = False,
    no_recompute: Annotated[
        bool, typer.Option("--no-recompute", help="Check signatures and digests only; needs no numpy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Replay the log and re-compute every release. Exit 0: the records hold; 1: they do not.

    The report depends on the records alone, so two auditors of one log can compare theirs byte for byte.
    """
    if (url is None) == (directory is None):
        raise ConfigError("audit run: wanted one of --url and --dir")
    source: Source = HttpSource(url, ca) if url else DirectorySource(cast(Path, directory))
    path = memory_file or _memory_path(url or str(cast(Path, directory).resolve()))
    memory = None if no_memory else load_memory(path)
    recompute = None if no_recompute else _load_recompute()
    stderr = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr
    )
    with bars if stderr.is_terminal and not as_json else contextlib.nullcontext():
        tasks = {stage: bars.add_task(stage, total=None) for stage in ("entries", "releases")}
        report = core.audit(
            source,
            consortium=consortium or (memory.consortium if memory else None),
            earlier=memory.seen if memory else None,
            recompute=recompute,
            on_progress=lambda p: bars.update(tasks[p.stage], completed=p.done, total=p.total),
        )
    if report_file:
        write_atomic(report_file, report.to_bytes())
    if as_json:
        typer.echo(report.to_bytes().decode(), nl=False)
    else:
        print_report(report, Console())
    if report.verdict == "fail":
        raise typer.Exit(1)
    if not no_memory and report.consortium and report.origin and report.root:
        seen = Seen(origin=report.origin, size=report.size, root=report.root)
        write_atomic(path, Memory(consortium=report.consortium, seen=seen).model_dump_json().encode())
