"""A deliberation as one page for everybody: a map of its opinion groups, what they share, and what divides them. Pure.

Self-contained: no script, no request, no font. Nobody is on the map, only groups and statements.
"""

from collections.abc import Sequence

from commonweal_node.charter.voices.consensus import Group, Held, Voices
from commonweal_node.svg import dot, picture, words
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.base.html import Html, el, facts, foreign, join, page, table

_SIZE, _EDGE = 520, 30
_ON_MAP = 12
_LISTED = 20
_FILLS = ("#3b82c4", "#d98a1f", "#3f9d62", "#a65fb8", "#c2534f")
"""One for each group, apart also for those who see no red or green; the letter in it says the same."""


def render_voices(voices: Voices, what: str) -> bytes:
    """Return the page, UTF-8."""
    common, apart = voices.statements[:_LISTED], voices.divisive()[:_LISTED]
    parted = len(voices.groups) > 1
    body = [
        el("p", "a deliberation", class_="kicker"),
        el("h1", foreign(what)),
        el("p", _summary(voices), " It informs; a recorded motion decides."),
        *([el("h2", "The map"), _map(voices, (*common[:_ON_MAP], *apart[:_ON_MAP]))] if parted else []),
        el("h2", "What holds across the groups"),
        el("p", "Consensus is the geometric mean of the groups' agreement: one group that refuses pulls it down."),
        _statements("Greatest consensus first", voices, common),
        *(
            [
                el("h2", "What divides them"),
                el("p", "The spread is the greatest agreement of a group less the least."),
                _statements("Greatest spread first", voices, apart),
                el("h2", "What each group stands for"),
                *(_typical(voices, g) for g in voices.groups),
            ]
            if parted
            else []
        ),
        el("h2", "How it was made"),
        facts(
            ("Digest of the export's files", el("code", voices.export)),
            ("People who voted", f"{voices.participants}; {voices.placed} on enough statements to be placed"),
            ("Statements left out", _left_out(voices)),
            ("Mean silhouette by number of groups", _silhouettes(voices)),
        ),
        el(
            "p",
            "Groups are those whose votes are alike, found by principal components and k-means. They are a picture of "
            "the votes, not of who people are, and another method would draw other lines.",
        ),
    ]
    return page(f"Voices: {what}", STYLE, el("main", *body))


def _left_out(voices: Voices) -> str:
    return (
        f"{voices.moderated_out} by the moderators, {voices.about_voters} about who the voters are, "
        f"{voices.too_few_votes} for few votes"
    )


def _summary(voices: Voices) -> str:
    if len(voices.groups) < 2:
        return f"{voices.placed} people, and no division of them that leaves at least five in each group."
    sizes = ", ".join(f"{g.group} with {g.members}" for g in voices.groups)
    return f"{voices.placed} people in {len(voices.groups)} groups that vote alike: {sizes}."


def _silhouettes(voices: Voices) -> str:
    return ", ".join(f"{k}: {s / 1000:.3f}" for k, s in voices.silhouettes_millis.items()) or "none to compare"


def _at(x: int, y: int) -> tuple[float, float]:
    half = _SIZE / 2 - _EDGE
    return _SIZE / 2 + half * x / 1000, _SIZE / 2 - half * y / 1000


def _map(voices: Voices, statements: Sequence[Held]) -> Html:
    marks = []
    for g, fill in zip(voices.groups, _FILLS, strict=False):
        x, y = _at(g.x, g.y)
        radius = max(12.0, (_SIZE / 2 - _EDGE) * g.reach / 1000)
        marks.append(dot(x, y, radius, fill=fill, fill_opacity=".3", stroke=fill))
        marks.append(words(f"{g.group} ({g.members})", x, y, 16, "middle"))
    for s in {s.statement: s for s in statements}.values():
        x, y = _at(s.x, s.y)
        marks.append(dot(x, y, 3, el("title", s.text)))
        marks.append(words(str(s.statement), x, y - 6, anchor="middle"))
    title = "Opinion groups as circles, as wide as they are scattered; statements as dots, towards those who agree"
    return el(
        "figure", picture(title, _SIZE, _SIZE, marks), el("figcaption", f"{title}. Numbers are the statements' below.")
    )


def _statements(caption: str, voices: Voices, statements: Sequence[Held]) -> Html:
    heads = ("Statement", "What it says", "Consensus", "Spread", *(f"{g.group} agrees" for g in voices.groups))
    rows = [
        (
            str(s.statement),
            foreign(s.text),
            _percent(s.consensus_millis),
            _percent(s.spread_millis),
            *(f"{_percent(a)} ({c.agree} of {c.agree + c.disagree + c.passed}; {c.disagree} disagree)"
              for a, c in zip(s.agreement_millis, s.groups, strict=True)),
        )
        for s in statements
    ]  # fmt: skip
    return table(caption, heads, rows)


def _typical(voices: Voices, group: Group) -> Html:
    texts = {s.statement: s.text for s in voices.statements}
    items = (
        el(
            "li",
            f"{_percent(t.share_millis)} {t.side}, {t.times_others_millis / 1000:.1f} times as many as elsewhere: ",
            foreign(texts[t.statement]),
            f" (statement {t.statement})",
        )
        for t in group.typical
    )
    return join((el("h3", f"Group {group.group}, {group.members} people"), el("ul", *items)))


def _percent(millis: int) -> str:
    return f"{millis / 10:.1f} %"
