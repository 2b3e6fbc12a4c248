"""Writes docs/reference from the code: the commands, the settings, the exit codes and the statements' schemas.

    .venv/bin/python deploy/reference.py

The same code gives the same bytes; a test compares the committed files with fresh ones.
"""

import ast
import json
from collections.abc import Iterator
from inspect import cleandoc, getsource
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup

from commonweal_coordinator.config import CoordinatorConfig
from commonweal_node.config import NodeConfig
from commonweal_protocols.cli import EXIT_CODES, GROUPS, root
from commonweal_protocols.statements.registry import PREDICATES
from commonweal_protocols.witness.config import WitnessConfig

FOLDER = Path(__file__).parents[1] / "docs/reference"
_SETTINGS: dict[str, type[BaseModel]] = {
    "node.toml": NodeConfig,
    "coordinator.toml": CoordinatorConfig,
    "witness.toml": WitnessConfig,
}


def _cell(text: object) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _help(text: str) -> str:
    """Return a command's help as Markdown: a paragraph of command lines is a code block."""
    paragraphs = [p.strip() for p in cleandoc(text.replace("\b", "")).split("\n\n")]
    return "\n\n".join(
        f"```\n{p}\n```" if all(line.startswith("commonweal ") for line in p.splitlines()) else p
        for p in paragraphs
        if p
    )


def _commands(command: object, path: str) -> Iterator[str]:
    if not isinstance(command, TyperCommand | TyperGroup):
        return
    yield f"## `{path}`\n\n{_help(command.help or '')}\n"
    rows = [
        f"| `{' '.join(p.opts)}` | {'yes' if p.required else ''} | {_cell(getattr(p, 'help', None) or '')} |"
        for p in command.params
        if "completion" not in (p.name or "")
    ]
    if rows:
        yield "\n".join(["| Argument or option | Required | What it is |", "|---|---|---|", *rows, ""])
    if isinstance(command, TyperGroup):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], f"{path} {name}")


def _cli() -> str:
    parts = ["# Commands\n"]
    for group in sorted(GROUPS):
        parts += _commands(root.get_command(None, group), f"commonweal {group}")  # type: ignore[arg-type]
    return "\n".join(parts)


def _documented(model: type[BaseModel]) -> dict[str, str]:
    """Return the text that stands below each field in a model's source."""
    statements = [s for c in ast.parse(getsource(model)).body if isinstance(c, ast.ClassDef) for s in c.body]
    return {
        field.target.id: text.value.value
        for field, text in pairwise(statements)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _settings() -> str:
    parts = ["# Settings\n"]
    for file, model in _SETTINGS.items():
        parts += [f"## {file}\n", "| Setting | Required | What it is |", "|---|---|---|"]
        parts += [
            f"| `{name}` | {'yes' if field.is_required() else ''} | {_cell(_documented(model).get(name, ''))} |"
            for name, field in model.model_fields.items()
        ]
        parts.append("")
    return "\n".join(parts)


def _exit_codes() -> str:
    rows = [f"| {code} | {_cell(what)} |" for code, what in EXIT_CODES.items()]
    return "\n".join(["# Exit codes\n", "| Code | What it means |", "|---|---|", *rows, ""])


def reference() -> dict[str, str]:
    """Return each file's text by its path in the folder."""
    files = {"cli.md": _cli(), "settings.md": _settings(), "exit-codes.md": _exit_codes()}
    rows = []
    for uri, model in sorted(PREDICATES.items()):
        name = f"{model.__name__}.json"
        files[f"schemas/{name}"] = json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
        rows.append(f"| `{uri}` | {model.TITLE} | {model.AUTHOR} | [{name}](schemas/{name}) |")
    heads = ("| Kind | What it says | Who signs it | JSON Schema |", "|---|---|---|---|")
    files["schemas.md"] = "\n".join(["# Schemas of the statements\n", *heads, *rows, ""])
    return files


if __name__ == "__main__":
    for path, text in reference().items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")
