"""An audit's report on a terminal: what was checked, and each finding as a sentence."""

from rich.console import Console
from rich.markup import escape

from commonweal_protocols.audit.report import Report
from commonweal_protocols.audit.vocabulary import describe_deed, describe_foreign, describe_probe
from commonweal_protocols.base.text import printable

_CHECKS = {
    "recomputed": "re-computed to the same bytes",
    "digests only": "not re-computed",
    "failed": "does NOT hold",
}


def print_audit(report: Report, console: Console) -> None:
    """Print a report for people."""

    def line(name: str, text: str) -> None:
        console.print(f"[bold]{name:<11}[/]{escape(text)}", highlight=False, soft_wrap=True)

    line("consortium", f"{report.name or 'unknown'} {report.consortium or ''}")
    line("log", f"{report.origin or 'unknown'}: {report.size} entries, root {report.root or 'not reached'}")
    for origin, size in report.carried_over.items():
        line("before", f"log {origin}: all of its {size} entries are carried over")
    if (fork := report.forked_from) is not None:
        release = f"release {fork.release_leaf[:16]}…" if fork.release_leaf else "its first start"
        line("start", f"taken over from {release} of consortium {fork.consortium} after {fork.at.size} entries")
    line("entries", ", ".join(f"{n} {kind}" for kind, n in report.entries.items()) or "none")
    if report.compact_version is not None:
        line("compact", f"version {report.compact_version}")
    for e in report.ended_keys:
        suspect = "" if e.suspect_from_index is None else f"; suspect from entry {e.suspect_from_index} on"
        line("ended key", f"{e.key[:16]}… of {e.owner}, entry {e.at_index}: {printable(e.reason)}{suspect}")
    for m in report.motions:
        line("motion", f"{printable(m.title)} (entry {m.index}, of {m.author}): {m.result or m.stage}")
        for name, why in m.dissent.items():
            line("", f"dissent of {name}: {printable(why)}")
    for name, told in report.data.items():
        line("data", f"{name}: {printable(told)}")
    for f in report.foreign:
        line(
            "foreign",
            f"{f.institution} (entry {f.index}): {describe_deed(f.what, printable(describe_foreign(f.release)))}",
        )
    for r in report.rounds:
        line(f"round {r.round}", f"updates of {', '.join(r.updates) or 'nobody'}")
        if r.membership_auc_micros:
            figures = (f"{name} {auc / 1e6:.3f}" for name, auc in r.membership_auc_micros.items())
            line("", f"membership AUC (0.5 is chance): {', '.join(figures)}")
        for name, why in {**r.refusals, **r.rejections}.items():
            line("", f"without {name}: {why}")
        if r.release is None:
            line("", f"no release: {r.incident or 'still open'}")
            continue
        if r.incident is not None:
            line("", f"its release is void: {r.incident}")
        out = r.release
        line("", f"release {out.adapter_sha256[:16]}…, {_CHECKS[out.check]}; ratified by {', '.join(out.ratified_by)}")
        for sentence in r.masked:
            line("", f"masked; {sentence}")
        if out.recalled_by is not None:
            line("", f"recalled by the motion in entry {out.recalled_by}")
        if out.adoptions:
            line("", "decisions: " + ", ".join(f"{name} {describe_deed(did)}" for name, did in out.adoptions.items()))
        for name, probes in out.probes.items():
            line("", f"probes of {name}: {'; '.join(map(describe_probe, probes))}")
    for finding in report.findings:
        console.print(f"[bold red]finding    [/]{escape(finding.sentence)}", highlight=False, soft_wrap=True)
    if report.verdict == "pass":
        verdict = "[bold green]pass[/]: the records hold. They do not prove honest training or good values."
    else:
        verdict = f"[bold red]fail[/]: {len(report.findings)} finding(s)"
    console.print(f"[bold]verdict    [/]{verdict}", highlight=False, soft_wrap=True)
