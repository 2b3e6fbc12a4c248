"""``commonweal charter voices`` and ``draft``: what a deliberation comes to, and clauses that cite it."""

from pathlib import Path
from typing import Annotated

import typer

from commonweal_protocols.base import canonical
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.options import AsJson
from commonweal_protocols.base.text import printable

Export = Annotated[Path, typer.Argument(help="A Polis export: its folder, or a file NAME.votes.csv.")]
What = Annotated[str | None, typer.Option("--name", help="What the deliberation is called; its file if not given.")]
INFORMS = "This informs; a recorded motion decides."


def _called(name: str | None, export: Path) -> str:
    return name or export.resolve().name.removesuffix(".votes.csv")


def voices(
    export: Export,
    name: What = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write it as one page for everybody, with a map.")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many statements of each kind to print.")] = 5,
) -> None:
    """Find opinion groups in a deliberation, what holds across them, and what divides them.

    Only sums over at least five people come out; nobody's name and nobody's votes do.
    """
    from commonweal_node.charter.voices.consensus import listen
    from commonweal_node.charter.voices.export import load_export
    from commonweal_node.charter.voices.page import render_voices

    found = listen(load_export(export))
    if html is not None:
        write_atomic(html, render_voices(found, _called(name, export)))
    if as_json:
        typer.echo(canonical.encode(found.model_dump(mode="json")).decode())
        return
    sizes = ", ".join(f"{g.group} {g.members}" for g in found.groups)
    typer.echo(f"{found.placed} of {found.participants} people placed; groups: {sizes}")
    typer.echo(
        f"statements left out: {found.moderated_out} by the moderators, {found.about_voters} about who the voters are, "
        f"{found.too_few_votes} for few votes"
    )
    for title, statements in (("holds across the groups", found.statements), ("divides them", found.divisive())):
        typer.echo(f"\nwhat {title}:")
        for s in statements[:top]:
            shares = ", ".join(
                f"{g.group} {a / 10:.0f} %" for g, a in zip(found.groups, s.agreement_millis, strict=True)
            )
            typer.echo(f"  {s.statement:>4}  {shares}  {printable(s.text)}")
    typer.echo(f"\n{INFORMS}")


def draft(
    export: Export,
    into: Annotated[Path | None, typer.Option(help="Add the clauses to this charter (TOML); else print them.")] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="How many clauses.")] = 5,
    name: What = None,
) -> None:
    """Draft clauses of the statements that hold across opinion groups, each with its numbers and its dissent."""
    from commonweal_node.charter.edit import add_clause, clause_toml, load_text
    from commonweal_node.charter.voices.consensus import listen
    from commonweal_node.charter.voices.draft import draft_clauses
    from commonweal_node.charter.voices.export import load_export

    clauses = draft_clauses(listen(load_export(export)), _called(name, export), top)
    if into is None:
        typer.echo("\n".join(clause_toml("principles", c) for c in clauses))
    else:
        text = load_text(into)
        for c in clauses:
            text = add_clause(text, "principles", c, str(into))
        write_atomic(into, text.encode())
        typer.echo(f"{into}: {len(clauses)} clauses drafted")
    typer.echo(f"# {INFORMS}")
