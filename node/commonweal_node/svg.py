"""Pictures for the node's pages: SVG of a few marks in the page's own colour, with words for who cannot see. Pure."""

from collections.abc import Sequence

from commonweal_protocols.base.html import Html, el

_WIDE, _HIGH, _SQUARE, _EDGE = 640, 220, 320, 44
_LINE = {"fill": "none", "stroke": "currentColor", "stroke-width": "1.5"}


def picture(label: str, width: int, height: int, marks: Sequence[Html]) -> Html:
    """Return a picture of at most its own size; ``label`` is what a screen reader says of it."""
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "style": "max-width: 100%; height: auto"}
    return el("svg", *marks, **size, role="img", aria_label=label)


def dot(x: float, y: float, radius: float = 3, *children: Html, **attributes: str) -> Html:
    """Return a circle in the page's colour, unless ``attributes`` have another ``fill``."""
    return el(
        "circle",
        *children,
        **{"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:.1f}", "fill": "currentColor"} | attributes,
    )


def words(said: str, x: float, y: float, size: int = 11, anchor: str = "start") -> Html:
    """Return text on its baseline; ``anchor`` says which part of it stands at ``x``."""
    where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "text-anchor": anchor, "fill": "currentColor"}
    return el("text", said, **where)


def curve(title: str, points: Sequence[tuple[float, float]]) -> Html:
    """Return a curve with its least and greatest values written at the axes.

    Args:
        title: What it shows.
        points: At least one (x, y), finite, in the order of x.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    right, top, bottom = _WIDE - _EDGE, _EDGE / 2, _HIGH - _EDGE / 2
    places = list(zip(_spread(xs, _EDGE, right), _spread(ys, bottom, top), strict=True))
    marks = [
        _line([(_EDGE, top), (_EDGE, bottom), (right, bottom)], opacity=".4"),
        _line(places),
        dot(*places[-1], 2),
        words(f"{max(ys):.3f}", 0, top + 4),
        words(f"{min(ys):.3f}", 0, bottom),
        words(f"{xs[0]:g}", _EDGE, _HIGH - 4),
        words(f"{xs[-1]:g}", right, _HIGH - 4),
    ]
    return el("figure", picture(title, _WIDE, _HIGH, marks), el("figcaption", title))


def plane(title: str, points: Sequence[tuple[float, float]]) -> Html:
    """Return points, at least one, numbered from 1 on in a square: x to the right, y upwards."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    far = _SQUARE - _EDGE
    marks = []
    for k, (x, y) in enumerate(zip(_spread(xs, _EDGE, far), _spread(ys, far, _EDGE), strict=True)):
        marks += [dot(x, y, 4), words(str(k + 1), x + 7, y + 4, 16)]
    return el("figure", picture(title, _SQUARE, _SQUARE, marks), el("figcaption", title))


def _spread(values: Sequence[float], start: float, end: float) -> list[float]:
    """Put the least value at ``start`` and the greatest at ``end``."""
    low, wide = min(values), (max(values) - min(values)) or 1
    return [start + (v - low) / wide * (end - start) for v in values]


def _line(places: Sequence[tuple[float, float]], **attributes: str) -> Html:
    return el("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), **_LINE, **attributes)
