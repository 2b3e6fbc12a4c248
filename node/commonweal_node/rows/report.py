"""A curation as one page for people who are not engineers: a funnel, and for each stage what it did and why.

Self-contained: no script, no request, no font. A pure function of the signed manifest, so no word of a row is in it.
"""

from collections.abc import Iterator

from commonweal_node.svg import picture, words
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.base.html import Html, el, facts, foreign, page, table
from commonweal_protocols.statements.data_manifest import DataManifest, Parameter, Plain, StageRecord

_WIDTH, _ROW, _LABEL, _BAR = 760, 34, 190, 420
_FUNNEL_STYLE = """
svg .kept { fill: var(--link); } svg .gone { fill: var(--line); } svg .more { fill: var(--pass); }
"""
_WHAT = {
    "license": "Keep rows whose license the community accepts",
    "length": "Keep rows that are neither too short nor too long",
    "language": "Keep rows in the community's languages",
    "exact-duplicates": "Keep one of rows with the same words",
    "near-duplicates": "Keep one of rows that are nearly the same",
    "scrub": "Put placeholders in the place of personal data",
    "split": "Hold out whole groups to evaluate with",
    "traits": "See rows more often that express what the community wants more of",
    "revise": "Let the model revise answers by the charter's principles",
}


def to_html(manifest: DataManifest, signed_by: str) -> bytes:
    """Return the page.

    Args:
        manifest: Verified.
        signed_by: The public key that signed it, in hex.
    """
    left = manifest.left
    body = el(
        "main",
        el("p", "Commonweal: how a community's rows were curated", class_="kicker"),
        el("h1", foreign(manifest.institution)),
        el(
            "p",
            f"{_rows_in(manifest):,} rows were taken in from {manifest.taken.sources:,} sources. "
            f"{left.train_rows:,} rows are for training and {left.heldout_rows:,} are held out to evaluate with"
            + (
                f"; {left.synthetic:,} of them were written by a model, and are marked as such." * bool(left.synthetic)
                or "."
            ),
        ),
        _section("The funnel", "funnel", _funnel(manifest), *_stage_table(manifest)),
        _section("Stage by stage", "stages", *(_stage(s) for s in manifest.stages)),
        _section("What is left", "left", _left(manifest)),
        _section("Proof", "proof", _proof(manifest, signed_by)),
        _section("What this does not say", "limits", *_limits()),
    )
    return page(f"Curation: {manifest.institution}", STYLE + _FUNNEL_STYLE, body)


def _section(title: str, name: str, *children: Html) -> Html:
    return el("section", el("h2", title, id=name), *children, aria_labelledby=name)


def _rows_in(manifest: DataManifest) -> int:
    return manifest.taken.conversations + manifest.taken.texts + manifest.taken.preferences


def _funnel(manifest: DataManifest) -> Html:
    """One bar for what was taken in and one for what each stage left, all on one scale."""
    counts = [("taken in", _rows_in(manifest)), *((s.stage, s.rows_out) for s in manifest.stages)]
    scale = _BAR / max(1, *(n for _, n in counts))
    before = counts[0][1]
    parts: list[Html] = []
    for i, (name, n) in enumerate(counts):
        y = i * _ROW + 6
        parts.append(words(name, 0, y + 16, 14))
        parts.append(_bar("kept", 0, min(n, before) * scale, y))
        # What the stage took away is grey; what it added stands behind the rest.
        parts.append(_bar("gone" if n < before else "more", min(n, before) * scale, abs(n - before) * scale, y))
        change = "" if i == 0 or n == before else f" ({n - before:+,})"
        x = _LABEL + max(n, before) * scale + 8
        parts.append(words(f"{n:,}{change}", x, y + 16, 14))
        before = n
    height = len(counts) * _ROW + 6
    label = "Rows after each stage: " + ", ".join(f"{name} {n:,}" for name, n in counts)
    return picture(label, _WIDTH, height, parts)


def _bar(kind: str, start: float, length: float, y: int) -> Html:
    return el("rect", class_=kind, x=f"{_LABEL + start:.1f}", y=str(y), width=f"{length:.1f}", height="22")


def _stage_table(manifest: DataManifest) -> Iterator[Html]:
    rows = [(s.stage, f"{s.rows_in:,}", f"{s.rows_out:,}", _change(s)) for s in manifest.stages]
    yield table("Rows after each stage", ("Stage", "Rows before", "Rows after", "Change"), rows)


def _change(s: StageRecord) -> str:
    return "none" if s.rows_out == s.rows_in else f"{s.rows_out - s.rows_in:+,}"


def _stage(s: StageRecord) -> Html:
    reasons = [(foreign(r.reason), f"{r.rows:,}") for r in sorted(s.reasons, key=lambda r: (-r.rows, r.reason))]
    given = (table(f"Why, in stage {s.stage}", ("Reason", "How often"), reasons),) if reasons else ()
    details = facts(
        *((name.replace("_", " "), foreign(_shown(value))) for name, value in sorted(s.parameters.items())),
        *((("decided by", s.by),) if s.by else ()),
        ("keyed digest of the rows after it", el("code", s.rows)),
    )
    return el(
        "article",
        el("h3", s.stage),
        el("p", f"{_WHAT.get(s.stage, s.stage)}: {s.rows_in:,} rows before, {s.rows_out:,} after."),
        *given,
        el("details", el("summary", "Parameters from the charter"), details),
    )


def _shown(value: Parameter | dict[str, Plain]) -> str:
    if isinstance(value, tuple):
        return "; ".join(_shown(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _left(manifest: DataManifest) -> Html:
    left = manifest.left
    rows = [
        ("Rows for training", f"{left.train_rows:,}"),
        ("Rows held out", f"{left.heldout_rows:,}"),
        ("Groups for training", f"{left.train_groups:,}"),
        ("Groups held out", f"{left.heldout_groups:,}"),
        ("Conversations", f"{left.conversations:,}"),
        ("Texts", f"{left.texts:,}"),
        ("Preferences", f"{left.preferences:,}"),
        ("Written by a model", f"{left.synthetic:,}"),
        ("Characters", f"{left.characters:,}"),
    ]
    return table("The curated rows; one that is seen three times counts three times", ("What", "How many"), rows)


def _proof(manifest: DataManifest, signed_by: str) -> Html:
    return facts(
        ("signed by", el("code", signed_by)),
        ("charter", el("span", f"version {manifest.charter_version}, keyed digest ", el("code", manifest.charter))),
        ("keyed digest of the rows taken in", el("code", manifest.taken.rows)),
        ("keyed digest of the rows left", el("code", manifest.left.rows)),
        ("curation key, by SHA-256", el("code", manifest.key)),
    )


def _limits() -> Iterator[Html]:
    yield el(
        "p",
        "There is no word of any row on this page. Digests of rows are made with a key that stays on the node, so that "
        "nobody can try texts against them.",
    )
    yield el(
        "p",
        "Scrubbing finds numbers and addresses whose form can be checked. It does not find names, places or stories: "
        "a person may be known by those. Traits are known by words that the charter lists: a proxy, not a judgement.",
    )
