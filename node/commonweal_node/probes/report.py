"""What probes have measured, for people and for machines, clause by clause; never one figure over several. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from commonweal_node.charter.charter import Charter
from commonweal_node.probes.probe import Probe
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.adoption import Measure
from commonweal_protocols.statements.charter import ProbeBar
from commonweal_protocols.statements.values import Name

SERVING = "blend"
"""What bars are held against: the adapter that serves."""


class ProbeReport(Closed):
    """One probe's results. ``micros``: in millionths, of base, and of own, shared and blend where there are."""

    probe: Name
    measure: Measure
    items: int
    clauses: tuple[Name, ...]
    """Those of the charter that it is to show."""
    micros: dict[str, int]
    bar: ProbeBar | None
    shortfall: str | None
    """What the adapter that serves lacks for the bar, empty if nothing; None without a bar or without an adapter."""


def report_probe(charter: Charter, probe: Probe, micros: Mapping[str, int]) -> ProbeReport:
    """Return a probe's results beside what the charter says of it."""
    bar = next((b for b in charter.bars.probes if b.probe == probe.name), None)
    shortfall = None
    if bar is not None and SERVING in micros:
        shortfall = bar.shortfall(probe.measure, micros["base"], micros[SERVING])
    return ProbeReport(
        probe=probe.name,
        measure=probe.measure,
        items=len(probe.items),
        clauses=charter.probed_by().get(probe.name, ()),
        micros=dict(micros),
        bar=bar,
        shortfall=shortfall,
    )


def describe_reports(charter: Charter, reports: Sequence[ProbeReport]) -> Iterator[str]:
    """Yield lines: each clause that one of the probes is to show, and below it what they have measured."""
    for clause in charter.clauses():
        some = [r for r in reports if clause.id in r.clauses]
        if some:
            yield f"{clause.id}: {clause.text}"
            for r in some:
                yield from _lines(r)
    others = [r for r in reports if not r.clauses]
    if others:
        yield "of no clause:"
        for r in others:
            yield from _lines(r)


def _lines(r: ProbeReport) -> Iterator[str]:
    figures = ", ".join(f"{what} {micros / 1e6:.3f}" for what, micros in r.micros.items())
    better = "more" if r.measure == "accuracy" else "less"
    yield f"  {r.probe}: {r.measure} of {r.items} items ({better} is better): {figures}"
    if r.bar is None:
        yield "    no bar"
        return
    wanted = {
        "accuracy at least": r.bar.min_accuracy_millis,
        "distance at most": r.bar.max_distance_millis,
        "worse than the base by at most": r.bar.max_worse_than_base_millis,
    }
    told = "; ".join(f"{what} {millis / 1000:.3f}" for what, millis in wanted.items() if millis is not None)
    held = {None: "nothing serves yet", "": "met"}.get(r.shortfall, f"NOT met: {r.shortfall}")
    yield f"    bar: {told}: {held}"
