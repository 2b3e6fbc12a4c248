"""``commonweal audit``: the auditor's commands. No logic here."""

import functools
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commonweal_protocols.audit import audit as core
from commonweal_protocols.audit.arithmetic import load_recompute
from commonweal_protocols.audit.evidence import (
    MAX_EVIDENCE_BYTES,
    ForkEvidence,
    convict_witnesses,
    parse_evidence,
    verify_evidence,
)
from commonweal_protocols.audit.foreign_job import ForeignCheck, check_foreign
from commonweal_protocols.audit.job import Auditor, Job, Outputs, load_seen
from commonweal_protocols.audit.memory import load_memory
from commonweal_protocols.audit.monitor import Stopped, follow
from commonweal_protocols.audit.story_job import read_story, story_html, story_json
from commonweal_protocols.audit.text import print_audit
from commonweal_protocols.audit.verdict import open_verdict
from commonweal_protocols.audit.vocabulary import describe_foreign
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, MalformedError, PeerError, SignatureError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.keys import create_key_file, load_key_file, load_passphrase, public_hex
from commonweal_protocols.base.options import AsJson, Ca, PassphraseFile, Place, Places
from commonweal_protocols.base.progress import progress
from commonweal_protocols.base.report import print_report
from commonweal_protocols.base.text import printable
from commonweal_protocols.base.webhook import check_webhook, post_webhook
from commonweal_protocols.records.departure import check_departure
from commonweal_protocols.records.signature_pool import usable_cores
from commonweal_protocols.records.source import is_address, open_source
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.cosignature import CosignatureVerifier, parse_cosigner_vkey
from commonweal_protocols.tlog.note import Verifier, parse_vkey
from commonweal_protocols.tlog.policy import load_policy
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_MAX_REPORT_BYTES = 1 << 30

app = typer.Typer(no_args_is_help=True, help="Re-check a consortium from its public records alone.")

Consortium = Annotated[
    str | None, typer.Option(help="The consortium you expect: 64 hex digits. Without it the log names itself.")
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the report here, as JSON.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write it as one page for everybody.")]
MemoryFile = Annotated[Path | None, typer.Option("--memory", help="Where to remember what was verified.")]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Neither read nor write a memory.")]
Full = Annotated[bool, typer.Option("--full", help="Verify everything anew, not only what is new.")]
NoRecompute = Annotated[bool, typer.Option("--no-recompute", help="Check signatures and digests only; needs no numpy.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=256, help="Processes that check signatures; as many as cores if not given.")
]
Against = Annotated[
    list[Path] | None,
    typer.Option(help="A checkpoint (or a receipt) of this log that somebody else has; may be repeated."),
]
CheckpointFile = Annotated[
    Path | None, typer.Option("--checkpoint", help="Write the verified signed checkpoint here, to hand on.")
]
EvidenceDir = Annotated[
    Path | None, typer.Option(help="Where to write evidence that convicts the log's key by itself.")
]
MaxAgeSeconds = Annotated[
    int | None, typer.Option(min=0, help="The oldest that the witnesses' word on the checkpoint may be.")
]
KeyFile = Annotated[Path | None, typer.Option("--sign", help="Sign a verdict with this key.")]
VerdictFile = Annotated[Path | None, typer.Option("--verdict", help="Write the signed verdict here.")]
Following = Annotated[bool, typer.Option("--follow", help="Stay up, and audit whenever the log changes.")]
IntervalSeconds = Annotated[float, typer.Option(min=1, help="With --follow: between two looks.")]
Webhook = Annotated[str | None, typer.Option(help="With --follow: POST findings here, as JSON.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="With --follow: stay up after a finding.")]


def _memory_path(place: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    name = place if is_address(place) else str(Path(place).resolve())
    return state / "commonweal" / "audit" / f"{''.join(c if c.isalnum() else '-' for c in name)[-120:]}.memory"


def _read_foreign(path: Path, max_bytes: int, wanted: str) -> bytes:
    return read_bounded(path, max_bytes, wanted, error=ConfigError, too_large=MalformedError)


@app.command()
def run(
    place: Place,
    ca: Ca = None,
    consortium: Consortium = None,
    report_file: ReportFile = None,
    html_file: HtmlFile = None,
    memory_file: MemoryFile = None,
    no_memory: NoMemory = False,
    full: Full = False,
    no_recompute: NoRecompute = False,
    jobs: Jobs = None,
    against: Against = None,
    checkpoint_file: CheckpointFile = None,
    evidence_dir: EvidenceDir = None,
    max_age_seconds: MaxAgeSeconds = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    verdict_file: VerdictFile = None,
    following: Following = False,
    interval_seconds: IntervalSeconds = 60,
    webhook: Webhook = None,
    keep_going: KeepGoing = False,
    as_json: AsJson = False,
) -> None:
    """Replay the log and re-compute every release. Exit 0: the records hold; 1: they do not.

    From the second time on, only what is new is verified. The report depends on the records alone, so two auditors of
    one log can compare theirs byte for byte.
    """
    if (key_file is None) != (verdict_file is None):
        raise ConfigError("audit run: wanted both of --sign and --verdict, or neither")
    if not following and (webhook or keep_going):
        raise ConfigError("audit run: wanted --follow with --webhook and --keep-going")
    if webhook:
        check_webhook(webhook)
    key = load_key_file(key_file, load_passphrase(passphrase_file)) if key_file else None
    job = Job(
        source=open_source(place, ca),
        consortium=consortium,
        memory=None if no_memory else memory_file or _memory_path(place),
        full=full,
        against={str(path): load_seen(path) for path in against or []},
        recompute=None if no_recompute else load_recompute(),
        max_age_seconds=max_age_seconds,
        jobs=jobs or usable_cores(),
        outputs=Outputs(report_file, html_file, checkpoint_file, evidence_dir, verdict_file, key),
    )
    raise typer.Exit(_follow(job, interval_seconds, webhook, keep_going) if following else _once(job, as_json))


def _now() -> datetime:
    return datetime.now(UTC)


def _once(job: Job, as_json: bool) -> int:
    with progress(quiet=as_json) as tell:
        outcome = Auditor(job, now=_now, on_progress=lambda p: tell(p.stage, p.done, p.total)).look()
    if as_json:
        typer.echo(outcome.report.to_bytes().decode(), nl=False)
    else:
        print_audit(outcome.report, Console())
    if outcome.evidence and job.outputs.evidence is None:
        typer.echo("the log's own signatures prove it: --evidence-dir FOLDER writes the evidence", err=True)
    return 0 if outcome.report.verdict == "pass" else 1


def _follow(job: Job, interval_seconds: float, webhook: str | None, keep_going: bool) -> int:
    stop = threading.Event()

    def stop_if_asked(_: core.Progress) -> None:
        if stop.is_set():
            raise Stopped

    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        return follow(
            Auditor(job, now=_now, on_progress=stop_if_asked),
            interval_seconds=interval_seconds,
            wait=stop.wait,
            say=functools.partial(print, flush=True),
            tell=functools.partial(post_webhook, webhook) if webhook else None,
            keep_going=keep_going,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def evidence(
    file: Annotated[Path, typer.Argument(help="Evidence that an audit has written.")],
    log: Annotated[
        str | None, typer.Option(help="The vkey of the accused log; without it, that of a log in --memory.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(help="The vkey of a witness of that log; may be repeated. Or see --memory.")
    ] = None,
    memory_file: Annotated[Path | None, typer.Option("--memory", help="The memory of an audit of that log.")] = None,
) -> None:
    """Check evidence against a log's key, offline, and name the witnesses that have cosigned both sides of a fork.

    Exit 1: it convicts that key. 0: it convicts nobody. 2: it is not evidence at all, or no key is known.
    """
    try:
        parsed = parse_evidence(read_bounded(file, MAX_EVIDENCE_BYTES, "evidence", error=ConfigError))
        verifier, witnesses = _accused(log, witness or [], memory_file)
    except MalformedError as e:
        raise ConfigError(f"{file}: {e}") from e
    try:
        conviction = verify_evidence(parsed, verifier)
    except PeerError as e:
        typer.echo(f"convicts nobody: {e}")
        return
    typer.echo(f"convicted: {conviction.sentence}")
    if isinstance(parsed, ForkEvidence):
        for liar in convict_witnesses(parsed, verifier, witnesses):
            typer.echo(f"convicted: {liar.sentence}")
    raise typer.Exit(1)


def _accused(
    log: str | None, witness: list[str], memory_file: Path | None
) -> tuple[Verifier, list[CosignatureVerifier]]:
    memory = load_memory(memory_file) if memory_file else None
    if log is None and memory is None:
        raise ConfigError("audit evidence: wanted --log VKEY (or --memory of an audit of that log)")
    witnesses = [parse_cosigner_vkey(vkey) for vkey in witness]
    if memory is not None and memory.state is not None:
        witnesses += [w.verifier for w in policy_of(memory.state.compact).witnesses]
    return memory.verifier if memory and not log else parse_vkey(log or ""), witnesses


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="Where to put the new private key; nothing is overwritten.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make an auditor's key, and print its public half: that is what others check verdicts with."""
    typer.echo(public_hex(create_key_file(file, load_passphrase(passphrase_file))))


@app.command()
def verify_verdict(
    file: Annotated[Path, typer.Argument(help="A verdict that an auditor has signed.")],
    key: Annotated[str, typer.Option(help="The auditor's public key: 64 hex digits.")],
    report_file: Annotated[
        Path | None, typer.Option("--report", help="A report: check that the verdict is on these bytes.")
    ] = None,
) -> None:
    """Check an auditor's signed verdict. Exit 0: it is this auditor's, and says that the records hold; 1: otherwise."""
    verdict = open_verdict(_read_foreign(file, MAX_ENTRY_BYTES, "a verdict"), key)
    if (
        report_file
        and (got := digest_of(_read_foreign(report_file, _MAX_REPORT_BYTES, "a report"))) != verdict.report_sha256
    ):
        raise SignatureError(f"{report_file}: wanted the report {verdict.report_sha256}, got {got}")
    tree = verdict.tree
    what = f"{tree.origin} at {tree.size} entries, root {tree.root}" if tree else "a log whose checkpoint does not hold"
    typer.echo(f"{'pass' if verdict.passed else 'fail'} ({verdict.level}): consortium {verdict.consortium}, {what}")
    typer.echo(f"report {verdict.report_sha256}, {verdict.verified_at.isoformat()} by the auditor's clock")
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def story(
    places: Places = None,
    ca: Ca = None,
    whole: Annotated[bool, typer.Option("--all", help="Also what happens in every round.")] = False,
    html_file: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened, from the logs alone, each sentence with the entry that bears it out.

    The page and the JSON have each claim with its entry and its tlog-proof. A log that breaks its compact is not told:
    exit 1, and what is wrong. Give the log of a fork, or the one that a consortium had before, beside its own.
    """
    stories = [read_story(source) for source in [open_source(place, ca) for place in places or ()]]
    if not stories:
        raise ConfigError("audit story: wanted at least one PLACE")
    if html_file is not None:
        write_atomic(html_file, story_html(stories))
    if as_json:
        typer.echo(story_json(stories).decode(), nl=False)
        return
    for told in stories:
        checkpoint = told.replica.checkpoint()
        name = printable(told.replica.state.compact.consortium)
        typer.echo(f"{name}, log {printable(checkpoint.origin)}, {checkpoint.size} entries")
        for claim in told.claims:
            if whole or not claim.is_routine:
                typer.echo(f"{claim.index:>7}  {printable(claim.sentence)}")


@app.command()
def departure(
    directory: Annotated[Path, typer.Argument(help="The folder that `commonweal node exit` has written.")],
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="Whom to believe (C2SP tlog-policy); the folder's own compact if not given."),
    ] = None,
) -> None:
    """Check a departure offline: every digest, signature and proof, and that nothing which was said is missing.

    Exit 1: it does not hold.
    """
    checked = check_departure(directory, load_policy(policy_file) if policy_file else None)
    said, tree = checked.departure, checked.checkpoint
    typer.echo(f"{said.institution}: all {len(said.entries)} entries, from its first to its exit, and nothing else")
    typer.echo(f"reason: {printable(checked.last.reason)}")
    typer.echo(
        f"consortium {said.consortium}, log {printable(tree.origin)}, {tree.size} entries, root {tree.root.hex()}"
    )
    if policy_file is None:
        typer.echo(
            "the log and its witnesses are those that the folder names; --policy FILE takes your own word for them"
        )


@app.command()
def foreign(
    place: Place,
    other: Annotated[
        list[str] | None, typer.Option(metavar="PLACE", help="Another consortium's records; may be repeated.")
    ] = None,
    ca: Ca = None,
    no_recompute: NoRecompute = False,
    as_json: AsJson = False,
) -> None:
    """Hold what a log says of other consortia's releases to those consortia's own records.

    Institutions adopt such releases, and a consortium that is a member of another gives its own. Exit 1: something is
    not as it was said. What no records are given for is not checked. Whether those logs' own merges are right is for
    `commonweal audit run`, for each log by itself.
    """
    sources = [open_source(p, ca) for p in other or ()]
    checks = check_foreign(open_source(place, ca), sources, None if no_recompute else load_recompute())
    if as_json:
        print_report(checks, as_json)
    else:
        _print_foreign(checks)
    if any(c.verdict == "fails" for c in checks):
        raise typer.Exit(1)


def _print_foreign(checks: tuple[ForeignCheck, ...]) -> None:
    if not checks:
        typer.echo("no entry names a release of another consortium")
    for c in checks:
        named, release = c.named, printable(describe_foreign(c.named.release))
        typer.echo(f"{named.index:>7}  {named.institution}: {named.what} of {release}")
        typer.echo(f"         {c.verdict}: {printable(c.sentence)}")
        if c.withdrawn:
            typer.echo("         its own consortium has withdrawn it since")
        if c.in_both and named.what == "contribution":
            typer.echo(f"         members of both by name, who may have a voice twice: {', '.join(c.in_both)}")
