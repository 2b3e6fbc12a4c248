"""The committed reference is what the code makes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/reference"


def test_the_committed_reference_is_fresh() -> None:
    fresh = runpy.run_path(str(ROOT / "deploy/reference.py"))["reference"]()
    generated = {*FOLDER.glob("schemas/*.json"), *(FOLDER / path for path in fresh)}
    committed = {str(p.relative_to(FOLDER)): p.read_text("utf-8") for p in generated}
    assert committed == fresh, "run: .venv/bin/python deploy/reference.py"
