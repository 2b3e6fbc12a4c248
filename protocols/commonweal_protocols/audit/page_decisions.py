"""The part of an audit's page that is about deciding together: motions, dissent, and keys that have ended. Pure."""

from collections.abc import Callable

from commonweal_protocols.audit.report import EndedKey, ForeignReport, MotionReport, Report
from commonweal_protocols.audit.vocabulary import RESULTS, STAGES, describe_deed, describe_foreign
from commonweal_protocols.base.html import Html, el, foreign, join, table


def render_decisions(report: Report, proof: Callable[[int], Html]) -> list[Html]:
    """Return the sections that there is something to say in.

    Args:
        report: The audit's report.
        proof: The proof of an entry, folded away.
    """
    sections = []
    if report.motions:
        articles = [_motion(m, proof) for m in report.motions]
        heading = el("h2", "What was decided together", id="motions")
        sections.append(el("section", heading, *articles, aria_labelledby="motions"))
    if report.foreign:
        said = (
            "Each is what an institution says that it has verified. Hold it to the other log: commonweal audit foreign."
        )
        named = [_foreign(f, proof) for f in report.foreign]
        heading = el("h2", "Releases of other consortia", id="foreign")
        listed = table(
            "Decisions on them, and contributions of them", ("Who", "What it did", "With which release"), named
        )
        sections.append(el("section", heading, el("p", said), listed, aria_labelledby="foreign"))
    if report.ended_keys:
        heads = ("Whose", "Key", "Ended at", "Why", "What it said from there on is suspect")
        rows = [_key(e, proof) for e in report.ended_keys]
        heading = el("h2", "Keys that sign no more", id="keys")
        listed = table("Keys that have ended, and why", heads, rows)
        sections.append(el("section", heading, listed, aria_labelledby="keys"))
    return sections


def _motion(m: MotionReport, proof: Callable[[int], Html]) -> Html:
    became = RESULTS[m.result] if m.result else STAGES[m.stage]
    parts = [
        el("h3", foreign(m.title), f": {became}"),
        el("p", foreign(m.author), " moved ", foreign(m.proposal), "."),
    ]
    if m.steps:
        parts.append(el("ul", *(el("li", foreign(step)) for step in m.steps)))
    if m.dissent:
        parts.append(el("p", "Dissent, which stands beside the decision:"))
        parts.append(el("ul", *(el("li", foreign(name), ": ", foreign(why)) for name, why in m.dissent.items())))
    return el("article", *parts, proof(m.index))


def _foreign(f: ForeignReport, proof: Callable[[int], Html]) -> tuple[str, ...]:
    return (foreign(f.institution), join((describe_deed(f.what), proof(f.index))), foreign(describe_foreign(f.release)))


def _key(e: EndedKey, proof: Callable[[int], Html]) -> tuple[str, ...]:
    suspect = "nothing" if e.suspect_from_index is None else f"entry {e.suspect_from_index}"
    ended = join((f"entry {e.at_index}", proof(e.at_index)))
    return (foreign(e.owner), el("code", e.key), ended, foreign(e.reason), suspect)
