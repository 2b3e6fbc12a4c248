"""Every command in the documentation is one that the program takes: its name, its options, its required arguments.

A whole line (in a code block) is parsed in full and nothing is run. A command that a sentence names may leave arguments
out, so of those the name and the options are checked.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.core import TyperGroup

from commonweal_protocols.cli import root

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    p
    for pattern in ("*.md", "*/**/*.md")
    for p in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)
)
_LINE = re.compile(r"^\s*(?:commonweal |\.venv/bin/commonweal |accelerate .* -m commonweal_protocols )(?!\d)(.*)")
_NAMED = re.compile(r"`commonweal ([a-z][^`]*)`")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_WrongUsage = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def _resolve(args: list[str]) -> tuple[Any, Any, list[str]]:
    """Return the command, its parent's context, and the arguments that are left for it."""
    command: Any = root
    context: Any = typer.Context(root, info_name="commonweal")
    while isinstance(command, TyperGroup) and args:
        name, command, args = command.resolve_command(context, args)
        context = typer.Context(command, parent=context, info_name=name)
    return command, context.parent, args


def parse_line(text: str) -> None:
    """Parse a whole command line. Raises what the program raises on wrong usage."""
    command, context, args = _resolve(shlex.split(text, comments=True))
    command.make_context("commonweal", args, parent=context)


def parse_named(text: str) -> None:
    """Check the name and the options of a command that may lack arguments."""
    command, _, _ = _resolve(re.sub(r"[][]", "", text).split())
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    if unknown := sorted(set(_OPTION.findall(text)) - known):
        raise typer.BadParameter(f"no such option: {unknown}")


def commands(page: str) -> Iterator[tuple[int, Any, str]]:
    """Each command of a page: its line's number, how it is parsed, and its text."""
    lines = iter(enumerate(page.splitlines(), start=1))
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines, (0, ""))[1]
        if whole := _LINE.match(line):
            yield number, parse_line, whole[1]
        for named in _NAMED.finditer(line):
            yield number, parse_named, named[1]


def wrong(page: str) -> Iterator[tuple[int, str]]:
    """Each command of a page that the program would refuse: its line's number, and why."""
    for number, parse, text in commands(page):
        try:
            parse(text)
        except _WrongUsage as e:
            yield number, f"commonweal {text}: {e.format_message()}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_is_one_that_the_program_takes(path: Path) -> None:
    found = [f"{path.relative_to(ROOT)}:{n}: {why}" for n, why in wrong(path.read_text("utf-8"))]
    assert found == [], "\n".join(found)


def test_the_pages_have_commands_of_both_kinds() -> None:
    parsers = [parse for path in PAGES for _, parse, _ in commands(path.read_text("utf-8"))]
    assert min(parsers.count(parse_line), parsers.count(parse_named)) >= 20


@pytest.mark.parametrize(("folder", "most"), [("guides", 60), ("internals/decisions", 40)])
def test_a_guide_is_one_task_and_a_decision_one_page(folder: str, most: int) -> None:
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in (ROOT / "docs" / folder).glob("[!R]*.md")}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_decisions_are_numbered_without_a_gap_and_titled_by_their_number() -> None:
    pages = sorted((ROOT / "docs/internals/decisions").glob("[!R]*.md"))
    numbers = [f"{n:04d}" for n in range(1, len(pages) + 1)]
    assert [p.name[:4] for p in pages] == numbers
    assert [p.read_text("utf-8")[:8] for p in pages] == [f"# {n}: " for n in numbers]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("commonweal nonsense", "No such command"),
        ("commonweal vote nonsense", "No such command"),
        ("commonweal node status --nonsense", "No such option"),
        ("commonweal node status \\\n  --nonsense", "No such option"),
        ("    commonweal vote cast", "Missing argument"),
        ("commonweal vote cast MOTION yes no", "unexpected extra argument"),
        ("accelerate launch --multi_gpu -m commonweal_protocols node run --nonsense", "No such option"),
        ("See `commonweal vote nonsense`.", "No such command"),
        ("See `commonweal nonsense invite.json`.", "No such command"),
        ("See `commonweal node status --nonsense`.", "no such option"),
        ("See `commonweal node status [--nonsense]`.", "no such option"),
        ("See `commonweal node join --fork-source RECORDS --nonsense`.", "no such option"),
    ],
)
def test_a_wrong_command_is_found(line: str, why: str) -> None:
    [(number, text)] = list(wrong(f"Text.\n\n{line}\n"))
    assert why in text
    assert number == 3
