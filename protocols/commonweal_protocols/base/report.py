"""What a command answers: frozen models, printed as lines for people or as JSON for programs.

A field is a line, and a tuple of models a table. A name's unit tells how its number is printed (``_micros``), and
``Field(title=…)`` gives a line other words than the field's name. What is None or empty is in the JSON alone. Text may
be a stranger's, so none of it can move the reader's cursor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import typer
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from commonweal_protocols.base.text import printable

_UNITS: dict[str, Callable[[float], str]] = {
    "_micros": lambda n: f"{n / 1e6:.6f}",
    "_millis": lambda n: f"{n / 1e3:.3f}",
    "_bytes": lambda n: f"{n:,} bytes",
    "_seconds": lambda n: f"{n:.0f} s",
}
_Row = dict[str, str]


class Report(BaseModel):
    """A command's answer. Its fields are in the order in which people read them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def print_report(report: BaseModel | Sequence[BaseModel], as_json: bool) -> None:
    """Print a model, or several of one kind as a table. JSON is one line, with null for a number that is not finite."""
    if as_json:
        typer.echo(to_json(report, inf_nan_mode="null").decode())
        return
    for line in _lines(report) if isinstance(report, BaseModel) else _table([_row(r) for r in report]):
        typer.echo(line)


def _lines(report: BaseModel) -> Iterator[str]:
    fields = [(label, unit, value) for label, unit, value in _fields(report) if value not in (None, "", (), {})]
    width = max((len(label) for label, _, _ in fields), default=0) + 2
    for label, unit, value in fields:
        if isinstance(value, tuple | list) and isinstance(value[0], BaseModel):
            yield f"{label}:"
            yield from (f"  {line}" for line in _table([_row(v) for v in value]))
        elif isinstance(value, tuple | list) and any(" " in str(v) for v in value):
            yield from (f"{label:<{width}}{_text(v, unit)}" for v in value)
        else:
            yield f"{label:<{width}}{_text(value, unit)}"


def _row(report: BaseModel) -> _Row:
    return {label: "" if value is None else _text(value, unit) for label, unit, value in _fields(report)}


def _table(rows: Sequence[_Row]) -> Iterator[str]:
    """The columns that have anything in them; the first is text, the others mostly numbers."""
    columns = [c for c in rows[0] if any(row[c] for row in rows)] if rows else []
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    for row in [{c: c for c in columns}, *rows] if rows else []:
        cells = (row[c].ljust(widths[c]) if c == columns[0] else row[c].rjust(widths[c]) for c in columns)
        yield "  ".join(cells).rstrip()


def _fields(report: BaseModel) -> Iterator[tuple[str, str, Any]]:
    """Each field's words for people, its unit, and its value."""
    kind = type(report)
    titles = {name: field.title for name, field in kind.model_fields.items()}
    for name, title in (titles | {name: field.title for name, field in kind.model_computed_fields.items()}).items():
        unit = next((u for u in _UNITS if name.endswith(u)), "")
        yield title or name.removesuffix(unit).replace("_", " "), unit, getattr(report, name)


def _text(value: object, unit: str = "") -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float() if unit:
            return _UNITS[unit](value)
        case float():
            return f"{value:.6g}"
        case tuple() | list():
            return ", ".join(_text(v, unit) for v in value)
        case BaseModel():
            return ", ".join(f"{label} {_text(v, u)}" for label, u, v in _fields(value) if v is not None)
        case Mapping() if any(isinstance(v, tuple | list) for v in value.values()):
            return "; ".join(f"{printable(str(k))}: {_text(v, unit)}" for k, v in value.items())
        case Mapping():
            return ", ".join(f"{printable(str(k))} {_text(v, unit)}" for k, v in value.items())
        case _:
            return printable(str(value))
