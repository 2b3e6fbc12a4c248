"""Every package that a room imports is declared for the extra of that room, and every declared one is imported."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# What each room may import: the base install, and these extras.
EXTRAS = {
    "protocols": (),
    "adapters": ("recompute",),
    "node": ("node", "data", "tensorboard", "flower"),
    "coordinator": ("coordinator", "object-store"),
}
# Modules of a room that need an extra of their own.
NEEDS = {
    "protocols/commonweal_protocols/wire": ("coordinator",),  # of both sides: node brings the same packages
    "protocols/commonweal_protocols/base/ed25519.py": ("fast",),
}
# Declared, though no module of ours imports them: why.
UNIMPORTED = {"gguf": "transformers imports it to read a base model in that format"}

_DISTRIBUTIONS = {**packages_distributions(), "google-protobuf": ["protobuf"]}


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found.group()).lower()


@cache
def declared(extra: str) -> frozenset[str]:
    """The distributions of the base install and of one extra, with the extras that it names."""
    found = {_name(r) for r in PROJECT["dependencies"]}
    for requirement in PROJECT["optional-dependencies"].get(extra, ()):
        if own := re.match(r"commonweal\[([a-z-]+)\]", requirement):
            found |= declared(own.group(1))
        else:
            found.add(_name(requirement))
    return frozenset(found)


@cache
def imported(path: Path) -> frozenset[str]:
    """The third-party distributions that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            # The first text of the argument: all of it, or what stands before the first {…}; none of a variable.
            constants = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
            names |= {c for c in constants[:1] if isinstance(c, str)}
    tops = {"google-protobuf" if n.startswith("google.protobuf") else n.partition(".")[0] for n in names}
    third = {t for t in tops if t not in sys.stdlib_module_names and not t.startswith("commonweal")}
    # One import name may be of several distributions; a name that is not installed stands for itself.
    return frozenset(_name(sorted(_DISTRIBUTIONS.get(t, [t]), key=lambda d: _name(d) != _name(t))[0]) for t in third)


def _modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", EXTRAS)
def test_what_a_room_imports_is_declared_for_its_extra(room: str) -> None:
    assert _modules(room)
    for path in _modules(room):
        own = str(path.relative_to(ROOT))
        extras = EXTRAS[room] + tuple(e for where, more in NEEDS.items() if own.startswith(where) for e in more)
        allowed = declared("").union(*(declared(e) for e in extras))
        assert imported(path) <= allowed, f"{own}: {sorted(imported(path) - allowed)} are not declared"


def test_what_is_declared_is_imported_or_has_a_reason() -> None:
    used = frozenset[str]().union(*(imported(path) for room in EXTRAS for path in _modules(room)))
    everything = frozenset[str]().union(*(declared(extra) for extra in PROJECT["optional-dependencies"]))
    assert everything - used == UNIMPORTED.keys()
