"""The public face: its names, its examples, and that it loads nothing heavy."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import commonweal
from tests.kit.federation import two_rounds

NAMES = [
    "CharterRecord",
    "Checkpoint",
    "Compact",
    "Report",
    "Statement",
    "audit",
    "load_adapter",
    "load_recompute",
    "merge",
    "open_checkpoint",
    "open_entry",
    "open_records",
    "open_verdict",
    "recompute_start",
    "replay",
]
EXAMPLES = {
    found[1]: textwrap.dedent(found[2])
    for found in re.finditer(r"^An? (\w+) [^\n]*::\n\n((?:    [^\n]*\n)+)", commonweal.__doc__ or "", re.MULTILINE)
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(two_rounds().publish(tmp_path_factory.mktemp("face")))


def test_the_names_are_these_and_each_is_there() -> None:
    assert commonweal.__all__ == NAMES == dir(commonweal)
    for name in NAMES:
        assert getattr(commonweal, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = commonweal.nothing


def test_type_checkers_see_the_places_that_are_loaded() -> None:
    assert commonweal.__file__ is not None
    seen = {
        (alias.asname or alias.name): f"{node.module}:{alias.name}"
        for node in ast.walk(ast.parse(Path(commonweal.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("commonweal_")
        for alias in node.names
    }
    assert seen == commonweal._PLACES


@pytest.mark.parametrize("role", ["auditor", "consortium", "laboratory"])
def test_the_example_of_each_role_runs(role: str, records: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES[role].splitlines()) == 4
    exec(EXAMPLES[role], {"records": records})
    assert capsys.readouterr().out


def test_importing_it_loads_nothing_and_a_missing_extra_is_named() -> None:
    code = """
import sys
before = set(sys.modules)
import commonweal
new = {m.partition(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert new == {"commonweal"}, new
sys.modules["numpy"] = None
try:
    commonweal.merge
except ModuleNotFoundError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pip install 'commonweal[recompute]'" in done.stdout
