"""The rooms: an auditor's path meets no heavy package, and help needs none."""

import ast
import graphlib
import json
from pathlib import Path

import pytest

from tests.kit.blocked_imports import run_blocked


def test_every_protocols_module_but_wire_imports_without_a_heavy_package() -> None:
    code = """
import importlib, json, pkgutil, commonweal_protocols
walked = pkgutil.walk_packages(commonweal_protocols.__path__, "commonweal_protocols.")
names = [m.name for m in walked if not {"wire", "__main__"} & set(m.name.split("."))]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
    assert {f"commonweal_protocols.{m}" for m in ("audit.audit", "audit.cli", "cli", "fold.fold")} <= set(
        json.loads(done.stdout)
    )


def test_the_block_blocks() -> None:
    assert "blocked: numpy" in run_blocked("import numpy").stderr


@pytest.mark.parametrize("args", [["--help"], ["audit", "run", "--help"], ["witness", "run", "--help"]])
def test_help_needs_no_extra(args: list[str]) -> None:
    done = run_blocked(f"from commonweal_protocols.cli import run; sys.exit(run({args!r}))")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("args", [["node", "join", "invite.json"], ["coordinator", "--help"]])
def test_a_missing_extra_exits_3_and_names_the_command_that_fixes_it(args: list[str]) -> None:
    done = run_blocked(f"from commonweal_protocols.cli import run; sys.exit(run({args!r}))")
    assert done.returncode == 3
    assert f"pip install 'commonweal[{args[0]}]'" in done.stderr


def test_an_audit_without_the_arithmetic_says_what_to_install(tmp_path: object) -> None:
    done = run_blocked(f"from commonweal_protocols.cli import run; sys.exit(run(['audit', 'run', {str(tmp_path)!r}]))")
    assert done.returncode == 3
    assert "pip install 'commonweal[recompute]'" in done.stderr
    assert "--no-recompute" in done.stderr


ROOMS = ("protocols", "adapters", "node", "coordinator")
ROOT = Path(__file__).resolve().parent.parent


def _own_modules(folders: list[Path]) -> dict[str, Path]:
    """Each module's dotted name and file; the folders stand on the import path."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which of ``modules`` each one imports, inside functions and for type checkers too."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                wanted |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                submodules = {f"{node.module}.{a.name}" for a in node.names} & modules.keys()
                wanted |= submodules or {node.module}
        graph[name] = (wanted & modules.keys()) - {name}
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = _own_modules([ROOT / room for room in ROOMS])
    assert {"commonweal_node.training.team", "commonweal_protocols.audit.audit"} <= modules.keys()
    graphlib.TopologicalSorter(_import_graph(modules)).prepare()


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("def late() -> None:\n    from a import x\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(_import_graph(_own_modules([tmp_path]))).prepare()


def _flower_modules(source: str) -> set[str]:
    """Every module of Flower that is imported here, but for those of its public API."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name for name in names if name.split(".")[0] == "flwr"}
    return found - {"flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.serverapp", "flwr.serverapp.strategy"}


def test_of_flower_only_the_public_api_is_imported() -> None:
    paths = [p for folder in (*ROOMS, "tests/kit", "deploy") for p in sorted((ROOT / folder).rglob("*.py"))]
    assert {str(p): found for p in paths if (found := _flower_modules(p.read_text("utf-8")))} == {}
    assert _flower_modules("def f():\n    from flwr.common import x\nimport flwr.app\n") == {"flwr.common"}
