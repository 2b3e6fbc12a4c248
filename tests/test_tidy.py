"""The house rules that a program can check: lengths, file names, and the words that we do not use.

A file over 400 lines or a function over 60 is split where there is a seam; where there is none, one comment that begins
with ``# Long because`` says so: near the top of the file, or on the line above the function or its first line.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("protocols", "adapters", "node", "coordinator")
MAX_FILE_LINES, MAX_FUNCTION_LINES, TOP_LINES = 400, 60, 40
REASON = "# Long because "
FIELD_NOUNS = {"packing", "mixing", "keyring", "delta_encoding"}
"""Names that end as a participle does and are the field's nouns."""
BANNED = re.compile(
    r"\b(spelling|spelled|mend(s|ed|ing)?|held to|made again|made anew|stands by|takes? the turn|whoever"
    r"|comes to nothing|due of us|goes on)\b",
    re.IGNORECASE,
)
"""Words of a private dialect: canonical encoding, fix, check against, recompute, ratify, lock, anyone who, continue."""
UNBOUNDED = re.compile(r"\.read_(?:bytes|text)\(")
MAY_READ_UNBOUNDED = {
    "coordinator/commonweal_coordinator/serving/web.py": "a page of the program itself",
}
"""Where a file is read whole, whatever its size, and why; everywhere else :func:`files.read_bounded` reads it."""
HOME_PATH = re.compile(r"""home / f?["']|["'](?:node|coordinator)(?:\.toml|-home)["']""")
"""A place in a home folder; its one name is in the room's ``home.py``. Flower's folder is its own affair."""

ONLY_TESTS_USE = {
    "clusters": "groups of like institutions: what will propose sub-releases calls it",
    "detect_adapter_spec": "the spec of a base on disk: what will write a draft's terms calls it",
}
"""Public names without a caller in the product, each with the reason why it is there."""
HOUSE_DECORATORS = {"cache", "contextmanager", "dataclass", "runtime_checkable", "total_ordering"}
"""Decorators that call nothing; any other one (a command's) registers what it decorates, and so refers to it."""


def product() -> list[Path]:
    """Every module of the four rooms that a person has written."""
    return [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py")) if "_pb2" not in p.name]


def prose() -> list[Path]:
    """Every file whose words a user or a contributor reads; a community's own words are its own."""
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    rooms = [p for room in ROOMS for kind in ("*.md", "*.html") for p in (ROOT / room).rglob(kind)]
    return [*product(), *sorted(pages), *sorted(rooms), *sorted((ROOT / "deploy").glob("**/*.py"))]


def too_long(source: str) -> Iterator[str]:
    lines = source.splitlines()
    if len(lines) > MAX_FILE_LINES and not any(line.startswith(REASON) for line in lines[:TOP_LINES]):
        yield f"{len(lines)} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            above = lines[node.lineno - 2 : node.body[0].end_lineno]
            if length > MAX_FUNCTION_LINES and not any(line.strip().startswith(REASON) for line in above):
                yield f"{node.name}: {length} lines"


def banned(text: str) -> list[str]:
    return [f"line {text.count(chr(10), 0, m.start()) + 1}: {m[0]!r}" for m in BANNED.finditer(text)]


def participles(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith("ing") and name not in FIELD_NOUNS]


def imported_tests(source: str) -> Iterator[str]:
    """Every test module that is imported here, or whose names are."""
    for node in ast.walk(ast.parse(source)):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{name}" for name in found]
        yield from (name for name in found if name.startswith("tests.") and ".test_" in name)


def referred_to(tree: ast.Module) -> Iterator[str]:
    """Every name that a module uses, imports, or reads from an object; a definition's own name within it is none."""
    for top in tree.body:
        own = getattr(top, "name", None)
        for node in ast.walk(top):
            match node:
                case ast.ImportFrom():
                    yield from (alias.name for alias in node.names)
                case ast.Attribute(attr=name):
                    yield name
                case ast.Name(id=name) if name != own:
                    yield name
                case ast.Constant(value=str(name)) if name.isidentifier():
                    yield name


def public_names(tree: ast.Module) -> Iterator[str]:
    """The functions and classes at a module's top that nothing registers where they are defined."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            called = {re.split(r"[.(]", ast.unparse(d).removeprefix("functools."))[0] for d in node.decorator_list}
            if called <= HOUSE_DECORATORS:
                yield node.name


def test_files_and_functions_are_short_or_say_why_not() -> None:
    assert [f"{p.relative_to(ROOT)}: {found}" for p in product() for found in too_long(p.read_text("utf-8"))] == []


def test_files_are_read_with_a_bound() -> None:
    found = {str(p.relative_to(ROOT)) for p in product() if UNBOUNDED.search(p.read_text("utf-8"))}
    assert found - MAY_READ_UNBOUNDED.keys() == set()


def test_what_lies_in_a_home_is_named_in_one_place() -> None:
    for room in ("node", "coordinator"):
        own = ROOT / room / f"commonweal_{room}/home.py"
        modules = [p for p in product() if room in p.parts and p != own]
        found = {str(p.relative_to(ROOT)) for p in modules if HOME_PATH.search(p.read_text("utf-8"))}
        assert modules
        assert found == set()


def test_no_file_is_named_by_a_participle() -> None:
    shared = "from tests.kit.town import Town\nimport tests.kit.town\n"
    assert list(imported_tests(shared)) == []
    shared = "def f():\n    from tests.a.test_b import c, d\nfrom tests.a import test_b\nimport tests.test_b as e\n"
    assert sorted(imported_tests(shared)) == ["tests.a.test_b", "tests.a.test_b.c", "tests.a.test_b.d", "tests.test_b"]
    code = "def used(): used(1)\n@cache\ndef cached(): used()\n@app.command()\ndef said(): ...\ndef _own(): ...\n"
    assert list(public_names(ast.parse(code))) == ["used", "cached"]
    assert set(referred_to(ast.parse(code))) == {"used", "cache", "command", "app"}
    assert set(referred_to(ast.parse("def f(): f()\nfrom a import g\nh.i('j', 'k l')"))) == {"g", "h", "i", "j"}
    assert participles([p.stem for p in product()]) == []


def test_no_test_module_imports_another() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert [
        f"{p.relative_to(ROOT)} imports {name}: move what they share into tests/kit/"
        for p in files
        for name in imported_tests(p.read_text("utf-8"))
    ] == []


def test_what_is_public_has_a_caller_besides_its_tests() -> None:
    modules = {p: ast.parse(p.read_text("utf-8")) for p in [*product(), *(ROOT / "deploy").glob("**/*.py")]}
    used = {name for tree in modules.values() for name in referred_to(tree)}
    pages = [p.read_text("utf-8") for p in prose() if p.suffix == ".md"]
    used |= {
        word
        for page in pages
        for code in re.findall(r"```.*?```|`[^`\n]+`", page, re.DOTALL)
        for word in re.findall(r"\w+", code)
    }
    used |= set(re.findall(r"\w+", (ROOT / "pyproject.toml").read_text("utf-8")))
    unused = {
        f"{p.relative_to(ROOT)}: {n}": n for p, tree in modules.items() for n in public_names(tree) if n not in used
    }
    assert [
        f"{where}: delete it, or say in ONLY_TESTS_USE why not"
        for where, n in unused.items()
        if n not in ONLY_TESTS_USE
    ] == []
    assert set(ONLY_TESTS_USE) - set(unused.values()) == set(), "these have a caller by now, or are gone"


@pytest.mark.parametrize("path", prose(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_words_are_the_fields(path: Path) -> None:
    assert banned(path.read_text("utf-8")) == []


def test_each_rule_finds_what_breaks_it() -> None:
    body = "".join(f"    x = {i}\n" for i in range(MAX_FUNCTION_LINES))
    assert list(too_long(f"def f():\n{body}")) == [f"f: {MAX_FUNCTION_LINES + 1} lines"]
    assert list(too_long(f"{REASON}of the table.\ndef f():\n{body}")) == []
    assert list(too_long("x = 1\n" * (MAX_FILE_LINES + 1))) == [f"{MAX_FILE_LINES + 1} lines"]
    assert list(too_long(f"{REASON}of the table.\n" + "x = 1\n" * MAX_FILE_LINES)) == []
    assert participles(["speaking", "packing", "ring"]) == ["speaking", "ring"]
    assert UNBOUNDED.search("path.read_bytes()")
    assert UNBOUNDED.search('path.read_text("utf-8")')
    assert HOME_PATH.search('self._home / "keys"')
    assert HOME_PATH.search("home / f'{name}.json'")
    assert HOME_PATH.search('Path("node-home")')
    assert banned("It holds.\nIts one Spelling is mended.") == ["line 2: 'Spelling'", "line 2: 'mended'"]
