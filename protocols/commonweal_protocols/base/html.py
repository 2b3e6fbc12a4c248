"""Markup that cannot be injected into: an element escapes every child and attribute that is not markup already.

Only :func:`el` and :func:`join` make :class:`Html`, so a value that somebody signed is text wherever it lands. Pure.
"""

import html
from collections.abc import Iterable


class Html(str):
    """Markup that may stand as it is."""

    __slots__ = ()


def escape(value: str) -> Html:
    """Return text as markup that shows it."""
    return value if isinstance(value, Html) else Html(html.escape(value, quote=True))


def join(children: Iterable[str]) -> Html:
    """Return children side by side, each escaped unless it is markup."""
    return Html("".join(escape(c) for c in children))


def el(name: str, *children: str, **attributes: str) -> Html:
    """Return an element.

    Args:
        name: The element's name, ours.
        children: Text (escaped) or markup, in order.
        attributes: Values are escaped; ``class_`` stands for ``class``, and any other underscore for a hyphen.
    """
    written = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(v)}"' for k, v in attributes.items())
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def foreign(value: str) -> Html:
    """Return what somebody else wrote, set apart so that its writing direction cannot reorder the text around it."""
    return el("bdi", value)


def facts(*pairs: tuple[str, str]) -> Html:
    """Return names and their values."""
    return el("dl", *(join((el("dt", name), el("dd", value))) for name, value in pairs))


def table(caption: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Html:
    """Return a table with headings that a screen reader finds; wide ones scroll within themselves."""
    head = el("tr", *(el("th", h, scope="col") for h in heads))
    body = (el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows)
    inner = el("table", el("caption", caption), el("thead", head), el("tbody", *body))
    return el("div", inner, class_="wide", role="region", aria_label=caption, tabindex="0")


def page(title: str, style: str, *body: str) -> bytes:
    """Return a whole page that loads nothing from anywhere, and that a browser is told to keep from doing so.

    Args:
        title: The title.
        style: Our own style sheet.
        body: The content.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{join(body)}</body></html>\n'.encode()
