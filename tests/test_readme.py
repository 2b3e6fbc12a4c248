"""The READMEs: every link leads somewhere, and each room's map has all of its modules."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = sorted(
    p
    for pattern in ("*/**/README.md", "*.md", "docs/**/*.md")
    for p in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)
)


def test_every_room_has_a_readme() -> None:
    assert {p.parent.name for p in READMES} >= {ROOT.name, "protocols", "adapters", "node", "coordinator"}


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_the_makefile_has_the_two_commands_that_the_readme_promises() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    promised = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(promised) == {"demo", "test"}
    assert set(promised) <= set(targets)


@pytest.mark.parametrize("room", ["protocols", "adapters", "node", "coordinator"])
def test_the_module_map_of_a_room_names_every_module_and_nothing_else(room: str) -> None:
    text = (ROOT / room / "README.md").read_text("utf-8").partition("## Module map")[2]
    mapped, folder = [], ""
    for line in text.splitlines():
        if line.startswith("### "):
            folder = line.strip("# `") if "`" in line else ""
        elif row := re.match(r"\| `(\w+\.py)` \| \S", line):
            mapped.append(folder + row[1])
    package = ROOT / room / f"commonweal_{room}"
    modules = (p for p in package.rglob("*.py") if p.name != "__init__.py" and "_pb2" not in p.name)
    assert sorted(mapped) == sorted(p.relative_to(package).as_posix() for p in modules)
